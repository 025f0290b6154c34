"""The prefill part of steps: pieces of prompts, one behind the other, in one chunk of padded length.

Shapes: T rows of the chunk, B sequences, M columns of a block table, R rows of embeddings, H hidden, S rows
that are sampled, V vocabulary of this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.batching import Span, image_rows
from model.device.decode_rows import write_tables
from model.device.decoder import DeviceDecoder, TokenRows
from model.device.layout import KINDS, Kind
from model.device.live_rows import Part
from model.device.mtp import draft_token, run_layer
from model.device.sampled import (
    SampledRows,
    TokensOnTheWay,
    is_sampled_in_step,
    seed_of_sample,
    upload,
)
from model.device.sizes import PlanSizes, bucket_for
from model.device.state import allocate_scratch
from model.device.verify import shown_from
from model.kernels.paged import PagedSequences
from model.kernels.sample_plain import Candidates, SamplingRows, best_tokens
from model.shown_rows import ShownRows


@dataclass(frozen=True, eq=False)
class Prefilled:
    """The final norms [T, H] of the chunk, until the next one, and what was sampled of it."""

    normed_TH: torch.Tensor
    sampled: SampledRows | None  # of the parts that sample, in order
    logits_SV: torch.Tensor
    has_drafts: bool  # behind what was sampled


class PrefillChunks:
    """Work memory and tables of one rank's prefill."""

    def __init__(
        self, decoder: DeviceDecoder, sizes: PlanSizes, dtype: torch.dtype, shown: ShownRows
    ) -> None:
        self._decoder, self._sizes, self._dtype, self._shown = decoder, sizes, dtype, shown
        self._device = decoder.weights.device
        self._scratch = allocate_scratch(
            decoder.weights, decoder.ops, sizes.chunk_tokens, 1, dtype, is_prefill=True
        )
        self._tables = {
            kind: torch.zeros(sizes.max_rows, columns, dtype=torch.int32, device=self._device)
            for kind, columns in sizes.num_columns.items()
        }
        self._step_1 = torch.zeros(1, dtype=torch.int64, device=self._device)

    def run(
        self,
        parts: Sequence[Part],
        embeddings: Mapping[str, torch.Tensor],
        previous: TokensOnTheWay | None,
        num_tokens: int,
    ) -> Prefilled:
        """Compute the parts in a chunk for `num_tokens`, and sample behind those that ask for it."""
        first_rows = _first_rows(parts)
        num_rows = bucket_for(num_tokens, self._sizes.chunk_buckets)
        tokens = self._tokens(parts, first_rows, previous, num_rows)
        decoder, tokens = self._with_images(tokens, parts, first_rows, embeddings)
        decoder.run_layers(tokens, self._scratch, self._step_1)
        normed_TH = self._scratch.normed_TH
        last_rows = [
            (part, first + part.work.num_tokens - 1)
            for part, first in zip(parts, first_rows, strict=True)
            if part.work.samples
        ]
        last = self._last_rows(last_rows)
        ids_S, logits_SV = self._sample(last)
        new_SQ = ids_S[:, None]
        has_drafts = self._shows_mtp(parts)
        if has_drafts:
            normed_TH = normed_TH.clone() if any(_scores(part) for part in parts) else normed_TH
            new_SQ = self._draft(tokens, parts, first_rows, last, ids_S)
        for part in parts:
            part.seq.is_mtp_current &= has_drafts
        return Prefilled(normed_TH, last.sampled(new_SQ), logits_SV[: len(last_rows)], has_drafts)

    def logits(self, normed_SH: torch.Tensor) -> torch.Tensor:
        """[S, V] of rows of the chunk."""
        return self._decoder.logits(normed_SH, self._decoder.weights.head, self._scratch)

    def warm_up(self) -> None:
        """Run every length of chunk once, as padding, so that kernels are compiled before anybody waits."""
        starts_B1 = torch.zeros(self._sizes.max_rows + 1, dtype=torch.int32, device=self._device)
        for num_rows in self._sizes.chunk_buckets:
            positions_T = torch.full((num_rows,), -1, dtype=torch.int32, device=self._device)
            zeros_T = torch.zeros_like(positions_T)
            lengths_B = zeros_T.new_zeros(self._sizes.max_rows)
            tokens = TokenRows(zeros_T, positions_T, zeros_T, self._sequences(lengths_B), starts_B1)
            self._decoder.run_layers(tokens, self._scratch, self._step_1)

    def _tokens(
        self, parts: Sequence[Part], first_rows: list[int], previous: TokensOnTheWay | None, num_rows: int
    ) -> TokenRows:
        """Rows of the parts, then padding; sequences without rows behind those there are."""
        num_tokens = sum(part.work.num_tokens for part in parts)
        ids, seqs = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32)
        positions = np.full(num_rows, -1, np.int32)
        starts = np.full(self._sizes.max_rows + 1, num_tokens, np.int32)
        lengths = np.zeros(self._sizes.max_rows, np.int32)
        late = list[tuple[int, int]]()  # row, place in the step before
        for index, (part, first) in enumerate(zip(parts, first_rows, strict=True)):
            known = part.seq.live.token_ids[part.start : part.end]
            rows = slice(first, first + part.work.num_tokens)
            ids[first : first + len(known)] = known
            positions[rows], seqs[rows] = np.arange(part.start, part.end), index
            starts[index], lengths[index] = first, part.end
            if len(known) < part.work.num_tokens:
                assert previous is not None, "a token is neither here nor on its way"
                place = previous.find(part.seq)
                assert place is not None and len(known) == part.work.num_tokens - 1, (place, part.work)
                late.append((first + len(known), place))
        ids_T = upload(ids, self._device)
        if late and previous is not None and previous.sampled is not None:
            rows_N, places_N = upload(np.asarray(late, np.int64).T.copy(), self._device)
            ids_T[rows_N] = previous.sampled.next_NQ[places_N, 0]
        for kind in KINDS:
            write_tables(self._tables[kind], parts, kind)
        return TokenRows(
            ids_T,
            upload(positions, self._device),
            upload(seqs, self._device),
            self._sequences(upload(lengths, self._device)),
            upload(starts, self._device),
        )

    def _sequences(self, lengths_B: torch.Tensor) -> dict[Kind, PagedSequences]:
        return {kind: PagedSequences(self._tables[kind], lengths_B) for kind in KINDS}

    def _with_images(
        self,
        tokens: TokenRows,
        parts: Sequence[Part],
        first_rows: list[int],
        embeddings: Mapping[str, torch.Tensor],
    ) -> tuple[DeviceDecoder, TokenRows]:
        """Where image slots are in the chunk, a table of its own rows stands for that of the vocabulary."""
        spans = [
            Span(part.seq.live.full, first, part.start, part.end)
            for part, first in zip(parts, first_rows, strict=True)
        ]
        rows_R, images_RH = image_rows([part.seq.live.images for part in parts], spans, embeddings)
        if rows_R is None or images_RH is None:
            return self._decoder, tokens
        weights = self._decoder.weights
        table_TH = weights.embedding_VH[tokens.token_ids_T.long()].to(self._dtype)
        table_TH[upload(rows_R.numpy(), self._device)] = images_RH.to(self._device, self._dtype)
        own_rows_T = torch.arange(len(table_TH), dtype=torch.int32, device=self._device)
        decoder = replace(self._decoder, weights=replace(weights, embedding_VH=table_TH))
        return decoder, replace(tokens, token_ids_T=own_rows_T)

    def _last_rows(self, last_rows: list[tuple[Part, int]]) -> _LastRows:
        """Rows are padded to a bucket, for which products are compiled."""
        num = len(last_rows)
        size = bucket_for(num, self._sizes.row_buckets) if num else 0
        rows, noise = np.zeros(size, np.int64), np.zeros(size)
        seeds, num_outputs, ends = (
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
            np.zeros(size, np.int32),
        )
        for index, (part, row) in enumerate(last_rows):
            sampling, num_before = part.seq.live.row.sampling, part.seq.num_outputs
            rows[index], num_outputs[index], ends[index] = row, num_before, part.end
            if sampling.temperature > 0 and is_sampled_in_step(part.seq.live.row, num_before):
                noise[index], seeds[index] = sampling.temperature, seed_of_sample(sampling)
        how = SamplingRows(*(upload(each, self._device) for each in (noise, seeds, num_outputs)))
        return _LastRows(num, upload(rows, self._device), upload(ends, self._device), how)

    def _sample(self, last: _LastRows) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [S] and logits [S, V] of the rows, padding included."""
        decoder, scratch, size = self._decoder, self._scratch, last.rows_S.shape[0]
        if not size:
            return last.ends_S, torch.zeros(0, decoder.weights.head.shape[0], device=self._device)
        logits_SV = self.logits(scratch.normed_TH[last.rows_S])
        own = Candidates(scratch.own.token_ids[:size], scratch.own.scores[:size])
        decoder.ops.sample_tokens(
            logits_SV,
            last.sampling,
            own,
            workspace=scratch.sampling,
            first_token=decoder.weights.first_token,
        )
        num_ranks = decoder.exchange.num_ranks
        gathered = Candidates(
            scratch.gathered.token_ids.view(-1)[: num_ranks * size].view(num_ranks, size),
            scratch.gathered.scores.view(-1)[: num_ranks * size].view(num_ranks, size),
        )
        return best_tokens(decoder.exchange.gather(own, gathered), size).int(), logits_SV

    def _shows_mtp(self, parts: Sequence[Part]) -> bool:
        """Whether MTP layers have to see the chunk: a window before where drafts begin, here or elsewhere."""
        if not self._sizes.num_drafts:
            return False
        window = self._decoder.weights.text.window
        return any(
            part.seq.live.row.sampling.mtp and part.start < end < part.end + window
            for part in parts
            for end in (*part.seq.borders, len(part.seq.live.token_ids))
        )

    def _draft(
        self,
        tokens: TokenRows,
        parts: Sequence[Part],
        first_rows: list[int],
        last: _LastRows,
        ids_S: torch.Tensor,
    ) -> torch.Tensor:
        """Run MTP layers over the chunk: what was sampled, and drafts behind it, [S, Q].

        Slots of images are joined as their token: drafts behind pictures are worse for it, not wrong.
        """
        num_rows = tokens.token_ids_T.shape[0]
        begins = np.zeros(self._sizes.max_rows, np.int32)
        for index, part in enumerate(parts):
            seq, table = part.seq, part.seq.tables["sliding"]
            seq.show_to_mtp(part.start, self._shown, self._decoder.weights.text.window)
            # The last rows are joined with drafts, or here with what follows: another may go on differently.
            self._shown.show(table.block, seq.mtp_begins, part.start, part.end)
            begins[index] = seq.mtp_begins
        shown = shown_from(tokens, upload(begins, self._device))
        scratch = replace(
            self._scratch, hidden_TH=self._scratch.hidden_TH[:num_rows],
            normed_TH=self._scratch.normed_TH[:num_rows],
        )  # fmt: skip
        decoder, new_Q = self._decoder, [ids_S]
        for layer, mtp in enumerate(decoder.weights.mtp[: self._sizes.num_drafts]):
            following_T = self._following(parts, first_rows, 1 + layer, num_rows, new_Q)
            pool = decoder.pools[len(decoder.weights.layers) + layer]
            run_layer(decoder, mtp, pool, shown, scratch, following_T)
            drafts_S = ids_S
            if last.num:
                how = replace(last.sampling, num_outputs_T=last.sampling.num_outputs_T + 1 + layer)
                drafts_S = draft_token(decoder, mtp, scratch, last.rows_S, how).int()
            new_Q.append(drafts_S)
        return torch.stack(new_Q, dim=1)

    def _following(
        self,
        parts: Sequence[Part],
        first_rows: list[int],
        ahead: int,
        num_rows: int,
        new_Q: list[torch.Tensor],
    ) -> torch.Tensor:
        """What stands `ahead` of each row, [T]: known, or `new_Q[i]` [S], i behind what is sampled."""
        ids, num_sampled = np.zeros(num_rows, np.int32), 0
        new = list[tuple[int, int, int]]()  # row, i, place among the S
        for part, first in zip(parts, first_rows, strict=True):
            known = part.seq.live.token_ids[part.start + ahead : part.end + ahead]
            ids[first : first + len(known)] = known
            if part.work.samples:
                end = first + part.work.num_tokens
                rows = range(max(first, end - ahead), end)
                new += [(row, row - (end - ahead), num_sampled) for row in rows]
                num_sampled += 1
        ids_T = upload(ids, self._device)
        if new:
            rows_N, behind_N, places_N = upload(np.asarray(new, np.int64).T.copy(), self._device)
            ids_T[rows_N] = torch.stack(new_Q)[behind_N, places_N]
        return ids_T


@dataclass(frozen=True, eq=False)
class _LastRows:
    """Rows that are sampled: S of a bucket, the first `num` are real."""

    num: int
    rows_S: torch.Tensor  # int64
    ends_S: torch.Tensor  # int32: the position of what is sampled
    sampling: SamplingRows

    def sampled(self, new_SQ: torch.Tensor) -> SampledRows | None:
        """What the real ones have gained: a token each."""
        if not self.num:
            return None
        new_NQ, ends_N = new_SQ[: self.num], self.ends_S[: self.num]
        return SampledRows(new_NQ, torch.zeros_like(ends_N), new_NQ, ends_N)


def _first_rows(parts: Sequence[Part]) -> list[int]:
    rows, num_rows = [], 0
    for part in parts:
        rows.append(num_rows)
        num_rows += part.work.num_tokens
    return rows


def _scores(part: Part) -> bool:
    return part.seq.live.row.sampling.num_prompt_logprobs is not None
