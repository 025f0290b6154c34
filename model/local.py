"""The whole path in one process without Ray: prompts in, answers out. What `fluyt run` calls.

prepare -> engine(scheduler, runner) -> text stage, the same pieces as in the cluster.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from model.engine import Engine
from model.gang import GangRunner, spawn_gang
from model.net.vision import VisionTower
from model.options import EngineOptions, scheduler_config
from model.placement import ExpertMap
from model.runner import LocalRunner, default_device, make_rank, rank_maker
from model.sampling import GenerationDefaults, SamplingOptions, resolve
from model.sched.config import Load, SchedulerConfig
from model.sched.scheduler import Scheduler
from model.text.form import FREE, Form, with_form
from model.text.grammars import Grammars
from model.text.output import OutputEvent
from model.text.outputs import OutputStreams
from model.text.prompt import PreparedPrompt, PromptBuilder
from model.text.tools import CallPiece, join
from model.types import Channel, Delta, FinishReason, Request, RequestKey, TokenLogprob, Usage
from model.weights import Checkpoint, load_vision, open_checkpoint

TENANT = "local"


@dataclass
class Answer:
    """What a sample of a request has produced so far; complete once `finish_reason` or `error` is set.

    `tool_calls` has one piece for each call, all of it. `usage` is that of the request; its prompt's
    log-probabilities stand in the first sample.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[CallPiece, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: Exception | None = None

    def add(self, event: OutputEvent) -> None:
        """Take the next piece of text."""
        if event.channel is Channel.TEXT:
            self.text += event.text
        elif event.channel is Channel.REASONING:
            self.reasoning += event.text
        if event.calls:
            self.tool_calls = join((*self.tool_calls, *event.calls))


@dataclass
class _Open:
    answers: list[Answer]  # by sample
    streams: OutputStreams | None  # None: no tokenizer, ids alone
    on_event: Callable[[OutputEvent], None] | None
    vision_us: int


class LocalServer:
    """One engine of W local shards. Use as `with open_server(...) as server`."""

    def __init__(
        self, checkpoint: Checkpoint, runner: LocalRunner | GangRunner, sizes: SchedulerConfig
    ) -> None:
        self.checkpoint = checkpoint
        self.sizes = sizes
        self._runner = runner
        self._engine = Engine(Scheduler(sizes), runner, self._take)
        self._open: dict[RequestKey, _Open] = {}
        self._numbers = itertools.count()
        self._defaults = GenerationDefaults.load(checkpoint.directory)
        self._vision: VisionTower | None = None
        self._grammars = Grammars(checkpoint.directory, checkpoint.config.text.vocab_size)

    def submit(
        self,
        prompt: PreparedPrompt,
        options: SamplingOptions,
        builder: PromptBuilder | None,
        on_event: Callable[[OutputEvent], None] | None = None,
        form: Form = FREE,
    ) -> Answer:
        """Queue a prompt; `run` fills the answer, the first where several samples are asked for.

        Raises InvalidRequest before anything is queued.
        """
        return self.submit_samples(prompt, options, builder, on_event, form)[0]

    def submit_samples(
        self,
        prompt: PreparedPrompt,
        options: SamplingOptions,
        builder: PromptBuilder | None,
        on_event: Callable[[OutputEvent], None] | None = None,
        form: Form = FREE,
    ) -> list[Answer]:
        """The same, with an answer for each sample."""
        sampling = resolve(
            options,
            self._defaults,
            num_prompt_tokens=len(prompt.prompt_ids),
            context_len=self.sizes.context_len,
            capacity_tokens=self.sizes.capacity_tokens,
            seed=secrets.randbits(63),
            vocab_size=self.checkpoint.config.text.vocab_size,
        )
        sampling = with_form(sampling, form, prompt, self._grammars)
        key = RequestKey(TENANT, str(next(self._numbers)))
        # Embedding keys are a request's own: the rank forgets them with it.
        spans = tuple(replace(span, key=f"{key.request_id}/{span.key}") for span in prompt.spans)
        began_s = time.perf_counter()
        self._encode_images(prompt, key)
        vision_us = round((time.perf_counter() - began_s) * 1e6) if prompt.images else 0
        streams = None
        if builder is not None:
            streams = OutputStreams.of(
                builder.tokenizer,
                sampling,
                starts_in_thinking=prompt.starts_in_thinking,
                tools=prompt.tools,
            )
        answers = [Answer() for _ in range(sampling.num_samples)]
        self._open[key] = _Open(answers, streams, on_event, vision_us)
        self._engine.add(Request(key, prompt.prompt_ids, sampling, spans, prefix_ends=prompt.prefix_ends))
        return answers

    def run(self) -> None:
        """Work until every answer is complete. Raises the first error that a request ended with."""
        answers = [answer for request in self._open.values() for answer in request.answers]
        while self._open:
            if not self._engine.step() and self._open:
                raise AssertionError(f"{len(self._open)} requests are open and nothing can be planned")
        for answer in answers:
            if answer.error is not None:
                raise answer.error

    def load(self) -> Load:
        """The scheduler's counts."""
        return self._engine.load()

    def close(self) -> None:
        """End the shards."""
        self._engine.close()

    def _encode_images(self, prompt: PreparedPrompt, key: RequestKey) -> None:
        for image in prompt.images:
            if self._vision is None:
                self._vision = load_vision(self.checkpoint, torch.float32, default_device())
            self._runner.put_embedding(
                f"{key.request_id}/{image.key}", self._vision.encode(image.tile()).cpu()
            )

    def _take(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            request = self._open.get(delta.key)
            if request is not None:
                self._take_one(request, delta)

    def _take_one(self, request: _Open, delta: Delta) -> None:
        answer = request.answers[delta.sample]
        if delta.prompt is not None:
            answer.prompt_logprobs += delta.prompt.logprobs
        if request.streams is None:
            answer.token_ids += delta.token_ids
            answer.logprobs += delta.logprobs
            answer.finish_reason = delta.finish_reason
        else:
            self._read(request, request.streams, answer, delta)
        if delta.is_final:
            usage = delta.usage
            if usage is not None and request.streams is not None:
                usage = request.streams.usage(usage, request.vision_us)
            for each in request.answers:
                each.usage, each.error = usage, delta.error
            del self._open[delta.key]

    def _read(self, request: _Open, streams: OutputStreams, answer: Answer, delta: Delta) -> None:
        """Tokens and text up to a stop string, of which the engine is told."""
        stream = streams[delta.sample]
        has_stopped = stream.stop_at is not None
        if not has_stopped:
            answer.token_ids += delta.token_ids
            answer.logprobs += delta.logprobs
        for event in streams.push(delta):
            answer.add(event)
            if request.on_event is not None:
                request.on_event(event)
        if stream.stop_at is not None and not has_stopped:
            del answer.token_ids[stream.stop_at :]
            del answer.logprobs[stream.stop_at :]
            if delta.finish_reason is None:
                self._engine.stop(delta.key, stream.stop_at, delta.sample)
        if delta.finish_reason is not None:
            answer.finish_reason = stream.finish_reason(delta.finish_reason)


@contextmanager
def open_server(
    directory: Path, options: EngineOptions, num_threads: int | None = None
) -> Iterator[LocalServer]:
    """Load a checkpoint into `options.num_shards` local shards; ends them on leaving."""
    checkpoint = open_checkpoint(directory)
    sizes = scheduler_config(checkpoint.config.text, options, has_mtp=checkpoint.has_mtp)
    ExpertMap(checkpoint.config.text.num_experts, options.num_shards)  # refuses before a process is started
    runner: LocalRunner | GangRunner
    if options.num_shards == 1:
        runner = LocalRunner(make_rank(directory, options, num_threads, 0, None))
    else:
        threads = num_threads or max(1, torch.get_num_threads() // options.num_shards)
        has_gpus = options.attention == "tensor" and torch.cuda.device_count() >= options.num_shards
        runner = spawn_gang(
            options.num_shards,
            rank_maker(directory, options, threads),
            num_threads=threads,
            device_type="cuda" if has_gpus else "cpu",
        )
    server = LocalServer(checkpoint, runner, sizes)
    try:
        yield server
    finally:
        server.close()


def prompt_builder(checkpoint: Checkpoint) -> PromptBuilder:
    """The text stage of a checkpoint. Raises CheckpointError where it has no tokenizer."""
    return PromptBuilder.load(
        checkpoint.directory,
        vocab_size=checkpoint.config.text.vocab_size,
        has_vision=checkpoint.has_vision,
    )


def generate(
    directory: Path,
    prompts: Sequence[PreparedPrompt],
    sampling: Sequence[SamplingOptions],
    options: EngineOptions,
    builder: PromptBuilder | None = None,
) -> list[Answer]:
    """Answers of a whole batch, in order."""
    with open_server(directory, options) as server:
        answers = [
            server.submit(prompt, choice, builder) for prompt, choice in zip(prompts, sampling, strict=True)
        ]
        server.run()
    return answers
