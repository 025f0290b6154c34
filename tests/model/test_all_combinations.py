"""100 prompts of the default model, greedy, float64: the same tokens with and without drafts, with and
without the prefix cache, on one shard and on two, in every combination.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from harness import local_runner

from model.engine import Engine, Runner
from model.gang import spawn_gang
from model.local import prompt_builder
from model.nano import default_checkpoint
from model.nano.data.texts import text_exchange
from model.options import EngineOptions, scheduler_config
from model.runner import rank_maker
from model.sampling import GenerationDefaults
from model.sched import drafting
from model.sched.config import Load
from model.sched.scheduler import Scheduler
from model.text.chat import ChatMessage, Conversation
from model.types import Delta, FinishReason, Request, RequestKey, SamplingParams
from model.weights import Checkpoint, open_checkpoint

NUM_PROMPTS = 100
MAX_TOKENS = 32
SYSTEM = "You are asked short questions. Think briefly, then say the answer and nothing else. " * 2

# (tokens, why it ended) of each prompt; cached tokens of all; the counts of the scheduler
Found = tuple[dict[str, tuple[list[int], FinishReason]], int, Load]


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take on this machine."""
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


def options_of(num_shards: int, *, prefix_cache: bool = True) -> EngineOptions:
    return EngineOptions(
        dtype="float64", num_shards=num_shards, chunk_tokens=512, kv_blocks=1024, prefix_cache=prefix_cache
    )


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


@pytest.fixture(scope="module")
def runner_of(trained: Checkpoint) -> Iterator[Callable[[int], Runner]]:
    opened: list[Runner] = []

    @cache
    def of(num_shards: int) -> Runner:
        if num_shards == 1:
            return local_runner(trained, options_of(1))[0]
        opened.append(spawn_gang(num_shards, rank_maker(trained.directory, options_of(num_shards), 1)))
        return opened[-1]

    yield of
    for runner in opened:
        runner.close()


@pytest.fixture(scope="module")
def requests(trained: Checkpoint) -> list[Request]:
    """Questions of different lengths behind the same instructions."""
    builder, rng = prompt_builder(trained), random.Random(5)
    ends = GenerationDefaults.load(trained.directory).eos_token_ids
    asked = []
    for index in range(NUM_PROMPTS):
        said = (ChatMessage("system", SYSTEM), ChatMessage("user", text_exchange(rng).question))
        prompt = builder.from_chat(Conversation(said))
        asked.append(
            Request(
                RequestKey("local", str(index)),
                prompt.prompt_ids,
                SamplingParams(max_tokens=MAX_TOKENS, eos_token_ids=ends),
                prefix_ends=prompt.prefix_ends,
            )
        )
    return asked


def generate(
    trained: Checkpoint, runner: Runner, requests: list[Request], options: EngineOptions, *, mtp: bool
) -> Found:
    scheduler = Scheduler(scheduler_config(trained.config.text, options, has_mtp=mtp))
    tokens: dict[str, list[int]] = {request.key.request_id: [] for request in requests}
    finals: dict[str, Delta] = {}

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.error is None, delta
            tokens[delta.key.request_id] += delta.token_ids
            if delta.is_final:
                finals[delta.key.request_id] = delta

    engine = Engine(scheduler, runner, take)
    for request in requests:
        engine.add(request)
    while engine.step():
        pass
    assert engine.failed is None, engine.failed
    found = {name: (ids, finals[name].finish_reason) for name, ids in tokens.items()}
    num_cached = sum(final.usage.num_cached_tokens for final in finals.values() if final.usage is not None)
    return found, num_cached, scheduler.load()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_combinations_give_the_same_tokens(
    trained: Checkpoint, runner_of: Callable[[int], Runner], requests: list[Request]
) -> None:
    expected = None
    for num_shards, prefix_cache, mtp in itertools.product((1, 2), (False, True), (False, True)):
        options = options_of(num_shards, prefix_cache=prefix_cache)
        found, num_cached, load = generate(trained, runner_of(num_shards), requests, options, mtp=mtp)
        expected = expected or found
        assert found == expected, (num_shards, prefix_cache, mtp)
        least = NUM_PROMPTS * 100 if prefix_cache else 0
        assert (num_cached > least) == prefix_cache, num_cached
        # Behind a prefix MTP layers begin without context: fewer hold there.
        assert (sum(load.num_held[:1]) > 0.2 * sum(load.num_verified[:1])) == mtp, load
    assert expected is not None
    assert sum(reason is FinishReason.STOP for _, reason in expected.values()) > NUM_PROMPTS / 2
