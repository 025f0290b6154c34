"""Both engines over the same weights on a CPU, behind the real scheduler, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from model.config import TextConfig
from model.device.exchange import Alone
from model.device.runner import DeviceRunner, device_runner
from model.device.weights import Formats
from model.dispatch import LocalDispatcher
from model.engine import Engine
from model.masks import TokenMasks
from model.net.decoder import Decoder
from model.net.kv import KVCache
from model.placement import ExpertMap
from model.runner import LocalRunner, RankRunner
from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.text.grammars import Grammars
from model.types import (
    Delta,
    FinishReason,
    ImageSpan,
    PromptLogprobs,
    Request,
    RequestKey,
    SamplingParams,
    TokenLogprob,
)
from tests.model.device.pack_decoder import pack_decoder

BLOCK_SIZE = 16


@dataclass
class Answered:
    """What one sample of a request got."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompts: list[PromptLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


Answers = dict[tuple[str, int], Answered]


def sizes_of(text: TextConfig, **changed: object) -> SchedulerConfig:
    sizes = {
        "num_spaces": 1, "block_size": BLOCK_SIZE, "num_full_blocks": 128, "num_sliding_blocks": 96,
        "window": text.window, "chunk_tokens": 48, "max_running": 12, "context_len": 512, "max_queued": 64,
        "max_queued_tokens": 10_000, "debug_checks": True,
    }  # fmt: skip
    return SchedulerConfig(**(sizes | changed))


def network_rank(decoder: Decoder, sizes: SchedulerConfig, grammars: Grammars | None = None) -> RankRunner:
    cache = KVCache.allocate(decoder.text, sizes, torch.float32, torch.device("cpu"))
    dispatcher = LocalDispatcher(ExpertMap(decoder.text.num_experts, 1))
    return RankRunner(decoder, cache, dispatcher, 0, None, grammars)


def device_rank(decoder: Decoder, sizes: SchedulerConfig, grammars: Grammars | None = None) -> DeviceRunner:
    weights = pack_decoder(decoder, Formats("bf16", "bf16"), 0, 1)
    return device_runner(weights, sizes, partial(TokenMasks.of, grammars=grammars), Alone())


def request_of(
    name: str, prompt: list[int], sampling: SamplingParams, images: tuple[ImageSpan, ...] = ()
) -> Request:
    return Request(RequestKey("local", name), tuple(prompt), sampling, images)


def answer(
    rank: RankRunner | DeviceRunner,
    sizes: SchedulerConfig,
    requests: list[Request],
    embeddings: Mapping[str, torch.Tensor] | None = None,
    meddle: Callable[[Engine, Scheduler, int], None] | None = None,
) -> tuple[Answers, Scheduler]:
    """All requests together to their ends; `meddle` is called before every turn of the engine."""
    runner, answers = LocalRunner(rank), Answers()

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.error is None, delta
            own = answers.setdefault((delta.key.request_id, delta.sample), Answered())
            own.token_ids += delta.token_ids
            own.logprobs += delta.logprobs
            own.prompts += [] if delta.prompt is None else [delta.prompt]
            own.finish_reason = delta.finish_reason or own.finish_reason

    scheduler = Scheduler(sizes)
    engine = Engine(scheduler, runner, take)
    for key, rows in (embeddings or {}).items():
        runner.put_embedding(key, rows)
    for request in requests:
        engine.add(request)
    turn = 0
    while True:
        if meddle is not None:
            meddle(engine, scheduler, turn)
        turn += 1
        if not engine.step():
            break
    assert engine.failed is None, engine.failed
    return answers, scheduler


def token_ids(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {key: answered.token_ids for key, answered in answers.items()}
