"""A step's work as a `Batch`: rows, positions, cache slots and masks.

Shapes: T tokens of the step, B sequences of Q query tokens each, L cached positions, R rows of embeddings,
H hidden, N tiles of Q query tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.batch import Batch, DecodeRows, GroupBatch, PrefillRows, WindowTiles
from model.live import LiveSequence, Slots, SlotTable
from model.sched.step import SequenceWork
from model.types import ImageSpan

# Sequences that compute so few tokens are attended together; more of them are a matrix of their own.
MOST_DECODED = 8


@dataclass(frozen=True)
class Span:
    """Positions [start, stop) of a sequence in one block group: rows from `first_row` on of the batch.

    Nothing before `begins` is attended to.
    """

    table: SlotTable
    first_row: int
    start: int
    stop: int
    begins: int = 0

    @property
    def num_tokens(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def moved(self, ahead: int) -> Span:
        """The same rows, but what stands `ahead` positions on."""
        return replace(self, start=self.start + ahead, stop=self.stop + ahead)

    def slots(self, start: int, stop: int) -> Slots:
        """Cache slots of positions."""
        return self.table.span(start, stop)

    def first_seen(self, window: int | None) -> int:
        """Oldest position that the first row attends to; `window` None: there is no limit."""
        return self.begins if window is None else max(self.begins, self.start - window + 1)


def build_batch(
    works: Sequence[tuple[LiveSequence, SequenceWork]],
    window: int,
    embeddings: Mapping[str, torch.Tensor],
) -> Batch:
    """Tensors of a step from the work of its sequences; tables must hold the step's blocks already."""
    full, sliding, token_ids, samples = list[Span](), list[Span](), list[int](), list[int]()
    for seq, work in works:
        start, first_row = seq.start_of(work), len(token_ids)
        stop = start + work.num_tokens
        known = [*seq.token_ids[start:stop], *seq.drafts[: work.num_drafts]]
        assert len(known) == work.num_tokens, (work, len(seq.token_ids), len(seq.drafts))
        token_ids += known
        full.append(Span(seq.full, first_row, start, stop))
        sliding.append(Span(seq.sliding, first_row, start, stop))
        if work.samples:
            samples += range(len(token_ids) - 1 - work.num_drafts, len(token_ids))
    rows_R, embeddings_RH = image_rows([seq.images for seq, _ in works], full, embeddings)
    return Batch(
        num_tokens=len(token_ids),
        token_ids_T=torch.tensor(token_ids, dtype=torch.int64),
        positions_T=_joined([np.arange(span.start, span.stop) for span in full]),
        full=group_batch(full, None),
        sliding=group_batch(sliding, window),
        sample_rows_S=torch.tensor(samples, dtype=torch.int64),
        image_rows_R=rows_R,
        image_embeddings_RH=embeddings_RH,
    )


def group_batch(spans: Sequence[Span], window: int | None) -> GroupBatch:
    """What attention of one group needs; `window` None: a position sees everything before it."""
    most_untiled = window if window is not None else math.inf
    by_num_tokens = defaultdict[int, list[Span]](list)
    prefilling, tiled = list[Span](), list[Span]()
    for span in spans:
        if span.num_tokens <= min(MOST_DECODED, most_untiled):
            by_num_tokens[span.num_tokens].append(span)
        elif span.num_tokens <= most_untiled:
            prefilling.append(span)
        else:
            tiled.append(span)
    return GroupBatch(
        write_slots_T=_joined([span.slots(span.start, span.stop) for span in spans]),
        decodes=tuple(_decode_rows(alike, window) for alike in by_num_tokens.values()),
        prefills=tuple(_prefill_rows(span, window) for span in prefilling),
        tiles=_window_tiles(tiled, window) if window is not None and tiled else None,
    )


def image_rows(
    images: Sequence[tuple[ImageSpan, ...]], spans: Sequence[Span], embeddings: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rows of the batch that are image slots, and what stands there; a chunk may cut an image anywhere."""
    rows, pieces = [], []
    for of_sequence, span in zip(images, spans, strict=True):
        for image in of_sequence:
            start = max(image.start, span.start)
            stop = min(image.start + image.num_tokens, span.stop)
            if start < stop:
                first = image.offset + start - image.start
                pieces.append(embeddings[image.key][first : first + stop - start])
                rows.append(np.arange(start, stop) - span.start + span.first_row)
    return (_joined(rows), torch.cat(pieces)) if rows else (None, None)


def _joined(pieces: Sequence[Slots]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces) if pieces else np.zeros(0, np.int64))


def _decode_rows(spans: Sequence[Span], window: int | None) -> DecodeRows:
    """Spans of equally many tokens; keys are padded with slot 0."""
    num_tokens = spans[0].num_tokens
    first = [span.first_seen(window) for span in spans]
    seen = [span.slots(begin, span.stop) for span, begin in zip(spans, first, strict=True)]
    longest = max(len(slots) for slots in seen)
    slots_BL = np.zeros((len(spans), longest), np.int64)
    for row, slots in zip(slots_BL, seen, strict=True):
        row[: len(slots)] = slots
    mask_BQL = None
    if num_tokens > 1 or any(len(slots) != longest for slots in seen):
        key_B1L = (np.asarray(first)[:, None] + np.arange(longest))[:, None]
        query_BQ1 = (np.asarray([span.start for span in spans])[:, None] + np.arange(num_tokens))[..., None]
        mask = key_B1L <= query_BQ1
        if window is not None:
            mask &= key_B1L > query_BQ1 - window
        mask_BQL = torch.from_numpy(mask)
    rows_BQ = np.asarray([span.first_row for span in spans])[:, None] + np.arange(num_tokens)
    return DecodeRows(torch.from_numpy(rows_BQ), torch.from_numpy(slots_BL), mask_BQL)


def _prefill_rows(span: Span, window: int | None) -> PrefillRows:
    first = span.first_seen(window)
    slots = torch.from_numpy(span.slots(first, span.stop).copy())
    if first == span.start and (window is None or span.num_tokens <= window):
        return PrefillRows(span.first_row, span.num_tokens, slots, None)
    query_T1 = torch.arange(span.start, span.stop)[:, None]
    key_L = torch.arange(first, span.stop)
    mask_TL = key_L <= query_T1
    if window is not None:
        mask_TL &= key_L > query_T1 - window
    return PrefillRows(span.first_row, span.num_tokens, slots, mask_TL)


def _window_tiles(spans: Sequence[Span], window: int) -> WindowTiles:
    rows, slots, masks = [], [], []
    for span in spans:
        first = span.first_seen(window)
        seen = span.slots(first, span.stop)
        begin_N1 = np.arange(span.start, span.stop, window)[:, None]
        query_NQ = np.minimum(begin_N1 + np.arange(window), span.stop - 1)
        key_NL = begin_N1 + np.arange(-window, window)
        distance_NQL = query_NQ[:, :, None] - key_NL[:, None]
        rows.append(query_NQ - span.start + span.first_row)
        slots.append(seen[np.clip(key_NL - first, 0, len(seen) - 1)])
        masks.append((distance_NQL >= 0) & (distance_NQL < window) & (key_NL >= span.begins)[:, None])
    return WindowTiles(*(torch.from_numpy(np.concatenate(pieces)) for pieces in (rows, slots, masks)))
