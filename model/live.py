"""What a rank remembers about a sequence between steps, and how a step's work becomes a `Batch`.

Shapes: T tokens of the step, B decoding sequences, L cached positions, R rows of embeddings, H hidden,
N tiles of Q query tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.batch import Batch, DecodeRows, GroupBatch, PrefillRows, WindowTiles
from model.sampler import SampleRow
from model.sched.step import AdmittedSequence, SequenceWork
from model.types import ImageSpan

Slots = NDArray[np.int64]


@dataclass
class SlotTable:
    """Cache slot of every position of a sequence in one block group; grows by doubling."""

    block_size: int
    num_slots: int = 0
    _slots: Slots = field(default_factory=lambda: np.zeros(64, np.int64))

    def append(self, blocks: tuple[int, ...]) -> None:
        """Add the blocks' slots behind those there are."""
        if not blocks:
            return
        new = (np.asarray(blocks)[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)
        end = self.num_slots + len(new)
        if end > len(self._slots):
            self._slots = np.concatenate((self._slots, np.zeros(max(end, len(self._slots)), np.int64)))
        self._slots[self.num_slots : end] = new
        self.num_slots = end

    def clear(self) -> None:
        """Forget every block: the sequence is recomputed from its first token."""
        self.num_slots = 0

    def span(self, start: int, stop: int) -> Slots:
        """Slots of positions [start, stop)."""
        assert stop <= self.num_slots, (start, stop, self.num_slots)
        return self._slots[start:stop]


@dataclass
class LiveSequence:
    """A sequence on its rank: known token ids (prompt, then output), tables, and how it is sampled."""

    images: tuple[ImageSpan, ...]
    token_ids: list[int]
    row: SampleRow  # its output ids are the tail of `token_ids`
    full: SlotTable
    sliding: SlotTable

    @classmethod
    def admit(cls, admitted: AdmittedSequence, block_size: int) -> LiveSequence:
        """Before its first work."""
        prompt = admitted.prompt_ids
        row = SampleRow(admitted.sampling, prompt, [])
        return cls(admitted.images, list(prompt), row, SlotTable(block_size), SlotTable(block_size))

    def append(self, token_id: int) -> None:
        """Take the token that was sampled."""
        self.token_ids.append(token_id)
        self.row.output_ids.append(token_id)

    def extend_tables(self, work: SequenceWork) -> None:
        """Take the blocks a step brings; work from position 0 begins with empty tables."""
        if work.start == 0:
            self.full.clear()
            self.sliding.clear()
        self.full.append(work.new_full_blocks)
        self.sliding.append(work.new_sliding_blocks)


@dataclass(frozen=True)
class WorkItem:
    """One sequence's share of a step: rows [first_row, first_row + num_tokens) of the batch."""

    seq: LiveSequence
    work: SequenceWork
    first_row: int

    @property
    def stop(self) -> int:
        """Position behind the last one computed."""
        return self.work.start + self.work.num_tokens


def build_batch(
    works: Sequence[tuple[LiveSequence, SequenceWork]],
    window: int,
    embeddings: Mapping[str, torch.Tensor],
) -> Batch:
    """Tensors of a step from the work of its sequences; tables must hold the step's blocks already."""
    items, num_tokens = [], 0
    for seq, work in works:
        assert work.start + work.num_tokens <= len(seq.token_ids), (work, len(seq.token_ids))
        items.append(WorkItem(seq, work, num_tokens))
        num_tokens += work.num_tokens
    token_ids = [token for item in items for token in item.seq.token_ids[item.work.start : item.stop]]
    positions = [np.arange(item.work.start, item.stop) for item in items]
    samples = [item.first_row + item.work.num_tokens - 1 for item in items if item.work.samples]
    rows_R, embeddings_RH = _image_rows(items, embeddings)
    return Batch(
        num_tokens=num_tokens,
        token_ids_T=torch.tensor(token_ids, dtype=torch.int64),
        positions_T=_joined(positions),
        full=_group(items, "full", None),
        sliding=_group(items, "sliding", window),
        sample_rows_S=torch.tensor(samples, dtype=torch.int64),
        image_rows_R=rows_R,
        image_embeddings_RH=embeddings_RH,
    )


def _joined(pieces: Sequence[Slots]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(pieces) if pieces else np.zeros(0, np.int64))


def _table(item: WorkItem, group: str) -> SlotTable:
    return item.seq.full if group == "full" else item.seq.sliding


def _group(items: Sequence[WorkItem], group: str, window: int | None) -> GroupBatch:
    """`window` None: a position sees everything before it."""
    written = [_table(item, group).span(item.work.start, item.stop) for item in items]
    decoding = [item for item in items if item.work.num_tokens == 1]
    most_untiled = window if window is not None else math.inf
    prefilling = [item for item in items if 1 < item.work.num_tokens <= most_untiled]
    tiled = [item for item in items if item.work.num_tokens > most_untiled]
    return GroupBatch(
        write_slots_T=_joined(written),
        decode=_decode_rows(decoding, group, window) if decoding else None,
        prefills=tuple(_prefill_rows(item, group, window) for item in prefilling),
        tiles=_window_tiles(tiled, group, window) if window is not None and tiled else None,
    )


def _first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _decode_rows(items: Sequence[WorkItem], group: str, window: int | None) -> DecodeRows:
    seen = [_table(item, group).span(_first_seen(item.work.start, window), item.stop) for item in items]
    longest = max(len(slots) for slots in seen)
    slots_BL = np.zeros((len(items), longest), np.int64)
    for row, slots in zip(slots_BL, seen, strict=True):
        row[: len(slots)] = slots
    mask_B11L = None
    if any(len(slots) != longest for slots in seen):
        num_seen_B = np.asarray([len(slots) for slots in seen])
        mask_B11L = torch.from_numpy(np.arange(longest) < num_seen_B[:, None])[:, None, None]
    rows_B = torch.tensor([item.first_row for item in items], dtype=torch.int64)
    return DecodeRows(rows_B, torch.from_numpy(slots_BL), mask_B11L)


def _prefill_rows(item: WorkItem, group: str, window: int | None) -> PrefillRows:
    first = _first_seen(item.work.start, window)
    slots = torch.from_numpy(_table(item, group).span(first, item.stop).copy())
    if item.work.start == 0 and (window is None or item.stop <= window):
        return PrefillRows(item.first_row, item.work.num_tokens, slots, None)
    query_T1 = torch.arange(item.work.start, item.stop)[:, None]
    key_L = torch.arange(first, item.stop)
    mask_TL = key_L <= query_T1
    if window is not None:
        mask_TL &= key_L > query_T1 - window
    return PrefillRows(item.first_row, item.work.num_tokens, slots, mask_TL)


def _window_tiles(items: Sequence[WorkItem], group: str, window: int) -> WindowTiles:
    rows, slots, masks = [], [], []
    for item in items:
        first = _first_seen(item.work.start, window)
        seen = _table(item, group).span(first, item.stop)
        begin_N1 = np.arange(item.work.start, item.stop, window)[:, None]
        query_NQ = np.minimum(begin_N1 + np.arange(window), item.stop - 1)
        key_NL = begin_N1 + np.arange(-window, window)
        distance_NQL = query_NQ[:, :, None] - key_NL[:, None]
        rows.append(query_NQ - item.work.start + item.first_row)
        slots.append(seen[np.clip(key_NL - first, 0, len(seen) - 1)])
        masks.append((distance_NQL >= 0) & (distance_NQL < window) & (key_NL >= 0)[:, None])
    return WindowTiles(*(torch.from_numpy(np.concatenate(pieces)) for pieces in (rows, slots, masks)))


def _image_rows(
    items: Sequence[WorkItem], embeddings: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rows of the batch that are image slots, and what stands there; a chunk may cut an image anywhere."""
    rows, pieces = [], []
    for item in items:
        for span in item.seq.images:
            start = max(span.start, item.work.start)
            stop = min(span.start + span.num_tokens, item.stop)
            if start < stop:
                first = span.offset + start - span.start
                pieces.append(embeddings[span.key][first : first + stop - start])
                rows.append(np.arange(start, stop) - item.work.start + item.first_row)
    return (_joined(rows), torch.cat(pieces)) if rows else (None, None)
