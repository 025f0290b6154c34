"""The text side of a whole request: an `OutputStream` for each of its samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.text.output import OutputEvent, OutputStream
from model.text.tokenizer import Tokenizer
from model.types import Delta, SamplingParams, Usage


class OutputStreams:
    """Push every delta in order; `streams[sample]` is the one of a sample."""

    def __init__(self, streams: Sequence[OutputStream]) -> None:
        self._streams = tuple(streams)
        self._ids: list[list[int]] = [[] for _ in streams]
        self._num_tokens = [0] * len(streams)  # that count, of samples that have ended

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        starts_in_thinking: bool,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> OutputStreams:
        """For a request's sampling parameters and tools."""
        tools = tuple(tools)
        return cls(
            [
                OutputStream.of(tokenizer, sampling, starts_in_thinking=starts_in_thinking, tools=tools)
                for _ in range(sampling.num_samples)
            ]
        )

    def __getitem__(self, sample: int) -> OutputStream:
        return self._streams[sample]

    def push(self, delta: Delta) -> list[OutputEvent]:
        """Events of a delta, all of its sample."""
        stream = self._streams[delta.sample]
        events = stream.push(delta)
        ids = self._ids[delta.sample]
        ids += delta.token_ids
        if ids and delta.stop_token_id == ids[-1]:
            ids.pop()
        if delta.finish_reason is not None:
            num_tokens = delta.first_token_index + len(delta.token_ids)
            at_most = num_tokens if stream.stop_at is None else stream.stop_at
            self._num_tokens[delta.sample] = min(num_tokens, at_most)
        return events

    def answer_ids(self, sample: int) -> Sequence[int]:
        """Ids of a whole answer, without its end token; none if a stop string cut its text."""
        return () if self._streams[sample].stop_at is not None else self._ids[sample]

    def usage(self, usage: Usage, vision_us: int) -> Usage:
        """The bill with what the scheduler cannot know: it sees ids alone.

        What was thought, what came behind stop strings, and what images took.
        """
        return replace(
            usage,
            num_completion_tokens=sum(self._num_tokens),
            num_reasoning_tokens=sum(stream.num_reasoning_tokens for stream in self._streams),
            vision_us=vision_us,
        )
