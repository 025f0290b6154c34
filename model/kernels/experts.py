"""Grouped expert product: routed experts of one rank and the shared one, from one token to thousands.

Shapes: T tokens, K experts per token, P = T * K pairs, H hidden, W expert width, E experts of this rank.

Without `sort` every pair is a program's own: 2 launches, or 3 where rows are added by another. With `sort`
rows of one expert are multiplied together: 4 launches, and 2 more where rows become fp8. Nothing is read
back: grids follow from T and the weights' shapes, and programs without work leave at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from model.kernels.early_start import early_launch
from model.kernels.experts_config import (
    ExpertsConfig,
    ExpertsShape,
    ExpertsWorkspace,
    SharedExpert,
    TileConfig,
    block_inputs,
    ceil_div,
    choose_config,
    kernel_operand,
    kernel_sizes,
    max_num_blocks,
    num_strips,
    power_of_two,
    takes_quads,
)
from model.kernels.experts_products import product_dot, product_gemv
from model.kernels.experts_rows import combine_rows, down_and_combine, quantize_rows, sort_pairs
from model.kernels.packed import PackedWeight

_NO_BLOCKS = (None, None, None, None, None)
_COMBINE_BLOCK = 1024  # columns of a program
_SORT_TOKENS = 512  # tokens that are sorted at once
_PERMUTED_QUADS = 256  # of four columns, of a program at once
_MIN_BINS = 32  # the fewest that a warp can count


def experts_forward(  # noqa: PLR0913
    x_TH: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    *,
    limit: float | None,
    first_expert: int,
    workspace: ExpertsWorkspace,
    num_tokens: torch.Tensor | int | None = None,
    shared: SharedExpert | None = None,
    routed_scale: float = 1.0,
    config: ExpertsConfig | None = None,
    out_TH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum over each token's experts of this rank, [T, H] in float32 (or `out_TH`, returned).

    x bfloat16 [T, H]; expert_ids int32 [T, K], global, ascending in each token: those outside
    [first_expert, first_expert + E) are left out, and -1 marks padding, as do rows from `num_tokens` on (a
    number, or int32 [1] on the device): their result is 0. The sum of weight * down(SwiGLU(gate_up(x))) is
    added in float32 in ascending expert id, multiplied by `routed_scale`, and the shared expert is added.
    Between the products rows are rounded to bfloat16, and `workspace.rows` has its own dtype. Without
    `config` it is `choose_config` of one rank.
    """
    call = _Call(
        x_TH, expert_ids_TK, gate_up, down, limit, first_expert, workspace, num_tokens, shared, config
    )
    out_TH = torch.empty_like(x_TH, dtype=torch.float32) if out_TH is None else out_TH
    if x_TH.shape[0] == 0:
        return out_TH
    call.gate_up_product()
    if call.config.fuse_combine:
        call.down_and_combine(weights_TK, out_TH, routed_scale)
    else:
        call.down_product()
        call.combine(weights_TK, out_TH, routed_scale)
    return out_TH


def experts_rows(  # noqa: PLR0913
    x_TH: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    *,
    limit: float | None,
    first_expert: int,
    workspace: ExpertsWorkspace,
    num_tokens: torch.Tensor | int | None = None,
    shared: SharedExpert | None = None,
    config: ExpertsConfig | None = None,
) -> torch.Tensor:
    """As `experts_forward`, but the rows to add, [T * K (+ T), H] in `workspace.rows`, without weights.

    Row t * K + k is of the k-th expert of token t and written only where that is one of this rank's; row
    T * K + t is of the shared expert. A caller that adds anyway (residual, exchange) saves a launch.
    """
    call = _Call(
        x_TH, expert_ids_TK, gate_up, down, limit, first_expert, workspace, num_tokens, shared, config
    )
    if x_TH.shape[0]:
        call.gate_up_product()
        call.down_product()
    num_rows = expert_ids_TK.numel() + (x_TH.shape[0] if shared is not None else 0)
    return workspace.rows[:num_rows]


def sort_experts(
    ids_TK: torch.Tensor,
    first_expert: int,
    num_tokens: torch.Tensor | int,
    shape: ExpertsShape,
    block_rows: int,
    workspace: ExpertsWorkspace,
    permuted: tuple[torch.Tensor, int] | None = None,
) -> None:
    """Pairs t * K + k of this rank's experts, by expert and token, and their blocks, into `workspace`.

    Block b < num_blocks has the pairs sorted_pairs[block_starts[b] : block_ends[b]], up to `block_rows`, of
    the local expert block_experts[b]. `permuted`: x [T, H] and a group size; then `permuted_inputs` becomes x
    with its columns in the order of quads.py.
    """
    x_TH, group_size = (None, 0) if permuted is None else permuted
    num_rows, num_chosen = ids_TK.shape
    sort_pairs[(shape.num_experts,)](
        ids_TK,
        workspace.sorted_pairs,
        workspace.block_experts,
        workspace.block_starts,
        workspace.block_ends,
        workspace.num_blocks,
        x_TH,
        None if permuted is None else workspace.permuted_inputs,
        num_rows=num_rows,
        first_expert=first_expert,
        num_tokens=num_tokens,
        K=num_chosen,
        K_PADDED=power_of_two(num_chosen),
        E=shape.num_experts,
        NUM_BINS=max(_MIN_BINS, power_of_two(shape.num_experts + 1)),
        BLOCK_T=min(_SORT_TOKENS, max(16, power_of_two(num_rows))),
        BLOCK_ROWS=block_rows,
        H=shape.hidden_size,
        GROUP=group_size,
        BLOCK_QUADS=_PERMUTED_QUADS,
        num_warps=4,
        **early_launch(),
    )


@dataclass(eq=False)
class _Call:
    """One call's operands, as its launches take them."""

    x_TH: torch.Tensor
    ids_TK: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight
    limit: float | None
    first_expert: int
    workspace: ExpertsWorkspace
    num_tokens: torch.Tensor | int | None
    shared: SharedExpert | None
    given_config: ExpertsConfig | None
    shape: ExpertsShape = field(init=False)
    config: ExpertsConfig = field(init=False)
    has_quads: bool = field(init=False)
    blocks: tuple[torch.Tensor | None, ...] = _NO_BLOCKS

    def __post_init__(self) -> None:
        (num_experts, twice_width, hidden), (num_rows, num_chosen) = self.gate_up.shape, self.ids_TK.shape
        self.shape = ExpertsShape(num_experts, num_chosen, hidden, twice_width // 2)
        self.config = self.given_config or choose_config(num_rows, self.shape, self.gate_up.format)
        self.has_quads = takes_quads(self.config, num_rows, self.gate_up, self.down)
        self.num_tokens = num_rows if self.num_tokens is None else self.num_tokens
        assert self.x_TH.shape == (num_rows, hidden) and self.x_TH.dtype == torch.bfloat16, self.x_TH.shape
        assert self.ids_TK.dtype == torch.int32 and self.ids_TK.is_contiguous() and self.x_TH.is_contiguous()
        assert self.down.shape == (num_experts, hidden, self.shape.width), self.down.shape
        assert num_rows <= self.workspace.max_tokens, (num_rows, self.workspace.max_tokens)
        assert num_chosen <= self.workspace.experts_per_token
        if self.config.sort and num_rows:
            self._sort()

    @property
    def num_pairs(self) -> int:
        return self.ids_TK.numel()

    @property
    def routing(self) -> dict[str, Any]:
        """What every launch knows of the routing."""
        return {
            "ids_ptr": self.ids_TK,
            "first_expert": self.first_expert,
            "num_tokens": self.num_tokens,
            "K": self.shape.experts_per_token,
            "E": self.shape.num_experts,
            **early_launch(),
        }

    def gate_up_product(self) -> None:
        """x -> workspace.activations."""
        tile, workspace = self.config.gate_up, self.workspace
        shared = None if self.shared is None else self.shared.gate_up
        if tile.kind == "gemv":
            self._gemv(self.x_TH, self.gate_up, shared, workspace.activations, tile, gated=True)
            return
        inputs = workspace.permuted_inputs if self.has_quads else self.x_TH
        rows: tuple[torch.Tensor, torch.Tensor | None] = (inputs, None)
        if self.config.quantize_inputs:
            assert workspace.input_codes is not None and workspace.input_scales is not None
            rows = (workspace.input_codes, workspace.input_scales)
            self._quantize(self.x_TH, *rows, pairs=False)
        self._dot(rows, self.x_TH, self.gate_up, shared, workspace.activations, tile, gated=True)

    def down_product(self) -> None:
        """workspace.activations -> workspace.rows."""
        tile, workspace = self.config.down, self.workspace
        shared = None if self.shared is None else self.shared.down
        if tile.kind == "gemv":
            self._gemv(workspace.activations, self.down, shared, workspace.rows, tile, gated=False)
            return
        rows: tuple[torch.Tensor, torch.Tensor | None] = (workspace.activations, None)
        if self.config.quantize_inputs:
            assert workspace.activation_codes is not None and workspace.activation_scales is not None
            rows = (workspace.activation_codes, workspace.activation_scales)
            self._quantize(workspace.activations, *rows, pairs=True)
        self._dot(rows, workspace.activations, self.down, shared, workspace.rows, tile, gated=False)

    def combine(self, weights_TK: torch.Tensor, out_TH: torch.Tensor, routed_scale: float) -> None:
        """workspace.rows -> out."""
        hidden = self.shape.hidden_size
        block = min(_COMBINE_BLOCK, power_of_two(hidden))
        combine_rows[(out_TH.shape[0], ceil_div(hidden, block))](
            self.workspace.rows,
            weights_ptr=weights_TK,
            out_ptr=out_TH,
            num_pairs=self.num_pairs,
            routed_scale=routed_scale,
            H=hidden,
            HAS_SHARED=self.shared is not None,
            BLOCK=block,
            **self.routing,
        )

    def down_and_combine(self, weights_TK: torch.Tensor, out_TH: torch.Tensor, routed_scale: float) -> None:
        """workspace.activations -> out."""
        tile, hidden = self.config.down, self.shape.hidden_size
        shared = None if self.shared is None else self.shared.down
        down_and_combine[(out_TH.shape[0], ceil_div(hidden, tile.block_outputs))](
            self.workspace.activations,
            weights_ptr=weights_TK,
            weight=kernel_operand(self.down),
            shared_weight=kernel_operand(shared),
            out_ptr=out_TH,
            num_pairs=self.num_pairs,
            routed_scale=routed_scale,
            STRIDE_IN=self.workspace.activations.stride(0),
            H=hidden,
            **kernel_sizes(self.down, shared, with_outputs=False),
            BLOCK=tile.block_outputs,
            BLOCK_K=tile.block_inputs,
            THREADS=32 * tile.num_warps,
            UNROLL=tile.unroll,
            num_warps=tile.num_warps,
            **self.routing,
        )

    def _limits(self) -> dict[str, float]:
        shared_limit = None if self.shared is None else self.shared.limit
        return {
            "limit": float("inf") if self.limit is None else self.limit,
            "shared_limit": float("inf") if shared_limit is None else shared_limit,
        }

    def _sort(self) -> None:
        workspace = self.workspace
        self.blocks = (
            workspace.sorted_pairs,
            workspace.block_experts,
            workspace.block_starts,
            workspace.block_ends,
            workspace.num_blocks,
        )
        assert self.num_tokens is not None
        block_rows = self.config.gate_up.block_rows
        permuted = (self.x_TH, self.gate_up.group_size) if self.has_quads else None
        sort_experts(
            self.ids_TK, self.first_expert, self.num_tokens, self.shape, block_rows, workspace, permuted
        )

    def _quantize(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *, pairs: bool) -> None:
        num_rows, width = (self.num_pairs if pairs else self.x_TH.shape[0]), codes.shape[1]
        block = 4
        quantize_rows[(num_rows, ceil_div(scales.shape[1], block))](
            x,
            codes,
            scales,
            WIDTH=width,
            STRIDE=x.stride(0),
            NUM_GROUPS=scales.shape[1],
            BLOCK_GROUPS=block,
            num_warps=4,
            **{**self.routing, "E": self.shape.num_experts if pairs else 0},
        )

    def _gemv(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        shared: PackedWeight | None,
        out: torch.Tensor,
        tile: TileConfig,
        *,
        gated: bool,
    ) -> None:
        num_programs = self.num_pairs + (0 if shared is None else self.ids_TK.shape[0])
        product_gemv[(num_programs, num_strips(tile, gated, weight, shared))](
            x,
            weight=kernel_operand(weight),
            shared_weight=kernel_operand(shared),
            out_ptr=out,
            num_pairs=self.num_pairs,
            GATED=gated,
            STRIDE_IN=x.stride(0),
            STRIDE_OUT=out.stride(0),
            **kernel_sizes(weight, shared),
            BLOCK=tile.block_outputs,
            BLOCK_K=tile.block_inputs,
            THREADS=32 * tile.num_warps,
            UNROLL=tile.unroll,
            num_warps=tile.num_warps,
            **self._limits(),
            **self.routing,
        )

    def _dot(
        self,
        x: tuple[torch.Tensor, torch.Tensor | None],
        shared_x: torch.Tensor,
        weight: PackedWeight,
        shared: PackedWeight | None,
        out: torch.Tensor,
        tile: TileConfig,
        *,
        gated: bool,
    ) -> None:
        num_blocks = self.num_pairs
        if self.config.sort:
            num_blocks = max_num_blocks(self.num_pairs, self.shape.num_experts, tile.block_rows)
        num_shared = 0 if shared is None else ceil_div(self.ids_TK.shape[0], tile.block_rows)
        product_dot[(num_blocks + num_shared, num_strips(tile, gated, weight, shared))](
            x,
            shared_x,
            blocks=self.blocks,
            weight=kernel_operand(weight),
            shared_weight=kernel_operand(shared),
            out_ptr=out,
            num_blocks=num_blocks,
            num_pairs=self.num_pairs,
            GATED=gated,
            STRIDE_X=x[0].stride(0),
            STRIDE_IN=shared_x.stride(0),
            STRIDE_OUT=out.stride(0),
            **kernel_sizes(weight, shared),
            BLOCK=tile.block_outputs,
            BLOCK_T=tile.block_rows,
            BLOCK_K=block_inputs(tile, weight, has_quads=self.has_quads),
            SHARED_BLOCK_K=0 if shared is None else block_inputs(tile, shared),
            WEIGHTS_FIRST=tile.weights_first,
            HAS_QUADS=self.has_quads,
            GROUP_BLOCKS=tile.group_blocks,
            OUT_GROUP=self.down.group_size if gated and self.has_quads else 0,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **self._limits(),
            **self.routing,
        )
