"""Deltas of tokens -> events of text: detokenized, split by channel, cut at stop strings.

Every token passes one by one through the same chain, so any cut of the tokens into deltas gives
the same text, the same channels and the same end:

    marker? -> bytes to characters -> stop strings -> newlines that belong to a marker -> event

The template writes a newline on the inner side of `</think>` and one after it, and so does the
model; those two belong to the marker and are in no event. Markers and special tokens have no
text; all else that was generated comes out on exactly one channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

from model.text.detokenizer import IncrementalDetokenizer
from model.text.stops import StopScanner
from model.text.tokenizer import Tokenizer
from model.text.tools import ChannelSplitter, Markers
from model.types import Channel, Delta, FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class OutputEvent:
    """A stretch of output on one channel.

    `token_ids` are the tokens taken in while the stretch came about, the first of them the
    request's output token number `first_token_index`. Text may come out later than the token that
    began it (unfinished character, possible stop string), so `token_ids` may be there without text
    and, at the end, text without token ids.
    """

    channel: Channel
    text: str
    token_ids: tuple[int, ...]
    first_token_index: int
    logprobs: tuple[TokenLogprob, ...] = ()


class OutputStream:
    """The text side of one request. `push` every delta in order.

    After a stop string, `stop_at` is the number of tokens up to and with the one that completed
    it, `matched_stop` the string; the text ends before the string and later deltas give nothing.
    The caller then tells the scheduler `stop(key, stop_at)`.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Iterable[str] = (), *, starts_in_thinking: bool, min_tokens: int = 0
    ) -> None:
        """Stop strings that begin before `min_tokens` tokens were generated are ordinary text."""
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._splitter = ChannelSplitter(Markers.of(tokenizer), starts_in_thinking=starts_in_thinking)
        self._scanner = StopScanner(tuple(stop))
        self._min_tokens = min_tokens
        self._held_newline = False  # a newline of reasoning that may belong to </think>
        self._skip_newline = False  # the next text follows </think>
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.stop_at: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, sampling: SamplingParams, *, starts_in_thinking: bool) -> OutputStream:
        """The stream for a request's sampling parameters."""
        return cls(
            tokenizer, sampling.stop, starts_in_thinking=starts_in_thinking, min_tokens=sampling.min_tokens
        )

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._scanner.matched

    @property
    def num_tool_calls(self) -> int:
        """Tool calls completed so far."""
        return self._splitter.num_tool_calls

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
            _append(events, self._take(token_id, logprob, has_text=not ends_here))
            if self.stop_at is not None:
                return events
        if delta.finish_reason is not None:
            _append(events, self._end())
        return events

    def _take(self, token_id: int, logprob: TokenLogprob | None, *, has_text: bool) -> OutputEvent:
        """The event of one token; a marker's carries what it releases on the channel it closes."""
        index, channel = self.num_tokens, self._splitter.channel
        self.num_tokens += 1
        self.num_reasoning_tokens += channel is Channel.REASONING
        if self._splitter.switch(token_id):
            text = self._close(channel, by_think_end=self._splitter.channel is Channel.TEXT)
        else:
            text = self._release(channel, self._detokenizer.push((token_id,)) if has_text else "")
        return OutputEvent(channel, text, (token_id,), index, () if logprob is None else (logprob,))

    def _release(self, channel: Channel, text: str) -> str:
        """The part of held and new text that is safe to show."""
        if self._skip_newline and text:
            text, self._skip_newline = text.removeprefix("\n"), False
        text = self._scan(text)
        if channel is not Channel.REASONING:
            return text
        text = "\n" * self._held_newline + text
        self._held_newline = self.stop_at is None and text.endswith("\n")
        return text[:-1] if self._held_newline else text

    def _scan(self, text: str) -> str:
        """Text that can no longer be part of a stop string; sets `stop_at` when one is complete."""
        if self.num_tokens <= self._min_tokens:
            return text
        released = self._scanner.push(text)
        if self._scanner.matched is not None:
            self.stop_at = self.num_tokens
        return released

    def _close(self, channel: Channel, *, by_think_end: bool) -> str:
        """All text that was kept back on a channel that ends here."""
        closes_thinking = by_think_end and channel is Channel.REASONING
        text = self._release(channel, self._detokenizer.flush())
        if self.stop_at is None:
            rest = self._scanner.flush()
            text += "\n" * (self._held_newline and (bool(rest) or not closes_thinking))
            text += rest.removesuffix("\n") if closes_thinking else rest
        self._held_newline = False
        self._skip_newline = closes_thinking
        return text

    def _end(self) -> OutputEvent:
        """What was kept back, when no token follows."""
        channel = self._splitter.channel
        return OutputEvent(channel, self._close(channel, by_think_end=False), (), self.num_tokens)


def _append(events: list[OutputEvent], new: OutputEvent) -> None:
    """Append, merging with the last event where the channel is the same; drop an empty one."""
    if events and events[-1].channel is new.channel:
        last = events[-1]
        events[-1] = replace(
            last,
            text=last.text + new.text,
            token_ids=last.token_ids + new.token_ids,
            logprobs=last.logprobs + new.logprobs,
        )
    elif new.text or new.token_ids:
        events.append(new)
