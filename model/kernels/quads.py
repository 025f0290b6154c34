"""int4 weights times rows of few tokens on the tensor cores, without a move between threads.

Shapes: T rows of the block, R rows of a strip (tiles.py), G columns of a group, Q = G / 4 quads of them, N
outputs, K inputs.

Two bytes of a weight are a quad, four columns in a row. Two quads fill a register, and of both the same
nibble is put behind the point of a bfloat16 by one instruction: 128 + nibble, 7 instructions for 8 weights.
So the four nibbles are four tiles [R, Q], which want the columns of the input in another order, in each group
first all that are 0 modulo 4, then 1, 2, 3. Whoever writes the input writes it so (`quad_position`).

The weights lie in tiles of 8 rows (packed.py): 8 rows of gate, 8 of up in turn, so that neighbours read whole
lines, and both values of an output are in one thread.

128 + zero point come off a group's sum in float32, times the sum of its inputs: that is a product with ones,
which the tensor cores do once for all rows of a warp. Then the sum is scaled.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917 - kernels take everything as arguments

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.tiles import INTERPRETED, column_offsets, first_group, multiply, row_offsets, strip_rows


@triton.jit
def quad_position(column, GROUP: tl.constexpr):
    """Where the input has a column of the weight."""
    within = column % GROUP
    return column - within + within % 4 * (GROUP // 4) + within // 4


@triton.jit
def permute_row(x_ptr, out_ptr, first_quad, K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK quads of a row of bfloat16 from `first_quad` on, to where products with int4 want them."""
    quads = first_quad + tl.arange(0, BLOCK)
    inside = quads < K // 4
    bits = tl.load(x_ptr.to(tl.pointer_type(tl.int64)) + quads, mask=inside, other=0)
    out_ptr = out_ptr.to(tl.pointer_type(tl.int16)) + quad_position(4 * quads, GROUP)
    for i in tl.static_range(4):
        tl.store(out_ptr + i * (GROUP // 4), (bits >> (16 * i)).to(tl.int16), mask=inside)


@triton.jit
def quad_rows(strip, N: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr):
    """Rows of the matrix in a strip [R]: BLOCK consecutive ones, or 8 of gate and 8 of up in turn."""
    if GATED:
        r = tl.arange(0, 2 * BLOCK)
        rows = tl.minimum(strip * BLOCK + r // 16 * 8 + r % 8, N // 2 - 1) + r // 8 % 2 * (N // 2)
    else:
        rows = strip_rows(strip, N, BLOCK, False)
    return rows


@triton.jit
def gate_and_up(result, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr):
    """[BLOCK, T] each, of a strip's result [2 BLOCK, T]."""
    eights = tl.permute(tl.reshape(result, [BLOCK // 8, 2, 8, BLOCK_T]), [0, 2, 3, 1])
    gate, up = tl.split(eights)
    return tl.reshape(gate, [BLOCK, BLOCK_T]), tl.reshape(up, [BLOCK, BLOCK_T])


@triton.jit
def unpack_quads(quads):
    """Nibbles + 128 of the four columns; bfloat16, float32 where interpreted."""
    if INTERPRETED:
        bits = quads.to(tl.int32)
        first, second = (bits & 15).to(tl.float32) + 128.0, ((bits >> 4) & 15).to(tl.float32) + 128.0
        third, fourth = ((bits >> 8) & 15).to(tl.float32) + 128.0, ((bits >> 12) & 15).to(tl.float32) + 128.0
    else:
        first, second, third, fourth = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 second, third, fourth;
            shr.b32 second, $4, 4;
            shr.b32 third, $4, 8;
            shr.b32 fourth, $4, 12;
            lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, second, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $2, third, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, fourth, 0x000F000F, 0x43004300, 0xEA;
            }
            """,
            "=r,=r,=r,=r,r",
            [quads],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return first, second, third, fourth


@triton.jit
def load_scales(ptrs):
    """bfloat16 as float32, read by the threads that use them.

    Of `tl.load` Triton spreads the rows over all threads, and exchanges them through shared memory in every
    turn: two barriers.
    """
    if INTERPRETED:
        scales = tl.load(ptrs).to(tl.float32)
    else:
        scales = tl.inline_asm_elementwise(
            "{ .reg .b16 low, high; mov.b16 low, 0; ld.global.nc.b16 high, [$1]; mov.b32 $0, {low, high}; }",
            "=r,l", [ptrs.to(tl.int64)], dtype=tl.int32, is_pure=True, pack=1,
        ).to(tl.float32, bitcast=True)  # fmt: skip
    return scales


@triton.jit
def load_offsets(ptrs):
    """-(128 + zero point) in float32, read as scales are."""
    if INTERPRETED:
        offsets = -128.0 - tl.load(ptrs).to(tl.float32)
    else:
        # As in unpack_quads the seven bits behind the point of a bfloat16, whose sign is set.
        offsets = tl.inline_asm_elementwise(
            "{ .reg .b32 top; ld.global.nc.u8 top, [$1]; or.b32 top, top, 0xC300; shl.b32 $0, top, 16; }",
            "=r,l", [ptrs.to(tl.int64)], dtype=tl.int32, is_pure=True, pack=1,
        ).to(tl.float32, bitcast=True)  # fmt: skip
    return offsets


@triton.jit
def quad_strip(
    x_ptr, in_rows, valid, weight, matrix, strip, STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, BLOCK_T: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
):  # fmt: skip
    """`in_rows` [T] of the permuted input (those `valid`) times a strip: float32 [R, T].

    A turn has NUM_GROUPS groups.
    """
    R: tl.constexpr = 2 * BLOCK if GATED else BLOCK
    Q: tl.constexpr = GROUP // 4
    rows = quad_rows(strip, N, BLOCK, GATED)
    groups = first_group(matrix, N, K, "int4", GROUP)
    w_ptr = weight[0] + matrix.to(tl.int64) * (N * K // 2)
    w_ptr = w_ptr.to(tl.pointer_type(tl.int16)) + row_offsets(rows, N, K, 4)[:, None]
    x_ptr = x_ptr + in_rows.to(tl.int64)[:, None] * STRIDE
    ones = tl.full([R, Q], 1.0, tl.float32 if INTERPRETED else tl.bfloat16)
    quads = tl.arange(0, Q)[None, :]
    acc = tl.zeros([R, BLOCK_T], tl.float32)
    next_scale = load_scales(weight[1] + groups + rows)
    for k in tl.range(0, K, GROUP, loop_unroll_factor=NUM_GROUPS):
        scale = next_scale
        # A turn ahead: Triton has weights on their way for several turns, but not these.
        next_k = tl.minimum(k + GROUP, K - 1)
        next_scale = load_scales(weight[1] + groups + next_k // GROUP * N + rows)
        offset = -136.0
        if weight[2] is not None:
            offset = load_offsets(weight[2] + groups + k // GROUP * N + rows)[:, None]
        nibbles = unpack_quads(tl.load(w_ptr + column_offsets(k // 4, N, K, 4) + quads))
        part = tl.zeros([R, BLOCK_T], tl.float32)
        sums = tl.zeros([R, BLOCK_T], tl.float32)
        for i in tl.static_range(4):
            x = tl.trans(tl.load(x_ptr + k + i * Q + quads, mask=valid[:, None], other=0.0))
            part = multiply(nibbles[i], x, part)
            sums = multiply(ones, x, sums)
        acc += (part + sums * offset) * scale[:, None]
    return acc
