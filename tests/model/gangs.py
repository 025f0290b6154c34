"""What rank processes do in tests; a module of its own because spawned processes import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.dispatch import AllToAllDispatcher, Experts
from model.errors import CheckpointError
from model.gang import GangRunner
from model.parallel import Group
from model.placement import ExpertMap
from model.sched.step import RankStep, Step


@dataclass(frozen=True)
class Task(Step):
    """A step that says what to do: function(rank, group, *args) on every rank."""

    function: Callable[..., Any] = len
    args: tuple[Any, ...] = ()


class TaskWorker:
    def __init__(self, rank: int, group: Group | None) -> None:
        self.rank = rank
        self.group = group
        self.embeddings: dict[str, Tensor] = {}

    def run(self, step: Step) -> Any:
        assert isinstance(step, Task)
        if step.function is embeddings_of:
            return {key: rows_NH.tolist() for key, rows_NH in self.embeddings.items()}
        return step.function(self.rank, self.group, *step.args)

    def put_embedding(self, key: str, rows_NH: Tensor) -> None:
        self.embeddings[key] = rows_NH


def make_broken_worker(rank: int, group: Group | None) -> TaskWorker:
    raise CheckpointError("model.norm.weight: missing")


class Gang:
    """A runner with a counter of steps, so that a test is one line."""

    def __init__(self, runner: GangRunner) -> None:
        self.runner = runner
        self.next_step_id = 0

    def submit(self, function: Callable[..., Any], *args: Any, num_spaces: int | None = None) -> None:
        num_spaces = len(self.runner.pids) if num_spaces is None else num_spaces
        self.runner.submit(Task(7, self.next_step_id, (RankStep(),) * num_spaces, function, args))
        self.next_step_id += 1

    def run(self, function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
        """What every rank returned."""
        self.submit(function, *args)
        return self.runner.result().ranks


@dataclass(frozen=True)
class Tokens:
    """What one rank brings to an exchange."""

    x_TH: Tensor
    ids_TK: Tensor
    weights_TK: Tensor


def elementwise_experts(first_expert: int) -> Experts:
    """Expert e computes x * (e + 2) / 7 + e: no sum inside, so its bits do not depend on batch mates."""

    def run(rows_RH: Tensor, counts: list[int]) -> Tensor:
        assert sum(counts) == rows_RH.shape[0]
        expert_L = torch.arange(first_expert, first_expert + len(counts))
        expert_R = expert_L.repeat_interleave(torch.tensor(counts))
        expert_R1 = expert_R.unsqueeze(1).to(rows_RH.dtype)
        return rows_RH * ((expert_R1 + 2) / 7) + expert_R1

    return run


def doubling_experts(rows_RH: Tensor, counts: list[int]) -> Tensor:
    assert sum(counts) == rows_RH.shape[0]
    return rows_RH * 2


def exchange(rank: int, group: Group, num_experts: int, tokens: Sequence[Tokens]) -> Tensor:
    experts = ExpertMap(num_experts, group.world_size)
    dispatcher = AllToAllDispatcher(group, experts)
    dispatcher.begin_step(tuple(each.x_TH.shape[0] for each in tokens))
    mine = tokens[rank]
    return dispatcher.moe(mine.x_TH, mine.ids_TK, mine.weights_TK, elementwise_experts(experts.first(rank)))


def operations_in_deepspeeds_log(
    rank: int, group: Group, num_experts: int, tokens: Sequence[Tokens]
) -> list[str]:
    """Operations that deepspeed's own log of communication counts during one exchange."""
    from deepspeed import comm

    comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
    exchange(rank, group, num_experts, tokens)
    log = comm.comm.comms_logger.comms_dict.items()
    counts = {name: sum(entry[0] for entry in sizes.values()) for name, sizes in log}
    comm.reset_log()
    comm.configure(enabled=False)
    return [name for name, count in sorted(counts.items()) for _ in range(count)]


def gather(rank: int, group: Group, counts: Sequence[int]) -> Tensor:
    return group.all_gather(torch.full((counts[rank], 3), float(rank)), counts)


def scatter(rank: int, group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rank s sends s + 2 * d rows of value 10 * s + d to rank d: what came, and what should."""
    size = group.world_size
    rows = [torch.full((rank + 2 * to, 3), 10 * rank + to, dtype=dtype) for to in range(size)]
    expected = [torch.full((sender + 2 * rank, 3), 10 * sender + rank, dtype=dtype) for sender in range(size)]
    came = group.all_to_all(torch.cat(rows), [len(part) for part in rows], [len(part) for part in expected])
    return came, torch.cat(expected)


def seconds_per_call(rank: int, group: Group, num_rows: int, width: int, num_calls: int) -> float:
    rows_RH = torch.randn(num_rows * group.world_size, width)
    counts = [num_rows] * group.world_size
    group.all_to_all(rows_RH, counts, counts)
    begin = time.perf_counter()
    for _ in range(num_calls):
        group.all_to_all(rows_RH, counts, counts)
    return (time.perf_counter() - begin) / num_calls


def facts(rank: int, group: Group | None) -> tuple[int, int | None, int]:
    return rank, group and group.world_size, torch.get_num_threads()


def size_of(rank: int, group: Group | None, payload: bytes) -> int:
    return len(payload)


def nap(rank: int, group: Group | None, seconds: float) -> int:
    time.sleep(seconds)
    return rank


class Unreadable:
    """Something that a rank cannot unpickle."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return int, ("not a number",)


def embeddings_of(rank: int, group: Group | None) -> dict[str, Any]:
    raise AssertionError("answered by the worker itself")


def raise_on_rank(rank: int, group: Group, culprit: int) -> None:
    """The others wait in an exchange for the one that raises."""
    if rank == culprit:
        raise ValueError("a wrong value")
    group.all_gather(torch.zeros(1, 1), [1] * group.world_size)


def die_on_rank(rank: int, group: Group, culprit: int) -> None:
    if rank == culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    group.all_gather(torch.zeros(1, 1), [1] * group.world_size)


def hang_on_rank(rank: int, group: Group, culprit: int) -> None:
    if rank == culprit:
        time.sleep(3600)
    group.all_gather(torch.zeros(1, 1), [1] * group.world_size)
