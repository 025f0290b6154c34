"""A rank on a GPU: which one it is, and the thread that runs its steps."""

from __future__ import annotations

from typing import cast

import pytest
import ray
import torch

from cluster.shard import _TensorWorker, own_gpu
from model.runner import Rank
from model.sched.step import RankResult, Step


class NotedRunner:
    """Says what happened to it."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def run(self, step: Step) -> RankResult:
        self._events.append("run")
        return RankResult(())

    def put_embedding(self, key: str, rows_RH: torch.Tensor) -> None: ...

    def drop_embedding(self, key: str) -> None: ...

    def reset(self) -> None: ...


@pytest.mark.parametrize(
    ("device", "events"), [("cuda:1", ["cuda:1", "run"]), ("cpu", ["run"])], ids=["gpu", "cpu"]
)
def test_a_step_runs_on_the_gpu_of_its_rank_in_whatever_thread(
    device: str, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: seen.append(str(chosen)))
    worker = _TensorWorker(cast("Rank", NotedRunner(seen)), torch.device(device))
    worker.run(Step(generation=0, step_id=0, ranks=()))
    assert seen == events


@pytest.mark.parametrize(
    ("booked", "num_visible", "device"),
    [([1], 2, "cuda:1"), ([1], 1, "cuda:0"), ([0], 2, "cuda:0")],
    ids=["all visible", "masked", "the first"],
)
def test_a_rank_takes_the_gpu_that_ray_booked(
    booked: list[int], num_visible: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: booked)
    assert own_gpu(num_visible) == torch.device(device)


def test_a_rank_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    with pytest.raises(RuntimeError, match="no GPU"):
        own_gpu(2)
