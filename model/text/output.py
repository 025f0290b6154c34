"""Deltas of tokens -> events of text: detokenized, split by channel, cut at stop strings, calls read.

Every token passes one by one through the same chain, so any cut of the tokens into deltas gives
the same text, the same channels, the same calls and the same end:

    marker? -> bytes to characters -> stop strings -> tool calls -> newlines that belong to a marker -> event

The template writes a newline on the inner side of `</think>` and one after it, and so does the
model; those two belong to the marker and are in no event. Markers and special tokens have no
text; all else that was generated comes out on exactly one channel. No stop string is found across
a marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from model.text.detokenizer import IncrementalDetokenizer
from model.text.stops import StopScanner
from model.text.tokenizer import Tokenizer
from model.text.tool_values import ToolSchemas
from model.text.tools import CallEnd, CallParser, CallPiece, ChannelSplitter, Markers, Stretch, join
from model.types import Channel, Delta, FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class OutputEvent:
    """A stretch of output on one channel.

    `token_ids` are the tokens taken in while the stretch came about, the first of them the
    request's output token number `first_token_index`. Text may come out later than the token that
    began it (unfinished character, possible stop string, possible tag), so `token_ids` may be there
    without text, and text without token ids. On channel TOOL_CALL `text` is what the model wrote, and
    `calls` what that adds to tool calls.
    """

    channel: Channel
    text: str
    token_ids: tuple[int, ...]
    first_token_index: int
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True)
class _Part:
    """An event without its token."""

    channel: Channel
    text: str
    calls: tuple[CallPiece, ...] = ()


class OutputStream:
    """The text side of one request. `push` every delta in order.

    After a stop string, `stop_at` is the number of tokens up to and with the one that completed
    it, `matched_stop` the string; the text ends before the string and later deltas give nothing.
    The caller then tells the scheduler `stop(key, stop_at)`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Iterable[str] = (),
        *,
        starts_in_thinking: bool,
        min_tokens: int = 0,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """Stop strings that begin before `min_tokens` tokens were generated are ordinary text.

        `tools` as the request declares them: their schemas give the arguments of calls their types.
        """
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._markers = Markers.of(tokenizer)
        self._splitter = ChannelSplitter(self._markers, starts_in_thinking=starts_in_thinking)
        self._scanner = StopScanner(tuple(stop))
        self._calls = CallParser(ToolSchemas.of(tools))
        self._min_tokens = min_tokens
        self._held_newline = False  # a newline of reasoning that may belong to </think>
        self._skip_newline = False  # the next text follows </think>
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.stop_at: int | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        starts_in_thinking: bool,
        tools: Iterable[Mapping[str, Any]] = (),
    ) -> OutputStream:
        """The stream for a request's sampling parameters and tools."""
        return cls(
            tokenizer,
            sampling.stop,
            starts_in_thinking=starts_in_thinking,
            min_tokens=sampling.min_tokens,
            tools=tools,
        )

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._scanner.matched

    @property
    def num_tool_calls(self) -> int:
        """Tool calls completed so far."""
        return self._calls.num_complete

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """The reason to report, given the scheduler's.

        A stop string wins over whatever came later; an answer that ended by itself after a tool
        call asks for tools.
        """
        if self.stop_at is not None:
            return FinishReason.STOP
        asks_for_tools = reason is FinishReason.STOP and self.num_tool_calls > 0
        return FinishReason.TOOL_CALLS if asks_for_tools else reason

    def push(self, delta: Delta) -> list[OutputEvent]:
        """Events of a delta's tokens, neighbours on one channel merged. The final delta flushes."""
        if self.stop_at is not None:
            return []
        assert delta.first_token_index == self.num_tokens, (delta, self.num_tokens)
        events: list[OutputEvent] = []
        num_left = len(delta.token_ids)
        for token_id, logprob in zip_longest(delta.token_ids, delta.logprobs):
            num_left -= 1
            ends_here = num_left == 0 and token_id == delta.stop_token_id
            self._take(events, token_id, logprob, has_text=not ends_here)
            if self.stop_at is not None:
                return events
        if delta.finish_reason is not None:
            for part in self._flush() + self._end_channel():
                _append(events, self._event(part))
        return events

    def _take(
        self, events: list[OutputEvent], token_id: int, logprob: TokenLogprob | None, *, has_text: bool
    ) -> None:
        """Append the events of one token, which goes with the first of them."""
        index, channel = self.num_tokens, self._splitter.channel
        self.num_tokens += 1
        self.num_reasoning_tokens += channel is Channel.REASONING
        parts = (
            self._mark(token_id, has_text) if token_id in self._markers else self._read(token_id, has_text)
        )
        if self.stop_at is not None:
            parts += self._end_channel()
        first, *others = parts or [_Part(channel, "")]
        logprobs = () if logprob is None else (logprob,)
        _append(events, OutputEvent(first.channel, first.text, (token_id,), index, logprobs, first.calls))
        for part in others:
            _append(events, self._event(part))

    def _event(self, part: _Part) -> OutputEvent:
        """An event without a token."""
        return OutputEvent(part.channel, part.text, (), self.num_tokens, (), part.calls)

    def _mark(self, marker: int, has_text: bool) -> list[_Part]:
        """Take a marker: all text before it, and what it ends."""
        parts = self._flush()
        if self.stop_at is not None:
            return parts
        was, thought = self._splitter.channel, self._splitter.thinks
        if not self._splitter.switch(marker, in_value=self._calls.in_value):
            return parts + self._read(marker, has_text)
        if was is Channel.TOOL_CALL:
            ends_call = marker in (self._markers.tool_call, self._markers.tool_call_end)
            parts += self._route(self._calls.close(CallEnd.COMPLETE if ends_call else CallEnd.CUT))
        self._skip_newline = thought and marker == self._markers.think_end
        if self._skip_newline:
            self._held_newline = False
        return parts + self._release_newline()

    def _read(self, token_id: int, has_text: bool) -> list[_Part]:
        """Take a token as text."""
        return self._text(self._detokenizer.push((token_id,))) if has_text else []

    def _text(self, text: str) -> list[_Part]:
        """The part of held and new characters that is safe to show."""
        if self._skip_newline and text:
            text, self._skip_newline = text.removeprefix("\n"), False
        return self._place(self._scan(text))

    def _scan(self, text: str) -> str:
        """Text that can no longer be part of a stop string; sets `stop_at` when one is complete."""
        if self.num_tokens <= self._min_tokens:
            return text
        released = self._scanner.push(text)
        if self._scanner.matched is not None:
            self.stop_at = self.num_tokens
        return released

    def _place(self, text: str) -> list[_Part]:
        """Text on the channel where it belongs."""
        if self._splitter.channel is Channel.TOOL_CALL:
            return self._route(self._calls.push(text))
        return self._hold_newline(_Part(self._splitter.channel, text))

    def _route(self, stretches: Iterable[Stretch]) -> list[_Part]:
        """Stretches of a block: calls on their channel, all else where the block was opened."""
        parts: list[_Part] = []
        for stretch in stretches:
            channel = self._splitter.opened_in if stretch.is_stray else Channel.TOOL_CALL
            parts += self._hold_newline(_Part(channel, stretch.text, stretch.pieces))
        return parts

    def _hold_newline(self, part: _Part) -> list[_Part]:
        """A part without the newline that may belong to `</think>`; nothing if nothing is left."""
        if part.channel is Channel.REASONING and part.text:
            text = "\n" * self._held_newline + part.text
            self._held_newline = text.endswith("\n")
            part = replace(part, text=text[:-1] if self._held_newline else text)
        return [part] if part.text or part.calls else []

    def _release_newline(self) -> list[_Part]:
        held, self._held_newline = self._held_newline, False
        return [_Part(Channel.REASONING, "\n")] if held else []

    def _flush(self) -> list[_Part]:
        """All characters that were kept back, when no others can join them."""
        parts = self._text(self._detokenizer.flush())
        return parts if self.stop_at is not None else parts + self._place(self._scanner.flush())

    def _end_channel(self) -> list[_Part]:
        """What the end of the output leaves of the channel in which it came."""
        in_block = self._splitter.channel is Channel.TOOL_CALL
        parts = self._route(self._calls.close(CallEnd.CUT)) if in_block else []
        return parts + self._release_newline()


def _append(events: list[OutputEvent], new: OutputEvent) -> None:
    """Append, merging with the last event where the channel is the same."""
    if events and events[-1].channel is new.channel:
        last = events[-1]
        events[-1] = replace(
            last,
            text=last.text + new.text,
            token_ids=last.token_ids + new.token_ids,
            logprobs=last.logprobs + new.logprobs,
            calls=join((*last.calls, *new.calls)),
        )
    else:
        events.append(new)
