"""The MTP layers of a rank at work: from what the decoder has computed to tokens that may come next.

    decoder -> hidden rows, kept -> draft(): MTP layers over the kept rows -> drafts -> decoder verifies

Layer i at position t joins the token at t + 1 + i with the row of the layer before. The last rows of a round
are made from drafts; they are provisional and made again in the next round, from the tokens that came
(model-facts: chain of three heads). Drafting is late: right before the step that verifies, so
that nothing is drafted for a step that does not come.

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
from model.net.mtp import MTP, MTPLayer
from model.sampler import sample


class Drafter:
    """Drafts for the sequences of one rank. `pools`: MTP layers' caches, in slots of the sliding group."""

    def __init__(self, mtp: MTP, decoder: Decoder, pools: Sequence[torch.Tensor]) -> None:
        self._layers = [layer for layer in mtp.layers if isinstance(layer, MTPLayer)]
        self._decoder = decoder
        self._pools = pools
        self._window = decoder.text.window
        self._rope = decoder.ropes["sliding"]
        self._masks = MaskWorker()

    def keep(self, seq: LiveSequence, rows_RH: torch.Tensor, start: int) -> None:
        """Take the decoder's rows (before its final norm) of positions that hold known tokens.

        A window of them is kept while a sequence does not draft: with 128 rows of context instead, the third
        draft held in 54 % of the steps, not in 90 %.
        """
        seq.draft_state.add(rows_RH, start, self._window)

    def draft(self, seqs: Sequence[LiveSequence], embeddings: Mapping[str, torch.Tensor]) -> None:
        """Set `drafts` of every sequence: one token of each layer, drawn as the real one will be."""
        spans = _spans(seqs)
        device = self._decoder.embedding.device
        group = on_device(group_batch(spans, self._window), device)
        positions_R = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        hidden_RH = torch.cat([piece for seq in seqs for piece in seq.draft_state.pieces])
        kept_RH = hidden_RH
        cos_sin = self._rope(positions_R, hidden_RH.dtype)
        last_B = torch.tensor([span.first_row + span.num_tokens - 1 for span in spans], device=device)
        for seq in seqs:
            seq.drafts = []
        for index, (layer, pool) in enumerate(zip(self._layers, self._pools, strict=True)):
            rows = [seq.row.ahead(seq.drafts) for seq in seqs]
            masked = self._masks.begin(rows)
            embedded_RH = self._embed(seqs, spans, 1 + index, embeddings)
            hidden_RH = _run(layer, layer.join(embedded_RH, hidden_RH), cos_sin, pool, group)
            logits_BV = layer.logits(hidden_RH[last_B])
            if masked is not None:
                masked.result()
            for seq, (token_id, _) in zip(seqs, sample(logits_BV, rows), strict=True):
                seq.drafts.append(token_id)
        for seq, span in zip(seqs, spans, strict=True):
            rows_RH = kept_RH[span.first_row : span.first_row + span.num_tokens]
            seq.draft_state.caught_up(rows_RH, len(self._layers) - 1)

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


def _spans(seqs: Sequence[LiveSequence]) -> list[Span]:
    spans, num_rows = [], 0
    for seq in seqs:
        state = seq.draft_state
        stop = state.first + state.num_rows
        assert stop == len(seq.token_ids) - 1, (stop, len(seq.token_ids))
        spans.append(Span(seq.sliding, num_rows, state.first, stop, state.begins))
        num_rows += state.num_rows
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
