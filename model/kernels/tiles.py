# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917, SIM108 - kernels take everything as arguments; ifs are decided by the compiler
"""Pieces that kernels over packed weights share: strips of a matrix times one row, or a block of rows.

Shapes: R rows of the weight in a strip (for gemv: of each of X groups), K columns, T rows of the input in a
block, C chunks of V values (16 bytes) of a row of the weight, in pieces of P values.

A weight comes as the tuple (data, scales, zeros) of `PackedWeight`, of which absent ones are None, with its
format, group size and sizes N, K as constants. Rows of the weight past the last are read as the last one; the
caller does not store them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels import packed

# The interpreter knows neither PTX nor arithmetic on bfloat16.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
_TILE_ROWS, _TILE_COLUMNS = tl.constexpr(packed.TILE_ROWS), tl.constexpr(packed.TILE_COLUMNS)


@triton.jit
def strip_rows(strip, N: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr):
    """Rows of the matrix in a strip [R]: BLOCK consecutive ones, or gate and up of BLOCK outputs in turn."""
    if GATED:
        r = tl.arange(0, 2 * BLOCK)
        rows = tl.minimum(strip * BLOCK + r // 2, N // 2 - 1) + (r % 2) * (N // 2)
    else:
        rows = tl.minimum(strip * BLOCK + tl.arange(0, BLOCK), N - 1)
    return rows


@triton.constexpr_function
def tile_size(size: int, most: int) -> int:
    """Of a tile that int4 lies in (`packed.tile_sizes`): the largest power of two that divides both."""
    return min(size & -size, most)


@triton.jit
def row_offsets(rows, N: tl.constexpr, K: tl.constexpr, PACK: tl.constexpr):
    """Where rows of a matrix begin, in units of PACK values; more than one: of int4 in tiles."""
    if PACK == 1:
        offsets = rows * K
    else:
        ROWS: tl.constexpr = tile_size(N, _TILE_ROWS)
        offsets = rows // ROWS * (ROWS * K // PACK) + rows % ROWS * (tile_size(K, _TILE_COLUMNS) // PACK)
    return offsets


@triton.jit
def column_offsets(columns, N: tl.constexpr, K: tl.constexpr, PACK: tl.constexpr):
    """From where a row begins to its columns, both in units of PACK values; of tiles a piece at a time."""
    if PACK == 1:
        offsets = columns
    else:
        WIDTH: tl.constexpr = tile_size(K, _TILE_COLUMNS) // PACK
        tile = columns // WIDTH
        # Of a remainder Triton does not know that it is a multiple, and would load value by value.
        offsets = tile * (tile_size(N, _TILE_ROWS) * WIDTH) + (columns - tile * WIDTH)
    return offsets


@triton.jit
def swiglu(gate, up, limit):
    """SiLU(gate) * up, both clamped after the SiLU (the model card's swiglu_limits); inf: not clamped."""
    silu = tl.minimum(gate * tl.sigmoid(gate), limit)
    return silu * tl.minimum(tl.maximum(up, -limit), limit)


@triton.jit
def unpack_int4(packed):
    """Nibbles + 128 of the even and of the odd columns; bfloat16, float32 where interpreted.

    bfloat16 has seven bits after the point: setting the low four of 128 adds the nibble, one instruction a
    weight. Compiled from plain operations it is three.
    """
    if INTERPRETED:
        low = (packed & 15).to(tl.float32) + 128.0
        high = (packed >> 4).to(tl.float32) + 128.0
    else:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 first, second, first_high, second_high;
            prmt.b32 first, $4, 0, 0x4140;
            prmt.b32 second, $4, 0, 0x4342;
            shr.b32 first_high, first, 4;
            shr.b32 second_high, second, 4;
            lop3.b32 $0, first, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, second, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $2, first_high, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, second_high, 0x000F000F, 0x43004300, 0xEA;
            }
            """,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    return low, high


@triton.jit
def load_pairs(x_ptr, columns, mask):
    """Even and odd columns of bfloat16 rows, read as pairs of 32 bits: `columns` count pairs."""
    pair_ptr = x_ptr.to(tl.pointer_type(tl.int32)) + columns
    if mask is None:
        pairs = tl.load(pair_ptr)
    else:
        pairs = tl.load(pair_ptr, mask=mask, other=0)
    even = (pairs & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    odd = ((pairs >> 16) & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return even, odd


@triton.jit
def multiply(a, b, acc):
    """acc + a @ b on the tensor cores, float32 accumulators."""
    if INTERPRETED:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def load_columns(ptr, columns, K: tl.constexpr, BLOCK: tl.constexpr):
    """A tile whose last axis are `columns`, of which steps of BLOCK cover K; 0 past the last."""
    if K % BLOCK == 0:
        tile = tl.load(ptr + columns)
    else:
        tile = tl.load(ptr + columns, mask=columns < K, other=0.0)
    return tile


@triton.jit
def block_scales(
    ptr, strip, columns, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr
):
    """fp8 scales of gate (or all) and of up for `columns`; the strip lies within blocks of 128 rows."""
    BLOCKS: tl.constexpr = (K + 127) // 128
    first_ptr = ptr + (strip * BLOCK // 128) * BLOCKS + tl.minimum(columns, K - 1) // 128
    scale = tl.load(first_ptr)
    up_scale = scale
    if GATED:
        up_scale = tl.load(first_ptr + (N // 256) * BLOCKS)
    return scale, up_scale


@triton.jit
def gemv_scales(
    ptr, strip, rows, columns, N: tl.constexpr, K: tl.constexpr,
    GROUP: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Scales or zero points for rows [1, X, R] of the chunks that begin at `columns` [C, 1, 1]."""
    if FP8 and (128 % BLOCK == 0) and ((not GATED) or N % 256 == 0):
        scales, up = block_scales(ptr, strip, columns, N, K, BLOCK, GATED)
        if GATED:
            scales = tl.where(rows < N // 2, scales, up)
    else:
        groups = tl.minimum(columns, K - 1) // GROUP
        if FP8:
            scales = tl.load(ptr + rows // 128 * ((K + GROUP - 1) // GROUP) + groups)
        else:
            scales = tl.load(ptr + groups * N + rows)
    return scales.to(tl.float32)


@triton.constexpr_function
def row_groups(num_chunks: int, num_threads: int) -> int:
    """Groups of rows that give every thread a chunk."""
    return max(1, num_threads // num_chunks)


@triton.jit
def halves(w, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, V: tl.constexpr):
    """The first and the last V / 2 values of each chunk."""
    return tl.split(tl.permute(tl.reshape(w, [C, X, R, 2, V // 2]), [0, 1, 2, 4, 3]))


@triton.jit
def pieces_of(w, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, V: tl.constexpr, P: tl.constexpr):
    """A tile [C, X, R, V] as tuple of V / P tiles [C, X, R, P], in order."""
    if V == P:
        pieces = (w,)
    else:
        first, second = halves(w, C, X, R, V)
        if V == 2 * P:
            pieces = (first, second)
        else:
            tl.static_assert(V == 4 * P)
            pieces = halves(first, C, X, R, V // 2) + halves(second, C, X, R, V // 2)
    return pieces


@triton.jit
def chunk_products(
    x_ptr, w, columns, zeros, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    FORMAT: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums [C, X, R] over each chunk of codes times x; `columns` [C, 1, 1, 1] are where chunks begin."""
    P: tl.constexpr = 4 if FORMAT == "int4" else 8  # values of x, or pairs of them, in 16 bytes
    pieces = pieces_of(w, C, X, R, V, P)
    # Each group of rows has its own copy of x: a tile with fewer values than threads would be exchanged.
    x_columns = columns + (tl.arange(0, X) * 0)[None, :, None, None] + tl.arange(0, P)[None, None, None, :]
    part = tl.zeros([C, X, R], tl.float32)
    for i in tl.static_range(V // P):
        at = x_columns + i * P
        if FORMAT == "int4":
            low, high = unpack_int4(pieces[i])
            even, odd = load_pairs(x_ptr, at, None if K % BLOCK_K == 0 else at < K // 2)
            even, odd = even.to(tl.float32), odd.to(tl.float32)
            part += tl.sum(low.to(tl.float32) * even + high.to(tl.float32) * odd, axis=3)
            part -= (zeros + 128.0) * tl.sum(even + odd, axis=3)  # `low` and `high` are 128 too large
        else:
            x = load_columns(x_ptr, at, K, BLOCK_K).to(tl.float32)
            part += tl.sum(pieces[i].to(tl.float32) * x, axis=3)
    return part


@triton.jit
def gemv_strip(
    x_ptr, weight, matrix, strip, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, GATED: tl.constexpr, BLOCK_K: tl.constexpr, THREADS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """One row of bfloat16 times a strip: sums [C, X, R] in float32, of which the caller adds the chunks.

    A chunk is the 16 bytes that a thread reads of a row of the weight. Tiles in the order (chunks, groups of
    rows, rows, values) let lanes take chunks and threads keep rows and values: nothing passes between threads
    before the last column. In the order (rows, columns) x and scales would go through shared memory in every
    turn.
    """
    PACK: tl.constexpr = 2 if FORMAT == "int4" else 1
    V: tl.constexpr = 8 if FORMAT == "bf16" else 16
    C: tl.constexpr = BLOCK_K // PACK // V
    X: tl.constexpr = row_groups(C, THREADS)
    R: tl.constexpr = (2 * BLOCK if GATED else BLOCK) // X
    rows = tl.reshape(strip_rows(strip, N, BLOCK, GATED), [1, X, R])
    groups = first_group(matrix, N, K, FORMAT, GROUP)
    w_ptr = weight[0] + matrix.to(tl.int64) * (N * K // PACK) + row_offsets(rows, N, K, PACK)[:, :, :, None]
    acc = tl.zeros([C, X, R], tl.float32)
    starts = (tl.arange(0, C) * V)[:, None, None, None]
    for k in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        columns = k // PACK + starts
        at = column_offsets(columns, N, K, PACK) + tl.arange(0, V)[None, None, None, :]
        if K % BLOCK_K == 0:
            w = tl.load(w_ptr + at)
        else:
            w = tl.load(w_ptr + at, mask=columns < K // PACK, other=0.0)
        scaled = k + PACK * tl.reshape(starts, [C, 1, 1])
        zeros = 8.0
        if weight[2] is not None:
            zeros = gemv_scales(weight[2] + groups, strip, rows, scaled, N, K, GROUP, False, BLOCK, GATED)
        part = chunk_products(x_ptr, w, columns, zeros, C, X, R, V, FORMAT, K, BLOCK_K)
        if FORMAT != "bf16":
            part *= gemv_scales(
                weight[1] + groups, strip, rows, scaled, N, K, GROUP, FORMAT == "fp8", BLOCK, GATED
            )
        acc += part
    return acc


@triton.jit
def first_group(matrix, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr):
    """Where the scales and zero points of one matrix of a stack begin."""
    if FORMAT == "fp8":
        NUM_GROUPS: tl.constexpr = ((N + 127) // 128) * ((K + 127) // 128)
    elif FORMAT == "bf16":
        NUM_GROUPS: tl.constexpr = 0
    else:
        NUM_GROUPS: tl.constexpr = N * (K // GROUP)
    return matrix.to(tl.int64) * NUM_GROUPS


@triton.jit
def dot_scales(
    ptr, strip, rows, k, N: tl.constexpr, K: tl.constexpr,
    GROUP: tl.constexpr, FORMAT: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Scales [R] of the strip's rows for the group of column k, as they are stored."""
    if FORMAT == "fp8" and (128 % BLOCK == 0) and ((not GATED) or N % 256 == 0):
        gate, up = block_scales(ptr, strip, k, N, K, BLOCK, GATED)
        is_gate = tl.arange(0, 2 * BLOCK if GATED else BLOCK) % 2 == 0
        scales = tl.where(is_gate, gate, up)
    elif FORMAT == "fp8":
        scales = tl.load(ptr + rows // 128 * ((K + GROUP - 1) // GROUP) + k // GROUP)
    else:
        scales = tl.load(ptr + k // GROUP * N + rows)
    return scales


@triton.jit
def dot_zeros(ptr, groups, rows, k, N: tl.constexpr, GROUP: tl.constexpr):
    """128 + zero points of the strip's rows for the group of column k, as `unpack_int4` has its nibbles."""
    if ptr is None:
        zero = tl.full([1], 136.0, tl.float32)
    else:
        zero = tl.load(ptr + groups + k // GROUP * N + rows).to(tl.float32) + 128.0
    return zero.to(tl.float32 if INTERPRETED else tl.bfloat16)[:, None]


@triton.jit
def dot_step(
    x_ptr, x_is_fp8: tl.constexpr, valid, w_ptr, zero, k, start, N: tl.constexpr, K: tl.constexpr,
    FORMAT: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
):  # fmt: skip
    """`start` + the product of BLOCK_K columns, codes without their scales; they are exact in bfloat16."""
    PACK: tl.constexpr = 2 if FORMAT == "int4" else 1
    # Up to 32 rows the unpacked weights stay in registers, as even and odd columns. More rows take them from
    # shared memory, and x as it is; with groups of 32 Triton 3.6 fails to compile that.
    IS_SPLIT: tl.constexpr = FORMAT == "int4" and (BLOCK_T < 64 or BLOCK_K < 64)
    packed = (k // PACK + tl.arange(0, BLOCK_K // PACK))[None, :]
    if FORMAT == "int4":
        # A step lies in a group, which lies in a tile, and neither passes the last column.
        w = tl.load(w_ptr + column_offsets(k // 2, N, K, PACK) + tl.arange(0, BLOCK_K // 2)[None, :])
        low, high = unpack_int4(w)
        low, high = (low - zero).to(low.dtype), (high - zero).to(high.dtype)
        if not IS_SPLIT:
            w = tl.reshape(tl.join(low, high), [R, BLOCK_K])
    else:
        w = load_columns(w_ptr, packed, K, BLOCK_K)
    if (FORMAT == "fp8" or FORMAT == "int8") and not x_is_fp8:  # noqa: PLR1714 - the compiler knows no sets
        w = w.to(tl.float32).to(tl.bfloat16)  # the direct way takes a slow conversion for every code
    if IS_SPLIT:
        even, odd = load_pairs(x_ptr, packed, valid[:, None] & (packed < K // 2))
        if WEIGHTS_FIRST:
            part = multiply(high, tl.trans(odd), multiply(low, tl.trans(even), start))
        else:
            part = multiply(odd, tl.trans(high), multiply(even, tl.trans(low), start))
    else:
        columns = (k + tl.arange(0, BLOCK_K))[None, :]
        x = tl.load(x_ptr + columns, mask=valid[:, None] & (columns < K), other=0.0)
        part = multiply(w, tl.trans(x), start) if WEIGHTS_FIRST else multiply(x, tl.trans(w), start)
    return part


@triton.jit
def dot_strip(
    x, in_rows, valid, weight, matrix, strip, STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    FORMAT: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, WEIGHTS_FIRST: tl.constexpr,
):  # fmt: skip
    """`in_rows` [T] of the input (those `valid`) times a strip: float32 [T, R], or [R, T] with WEIGHTS_FIRST.

    x = (rows of bfloat16, None), or for rows in fp8 (codes, their scales for each 128 columns). A step stays
    within a group, whose sum is scaled in float32.
    """
    R: tl.constexpr = 2 * BLOCK if GATED else BLOCK
    rows = strip_rows(strip, N, BLOCK, GATED)
    groups = first_group(matrix, N, K, FORMAT, GROUP)
    PACK: tl.constexpr = 2 if FORMAT == "int4" else 1
    w_ptr = weight[0] + matrix.to(tl.int64) * (N * K // PACK) + row_offsets(rows, N, K, PACK)[:, None]
    x_ptr = x[0] + in_rows.to(tl.int64)[:, None] * STRIDE
    acc = tl.zeros([R, BLOCK_T] if WEIGHTS_FIRST else [BLOCK_T, R], tl.float32)
    nothing = tl.zeros([R, BLOCK_T] if WEIGHTS_FIRST else [BLOCK_T, R], tl.float32)
    next_scale = 1.0
    if FORMAT != "bf16":
        next_scale = dot_scales(weight[1] + groups, strip, rows, 0, N, K, GROUP, FORMAT, BLOCK, GATED)
    for k in range(0, K, BLOCK_K):
        scale = next_scale
        if FORMAT != "bf16":
            # A step ahead: Triton has weights on their way for several steps, but not these.
            next_k = tl.minimum(k + BLOCK_K, K - 1)
            next_scale = dot_scales(
                weight[1] + groups, strip, rows, next_k, N, K, GROUP, FORMAT, BLOCK, GATED
            )  # fmt: skip
        zero = dot_zeros(weight[2], groups, rows, k, N, GROUP) if FORMAT == "int4" else 0
        part = dot_step(
            x_ptr, x[1] is not None, valid, w_ptr, zero, k, acc if FORMAT == "bf16" else nothing,
            N, K, FORMAT, R, BLOCK_T, BLOCK_K, WEIGHTS_FIRST,
        )  # fmt: skip
        if FORMAT == "bf16":
            acc = part
        else:
            scale = scale.to(tl.float32)
            scale = scale[:, None] if WEIGHTS_FIRST else scale[None, :]
            if x[1] is not None:
                in_scale = tl.load(x[1] + in_rows * ((K + 127) // 128) + k // 128, mask=valid, other=0.0)
                scale = scale * (in_scale[None, :] if WEIGHTS_FIRST else in_scale[:, None])
            acc += part * scale
    return acc
