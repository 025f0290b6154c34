"""How `run` and `ask` show tool calls, and what `--json` prints. Needs nothing but the base install."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class Piece(Protocol):
    """A piece of a call: `model.text.tools.CallPiece`, or `ToolCallDelta` of the wire."""

    @property
    def name(self) -> str:
        """Set in the first piece."""

    @property
    def arguments(self) -> str:
        """The next piece of JSON text."""

    @property
    def end(self) -> object:
        """True in the last piece."""


class Call(Protocol):
    """A whole call."""

    @property
    def name(self) -> str:
        """Of the function."""

    @property
    def arguments(self) -> str:
        """JSON text."""

    @property
    def is_complete(self) -> bool:
        """False: the output ended before the call did."""


def calls_json(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """What `--json` prints: name and arguments, an object; of a call that was cut, the text so far."""
    return [
        {"name": call.name, "arguments": json.loads(call.arguments)}
        if call.is_complete
        else {"name": call.name, "arguments": call.arguments, "is_complete": False}
        for call in calls
    ]


def calls_text(pieces: Iterable[Piece]) -> str:
    """What a terminal shows, as it comes: a line for each call."""
    return "".join(
        (f"\n{piece.name} " if piece.name else "") + piece.arguments + ("\n" if piece.end else "")
        for piece in pieces
    )


def request_json(
    samples: Sequence[dict[str, Any]], usage: dict[str, Any], prompt_logprobs: Sequence[dict[str, Any] | None]
) -> dict[str, Any]:
    """What `--json` prints of a request: the answer itself, or the list of `samples`, and what is common."""
    common: dict[str, Any] = {"usage": usage}
    if prompt_logprobs:
        common["prompt_logprobs"] = list(prompt_logprobs)
    return {**(samples[0] if len(samples) == 1 else {"samples": list(samples)}), **common}
