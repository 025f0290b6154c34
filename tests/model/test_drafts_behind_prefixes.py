"""Behind a prefix that another sequence has computed, or a fork, drafts hold as if nothing had been cached.

The default model, whose MTP layers are trained, on both engines. Verify steps for the same tokens are what is
compared: with MTP layers that begin at the border they are a quarter more here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from model.engine import Engine
from model.local import prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, Rank, make_device_rank, make_network_rank
from model.sched import drafting
from model.sched.scheduler import Scheduler
from model.text.chat import ChatMessage, Conversation
from model.types import Delta, Request, RequestKey, SamplingParams
from model.weights import Checkpoint, open_checkpoint

CPU = torch.device("cpu")
OPTIONS = EngineOptions(kv_blocks=512, max_running=4, chunk_tokens=256, mtp=True)
GREEDY = SamplingParams(max_tokens=48)
SENTENCES = (
    "the quick brown fox jumps over the lazy dog ",
    "she sells sea shells by the sea shore ",
    "a man a plan a canal and seven ships ",
)
MOST_MORE = 1.05  # products of other sizes are rounded otherwise


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


@pytest.fixture(scope="module", params=["network", pytest.param("device", marks=pytest.mark.slow)])
def rank(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Rank:
    if request.param == "network":
        return make_network_rank(checkpoint, OPTIONS, 0, CPU, None)
    return make_device_rank(checkpoint, OPTIONS, CPU)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Told:
    """What was answered, in how many verify steps, and how often the third draft held."""

    token_ids: dict[tuple[str, int], list[int]]
    num_steps: int
    num_third: int
    num_cached: int

    def drafted_as_well_as(self, cold: Told) -> bool:
        return self.num_steps <= MOST_MORE * cold.num_steps and self.num_third >= 0.9 * cold.num_third


class Server:
    """A rank behind a scheduler that keeps prefixes, or does not."""

    def __init__(self, checkpoint: Checkpoint, rank: Rank, *, keeps_prefixes: bool) -> None:
        sizes = replace(
            scheduler_config(checkpoint.config.text, OPTIONS, has_mtp=True), keeps_prefixes=keeps_prefixes
        )
        self._scheduler = Scheduler(sizes)
        self._engine = Engine(self._scheduler, LocalRunner(rank), self._take)
        self._deltas: list[Delta] = []

    def _take(self, deltas: list[Delta]) -> None:
        self._deltas += deltas

    def ask(self, *requests: Request) -> Told:
        """All of them at once, to their ends."""
        before, self._deltas = self._scheduler.load(), []
        for request in requests:
            self._engine.add(request)
        while self._engine.step():
            pass
        after, tokens = self._scheduler.load(), dict[tuple[str, int], list[int]]()
        for delta in self._deltas:
            tokens.setdefault((delta.key.request_id, delta.sample), []).extend(delta.token_ids)
        return Told(
            tokens,
            after.num_verified[0] - before.num_verified[0],
            after.num_held[2] - before.num_held[2],
            sum(delta.usage.num_cached_tokens for delta in self._deltas if delta.usage is not None),
        )


def requests(
    checkpoint: Checkpoint, *texts: str, system: str = "", sampling: SamplingParams = GREEDY
) -> list[Request]:
    builder = prompt_builder(checkpoint)
    first = (ChatMessage("system", system),) if system else ()
    prompts = [builder.from_chat(Conversation((*first, ChatMessage("user", text)))) for text in texts]
    return [
        Request(
            RequestKey("local", f"{index}"), prompt.prompt_ids, replace(sampling, seed=index),
            prefix_ends=prompt.prefix_ends,
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip


def repeated() -> list[str]:
    return [f"Repeat: {sentence * 4}" for sentence in SENTENCES]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_who_asks_again_has_drafts_that_hold_as_they_did(
    checkpoint: Checkpoint, rank: Rank, temperature: float
) -> None:
    server = Server(checkpoint, rank, keeps_prefixes=True)
    asked = requests(checkpoint, *repeated(), sampling=replace(GREEDY, temperature=temperature))
    cold, again = server.ask(*asked), server.ask(*asked)
    assert (cold.num_cached, again.num_cached > 250) == (0, True)
    assert again.token_ids == cold.token_ids
    assert again.drafted_as_well_as(cold), (again.num_steps, cold.num_steps)


def test_behind_what_others_were_told_first(checkpoint: Checkpoint, rank: Rank) -> None:
    """The end of the system turn is more than a window before the end of the prompt that computes it."""
    system = "Say what you are told to. " + "one two three four five six seven eight nine ten " * 12
    (first,) = requests(checkpoint, "Repeat: " + SENTENCES[1] * 32, system=system)
    others = requests(checkpoint, *(f"Repeat: {sentence}" for sentence in SENTENCES), system=system)
    cold = Server(checkpoint, rank, keeps_prefixes=False).ask(*others)
    server = Server(checkpoint, rank, keeps_prefixes=True)
    server.ask(replace(first, sampling=replace(GREEDY, max_tokens=1)))
    behind = server.ask(*others)
    assert behind.num_cached > 3 * 200
    assert behind.token_ids == cold.token_ids
    assert behind.drafted_as_well_as(cold), (behind.num_steps, cold.num_steps)


def test_a_turn_behind_the_answer_before(checkpoint: Checkpoint, rank: Rank) -> None:
    server = Server(checkpoint, rank, keeps_prefixes=True)
    (first,) = requests(checkpoint, repeated()[0])
    told = server.ask(first).token_ids["0", 0]
    goes_on = replace(first, prompt_ids=(*first.prompt_ids, *told), prefix_ends=())
    behind, cold = server.ask(goes_on), Server(checkpoint, rank, keeps_prefixes=False).ask(goes_on)
    assert behind.num_cached > len(first.prompt_ids)
    assert behind.token_ids == cold.token_ids
    assert behind.drafted_as_well_as(cold), (behind.num_steps, cold.num_steps)


def test_samples_have_drafts_that_hold_as_if_each_was_alone(checkpoint: Checkpoint, rank: Rank) -> None:
    (asked,) = requests(checkpoint, repeated()[1], sampling=replace(GREEDY, temperature=0.7))
    server = Server(checkpoint, rank, keeps_prefixes=False)
    forked = server.ask(replace(asked, sampling=replace(asked.sampling, num_samples=3)))
    alone = [server.ask(replace(asked, sampling=replace(asked.sampling, sample=index))) for index in range(3)]
    assert [forked.token_ids["0", index] for index in range(3)] == [each.token_ids["0", 0] for each in alone]
    assert forked.num_steps <= MOST_MORE * sum(each.num_steps for each in alone)


def test_a_prefix_that_no_draft_came_from_changes_no_token(checkpoint: Checkpoint, rank: Rank) -> None:
    server = Server(checkpoint, rank, keeps_prefixes=True)
    (asked,) = requests(checkpoint, repeated()[2])
    plain = server.ask(replace(asked, sampling=replace(GREEDY, mtp=False)))
    drafted = server.ask(asked)
    assert plain.num_steps == 0 < drafted.num_steps
    assert drafted.num_cached > 90
    assert drafted.token_ids == plain.token_ids
