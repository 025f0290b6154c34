"""Outputs of a model as deltas, and what a stream makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from model.text.output import OutputEvent, OutputStream
from model.text.tokenizer import Tokenizer
from model.text.tools import CallPiece, join
from model.types import Channel, Delta, FinishReason, RequestKey

KEY = RequestKey("tenant", "request")
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"]


def ids_of(tokenizer: Tokenizer, pieces: Iterable[str]) -> list[int]:
    """Ids of pieces, each a marker or text in which nothing is one."""
    ids: list[int] = []
    for piece in pieces:
        ids += [tokenizer.control_id(piece)] if piece in MARKERS else tokenizer.encode_text(piece)
    return ids


def deltas(
    ids: Sequence[int], cuts: Iterable[int], reason: FinishReason = FinishReason.LENGTH
) -> list[Delta]:
    """The ids as deltas cut at the given places; the last one is final."""
    borders = [0, *sorted(cut for cut in cuts if cut <= len(ids)), len(ids)]
    parts = [(a, tuple(ids[a:b])) for a, b in pairwise(borders)]
    return [
        Delta(KEY, start, part, finish_reason=reason if index == len(parts) - 1 else None)
        for index, (start, part) in enumerate(parts)
    ]


def run(stream: OutputStream, parts: Iterable[Delta]) -> list[OutputEvent]:
    """All events, neighbours of one channel joined."""
    joined: list[OutputEvent] = []
    for delta in parts:
        for event in stream.push(delta):
            if not joined or joined[-1].channel is not event.channel:
                joined.append(event)
                continue
            last = joined[-1]
            assert event.first_token_index == last.first_token_index + len(last.token_ids)
            joined[-1] = replace(
                last,
                text=last.text + event.text,
                token_ids=last.token_ids + event.token_ids,
                calls=join((*last.calls, *event.calls)),
            )
    return joined


def output(
    tokenizer: Tokenizer,
    pieces: Iterable[str],
    stop: Iterable[str] = (),
    thinking: bool = False,
    **options: Any,
) -> tuple[OutputStream, list[OutputEvent]]:
    """A stream and its events, all pieces in one delta."""
    stream = OutputStream(tokenizer, stop, starts_in_thinking=thinking, **options)
    return stream, run(stream, deltas(ids_of(tokenizer, pieces), ()))


def text_on(events: Iterable[OutputEvent], channel: Channel) -> str:
    """All text of a channel."""
    return "".join(event.text for event in events if event.channel is channel)


def calls_of(events: Iterable[OutputEvent]) -> tuple[CallPiece, ...]:
    """Every call, in one piece each."""
    return join(piece for event in events for piece in event.calls)
