"""Runs prompts through the real scheduler, engine and runner, and keeps the logits every token came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from model.dispatch import LocalDispatcher
from model.drafts import Drafter
from model.engine import Engine, Runner
from model.net.decoder import Decoder
from model.net.kv import KVCache
from model.options import EngineOptions, scheduler_config
from model.placement import ExpertMap
from model.runner import LocalRunner, RankRunner
from model.sched.scheduler import Scheduler
from model.text.grammars import Grammars
from model.types import Delta, FinishReason, ImageSpan, Request, RequestKey, SamplingParams
from model.weights import Checkpoint, load_decoder, load_mtp

CPU = torch.device("cpu")


@dataclass
class Generated:
    """A finished request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None


class RecordingDecoder:
    """The decoder, with a memory of the logits of every sampled row, in the order of sampling."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.text = decoder.text
        self.logits: list[torch.Tensor] = []

    def __call__(self, *args: object) -> tuple[torch.Tensor, torch.Tensor]:
        logits_SV, x_TH = self._decoder(*args)
        self.logits += list(logits_SV)
        return logits_SV, x_TH

    def project(self, x_SH: torch.Tensor) -> torch.Tensor:
        return self._decoder.project(x_SH)


def local_runner(
    checkpoint: Checkpoint, options: EngineOptions, device: torch.device = CPU
) -> tuple[LocalRunner, RecordingDecoder]:
    """One rank in this process whose logits are kept."""
    text = checkpoint.config.text
    experts = ExpertMap(text.num_experts, 1)
    sizes = scheduler_config(text, options, has_mtp=checkpoint.has_mtp)
    decoder = load_decoder(checkpoint, experts, 0, options.torch_dtype, device)
    recording = RecordingDecoder(decoder)
    cache = KVCache.allocate(text, sizes, options.torch_dtype, device)
    drafter = None
    if sizes.num_drafts:
        mtp = load_mtp(checkpoint, options.torch_dtype, device)
        drafter = Drafter(mtp, decoder, cache)
    grammars = Grammars(checkpoint.directory, text.vocab_size)
    rank = RankRunner(recording, cache, LocalDispatcher(experts), 0, drafter, grammars)
    return LocalRunner(rank), recording


def run(
    checkpoint: Checkpoint,
    runner: Runner,
    options: EngineOptions,
    requests: Mapping[str, tuple[Sequence[int], SamplingParams, tuple[ImageSpan, ...]]],
    scheduler: Scheduler | None = None,
) -> dict[str, Generated]:
    """All requests together, to their ends; the runner stays usable (its sequences are dropped)."""
    generated = {name: Generated() for name in requests}

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            answer = generated[delta.key.request_id]
            answer.token_ids += delta.token_ids
            answer.finish_reason, answer.error = delta.finish_reason, delta.error

    scheduler = scheduler or Scheduler(scheduler_config(checkpoint.config.text, options))
    engine = Engine(scheduler, runner, take)
    for name, (prompt, sampling, images) in requests.items():
        engine.add(Request(RequestKey("local", name), tuple(prompt), sampling, images))
    while engine.step():
        pass
    assert engine.failed is None, engine.failed
    return generated


def greedy(num_tokens: int) -> SamplingParams:
    """Exactly `num_tokens` tokens of the argmax."""
    return SamplingParams(max_tokens=num_tokens)


def random_prompts(lengths: Sequence[int], num_ids: int, seed: int = 0) -> dict[str, list[int]]:
    """Prompts of given lengths, named by position and length."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{index}-{length}": torch.randint(3, num_ids, (length,), generator=generator).tolist()
        for index, length in enumerate(lengths)
    }
