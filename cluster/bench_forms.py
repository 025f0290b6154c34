"""`fluyt bench forms`: what it costs a step of the default model that answers are held to a form. On the CPU.

Each form has two engines that take their steps in turn: one holds its answers to the form, the other has no
masks and is given the tokens that the first has just drawn, so its plan, experts and caches are the same and
the masks alone are between them. One more engine writes what it likes. All of them share the decoder and come
round with every step: a machine that slows down does so for all. Steps that decode all streams count, those
that read prompts do not. S rows that are sampled, V vocabulary, H hidden, T tokens.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from model.dispatch import LocalDispatcher
from model.engine import Engine
from model.grammar import Grammar
from model.kernels.memory import keep_freed_memory
from model.local import TENANT, prompt_builder
from model.nano import default_checkpoint
from model.net.kv import KVCache
from model.options import BLOCK_SIZE, EngineOptions, scheduler_config
from model.placement import ExpertMap
from model.runner import LocalRunner, RankRunner
from model.sampling import GenerationDefaults
from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.sched.step import Step, StepResult
from model.text.grammars import Grammars
from model.types import Delta, Request, RequestKey, SamplingParams
from model.weights import Checkpoint, load_decoder, open_checkpoint

_CERTAIN = 1e9  # a logit beside which no noise counts
# The thinking is closed: a form begins with the first token.
PROMPT = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n"


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ITEM = _closed(
    {
        "id": {"type": "string", "format": "uuid"},
        "at": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2},
        "size": _closed({"width": {"type": "integer"}, "height": {"type": "number"}}),
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
)
_TEXT = {"type": "string", "minLength": 300}
# None of them can end before so many tokens as are asked for.
FORMS = {
    "regex": Grammar("regex", "([a-z]{3,9} [0-9]{2},){300,}"),
    "schema": Grammar.json_schema(
        _closed({"count": {"type": "integer"}, "kind": {"enum": ["a", "b"]}, "name": _TEXT, "text": _TEXT})
    ),
    "nested": Grammar.json_schema(
        _closed({"items": {"type": "array", "items": _ITEM, "minItems": 300}, "next": {"type": "integer"}})
    ),
}


@dataclass
class _Times:
    """Of steps, in ms: answers held to a form, and the same tokens without masks."""

    held: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)

    def added_percent(self) -> float:
        """The median over steps: what another process takes from a few of them does not show."""
        ratios = [held / free for held, free in zip(self.held, self.free, strict=True)]
        return 100 * (statistics.median(ratios) - 1)

    def added_in_all_percent(self) -> float:
        """All steps together: what few masks cost shows, and what other processes took."""
        return 100 * (sum(self.held) / sum(self.free) - 1)


class _Given:
    """A hook of the decoder: where tokens are given, nothing else can be sampled."""

    def __init__(self) -> None:
        self.token_ids: list[int] | None = None

    def __call__(
        self, _module: object, _args: object, output: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_SV, x_TH = output
        if self.token_ids is not None:
            logits_SV[torch.arange(len(self.token_ids)), torch.tensor(self.token_ids)] = _CERTAIN
        return logits_SV, x_TH


class _Lane:
    """An engine, a cache, and the runner between them, which keeps the step that ended last."""

    def __init__(self, runner: LocalRunner, sizes: SchedulerConfig) -> None:
        self._runner = runner
        self._steps: deque[Step] = deque()
        self._last: tuple[Step, StepResult] | None = None
        self._errors: list[Exception] = []
        self._engine = Engine(Scheduler(sizes), self, self._take)

    def add(self, name: str, prompt_ids: tuple[int, ...], sampling: SamplingParams) -> None:
        self._engine.add(Request(RequestKey(TENANT, name), prompt_ids, sampling))

    def turn(self) -> tuple[Step, StepResult] | None:
        """Run a step; None if there is nothing left to do."""
        self._last = None
        self._engine.step()
        if self._errors:
            raise self._errors[0]
        return self._last

    def submit(self, step: Step) -> None:
        self._steps.append(step)
        self._runner.submit(step)

    def result(self) -> StepResult:
        result = self._runner.result()
        self._last = self._steps.popleft(), result
        return result

    def close(self) -> None:
        self._runner.close()

    def _take(self, deltas: list[Delta]) -> None:
        self._errors += [delta.error for delta in deltas if delta.error is not None]


@dataclass(frozen=True)
class _Lanes:
    given: _Given
    free: _Lane
    pairs: Mapping[str, tuple[_Lane, _Lane]]  # held to the form of that name, and without masks


def bench_forms(
    num_rounds: int, num_threads: int, num_streams: int = 40, num_tokens: int = 96
) -> dict[str, Any]:
    """Medians in ms of a step, and what masks add to it in percent. Temperature 1, every round its seeds."""
    torch.set_num_threads(num_threads)
    checkpoint = open_checkpoint(default_checkpoint())
    prompt_ids = prompt_builder(checkpoint).from_text(PROMPT).prompt_ids
    lanes = _open_lanes(checkpoint, num_streams, len(prompt_ids) + num_tokens)
    for round_index in range(num_rounds + 1):
        if round_index <= 1:  # the first round warms up
            free_ms, times = list[float](), {name: _Times() for name in FORMS}
        for stream in range(num_streams):
            sampling = SamplingParams(num_tokens, seed=round_index * num_streams + stream, temperature=1.0)
            _add(lanes, f"{round_index}/{stream}", prompt_ids, sampling, checkpoint)
        _run(lanes, num_streams, free_ms, times)
    return {
        "overhead_percent": {name: round(each.added_percent(), 1) for name, each in times.items()},
        "overhead_in_all_percent": {
            name: round(each.added_in_all_percent(), 1) for name, each in times.items()
        },
        "step_ms": {name: round(statistics.median(each.held), 2) for name, each in times.items()},
        "same_tokens_free_ms": {name: round(statistics.median(each.free), 2) for name, each in times.items()},
        "free_text_ms": round(statistics.median(free_ms), 2),
        "num_steps": len(free_ms),
        "num_streams": num_streams,
        "num_tokens": num_tokens,
        "num_threads": num_threads,
    }


def _open_lanes(checkpoint: Checkpoint, num_streams: int, most_tokens: int) -> _Lanes:
    """With room for all streams and no more: there are seven caches."""
    num_blocks = num_streams * (most_tokens // BLOCK_SIZE + 2)
    options = EngineOptions(mtp=False, prefix_cache=False, max_running=num_streams, kv_blocks=num_blocks)
    text = checkpoint.config.text
    sizes = scheduler_config(text, options)
    experts, cpu = ExpertMap(text.num_experts, 1), torch.device("cpu")
    decoder, given = load_decoder(checkpoint, experts, 0, options.torch_dtype, cpu), _Given()
    decoder.register_forward_hook(given)
    keep_freed_memory()
    grammars = Grammars(checkpoint.directory, text.vocab_size)

    def lane() -> _Lane:
        cache = KVCache.allocate(text, sizes, options.torch_dtype, cpu)
        rank = RankRunner(decoder, cache, LocalDispatcher(experts), 0, grammars=grammars)
        return _Lane(LocalRunner(rank), sizes)

    return _Lanes(given, lane(), {name: (lane(), lane()) for name in FORMS})


def _add(
    lanes: _Lanes, name: str, prompt_ids: tuple[int, ...], sampling: SamplingParams, checkpoint: Checkpoint
) -> None:
    """The same request to all: none ends before its `max_tokens`."""
    end_ids = GenerationDefaults.load(checkpoint.directory).eos_token_ids
    lanes.free.add(name, prompt_ids, sampling)
    for form, (held, echo) in lanes.pairs.items():
        held.add(name, prompt_ids, replace(sampling, grammar=FORMS[form], eos_token_ids=end_ids))
        echo.add(name, prompt_ids, sampling)


def _run(lanes: _Lanes, num_streams: int, free_ms: list[float], times: Mapping[str, _Times]) -> None:
    """All lanes to their ends, a step of each in turn; between a step and its echo are those of others."""
    while (free := lanes.free.turn()) is not None:
        if _decodes(free[0], num_streams):
            free_ms.append(free[1].step_us / 1e3)
        held = {form: pair[0].turn() for form, pair in lanes.pairs.items()}
        for form, (_, echo) in lanes.pairs.items():
            ours = held[form]
            assert ours is not None, f"{form}: ended before its time"
            lanes.given.token_ids = [out.token_ids[0] for out in ours[1].ranks[0].outputs]
            theirs = echo.turn()
            lanes.given.token_ids = None
            assert theirs is not None and theirs[1].ranks == ours[1].ranks, f"{form}: not the same tokens"
            if _decodes(ours[0], num_streams):
                times[form].held.append(ours[1].step_us / 1e3)
                times[form].free.append(theirs[1].step_us / 1e3)


def _decodes(step: Step, num_streams: int) -> bool:
    """Whether every stream gets a token, and none reads its prompt."""
    work = step.ranks[0].work
    return len(work) == num_streams and all(each.samples and each.num_tokens == 1 for each in work)
