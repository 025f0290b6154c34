"""Which channel each generated token belongs to, and what the tool calls among them say.

`ChannelSplitter` is a state machine over token ids, never over text: "</think>" spelled out of
ordinary tokens is text. Between `<tool_call>` and `</tool_call>` (a block) `CallParser` reads

    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>

No cut of the tokens into messages changes what comes out, and every character comes out once, on one
channel:

- Tags, values and the white space between tags belong to the call: channel TOOL_CALL, as written,
  beside the pieces of JSON that they amount to.
- Other text is no part of a call (no function tag, words between tags, a key for the second time): it
  comes out where the block was opened, in the answer or in the reasoning.
- A value ends at `</parameter>` if what follows can follow it: the next tag, or the end of the block.
  Elsewhere `</parameter>` is text of the value: agents write XML. Where it is missing, a value ends
  at a `<parameter=KEY>` at the start of a line, with a key that is new and not unknown to the schema;
  at a `</function>` before another function or the end of the block; and at the end of the block.
- `</tool_call>` always ends the block; another marker does outside of values, and is text inside.
- What ends by `</function>`, `</tool_call>` or the beginning of the next call is complete. A call that
  the output's end, a stop string or a `</think>` cuts off is marked so, and its JSON stays open: nobody
  can take half a command for a whole one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from model.text.tokenizer import Tokenizer
from model.text.tool_values import ToolSchemas, ValueWriter
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

    def __contains__(self, token_id: int) -> bool:
        return token_id in (self.think, self.think_end, self.tool_call, self.tool_call_end)


class ChannelSplitter:
    """Follows the markers. `channel` is where the next token's text belongs."""

    def __init__(self, markers: Markers, *, starts_in_thinking: bool) -> None:
        self._markers = markers
        self.channel = Channel.REASONING if starts_in_thinking else Channel.TEXT
        self.opened_in = self.channel  # where the block was opened that is or was the last

    @property
    def thinks(self) -> bool:
        """True inside of thinking, also in a block that was opened there."""
        channel = self.opened_in if self.channel is Channel.TOOL_CALL else self.channel
        return channel is Channel.REASONING

    def switch(self, marker: int, *, in_value: bool) -> bool:
        """Take a marker. True: it has no text, and `channel` is now the new one. False: it is text."""
        markers = self._markers
        if self.channel is Channel.TOOL_CALL:
            if in_value and marker != markers.tool_call_end:
                return False
            self.channel = self.opened_in
        if marker == markers.tool_call:
            self.opened_in, self.channel = self.channel, Channel.TOOL_CALL
        elif marker == markers.think:
            self.channel = Channel.REASONING
        elif marker == markers.think_end:
            self.channel = Channel.TEXT
        return True


class CallEnd(str, Enum):
    """How a call ended; the names are those of the wire."""

    COMPLETE = "complete"
    CUT = "cut"


@dataclass(frozen=True)
class CallPiece:
    """What came of one call. Pieces of a call, joined, are the call.

    `index` counts the calls of an output. `arguments` is JSON text: that of a complete call is an
    object, that of one that was cut is the beginning of one.
    """

    index: int
    name: str = ""
    arguments: str = ""
    end: CallEnd | None = None

    @property
    def is_complete(self) -> bool:
        """True if the pieces so far are the whole call."""
        return self.end is CallEnd.COMPLETE


def join(pieces: Iterable[CallPiece]) -> tuple[CallPiece, ...]:
    """Neighbours of one call made one piece."""
    joined: list[CallPiece] = []
    for piece in pieces:
        if joined and joined[-1].index == piece.index:
            last = joined[-1]
            joined[-1] = replace(
                last,
                name=last.name + piece.name,
                arguments=last.arguments + piece.arguments,
                end=piece.end,
            )
        else:
            joined.append(piece)
    return tuple(joined)


@dataclass(frozen=True)
class Stretch:
    """Text of a block as it was written, and what it adds to calls. Stray text is no part of one."""

    text: str
    is_stray: bool = False
    pieces: tuple[CallPiece, ...] = ()


# ---- tags


def _beginnings(*atoms: str) -> str:
    """A pattern for every beginning of a sequence of patterns, but the whole."""
    pattern = ""
    for atom in reversed(atoms[:-1]):
        pattern = f"{atom}(?:{pattern})?" if pattern else atom
    return pattern


_NAME = r"[^<>\n]{1,256}"
_SPACE = r"\s{0,64}"  # between tags; bounded, because a value waits that long to go on
_TAG = re.compile(rf"<function=(?P<name>{_NAME})>|<parameter=(?P<key>{_NAME})>|</function>")
_TAG_BEGINS = re.compile(
    "(?:"
    + "|".join(
        (
            _beginnings(*"<function=", _NAME, ">"),
            _beginnings(*"<parameter=", _NAME, ">"),
            _beginnings(*"</function>"),
        )
    )
    + r")\Z"
)
# What ends a value, with the newline that belongs to it; tags that come after it are left to be read.
_VALUE_ENDS = re.compile(
    rf"\n?</parameter>(?={_SPACE}(?:<parameter=|</function>))"
    rf"|\n?(?=</function>{_SPACE}<function=)"
    rf"|\n(?=<parameter=(?P<key>{_NAME})>)"
)
_VALUE_MAY_END = re.compile(
    r"(?:\n|\n?(?:"
    + "|".join(
        (
            _beginnings(*"</parameter>", _SPACE, *"<parameter="),
            _beginnings(*"</parameter>", _SPACE, *"</function>"),
            _beginnings(*"</function>", _SPACE, *"<function="),
        )
    )
    + r")|\n"
    + _beginnings(*"<parameter=", _NAME, ">")
    + r")\Z"
)
# The same where no more text follows: at a tag, or (the last two lines of a block) without one.
_VALUE_ENDS_BY_TAG = re.compile(rf"\n?(?:</parameter>(?={_SPACE}\Z)|(?=</function>{_SPACE}\Z))")
_VALUE_ENDS_BY_BLOCK = re.compile(rf"{_VALUE_ENDS_BY_TAG.pattern}|\n?\Z")


class CallParser:
    """Reads the text of blocks, one after the other. `push` text as it comes, `close` at a block's end."""

    def __init__(self, schemas: ToolSchemas) -> None:
        self._schemas = schemas
        self._held = ""  # may be, or become, a tag
        self._is_stray = False  # what came since the last tag is more than white space
        self._name: str | None = None  # of the call that is open
        self._keys: set[str] = set()  # that it has
        self._value: ValueWriter | None = None  # of the parameter that is open
        self._value_is_fresh = False  # the newline after the tag may still come
        self._num_calls = 0
        self.num_complete = 0

    @property
    def in_value(self) -> bool:
        """True where the next text is part of a value for sure."""
        return self._value is not None and _VALUE_ENDS_BY_TAG.search(self._held) is None

    def push(self, text: str) -> list[Stretch]:
        """Take text; return what is certain by now."""
        self._held += text
        return self._read(None)

    def close(self, end: CallEnd) -> list[Stretch]:
        """The rest of a block. `end` is that of a call without `</function>`."""
        out = self._read(end)
        if self._name is not None:
            out.append(Stretch("", pieces=(self._end_call(end),)))
        self._is_stray = False
        return out

    def _read(self, end: CallEnd | None) -> list[Stretch]:
        """Read what is held; all of it, if the block ends here."""
        out: list[Stretch] = []
        while self._read_gap(out, end) if self._value is None else self._read_value(out, end):
            pass
        return out

    # ---- between tags

    def _read_gap(self, out: list[Stretch], end: CallEnd | None) -> bool:
        """Read up to a tag and take it. False: there is none yet."""
        tag = _TAG.search(self._held)
        if tag is None:
            begins = _TAG_BEGINS.search(self._held) if end is None else None
            self._add_gap(out, self._pop(begins.start() if begins else len(self._held)))
            return False
        self._add_gap(out, self._pop(tag.start()))
        self._pop(len(tag.group()))
        pieces = self._take_tag(tag)
        if pieces:
            self._is_stray = False
            out.append(Stretch(tag.group(), pieces=pieces))
        else:
            self._add_gap(out, tag.group())
        return True

    def _take_tag(self, tag: re.Match[str]) -> tuple[CallPiece, ...]:
        """What a tag says; nothing if it is out of place."""
        name, key = tag["name"], tag["key"]
        if name is not None:
            ended = () if self._name is None else (self._end_call(CallEnd.COMPLETE),)
            return (*ended, self._begin_call(name))
        if self._name is None or key in self._keys:
            return ()
        return (self._end_call(CallEnd.COMPLETE) if key is None else self._begin_value(key),)

    def _add_gap(self, out: list[Stretch], text: str) -> None:
        """White space after a tag belongs to the call; from the first other character on it is stray."""
        stray = text if self._is_stray else text.lstrip()
        space = text[: len(text) - len(stray)]
        self._is_stray = self._is_stray or bool(stray)
        out += [Stretch(space)] * bool(space) + [Stretch(stray, is_stray=True)] * bool(stray)

    def _pop(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text

    # ---- values

    def _read_value(self, out: list[Stretch], end: CallEnd | None) -> bool:
        """Read up to the end of the value. False: it goes on."""
        found = self._find_value_end(end)
        if found is None:
            goes_on = _VALUE_MAY_END.search(self._held) if end is None else None
            self._add_value(out, self._pop(goes_on.start() if goes_on else len(self._held)))
            return False
        assert self._value is not None
        self._add_value(out, self._pop(found.start()))
        out.append(Stretch(self._pop(len(found.group())), pieces=(self._piece(self._value.close()),)))
        self._value = None
        return True

    def _find_value_end(self, end: CallEnd | None) -> re.Match[str] | None:
        """The first end of the value in what is held; None also where an earlier one may still come."""
        ends = (match for match in _VALUE_ENDS.finditer(self._held) if self._may_end_value(match["key"]))
        found = [match for match in [next(ends, None)] if match is not None]
        if end is not None:
            last = _VALUE_ENDS_BY_BLOCK if end is CallEnd.COMPLETE else _VALUE_ENDS_BY_TAG
            found += [match for match in [last.search(self._held)] if match is not None]
        else:
            maybe = _VALUE_MAY_END.search(self._held)
            found = [match for match in found if maybe is None or match.start() <= maybe.start()]
        return min(found, key=lambda match: match.start(), default=None)

    def _may_end_value(self, next_key: str | None) -> bool:
        """Whether a `<parameter=KEY>` inside of a value begins another one; None: another tag."""
        if next_key is None:
            return True
        assert self._name is not None
        return next_key not in self._keys and self._schemas.may_have(self._name, next_key)

    def _add_value(self, out: list[Stretch], text: str) -> None:
        """Text of the value, after the newline of its tag."""
        if not text:
            return
        assert self._value is not None
        value = text.removeprefix("\n") if self._value_is_fresh else text
        self._value_is_fresh = False
        written = self._value.push(value)
        out.append(Stretch(text, pieces=(self._piece(written),) if written else ()))

    # ---- pieces

    def _piece(self, arguments: str) -> CallPiece:
        return CallPiece(self._num_calls - 1, arguments=arguments)

    def _begin_call(self, name: str) -> CallPiece:
        self._name, self._keys = name, set()
        self._num_calls += 1
        return CallPiece(self._num_calls - 1, name)

    def _begin_value(self, key: str) -> CallPiece:
        assert self._name is not None
        before = ", " if self._keys else "{"
        self._keys.add(key)
        self._value = ValueWriter(self._schemas.types(self._name, key))
        self._value_is_fresh = True
        return self._piece(f"{before}{json.dumps(key, ensure_ascii=False)}: ")

    def _end_call(self, end: CallEnd) -> CallPiece:
        if end is CallEnd.COMPLETE:
            arguments = "}" if self._keys else "{}"
            self.num_complete += 1
        else:
            arguments = "" if self._value is None else self._value.cut()
        self._name = self._value = None
        return replace(self._piece(arguments), end=end)
