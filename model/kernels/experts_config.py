"""What the grouped expert product is told besides its operands: shapes, block sizes, work memory.

Shapes: T tokens, K experts per token, P = T * K (token, expert) pairs, H hidden, W expert width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch

from model.kernels.packed import FP8_BLOCK, PackedFormat, PackedWeight

MIN_BLOCK_ROWS = 8  # the fewest rows of a block that any config may ask for
MOST_PERMUTED_ROWS = 512  # beyond, blocks have more rows than nibbles are unpacked for in registers
MIN_QUAD_GROUP = 64  # whose quads are the 16 columns that the tensor cores multiply at once


@dataclass(frozen=True)
class ExpertsShape:
    """Sizes of one rank's routed experts."""

    num_experts: int  # on this rank
    experts_per_token: int
    hidden_size: int
    width: int
    num_ranks: int = 1  # over which all experts are spread


@dataclass(frozen=True)
class SharedExpert:
    """An expert of every token with weight 1, multiplied in the same launches as the routed ones.

    Its format may be another one, and its width W' the share of one rank.
    """

    gate_up: PackedWeight  # [2 W', H]
    down: PackedWeight  # [H, W']
    limit: float | None


@dataclass(frozen=True)
class TileConfig:
    """How one of the two products is cut up.

    `gemv`: one row against a strip of the weight, multiplied and added in float32 registers.
    `dot`: a block of rows on the tensor cores; `weights_first` makes the strip the tall operand, so that
    blocks of 8 rows waste nothing.
    """

    kind: Literal["gemv", "dot"]
    block_rows: int  # rows of a block; 1 for gemv
    block_outputs: int  # outputs of a strip; for gate_up of the gate, and as many of up
    block_inputs: int  # weight columns read at once, or with quads (quads.py) in a turn, some groups of them
    num_warps: int
    num_stages: int = 1  # of dot: tiles on their way
    unroll: int = 1  # of gemv: steps whose loads are under way together
    weights_first: bool = False
    group_blocks: int = 0  # of dot: blocks that take turns on all strips, while the L2 has their rows; 0: all


@dataclass(frozen=True)
class ExpertsConfig:
    """The launches of one call.

    `sort`: rows of one expert share blocks (one more launch); otherwise every pair is its own block.
    `fuse_combine`: `down` (gemv) adds a token's experts itself: no rows, no launch to add them.
    `quantize_inputs`: the rows of fp8 weights become fp8 too, one scale for each 128 columns.
    """

    sort: bool
    gate_up: TileConfig
    down: TileConfig
    fuse_combine: bool = False
    quantize_inputs: bool = False

    def __post_init__(self) -> None:
        assert not self.sort or self.gate_up.block_rows == self.down.block_rows, self
        assert not (self.sort and "gemv" in (self.gate_up.kind, self.down.kind)), self
        assert not self.fuse_combine or (self.down.kind == "gemv" and not self.sort), self
        assert not self.quantize_inputs or self.sort, self


@dataclass(frozen=True, eq=False)
class ExpertsWorkspace:
    """Memory that the launches of one call hand to each other; calls on one stream may share it."""

    max_tokens: int
    experts_per_token: int
    activations: torch.Tensor  # bfloat16 [P + T, width]: rows P .. are of the shared expert
    rows: torch.Tensor  # bfloat16 or float32 [P + T, H]
    sorted_pairs: torch.Tensor  # int32 [P], by expert
    block_experts: torch.Tensor  # int32 [blocks], as the next two
    block_starts: torch.Tensor  # in sorted_pairs
    block_ends: torch.Tensor
    num_blocks: torch.Tensor  # int32 [1]
    permuted_inputs: torch.Tensor  # bfloat16 [up to MOST_PERMUTED_ROWS, H], for int4
    input_codes: torch.Tensor | None  # float8 [T, H]; the four are there with `quantize_inputs`
    input_scales: torch.Tensor | None  # float32 [T, H / 128]
    activation_codes: torch.Tensor | None  # float8 [P, W]
    activation_scales: torch.Tensor | None  # float32 [P, W / 128]


def make_workspace(
    max_tokens: int,
    shape: ExpertsShape,
    device: torch.device | str,
    *,
    shared_width: int = 0,
    rows_dtype: torch.dtype = torch.float32,
    quantize_inputs: bool = False,
) -> ExpertsWorkspace:
    """Work memory for up to `max_tokens` rows. Rows in bfloat16 take half of it: for long prefill."""
    num_pairs = max_tokens * shape.experts_per_token
    num_rows = num_pairs + (max_tokens if shared_width else 0)
    max_blocks = max_num_blocks(num_pairs, shape.num_experts, MIN_BLOCK_ROWS)

    def empty(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device=device)

    def codes_and_scales(rows: int, columns: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not quantize_inputs:
            return None, None
        codes = empty(rows, columns, dtype=torch.float8_e4m3fn)
        return codes, empty(rows, -(-columns // FP8_BLOCK), dtype=torch.float32)

    input_codes, input_scales = codes_and_scales(max_tokens, shape.hidden_size)
    activation_codes, activation_scales = codes_and_scales(num_pairs, shape.width)
    return ExpertsWorkspace(
        max_tokens=max_tokens,
        experts_per_token=shape.experts_per_token,
        activations=empty(num_rows, max(shape.width, shared_width), dtype=torch.bfloat16),
        rows=empty(num_rows, shape.hidden_size, dtype=rows_dtype),
        sorted_pairs=empty(num_pairs, dtype=torch.int32),
        block_experts=empty(max_blocks, dtype=torch.int32),
        block_starts=empty(max_blocks, dtype=torch.int32),
        block_ends=empty(max_blocks, dtype=torch.int32),
        num_blocks=empty(1, dtype=torch.int32),
        permuted_inputs=empty(min(max_tokens, MOST_PERMUTED_ROWS), shape.hidden_size, dtype=torch.bfloat16),
        input_codes=input_codes,
        input_scales=input_scales,
        activation_codes=activation_codes,
        activation_scales=activation_scales,
    )


def max_num_blocks(num_pairs: int, num_experts: int, block_rows: int) -> int:
    """The most blocks of up to `block_rows` pairs of one expert that any routing can give."""
    return min(num_pairs, num_pairs // block_rows + num_experts)


_DOWN_AND_COMBINE = TileConfig("gemv", 1, 4, 1024, num_warps=2, unroll=2)


def choose_config(
    num_rows: int, shape: ExpertsShape, weight_format: PackedFormat, *, quantize_inputs: bool = False
) -> ExpertsConfig:
    """Block sizes for `num_rows` tokens (a bucket, padding included).

    `quantize_inputs`: rows of fp8 weights may become fp8 where that is faster: from a dozen an expert on.
    """
    if num_rows <= 4 and weight_format != "int4":
        # One row: float32 multiply-adds keep up with memory (3 instructions a weight), and need no sort.
        columns = 512 if weight_format == "bf16" else 1024
        return ExpertsConfig(
            sort=False,
            gate_up=TileConfig("gemv", 1, 8, columns, num_warps=4),
            down=_DOWN_AND_COMBINE
            if num_rows <= 2
            else TileConfig("gemv", 1, 16, 256, num_warps=4, unroll=5),
            fuse_combine=num_rows <= 2,
        )
    rows_per_expert = num_rows * shape.experts_per_token / (shape.num_experts * shape.num_ranks)
    if rows_per_expert <= 4:
        # int4 needs the tensor cores even for one row: unpacking to float32 is 4 instructions a weight.
        return _few_quads(8) if num_rows > 1 and weight_format == "int4" else _few_rows(sort=num_rows > 8)
    if rows_per_expert <= 12:
        if weight_format == "int4" and num_rows <= MOST_PERMUTED_ROWS:
            return _few_quads(16)
        return _blocks(16, 32, num_warps=4, num_stages=4)
    fits_fp8 = shape.hidden_size % FP8_BLOCK == shape.width % FP8_BLOCK == 0
    quantize_inputs = quantize_inputs and weight_format == "fp8" and fits_fp8
    # 128 rows of unpacked integers are too many for the registers.
    block_rows = 64 if rows_per_expert < 160 or weight_format in {"int4", "int8"} else 128
    config = _blocks(block_rows, 64, num_warps=block_rows // 16, num_stages=3)
    gate_up, down = (replace(tile, group_blocks=4) for tile in (config.gate_up, config.down))
    return replace(config, gate_up=gate_up, down=down, quantize_inputs=quantize_inputs)


def _few_rows(*, sort: bool) -> ExpertsConfig:
    gate_up = TileConfig("dot", 8, 16, 128, num_warps=2, num_stages=6, weights_first=True)
    down = TileConfig("dot", 8, 64, 128, num_warps=2, num_stages=4, weights_first=True)
    return ExpertsConfig(sort=sort, gate_up=gate_up, down=down)


def _few_quads(block_rows: int) -> ExpertsConfig:
    """Two groups of 128 a turn; a warp has 32 rows of the weight, which share what it reads of x."""
    gate_up = TileConfig("dot", block_rows, 32, 256, num_warps=2, num_stages=3, weights_first=True)
    return ExpertsConfig(sort=True, gate_up=gate_up, down=replace(gate_up, block_outputs=64))


def _blocks(block_rows: int, block_outputs: int, *, num_warps: int, num_stages: int) -> ExpertsConfig:
    gate_up = TileConfig("dot", block_rows, block_outputs, 128, num_warps, num_stages)
    down = TileConfig("dot", block_rows, 2 * block_outputs, 128, num_warps, num_stages)
    return ExpertsConfig(sort=True, gate_up=gate_up, down=down)


def gemv_tiles(*, gated: bool, weight_format: PackedFormat) -> Iterator[TileConfig]:
    """What to try for one product of single rows; gated: gate_up."""
    columns_in_16_bytes = {"bf16": 8, "int4": 32}.get(weight_format, 16)
    for num_warps, block_inputs, unroll in product((2, 4, 8), (256, 512, 1024, 2048), (1, 2, 5)):
        row_groups = max(1, 32 * num_warps * columns_in_16_bytes // block_inputs)
        for block_outputs in (4, 8, 16, 32, 64):
            rows_in_thread = (2 if gated else 1) * block_outputs // row_groups
            if 1 <= rows_in_thread <= 16:
                yield TileConfig("gemv", 1, block_outputs, block_inputs, num_warps, unroll=unroll)


def dot_tiles(block_rows: int, *, gated: bool) -> Iterator[TileConfig]:
    """What to try for one product of blocks of `block_rows`; gated: gate_up."""
    for num_warps, num_stages, block_outputs in product((2, 4, 8), (2, 3, 4, 5, 6), (16, 32, 64, 128)):
        num_rows = (2 if gated else 1) * block_outputs
        for weights_first in (True, False) if block_rows in (16, 32) else (block_rows < 16,):
            # A warp takes 16 rows of the tall operand, or 8 columns of the other.
            fits = num_rows >= (16 if weights_first else 8) * num_warps if block_rows < 64 else num_warps > 2
            if fits and num_rows * block_rows <= 64 * 32 * num_warps:  # 64 sums in a thread
                yield TileConfig(
                    "dot", block_rows, block_outputs, 128, num_warps, num_stages, weights_first=weights_first
                )


def quad_tiles(block_rows: int, *, gated: bool) -> Iterator[TileConfig]:
    """What to try of int4 in quads for blocks of `block_rows` below 64; gated: gate_up."""
    for num_warps, num_stages, block_inputs in product((1, 2, 4), (2, 3, 4, 6), (128, 256, 512)):
        for rows_of_warp in (16, 32, 64):
            block_outputs = rows_of_warp * num_warps // (2 if gated else 1)
            bytes_on_the_way = num_stages * block_inputs * (rows_of_warp * num_warps // 2 + 2 * block_rows)
            if 16 <= block_outputs <= 128 and bytes_on_the_way <= 64 << 10:
                yield TileConfig(
                    "dot", block_rows, block_outputs, block_inputs, num_warps, num_stages, weights_first=True
                )


def takes_quads(config: ExpertsConfig, num_rows: int, gate_up: PackedWeight, down: PackedWeight) -> bool:
    """Whether int4 weights are multiplied as in quads.py: few rows, whose columns are put in order for it."""
    return (
        config.sort
        and num_rows <= MOST_PERMUTED_ROWS
        and all(tile.weights_first and tile.block_rows < 64 for tile in (config.gate_up, config.down))
        and all(weight.format == "int4" and weight.group_size >= MIN_QUAD_GROUP for weight in (gate_up, down))
    )


def block_inputs(tile: TileConfig, weight: PackedWeight, *, has_quads: bool = False) -> int:
    """Columns of one step: of bf16 half as many, for as many bytes. A group is scaled as a whole.

    Quads: several groups in a step.
    """
    if has_quads:
        return max(tile.block_inputs, weight.group_size)
    if weight.format == "bf16":
        return min(tile.block_inputs, FP8_BLOCK) // 2
    return min(tile.block_inputs, weight.group_size, FP8_BLOCK)


def num_strips(tile: TileConfig, gated: bool, weight: PackedWeight, shared: PackedWeight | None) -> int:
    """Programs for each block of rows."""
    num_outputs = max(weight.shape[-2], 0 if shared is None else shared.shape[-2])
    return ceil_div(num_outputs // 2 if gated else num_outputs, tile.block_outputs)


def kernel_operand(weight: PackedWeight | None) -> tuple[torch.Tensor | None, ...]:
    """A weight as kernels take it."""
    if weight is None:
        return None, None, None
    assert weight.format != "int4" or weight.is_tiled, "kernels read int4 in tiles (packed.py)"
    return weight.data, weight.scales, weight.zeros


def kernel_sizes(
    weight: PackedWeight, shared: PackedWeight | None, *, with_outputs: bool = True
) -> dict[str, Any]:
    """Sizes and formats, which kernels are compiled for."""
    sizes: dict[str, Any] = {"WIDTH": weight.shape[-1], "FORMAT": weight.format, "GROUP": weight.group_size}
    sizes["SHARED_WIDTH"] = 0 if shared is None else shared.shape[-1]
    sizes["SHARED_FORMAT"] = "bf16" if shared is None else shared.format
    sizes["SHARED_GROUP"] = 0 if shared is None else shared.group_size
    if with_outputs:
        sizes |= {"N": weight.shape[-2], "SHARED_N": 0 if shared is None else shared.shape[-2]}
    return sizes


def ceil_div(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest that is not below `count`."""
    return 1 << (count - 1).bit_length()
