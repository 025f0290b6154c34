"""A run of training from end to end on a CPU, text alone: it steps, saves, and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.nano.data.fonts import held_out_faces
from model.nano.train import chunks, loop
from model.nano.train.chunks import TEXT
from model.nano.train.finish import network_of, quantized_copy
from model.nano.train.loop import Plan, Trainer
from model.weights import open_checkpoint

CPU = torch.device("cpu")
FEW = replace(TEXT, num_rows=4, num_targets=128)


@pytest.fixture(scope="module")
def plan(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    faces = tmp_path_factory.mktemp("faces")
    for face in held_out_faces():
        (faces / Path(face.path).name).symlink_to(face.path)
    out = tmp_path_factory.mktemp("out")
    return Plan(faces, random_checkpoint, out, run_s=4.0, reading_share=1.0, draft_share=0.0, num_workers=1)


@pytest.fixture(scope="module")
def finished(plan: Plan) -> Trainer:
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, chunks):  # the worker process is forked and sees it, too
            patch.setattr(module, "SHAPES", (FEW,))
        patch.setattr(loop, "READING_STEP", (FEW,))
        patch.setattr(loop, "READING_SHARES", (1.0, 1.0))
        patch.setattr(loop, "NUM_KEPT", {FEW: 4})
        patch.setattr(loop, "CLOCK_EVERY", 1)
        patch.setattr(loop.Log, "EVERY", 1)
        trainer = Trainer(plan, 0, 1, CPU)
        trainer.run()
    return trainer


@pytest.mark.slow
def test_a_run_takes_in_chunks_and_logs_its_steps(plan: Plan, finished: Trainer) -> None:
    lines = [json.loads(line) for line in (plan.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, finished.step + 1))
    assert len(lines) > 1
    assert lines[-1]["chunks_made"] > 1
    assert lines[-1]["loss"] < lines[0]["loss"] + 0.5


@pytest.mark.slow
def test_what_computes_is_what_the_optimizers_moved_in_bfloat16(finished: Trainer) -> None:
    before = Trainer(finished.plan, 0, 1, CPU)
    for name, master in finished.masters.items():
        assert torch.equal(finished.trained[name], master.to(finished.trained[name].dtype)), name
    assert not torch.equal(before.masters["decoder.head"], finished.masters["decoder.head"])


@pytest.mark.slow
def test_a_state_goes_on_where_it_was(plan: Plan, finished: Trainer) -> None:
    again = Trainer(replace(plan, resume=plan.out / "state.pt"), 0, 1, CPU)
    assert again.step == finished.step
    assert all(torch.equal(again.masters[name], master) for name, master in finished.masters.items())
    moments, expected = again.muon.state_dict(), finished.muon.state_dict()
    assert all(torch.equal(moments[shape], expected[shape]) for shape in expected)


def test_a_checkpoint_gives_its_weights_and_nothing_else(plan: Plan, random_checkpoint: Path) -> None:
    trainer = Trainer(replace(plan, resume=random_checkpoint), 0, 1, CPU)
    wanted = network_of(random_checkpoint).state_dict()
    assert trainer.step == 0
    assert all(torch.equal(m, wanted[name]) for name, m in trainer.masters.items() if name != "places")


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_quantized_copy_differs_in_its_experts_alone(
    random_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    assert quantized_copy(random_checkpoint, tmp_path, name) > 0  # type: ignore[arg-type]
    assert open_checkpoint(tmp_path).config == open_checkpoint(random_checkpoint).config
    before, after = network_of(random_checkpoint).state_dict(), network_of(tmp_path).state_dict()
    changed = {key for key in before if key != "places" and not torch.equal(before[key], after[key])}
    assert changed
    assert all(".experts." in key for key in changed), changed
