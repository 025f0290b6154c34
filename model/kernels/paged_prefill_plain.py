"""Plain-torch twin of `model.kernels.paged_prefill`: the same signature, float32 inside.

Shapes: T tokens of B sequences, N query heads, D head size.
"""

from __future__ import annotations

import torch

from model.kernels.paged import PagedKV, PagedSequences
from model.kernels.paged_decode_plain import attend_sequence


def paged_prefill(
    q_TND: torch.Tensor,
    kv: PagedKV,
    sequences: PagedSequences,
    query_starts_B1: torch.Tensor,
    gate_TN: torch.Tensor,
    out_TND: torch.Tensor,
    window: int | None = None,
    tuning: object = None,  # noqa: ARG001 - of the kernel only
) -> None:
    """Causal attention times sigmoid(gate) of chunks: tokens [starts[b], starts[b + 1]) are b's last.

    Rows from `starts[B]` on are not written.
    """
    starts = query_starts_B1.tolist()
    for seq, length in enumerate(sequences.context_lens_B.tolist()):
        rows = slice(starts[seq], starts[seq + 1])
        if rows.start < rows.stop:
            attend_sequence(q_TND[rows], kv, sequences, seq, length, gate_TN[rows], out_TND[rows], window)
