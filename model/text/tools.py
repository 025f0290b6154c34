"""Which channel each generated token belongs to: reasoning, answer or tool call.

One state machine over token ids, never over text: "</think>" spelled out of ordinary tokens is
text, and no cut of the tokens into messages can change the result. A tool call is recognised
inside of thinking, too, and returns to where it was opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.text.tokenizer import Tokenizer
from model.types import Channel


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens that switch channels; None where a tokenizer lacks one."""

    think: int | None
    think_end: int | None
    tool_call: int | None
    tool_call_end: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Markers:
        """The markers of a tokenizer."""
        return cls(
            think=tokenizer.token_id("<think>"),
            think_end=tokenizer.token_id("</think>"),
            tool_call=tokenizer.token_id("<tool_call>"),
            tool_call_end=tokenizer.token_id("</tool_call>"),
        )


class ChannelSplitter:
    """Follows the markers. `channel` is where the next token's text belongs."""

    def __init__(self, markers: Markers, *, starts_in_thinking: bool) -> None:
        self._markers = markers
        self._opened_in = Channel.TEXT
        self.channel = Channel.REASONING if starts_in_thinking else Channel.TEXT
        self.num_tool_calls = 0

    def switch(self, token_id: int) -> bool:
        """Take one token. True: it was a marker, has no text, and `channel` is now the new one."""
        markers = self._markers
        if self.channel is Channel.TOOL_CALL:
            if token_id != markers.tool_call_end:
                return False
            self.channel = self._opened_in
            self.num_tool_calls += 1
            return True
        if token_id == markers.tool_call:
            self._opened_in, self.channel = self.channel, Channel.TOOL_CALL
        elif token_id == markers.think:
            self.channel = Channel.REASONING
        elif token_id == markers.think_end:
            self.channel = Channel.TEXT
        else:
            return False
        return True
