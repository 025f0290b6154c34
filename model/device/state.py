"""What a decode step reads and writes on one rank, all of it allocated before graphs are captured.

Shapes: B sequences, Q tokens of each in a step, T = B * Q rows, H hidden, V vocabulary of this rank, N query
heads, K key/value heads, D head size, M columns of a block table, P = rotary_dim / 2, R ranks, X columns of
the widest fused projection, W widest dense MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model.config import TextConfig
from model.device.layout import KINDS, Kind
from model.device.ops import Ops
from model.device.weights import DenseWeights, DeviceWeights, MoEWeights, Share
from model.kernels.experts_config import ExpertsShape, ExpertsWorkspace, make_workspace
from model.kernels.linear_config import MAX_SPLITS, MOST_SMALL_TOKENS, Workspace
from model.kernels.paged import DecodeWorkspace, PagedSequences, allocate_workspace
from model.kernels.router_config import RouterOutput, choose_config, workspace_sizes
from model.kernels.sample_plain import Candidates, DecodeRows, SampleWorkspace, SamplingRows
from model.net.layers import rope_frequencies

ATTENTION_PROGRAMS, CPU_PROGRAMS = 264, 4  # two for each of 132 multiprocessors; interpreted: a few
_MOST_COUNTERS = 1 << 16


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class StepRows:
    """The rows of a step: int32, but for counts and seeds of sampling. Position -1: padding.

    `sequences` have context lengths that count this step's tokens; both groups share one tensor of them.
    """

    num_queries: int
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    seqs_T: torch.Tensor
    context_lens_B: torch.Tensor
    num_outputs_T: torch.Tensor  # int64
    temperatures_T: torch.Tensor  # float64
    seeds_T: torch.Tensor  # int64
    step_1: torch.Tensor  # int64
    sequences: dict[Kind, PagedSequences]

    @classmethod
    def allocate(
        cls, num_seqs: int, num_queries: int, num_columns: dict[Kind, int], device: torch.device
    ) -> StepRows:
        """All padding."""
        num_rows = num_seqs * num_queries

        def int32(*shape: int, value: int = 0) -> torch.Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        context_lens_B = int32(num_seqs)
        return cls(
            num_queries, int32(num_rows), int32(num_rows, value=-1),
            torch.arange(num_rows, dtype=torch.int32, device=device) // num_queries,
            context_lens_B,
            torch.zeros(num_rows, dtype=torch.int64, device=device),
            torch.zeros(num_rows, dtype=torch.float64, device=device),
            torch.zeros(num_rows, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            {kind: PagedSequences(int32(num_seqs, num_columns[kind]), context_lens_B) for kind in KINDS},
        )  # fmt: skip

    @property
    def num_seqs(self) -> int:
        """B."""
        return self.context_lens_B.shape[0]

    @property
    def decode_rows(self) -> DecodeRows:
        """What `advance` moves on, where a sequence has one row."""
        return DecodeRows(
            self.token_ids_T, self.positions_T, self.context_lens_B, self.num_outputs_T, self.step_1
        )

    @property
    def sampling(self) -> SamplingRows:
        """How rows are sampled."""
        return SamplingRows(self.temperatures_T, self.seeds_T, self.num_outputs_T)

    def set_sequence(self, seq: int, token_ids: list[int], first_position: int) -> None:
        """Q tokens of a sequence, at positions from `first_position` on; its cache holds those before."""
        assert len(token_ids) == self.num_queries, (token_ids, self.num_queries)
        rows = slice(seq * self.num_queries, (seq + 1) * self.num_queries)
        end = first_position + self.num_queries
        self.token_ids_T[rows] = torch.tensor(token_ids, dtype=torch.int32)
        self.positions_T[rows] = torch.arange(first_position, end, dtype=torch.int32)
        self.context_lens_B[seq] = end

    def set_blocks(self, seq: int, kind: Kind, first_column: int, blocks: list[int]) -> None:
        """Entries of a table that a plan brings, from logical block `first_column` on (see `paged`)."""
        table_M = self.sequences[kind].blocks_BM[seq]
        for offset, block in enumerate(blocks):
            table_M[(first_column + offset) % table_M.shape[0]] = block

    def clear_sequence(self, seq: int) -> None:
        """Make a sequence's rows padding."""
        self.positions_T[seq * self.num_queries : (seq + 1) * self.num_queries] = -1
        self.context_lens_B[seq] = 0

    @property
    def moving(self) -> tuple[torch.Tensor, ...]:
        """What a step changes: to be kept over a warm-up."""
        return (self.token_ids_T, self.positions_T, self.context_lens_B, self.num_outputs_T, self.step_1)


@dataclass(frozen=True, eq=False)
class Scratch:
    """Work memory of T rows, shared by all layers, for they come one after the other.

    The residual stream is float32: T * H values are nothing beside the weights, and sums of 90 terms stay
    exact. Linear outputs are there for decode only (`flat` None: they are allocated as they come).
    """

    hidden_TH: torch.Tensor
    normed_TH: torch.Tensor
    flat: dict[str, torch.Tensor]  # qkvg, q, attended, activations, partials, logits: as many as are needed
    cos_sin: dict[Kind, torch.Tensor]
    slots: dict[Kind, torch.Tensor]
    chosen: tuple[RouterOutput, ...]  # one for each MoE layer, for statistics
    linear: Workspace
    router: Workspace
    attention: DecodeWorkspace
    experts: ExpertsWorkspace
    sampling: SampleWorkspace
    own: Candidates
    gathered: Candidates
    frequencies: dict[Kind, torch.Tensor] = field(default_factory=dict)

    def view(self, name: str, *shape: int) -> torch.Tensor | None:
        """The start of a preallocated tensor as `shape`; None: nothing was preallocated."""
        flat = self.flat.get(name)
        if flat is None:
            return None
        size = torch.Size(shape).numel()
        return flat[:size].view(shape)


def allocate_scratch(
    weights: DeviceWeights, ops: Ops, num_seqs: int, num_queries: int, dtype: torch.dtype, *, is_prefill: bool
) -> Scratch:
    """For steps of B * Q rows (prefill: that many tokens at most, in up to B sequences)."""
    text, device, num_rows = weights.text, weights.device, num_seqs * num_queries
    num_sampled, num_expert_rows = num_seqs if is_prefill else num_rows, weights.num_expert_rows(num_rows)
    sizes = _sizes(weights, num_rows)
    num_partials = sizes["partials"]
    if is_prefill:
        sizes = {name: sizes[name] for name in ("q", "attended")}
        num_partials = min(num_rows, MOST_SMALL_TOKENS) * num_partials // num_rows
    flat = {
        name: torch.zeros(size, dtype=_dtype_of(name, dtype), device=device) for name, size in sizes.items()
    }
    hidden_TH = torch.zeros(num_rows, text.hidden_size, dtype=torch.float32, device=device)
    router_sizes = workspace_sizes(
        choose_config(num_expert_rows, text.num_experts, text.hidden_size), num_expert_rows, text.num_experts
    )
    frequencies = {
        layer.attention: rope_frequencies(layer.rope).to(device) for layer in text.layers + text.mtp_layers
    }
    num_vocab, num_ranks = weights.head.shape[0], weights.share.world_size
    return Scratch(
        hidden_TH, torch.zeros(hidden_TH.shape, dtype=dtype, device=device), flat,
        cos_sin={
            kind: torch.zeros(num_rows, 2, table.numel(), device=device)
            for kind, table in frequencies.items()
        },
        slots={kind: torch.zeros(num_rows, dtype=torch.int32, device=device) for kind in KINDS},
        chosen=tuple(
            RouterOutput.allocate(num_expert_rows, text.experts_per_token, device)
            for layer in weights.layers if isinstance(layer.mlp, MoEWeights)
        ),
        linear=Workspace.allocate(num_partials, _MOST_COUNTERS, device),
        router=Workspace.allocate(*router_sizes, device),
        attention=_attention_workspace(weights, num_seqs, 1 if is_prefill else num_queries),
        experts=_experts_workspace(weights, num_expert_rows, is_prefill=is_prefill),
        sampling=ops.sample_workspace(num_sampled, num_vocab, device),
        own=_candidates((num_sampled,), device), gathered=_candidates((num_ranks, num_sampled), device),
        frequencies=frequencies,
    )  # fmt: skip


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name in {"partials", "logits"} else dtype


def _sizes(weights: DeviceWeights, num_rows: int) -> dict[str, int]:
    """Elements of the tensors between launches, the widest layer's."""
    layers = [*weights.layers, *(mtp.block for mtp in weights.mtp)]
    num_heads = max(layer.attention.num_heads for layer in layers)
    widths = [layer.mlp.down.shape[1] for layer in layers if isinstance(layer.mlp, DenseWeights)]
    widest = max(layer.attention.qkvg.shape[0] for layer in layers)
    return {
        "qkvg": num_rows * widest,
        "q": num_rows * num_heads * weights.text.head_dim,
        "attended": num_rows * num_heads * weights.text.head_dim,
        "activations": num_rows * max(widths, default=1),
        "partials": num_rows * MAX_SPLITS * max(weights.text.hidden_size, widest, *(2 * w for w in widths)),
        "logits": num_rows * weights.head.shape[0],
    }


def _attention_workspace(weights: DeviceWeights, num_seqs: int, num_queries: int) -> DecodeWorkspace:
    layers = [*weights.layers, *(mtp.block for mtp in weights.mtp)]
    attention = [layer.attention for layer in layers]
    num_kv = attention[0].num_kv_heads
    max_rows = num_queries * max(one.num_heads // one.num_kv_heads for one in attention)
    head_dim, device = weights.text.head_dim, weights.device
    num_programs = ATTENTION_PROGRAMS if weights.device.type == "cuda" else CPU_PROGRAMS
    return allocate_workspace(num_programs, num_seqs * num_kv, max_rows, head_dim, device)


def _experts_workspace(weights: DeviceWeights, num_rows: int, *, is_prefill: bool) -> ExpertsWorkspace:
    """Prefill: rows in bfloat16, and room for fp8 inputs where the weights are fp8."""
    text = weights.text
    share = weights.expert_share
    workspace = make_workspace(
        num_rows, experts_shape(text, share), weights.device,
        shared_width=text.shared_width // share.world_size,
        rows_dtype=torch.bfloat16 if is_prefill else torch.float32,
        quantize_inputs=is_prefill and weights.formats.experts == "fp8",
    )  # fmt: skip
    workspace.rows.zero_()  # rows of padding are added and never written: no NaN may lie there
    return workspace


def experts_shape(text: TextConfig, share: Share) -> ExpertsShape:
    """One rank's routed experts."""
    num_experts = len(share.of(text.num_experts))
    return ExpertsShape(
        num_experts, text.experts_per_token, text.hidden_size, text.expert_width, share.world_size
    )


def _candidates(shape: tuple[int, ...], device: torch.device) -> Candidates:
    return Candidates(
        torch.zeros(shape, dtype=torch.int32, device=device),
        torch.zeros(shape, dtype=torch.float64, device=device),
    )
