"""The training forward, its chunks, its optimizer: trained weights mean the same when served."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import parse_config
from model.nano import default_checkpoint
from model.nano.data.canvas import Style
from model.nano.data.fonts import HELD_OUT_FACES, held_out_faces
from model.nano.data.looking import look_lesson
from model.nano.data.scene import KINDS, Mark
from model.nano.data.talk import View, talk_of
from model.nano.data.tasks import text_lesson, tool_lesson
from model.nano.data.texts import arithmetic
from model.nano.inspect import inspect_checkpoint
from model.nano.shape import Shape, hub_config
from model.nano.train import chunks
from model.nano.train.chunks import TEXT, ChunkMaker, ChunkShape, cut_view
from model.nano.train.curves import counted_through
from model.nano.train.graphs import ChunkRunner
from model.nano.train.losses import Weights, measure
from model.nano.train.muon import Muon, orthogonalise
from model.nano.train.network import Network, initialise
from model.nano.train.rows import RowMaker
from model.text.chat import Conversation
from model.text.prompt import PromptBuilder

FACES = held_out_faces()
FEW = replace(TEXT, num_rows=4, num_targets=128)


@pytest.fixture(scope="module")
def faces_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("faces")
    for face in FACES:
        path = Path(face.path)
        (directory / path.name).symlink_to(path)
    return directory


@pytest.fixture(scope="module")
def rows() -> RowMaker:
    return RowMaker(default_checkpoint())


def small_network(seed: int = 0) -> Network:
    network = Network(parse_config(hub_config(Shape())), chunks.NUM_SLOTS, chunks.NUM_KINDS)
    initialise(network, torch.Generator().manual_seed(seed))
    return network


def weights(token: float, place: float = 0.0, draft: float = 0.0) -> Weights:
    return Weights(*(torch.tensor(value) for value in (token, place, draft)))


@pytest.mark.parametrize("make", [look_lesson, tool_lesson])
def test_a_row_begins_with_the_ids_that_the_server_makes(rows: RowMaker, make: object) -> None:
    assert callable(make)
    lesson = make(random.Random(3), Style(FACES))
    talk = lesson.talks[0]
    plans = [cut_view(view).plan for view in lesson.views]
    row = rows.row(talk, plans)
    conversation = talk.conversation
    builder = PromptBuilder.load(default_checkpoint(), vocab_size=448)
    first_turn = Conversation(conversation.messages[:1], conversation.tools, conversation.reasoning_effort)
    content = first_turn.messages[0].content
    assert not isinstance(content, str)
    text_only = replace(first_turn.messages[0], content=tuple(p for p in content if p.type == "text"))
    prompt_ids = builder.from_chat(replace(first_turn, messages=(text_only,))).prompt_ids
    without_image = [i for i, (view, _) in zip(row.ids, row.places, strict=True) if view < 0]
    markers = {rows.tokenizer.control_id(name) for name in ("<im_start>", "<im_end>")}
    markers |= {rows.tokenizer.control_id(f"<patch_{name}>") for name in ("start", "end", "newline")}
    assert tuple(i for i in without_image if i not in markers)[: len(prompt_ids)] == prompt_ids


def test_what_is_learned_is_what_the_model_writes(rows: RowMaker) -> None:
    exchange = replace(arithmetic(random.Random(5)), thought="first this", answer="42")
    row = rows.row(talk_of("text", exchange, (), None), [])
    learned = [i for i, is_learned in zip(row.ids, row.is_learned, strict=True) if is_learned]
    assert rows.tokenizer.decode(learned, skip_special=False) == "first this\n</think>\n42<|im_end|>"


def test_a_mark_is_labelled_where_it_stands_in_each_view() -> None:
    from PIL import Image

    picture = Image.new("RGB", (1008, 1008))
    cut = cut_view(View(picture, (Mark("A", 504 + 56 * 2 + 3, 56 * 4 + 20),)))
    kind = KINDS.index("A") + 1
    # Tile 1 (right, upper) at (115, 244): cell row 4, column 2; 3 px are place 0, 20 px are the second line.
    # The global view has it at (447.1, 176.2): cell row 3, column 7; place 7, first line.
    assert sorted(cut.marks) == [(-1, 3 * 13 + 7, 7, kind), (1, 4 * 9 + 2, 8, kind)]


@pytest.mark.parametrize("shape", [replace(s, num_rows=min(s.num_rows, 6)) for s in chunks.SHAPES])
def test_every_chunk_has_the_full_size_of_its_shape(faces_dir: Path, shape: ChunkShape) -> None:
    shape = replace(shape, num_globals=min(shape.num_globals, 6))
    chunk = ChunkMaker(faces_dir, default_checkpoint(), seed=1).chunk(shape)
    assert chunk.globals_GSS3.shape == (shape.num_globals, 728, 728, 3)
    assert chunk.tiles_NSS3.shape == (shape.num_tiles, 504, 504, 3)
    assert chunk.ids_RL.shape == chunk.place_RL.shape == (shape.num_rows, shape.row_len)
    assert chunk.target_X.shape == chunk.depth_X.shape == (shape.num_targets,)
    assert chunk.mark_M3.shape == (shape.num_marks, 3)
    assert 0 < chunk.num_targets <= shape.num_targets
    num_views_rows = shape.num_globals * 169 + shape.num_tiles * 81
    assert int(chunk.place_RL.max()) < max(num_views_rows, 1)


def test_what_fills_a_chunk_up_changes_no_number(faces_dir: Path) -> None:
    network = small_network()
    chunk = ChunkMaker(faces_dir, default_checkpoint(), seed=2).chunk(FEW)
    roomier = ChunkMaker(faces_dir, default_checkpoint(), seed=2).chunk(replace(FEW, num_targets=500))
    assert chunk.num_targets == roomier.num_targets < 128
    one = measure(network, chunk, FEW, weights(1.0, draft=1.0), has_drafts=True)
    other = measure(network, roomier, FEW, weights(1.0, draft=1.0), has_drafts=True)
    assert torch.allclose(one.loss, other.loss)
    assert torch.equal(one.exact_K2, other.exact_K2)
    assert torch.equal(one.draft_right_I2, other.draft_right_I2)


@pytest.mark.slow
def test_training_learns_a_few_answers_by_heart(faces_dir: Path) -> None:
    network = small_network()
    chunk = ChunkMaker(faces_dir, default_checkpoint(), seed=2).chunk(FEW)
    parameters = [p for p in network.parameters() if p.requires_grad]
    runner = ChunkRunner(network, parameters, torch.device("cpu"))
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(40):
        runner.zero()
        measured = runner.run(FEW, chunk, token=1 / chunk.num_targets, place=0.0, draft=0.0, has_drafts=False)
        losses.append(float(measured.token_loss) / chunk.num_targets)
        optimizer.step()
    assert losses[0] > 4
    assert losses[-1] < 1, losses


def test_heads_of_a_kind_keep_one_norm_scale(faces_dir: Path) -> None:
    network = small_network()
    chunk = ChunkMaker(faces_dir, default_checkpoint(), seed=2).chunk(FEW)
    measure(network, chunk, FEW, weights(1.0), has_drafts=False).loss.backward()
    attention = network.decoder.layers[0].attention
    grad_ND = attention.qk_scale.grad
    num_q = attention.num_heads
    assert (grad_ND[:num_q] == grad_ND[0]).all()
    assert (grad_ND[num_q:] == grad_ND[num_q]).all()
    assert grad_ND[0].abs().sum() > 0


def test_orthogonalised_matrices_keep_their_directions() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert float((result * matrices).sum()) > 0


def test_muon_moves_a_stack_as_it_moves_its_matrices() -> None:
    generator = torch.Generator().manual_seed(1)
    stack, grad = torch.randn(4, 8, 12, generator=generator), torch.randn(4, 8, 12, generator=generator)
    whole = torch.nn.Parameter(stack.clone())
    parts = [torch.nn.Parameter(matrix.clone()) for matrix in stack]
    whole.grad = grad.clone()
    for part, part_grad in zip(parts, grad, strict=True):
        part.grad = part_grad.clone()
    for parameters in ([whole], parts):
        Muon(parameters).step(1e-2)
    assert torch.allclose(whole, torch.stack(list(parts)), atol=1e-3)
    assert not torch.allclose(whole, stack, atol=1e-3)


def test_a_second_run_counts_its_steps_on() -> None:
    lines = [{"step": 50}, {"step": 100}, {"step": 50}]
    assert [line["step"] for line in counted_through(lines)] == [50, 100, 150]


def test_the_log_of_the_weights_is_there_and_readable() -> None:
    path = default_checkpoint().parent / "train" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"step", "loss", "exact", "places", "drafts", "load"} <= lines[-1].keys()


def test_text_lessons_need_no_picture() -> None:
    assert text_lesson(random.Random(0)).views == ()


def test_no_test_face_trains() -> None:
    from model.nano.data.typefaces import FAMILIES

    names = {family.split("@")[0].replace("-", "_") for family in FAMILIES}
    assert not names & {package.removeprefix("font_") for package in HELD_OUT_FACES}
    assert "red_hat_display" not in names
    assert "source_serif_4" not in names


@pytest.mark.slow
def test_a_checkpoint_is_at_no_distance_from_itself() -> None:
    found = inspect_checkpoint(
        default_checkpoint(), Style(FACES), count=9, seed=1, against=default_checkpoint()
    )
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["same_next_token"] == 1.0
    assert 0 < found["drafts_accepted"][0] <= 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_training_forward_agrees_with_the_engine() -> None:
    from model.nano import inspect

    spoken = list(inspect._speak(default_checkpoint(), Style(FACES), 9, 1))
    network = inspect.network_of(default_checkpoint())
    with torch.inference_mode():
        for one in spoken:
            hidden = network.decode(inspect._embed(network, one)).last_BLH
            tokens = inspect._answer_logits(network, hidden, one).argmax(-1).tolist()
            assert tokens == list(one.answer_ids), one.prompt.text[-200:]


@torch.inference_mode()
def test_what_rows_are_filled_up_with_is_no_load_of_the_experts() -> None:
    network = small_network()
    ids_1L = torch.randint(3, 400, (1, 40), generator=torch.Generator().manual_seed(2))
    filled_1L = torch.cat((ids_1L, torch.zeros(1, 60, dtype=torch.long)), dim=1)
    alone = network.decode(torch.nn.functional.embedding(ids_1L, network.decoder.embedding))
    filled = network.decode(
        torch.nn.functional.embedding(filled_1L, network.decoder.embedding), filled_1L != 0
    )
    torch.testing.assert_close(filled.load_LE, alone.load_LE)
