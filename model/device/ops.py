"""The seam between a step and what computes it: `ops_triton` on a GPU, `ops_plain` anywhere, chosen once.

Shapes: T tokens, H hidden, N rows and K columns of a weight, M columns of a result, S partial sums, D head
size, P = rotary_dim / 2, B sequences, V vocabulary of this rank.
"""

from __future__ import annotations

from typing import Protocol

import torch

from model.device.weights import MoEWeights
from model.kernels.draft_rows_plain import DraftRows, Verified
from model.kernels.experts_config import ExpertsWorkspace
from model.kernels.linear_config import InputNorm, SwiGLU, Workspace
from model.kernels.norms_plain import RoutedRows
from model.kernels.packed import PackedWeight
from model.kernels.paged import DecodeWorkspace, PagedKV, PagedSequences
from model.kernels.router_config import RouterOutput, UniformRouting
from model.kernels.sample_plain import Candidates, DecodeRows, SampleWorkspace, SamplingRows


class Ops(Protocol):  # two modules are of this type
    """What a step launches. Results go where they are told, or to new tensors if `out` is None."""

    def add_norm(
        self, hidden_TH: torch.Tensor | None, out_TH: torch.Tensor, *, deltas_PTH: torch.Tensor | None = None,
        routed: RoutedRows | None = None, row_ids_T: torch.Tensor | None = None,
        norm: InputNorm | None = None, normed_TH: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """See `model.kernels.norms`."""

    def linear(
        self, x_TK: torch.Tensor, weight: PackedWeight, out_TM: torch.Tensor | None, *,
        swiglu: SwiGLU | None = None, workspace: Workspace | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """x @ W.T, or SwiGLU of it, [T, M]: in `out_TM` if there is one, else in x's dtype."""

    def partial_sums(
        self, x_TK: torch.Tensor, weight: PackedWeight, partials: torch.Tensor | None
    ) -> torch.Tensor:
        """Parts [S, T, N] whose sum in order is x @ W.T; float32 in `partials` (flat) if there is one."""

    def token_tables(
        self, positions_T: torch.Tensor, seqs_T: torch.Tensor, frequencies_P: torch.Tensor,
        blocks_BM: torch.Tensor, block_size: int, cos_sin_T2P: torch.Tensor, slots_T: torch.Tensor,
    ) -> None:  # fmt: skip
        """See `model.kernels.qkv_prepare`."""

    def qkv_prepare(
        self, qkvg_TX: torch.Tensor, q_norm_D: torch.Tensor, k_norm_D: torch.Tensor,
        cos_sin_T2P: torch.Tensor, slots_T: torch.Tensor, kv: PagedKV, q_out_TND: torch.Tensor, eps: float,
    ) -> None:  # fmt: skip
        """See `model.kernels.qkv_prepare`."""

    def paged_decode(
        self, q_TND: torch.Tensor, kv: PagedKV, sequences: PagedSequences, gate_TN: torch.Tensor,
        out_TND: torch.Tensor, workspace: DecodeWorkspace, window: int | None = None,
    ) -> None:  # fmt: skip
        """See `model.kernels.paged_decode`."""

    def paged_prefill(
        self, q_TND: torch.Tensor, kv: PagedKV, sequences: PagedSequences, query_starts_B1: torch.Tensor,
        gate_TN: torch.Tensor, out_TND: torch.Tensor, window: int | None = None,
    ) -> None:  # fmt: skip
        """See `model.kernels.paged_prefill`."""

    def route(
        self, x_TH: torch.Tensor, weight_EH: torch.Tensor, bias_E: torch.Tensor, out: RouterOutput, *,
        positions_T: torch.Tensor | None = None, uniform: UniformRouting | None = None,
        workspace: Workspace | None = None,
    ) -> None:  # fmt: skip
        """See `model.kernels.router`."""

    def experts(
        self, x_TH: torch.Tensor, chosen: RouterOutput, moe: MoEWeights, *, routed_scale: float,
        num_ranks: int, workspace: ExpertsWorkspace, out_TH: torch.Tensor | None,
    ) -> torch.Tensor | RoutedRows:  # fmt: skip
        """Scaled sum of the experts of each token and the shared one, [T, H] in `out_TH` (or a new one).

        It may leave the adding to the caller where that takes a launch of its own: then it returns routed
        rows, and those of the shared expert lie behind them in `workspace.rows`.
        """

    def sample_workspace(self, num_rows: int, num_tokens: int, device: torch.device) -> SampleWorkspace:
        """For `sample_tokens`."""

    def sample_tokens(
        self, logits_TV: torch.Tensor, rows: SamplingRows, out: Candidates, *,
        workspace: SampleWorkspace | None = None, first_token: int = 0,
    ) -> None:  # fmt: skip
        """See `model.kernels.sample`."""

    def advance(self, rows: DecodeRows, sampled: Candidates) -> None:
        """See `model.kernels.sample`."""

    def spread_rows(self, rows: DraftRows) -> None:
        """See `model.kernels.draft_rows_plain`, as the next two."""

    def accept_rows(self, sampled: Candidates, rows: DraftRows, out: Verified) -> None:
        """Drafts that hold."""

    def follow_rows(
        self, drafts: Candidates, rows: DraftRows, verified: Verified, index: int, following_T: torch.Tensor,
        next_T: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """A draft of each sequence."""


def choose_ops(device: torch.device) -> Ops:
    """Triton's on a CUDA device, plain torch elsewhere."""
    if device.type == "cuda":
        from model.device import ops_triton

        return ops_triton
    from model.device import ops_plain

    return ops_plain
