"""Our network against transformers.models.step3p7: same tokens, logits within 1e-4, float32.

Every prompt runs in one mixed batch here, and alone there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from harness import CPU, greedy, local_runner, random_prompts, run
from oracle import first_near_tie, logits_along

from model.nano.shape import NUM_TEXT_IDS, TokenIds
from model.net.vision import VisionTower
from model.options import EngineOptions
from model.types import ImageSpan
from model.weights import Checkpoint, load_vision, open_checkpoint

NUM_TOKENS = 24
IMAGE_ID = TokenIds().image
MAX_DIFFERENCE = 1e-4
MAX_EXCUSED = 0.05
# Shorter than, about as long as, and longer than the window of 64; several at once.
LENGTHS = (1, 5, 63, 64, 65, 333)


@pytest.fixture(
    scope="module", params=["hub", "save_pretrained", pytest.param("hub-bf16", marks=pytest.mark.slow)]
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("checkpoint")
    if request.param == "save_pretrained":
        # Original context 64: llama3 scaling bends frequencies within these prompts.
        checkpoints.make_save_pretrained_checkpoint(directory, original_context_len=64, seed=1)
    else:
        dtype = "bfloat16" if request.param == "hub-bf16" else "float32"
        checkpoints.make_hub_checkpoint(directory, original_context_len=64, dtype=dtype, num_files=2)
    return open_checkpoint(directory)


def pixels(num_views: int, side: int, seed: int) -> torch.Tensor:
    return torch.randn(num_views, 3, side, side, generator=torch.Generator().manual_seed(seed))


def image_prompt(num_tiles: int, seed: int) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Text, tiles of 81 slots each between markers, a global view of 169, text."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(3, NUM_TEXT_IDS, (7,), generator=generator).tolist()
    spans, offset = [], 0
    for num_slots in [81] * num_tiles + [169]:
        prompt.append(5)  # any token stands for the marker before a view
        spans.append(ImageSpan(len(prompt), num_slots, f"image-{seed}", offset))
        prompt += [IMAGE_ID] * num_slots
        offset += num_slots
    return [*prompt, 9, 10, 11], tuple(spans)


def compare(
    checkpoint: Checkpoint,
    prompts: dict[str, tuple[list[int], tuple[ImageSpan, ...], dict[str, Any]]],
    embeddings: dict[str, torch.Tensor],
) -> None:
    """Run all prompts together and hold each against the reference; print and count excuses."""
    options = EngineOptions(chunk_tokens=96)
    runner, decoder = local_runner(checkpoint, options)
    for key, rows_NH in embeddings.items():
        runner.put_embedding(key, rows_NH)
    ours, logits = {}, {}
    for name, (prompt, spans, _) in prompts.items():  # alone, to know whose logits are whose
        decoder.logits.clear()
        ours[name] = run(checkpoint, runner, options, {name: (prompt, greedy(NUM_TOKENS), spans)})[name]
        logits[name] = torch.stack(decoder.logits[:NUM_TOKENS])
        for key, rows_NH in embeddings.items():
            runner.put_embedding(key, rows_NH)
    together = run(
        checkpoint, runner, options, {n: (p, greedy(NUM_TOKENS), s) for n, (p, s, _) in prompts.items()}
    )
    reference = checkpoints.reference_model(checkpoint.directory)
    num_excused = 0
    for name, (prompt, _, images) in prompts.items():
        chosen = ours[name].token_ids
        assert len(chosen) == NUM_TOKENS
        expected = logits_along(reference, prompt, chosen, **images)
        first = first_difference(logits[name], expected, chosen, together[name].token_ids)
        if first == NUM_TOKENS:
            continue
        reference64 = checkpoints.reference_model(checkpoint.directory, torch.float64)
        tie = first_near_tie(reference64, prompt, chosen, **images)
        assert first >= tie, f"{name}: token {first} differs without a near tie"
        print(f"excused: {name} from token {first} on: near tie at {tie}")
        num_excused += 1  # what follows continues another text
    assert num_excused <= MAX_EXCUSED * NUM_TOKENS * len(prompts), f"{num_excused} excused"


def first_difference(
    logits: torch.Tensor, expected: torch.Tensor, chosen: list[int], together: list[int]
) -> int:
    """The first token that transformers would not have chosen, or whose logits are not its logits."""
    for index, token in enumerate(chosen):
        is_close = float((logits[index] - expected[index]).abs().max()) < MAX_DIFFERENCE
        if not is_close or int(expected[index].argmax()) != token or together[index] != token:
            return index
    return len(chosen)


def test_text_of_any_length_continues_as_transformers_does(checkpoint: Checkpoint) -> None:
    prompts = random_prompts(LENGTHS, NUM_TEXT_IDS)
    compare(checkpoint, {name: (ids, (), {}) for name, ids in prompts.items()}, {})


@torch.inference_mode()
def encode(tower: VisionTower, views: dict[str, torch.Tensor]) -> torch.Tensor:
    parts = [tower(views["pixel_values_local"])] if "pixel_values_local" in views else []
    return torch.cat([rows.flatten(0, 1) for rows in (*parts, tower(views["pixel_values"]))])


def test_images_with_and_without_tiles_continue_as_transformers_does(checkpoint: Checkpoint) -> None:
    tower = load_vision(checkpoint, torch.float32, CPU)
    prompts, embeddings = {}, {}
    for num_tiles in (0, 2):
        prompt, spans = image_prompt(num_tiles, num_tiles)
        views: dict[str, Any] = {"pixel_values": pixels(1, 728, num_tiles), "num_local_patches": [num_tiles]}
        if num_tiles:
            views["pixel_values_local"] = pixels(num_tiles, 504, 100 + num_tiles)
        prompts[f"{num_tiles} tiles"] = (prompt, spans, views)
        embeddings[spans[0].key] = encode(tower, views)
    prompts["text"] = (random_prompts((70,), NUM_TEXT_IDS)["0-70"], (), {})
    compare(checkpoint, prompts, embeddings)


@pytest.mark.parametrize("side", [728, 504])
def test_the_vision_tower_gives_the_rows_of_transformers(checkpoint: Checkpoint, side: int) -> None:
    views = pixels(2, side, 7)
    reference = checkpoints.reference_model(checkpoint.directory).model
    with torch.inference_mode():
        expected = reference.multi_modal_projector(reference.vision_model(views).last_hidden_state)
        rows = load_vision(checkpoint, torch.float32, CPU)(views)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_given_image_token_id_outside_of_an_image_is_an_ordinary_token(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.make_hub_checkpoint(tmp_path))
    runner, _ = local_runner(checkpoint, EngineOptions())
    prompts = {"with": ([7, IMAGE_ID, 8], greedy(4), ()), "without": ([7, 9, 8], greedy(4), ())}
    answers = run(checkpoint, runner, EngineOptions(), prompts)
    assert answers["with"].error is None
    assert answers["with"].token_ids != answers["without"].token_ids
