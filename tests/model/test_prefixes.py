"""What was computed before changes no token: float64, cached against cold. Pictures, drafts, shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from test_same_tokens import GREEDY, IMAGE, OPTIONS, SAMPLED, Requests, checkpoint, embedding, runners

from model.engine import Engine
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner
from model.sched import drafting
from model.sched.scheduler import Scheduler
from model.types import Delta, ImageSpan, Request, RequestKey, Usage
from model.weights import Checkpoint

__all__ = ["checkpoint", "runners"]  # fixtures
SHARED = list(range(5, 205))  # twelve blocks of 16 and a bit: more than three windows


def conversations(num: int) -> Requests:
    """They begin alike, also in their picture, and go on differently."""
    picture = (ImageSpan(20, 81, IMAGE, content="a picture"),)
    return {
        f"agent {index}": (
            [*SHARED, *range(10 + index, 40 + 3 * index)],
            replace(SAMPLED, seed=index) if index % 2 else GREEDY,
            picture,
        )
        for index in range(num)
    }


def answer(
    checkpoint: Checkpoint, runner: LocalRunner, options: EngineOptions, turns: list[Requests], *, mtp: bool
) -> tuple[dict[str, list[int]], list[Usage]]:
    """All turns with one scheduler, each turn's requests together."""
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, options, has_mtp=mtp))
    tokens: dict[str, list[int]] = {}
    usages: list[Usage] = []

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.error is None, delta
            tokens.setdefault(delta.key.request_id, []).extend(delta.token_ids)
            if delta.usage is not None:
                usages.append(delta.usage)

    engine = Engine(scheduler, runner, take)
    for number, requests in enumerate(turns):
        for name, (ids, sampling, images) in requests.items():
            runner.put_embedding(f"{number}/{name}", embedding())
            spans = tuple(replace(span, key=f"{number}/{name}") for span in images)
            engine.add(Request(RequestKey("local", f"{number} {name}"), tuple(ids), sampling, spans))
        while engine.step():
            pass
    return tokens, usages


@pytest.mark.parametrize("mtp", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("chunk_tokens", [48, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cached_is_as_cold(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    monkeypatch: pytest.MonkeyPatch,
    num_shards: int,
    chunk_tokens: int,
    mtp: bool,
) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens)
    asked = conversations(6)
    cold, _ = answer(
        checkpoint, runners(num_shards), replace(options, prefix_cache=False), [asked], mtp=False
    )
    longer = {n: ([*ids, *cold[f"0 {n}"], 7, 8, 9], s, images) for n, (ids, s, images) in asked.items()}
    turns = [asked, longer]
    expected, _ = answer(
        checkpoint, runners(num_shards), replace(options, prefix_cache=False), turns, mtp=False
    )
    found, usages = answer(checkpoint, runners(num_shards), options, turns, mtp=mtp)
    assert found == expected
    shared = [usage.num_cached_tokens for usage in usages]
    assert sorted(shared)[-6:] > [200] * 6, "the second turn has its first one, answers included"


def test_another_picture_under_the_same_ids_is_another_beginning(
    checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]
) -> None:
    asked = conversations(1)
    ((ids, sampling, _),) = asked.values()
    other = {"agent 0": (ids, sampling, (ImageSpan(20, 81, IMAGE, content="another picture"),))}
    _, usages = answer(checkpoint, runners(1), OPTIONS, [asked, other, asked], mtp=False)
    assert [usage.num_cached_tokens > 0 for usage in usages] == [False, False, True]


def test_what_one_tenant_computed_is_nothing_to_another(
    checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]
) -> None:
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, OPTIONS))
    usages: dict[str, Usage | None] = {}
    engine = Engine(
        scheduler, runners(1), lambda deltas: usages.update({d.key.tenant: d.usage for d in deltas})
    )
    for tenant in ("one", "other", "one"):
        engine.add(Request(RequestKey(tenant, "name"), tuple(SHARED), GREEDY))
        while engine.step():
            pass
        usage = usages[tenant]
        assert usage is not None
        expected = len(SHARED) // 16 * 16 if tenant == "one" and "other" in usages else 0
        assert usage.num_cached_tokens == expected
