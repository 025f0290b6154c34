"""The decode part of steps: rows of a graph that stay where they are as long as the same sequences decode.

Then nothing moves between steps but new blocks; tokens and drafts go from step to step on the device. When
another set of sequences decodes, all rows are written anew: from the step before if that is on its way, else
from what the host knows.

Shapes: B sequences of a bucket, Q rows of each (the token, and drafts), N of them real, M columns of a block
table, V vocabulary of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.device.decoder import DeviceDecoder
from model.device.graphs import GraphPool
from model.device.layout import KINDS, Kind
from model.device.live_rows import DeviceSequence, Part
from model.device.sampled import (
    SampledRows,
    TokensOnTheWay,
    is_sampled_in_step,
    seed_of_sample,
    upload,
)
from model.device.sizes import PlanSizes, bucket_for
from model.device.state import Scratch, allocate_scratch
from model.device.verify import VerifyRows, first_rows, verify_step


@dataclass(frozen=True, eq=False)
class _Bucket:
    """So many sequences, and their step as one launch; `logits_BQV` is there until the next one."""

    rows: VerifyRows
    scratch: Scratch  # a graph knows addresses only: what it works in must live as long
    replay: Callable[[], object]
    logits_BQV: torch.Tensor


class DecodeRows:
    """Rows, tables and graphs of one rank, Q rows a sequence; all buckets are the first rows of the same."""

    def __init__(
        self, decoder: DeviceDecoder, sizes: PlanSizes, dtype: torch.dtype, num_queries: int, pool: GraphPool
    ) -> None:
        self._decoder, self._sizes, self._num_queries = decoder, sizes, num_queries
        self._device = decoder.weights.device
        self._rows = VerifyRows.allocate(sizes.max_rows, num_queries, sizes.num_columns, self._device)
        self._held: list[tuple[DeviceSequence, float]] = []  # whose rows they are, with temperatures,
        self._held_bucket = 0  # and padding up to here
        self._limits: list[int] = []
        # The largest first: what smaller graphs allocate fits into what it leaves.
        self._buckets = {num: self._capture(pool, num, dtype) for num in reversed(sizes.row_buckets)}

    def forget(self, seq: DeviceSequence | None = None) -> None:
        """What is in the rows is not what comes next: of all sequences, or if `seq` is among them."""
        if seq is None or any(held is seq for held, _ in self._held):
            self._held, self._held_bucket = [], 0

    def correct(self, seqs: Sequence[DeviceSequence], ids_S: torch.Tensor) -> None:
        """The last tokens of those that are in the rows are these, not what was sampled here."""
        rows = {seq: row for row, (seq, _) in enumerate(self._held)}
        wrong = [(rows[seq], index) for index, seq in enumerate(seqs) if seq in rows]
        if wrong:
            rows_N, indices_N = upload(np.asarray(wrong, np.int64).T.copy(), self._device)
            self._rows.tokens_BQ[rows_N, 0] = ids_S[indices_N].int()

    def run(
        self, parts: Sequence[Part], previous: TokensOnTheWay | None, num_seqs: int
    ) -> tuple[SampledRows, torch.Tensor]:
        """One step of all parts in a bucket for `num_seqs`.

        With logits [N, V] of the first row of each, there until the next step.
        """
        num, size = len(parts), bucket_for(num_seqs, self._sizes.row_buckets)
        bucket = self._buckets[size]
        temperatures = [_temperature(part) for part in parts]
        now = [(part.seq, temperature) for part, temperature in zip(parts, temperatures, strict=True)]
        if (now, size) == (self._held, self._held_bucket):
            self._write_new_blocks(parts)
            has_drafts = [True] * num
        else:
            has_drafts = [previous is not None and part.seq in previous.with_drafts for part in parts]
            self._write_rows(bucket.rows, parts, temperatures, previous)
            for kind in KINDS:
                write_tables(self._rows.step.sequences[kind].blocks_BM, parts, kind)
            self._limits = []
        if self._num_queries > 1:
            self._write_limits(parts, has_drafts)
        bucket.replay()
        self._held, self._held_bucket = now, size
        return bucket.rows.sampled(num), bucket.logits_BQV[:num, 0]

    def _write_rows(
        self,
        rows: VerifyRows,
        parts: Sequence[Part],
        temperatures: list[float],
        previous: TokensOnTheWay | None,
    ) -> None:
        """Everything of a bucket's rows but the tables."""
        num_seqs = rows.step.num_seqs
        ids, positions = np.zeros(num_seqs, np.int32), np.full(num_seqs, -1, np.int32)
        prompts, begins = np.zeros(num_seqs, np.int32), np.zeros(num_seqs, np.int32)
        noise, seeds = np.zeros(num_seqs), np.zeros(num_seqs, np.int64)
        late = dict[int, int]()
        for row, (part, temperature) in enumerate(zip(parts, temperatures, strict=True)):
            seq, index = part.seq, None if previous is None else previous.find(part.seq)
            if index is None:
                ids[row], positions[row] = seq.live.token_ids[part.start], part.start
            else:
                late[row], positions[row] = index, 0
            prompts[row], begins[row] = seq.num_prompt, seq.mtp_begins
            noise[row] = temperature
            seeds[row] = seed_of_sample(seq.live.row.sampling) if temperature else 0
        device, num_queries = self._device, self._num_queries
        rows.prompts_B.copy_(upload(prompts, device), non_blocking=True)
        rows.begins_B.copy_(upload(begins, device), non_blocking=True)
        rows.base_B.copy_(upload(positions, device), non_blocking=True)
        rows.tokens_BQ[:, 0].copy_(upload(ids, device), non_blocking=True)
        if late and previous is not None and previous.sampled is not None:
            rows_N, sources_N = upload(np.asarray([*late.items()], np.int64).T.copy(), device)
            rows.base_B[rows_N] = previous.sampled.positions_N[sources_N]
            rows.tokens_BQ[rows_N] = previous.sampled.next_NQ[sources_N, :num_queries]
        step = rows.step
        step.temperatures_T.copy_(upload(noise.repeat(num_queries), device), non_blocking=True)
        step.seeds_T.copy_(upload(seeds.repeat(num_queries), device), non_blocking=True)
        self._decoder.ops.spread_rows(rows.draft_rows)

    def _write_limits(self, parts: Sequence[Part], has_drafts: list[bool]) -> None:
        """How many drafts each sequence verifies: those that are there and that the plan has blocks for."""
        limits = [
            min(part.num_drafts, self._num_queries - 1) if has and _in_step(part) else 0
            for part, has in zip(parts, has_drafts, strict=True)
        ]
        if limits != self._limits:
            self._limits = limits
            limits_N = upload(np.asarray(limits, np.int32), self._device)
            self._rows.limits_B[: len(limits)].copy_(limits_N, non_blocking=True)

    def _write_new_blocks(self, parts: Sequence[Part]) -> None:
        for kind in KINDS:
            new = [
                (row, column, block)
                for row, part in enumerate(parts)
                for column, block in part.written[kind]
            ]  # fmt: skip
            if new:
                rows_N, columns_N, blocks_N = upload(np.asarray(new, np.int64).T.copy(), self._device)
                blocks_BM = self._rows.step.sequences[kind].blocks_BM
                blocks_BM[rows_N, columns_N] = blocks_N.int()

    def _capture(self, pool: GraphPool, num_seqs: int, dtype: torch.dtype) -> _Bucket:
        """The step of a bucket, computed once with all its rows real: ready means that it has run."""
        decoder, rows = self._decoder, first_rows(self._rows, num_seqs)
        num_queries = self._num_queries
        scratch = allocate_scratch(
            decoder.weights, decoder.ops, num_seqs, num_queries, dtype, is_prefill=False
        )
        rows.base_B.fill_(0)  # all in block 0, which nobody has yet
        decoder.ops.spread_rows(rows.draft_rows)
        replay = pool.capture(lambda: verify_step(decoder, rows, scratch), rows.moving)
        replay()
        rows.base_B.fill_(-1)
        decoder.ops.spread_rows(rows.draft_rows)
        logits = scratch.view("logits", num_seqs, num_queries, decoder.weights.head.shape[0])
        assert logits is not None, "decode steps have their logits in their scratch"
        return _Bucket(rows, scratch, replay, logits)


def _in_step(part: Part) -> bool:
    return is_sampled_in_step(part.seq.live.row, part.seq.num_outputs)


def _temperature(part: Part) -> float:
    """Rows that are sampled elsewhere are greedy here."""
    return part.seq.live.row.sampling.temperature if _in_step(part) else 0.0


def write_tables(blocks_BM: torch.Tensor, parts: Sequence[Part], kind: Kind) -> None:
    """Rows of a block table, as far as any of them is used; what was there stays a valid index."""
    if not parts:
        return
    tables = [part.seq.tables[kind].blocks for part in parts]
    columns = np.zeros((len(tables), max(len(table) for table in tables)), np.int32)
    for row, table in zip(columns, tables, strict=True):
        row[: len(table)] = table
    blocks_BM[: len(tables), : columns.shape[1]].copy_(upload(columns, blocks_BM.device), non_blocking=True)
