"""The MTP layers of a rank at work: from what the decoder has computed to tokens that may come next.

    decoder -> hidden rows, kept -> draft(): MTP layers over those they lack -> drafts -> decoder verifies

Layer i at position t joins the token at t + 1 + i with the row of the layer before. The last rows of a round
are made from drafts; they are provisional and made again in the next round, from the tokens that came
(model-facts: chain of three heads). Drafting is late: right before the step that verifies, so
that nothing is drafted for a step that does not come.

The decoder's rows are kept where keys of sliding layers are, a window of them and more for every sequence and
every prefix. So one that begins behind a prefix drafts as if it had computed it; what MTP layers have of it
from another sequence is not made again.

Shapes: R rows of all sequences, B sequences, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from model.batch import GroupBatch, on_device
from model.batching import Span, group_batch, image_rows
from model.live import LiveSequence
from model.masks import MaskWorker
from model.net.decoder import Decoder
from model.net.kv import KVCache
from model.net.mtp import MTP, MTPLayer
from model.sampler import sample
from model.sched.step import SequenceWork
from model.shown_rows import ShownRows


class Drafter:
    """Drafts for the sequences of one rank. `cache`: with pools of MTP layers and of hidden rows."""

    def __init__(self, mtp: MTP, decoder: Decoder, cache: KVCache) -> None:
        assert cache.hidden_XH is not None, "a cache for plans without drafts"
        self._layers = [layer for layer in mtp.layers if isinstance(layer, MTPLayer)]
        self._decoder = decoder
        self._pools = cache.pools[len(decoder.text.layers) :]
        self._hidden_XH = cache.hidden_XH
        self._shown = ShownRows(cache.hidden_XH.shape[0] // cache.block_size, cache.block_size)
        self._window = decoder.text.window
        self._rope = decoder.ropes["sliding"]
        self._masks = MaskWorker()

    def take(self, seq: LiveSequence, work: SequenceWork) -> None:
        """A step has brought blocks, which are in the sequence's tables."""
        blocks, table = work.new_sliding_blocks, seq.sliding
        first_logical = table.num_slots // table.block_size - len(blocks)
        self._shown.take(blocks, first_logical, work.start if work.begins else 0)

    def copied(self, source: int, target: int) -> None:
        """A block of the sliding group was copied in all pools."""
        self._shown.copy(source, target)

    def keep(self, rows_TH: torch.Tensor, slots_T: torch.Tensor) -> None:
        """Take the decoder's rows (before its final norm); those of failed drafts are written again."""
        self._hidden_XH[slots_T] = rows_TH

    def draft(self, seqs: Sequence[LiveSequence], embeddings: Mapping[str, torch.Tensor]) -> None:
        """Set `drafts` of every sequence: one token of each layer, drawn as the real one will be."""
        pieces = [self._pieces(seq) for seq in seqs]
        owners = [seq for seq, own in zip(seqs, pieces, strict=True) for _ in own]
        spans = _spans(owners, [piece for own in pieces for piece in own])
        device = self._decoder.embedding.device
        group = on_device(group_batch(spans, self._window), device)
        positions_R = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        hidden_RH = self._hidden_XH[group.write_slots_T]
        cos_sin = self._rope(positions_R, hidden_RH.dtype)
        lengths_B = [sum(stop - start for start, stop in own) for own in pieces]
        last_B = torch.tensor(lengths_B, device=device).cumsum(0) - 1
        for seq in seqs:
            seq.drafts = []
        for index, (layer, pool) in enumerate(zip(self._layers, self._pools, strict=True)):
            rows = [seq.row.ahead(seq.drafts) for seq in seqs]
            masked = self._masks.begin(rows)
            embedded_RH = self._embed(owners, spans, 1 + index, embeddings)
            hidden_RH = _run(layer, layer.join(embedded_RH, hidden_RH), cos_sin, pool, group)
            logits_BV = layer.logits(hidden_RH[last_B])
            if masked is not None:
                masked.result()
            for seq, (token_id, _) in zip(seqs, sample(logits_BV, rows), strict=True):
                seq.drafts.append(token_id)

    def _pieces(self, seq: LiveSequence) -> list[tuple[int, int]]:
        """Positions that MTP layers have to see before they draft: what they lack of a window.

        They see the last ones provisionally. The others count as seen from here on, for sequences that share
        them and draft in the same pass: a layer writes the keys of all rows before any row attends.
        """
        state, block_at, end = seq.draft_state, seq.sliding.block, len(seq.token_ids) - 1
        # With 128 rows of context instead, the third draft of pages held in 54 % of the steps, not in 90 %.
        oldest = max(0, end - self._window)
        if state.first < oldest:
            state.begins = state.first = oldest
        pieces = self._shown.missing(block_at, state.first, end)
        first = max(state.first, end - (len(self._layers) - 1))
        self._shown.show(block_at, state.begins, state.first, first)
        state.first = first
        return pieces

    def _embed(
        self,
        seqs: Sequence[LiveSequence],
        spans: Sequence[Span],
        ahead: int,
        embeddings: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Embeddings [R, H] of what stands `ahead` of each row; where that is an image slot, the image's."""
        token_ids: list[int] = []
        for seq, span in zip(seqs, spans, strict=True):
            known = [*seq.token_ids[span.start + ahead :], *seq.drafts]
            token_ids += known[: span.num_tokens]
        device = self._decoder.embedding.device
        embedded_RH = F.embedding(torch.tensor(token_ids, device=device), self._decoder.embedding)
        shifted = [span.moved(ahead) for span in spans]
        rows_R, images_RH = image_rows([seq.images for seq in seqs], shifted, embeddings)
        if rows_R is not None and images_RH is not None:
            embedded_RH[rows_R.to(device)] = images_RH.to(embedded_RH)
        return embedded_RH


def _spans(owners: Sequence[LiveSequence], pieces: Sequence[tuple[int, int]]) -> list[Span]:
    spans, num_rows = [], 0
    for seq, (start, stop) in zip(owners, pieces, strict=True):
        spans.append(Span(seq.sliding, num_rows, start, stop, seq.draft_state.begins))
        num_rows += stop - start
    return spans


def _run(
    layer: MTPLayer,
    x_RH: torch.Tensor,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
    pool: torch.Tensor,
    group: GroupBatch,
) -> torch.Tensor:
    block = layer.block
    x_RH = x_RH + block.attention(block.attention_norm(x_RH), cos_sin, pool, group)
    out_RH: torch.Tensor = x_RH + block.mlp(block.mlp_norm(x_RH))
    return out_RH
