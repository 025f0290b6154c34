"""y = x @ W^T for up to 64 tokens, as fast as memory gives W: bf16, fp8 or int8.

Shapes: T tokens, N rows of W (outputs), K columns (inputs), M columns of the result (N, or N / 2 with
SwiGLU), S splits of K.

SwiGLU behind it where asked for. Sums are float32; their order
depends on shapes and config alone. One launch.
"""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from typing import Any

import torch
import triton

from model.kernels.early_start import early_launch
from model.kernels.linear_config import (
    LOAD_BYTES,
    MOST_SMALL_TOKENS,
    DotConfig,
    GemvConfig,
    LinearConfig,
    SwiGLU,
    Workspace,
    choose_config,
    split_columns,
)
from model.kernels.linear_dot import dot_kernel
from model.kernels.linear_gemv import gemv_kernel
from model.kernels.packed import FP8_BLOCK, PackedWeight

MIN_DOT_TOKENS = 16  # rows of a product on tensor cores


def small_linear(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    out: torch.Tensor,
    *,
    swiglu: SwiGLU | None = None,
    workspace: Workspace | None = None,
    config: LinearConfig | None = None,
) -> None:
    """Fill `out` [T, M], or with partial sums [S, T, N] in float32 that a consumer adds in order.

    x: bf16, or float32 (rounded to bf16 on tensor cores).
    Splits need a workspace unless `out` takes their sums.
    """
    num_tokens, (num_rows, num_columns) = x_TK.shape[0], weight.shape
    config = config or choose_config(
        num_tokens, weight.shape, weight.format, weight.group_size, is_swiglu=swiglu is not None
    )
    is_partial = out.ndim == 3
    _check(x_TK, weight, out, swiglu)
    assert is_partial or config.num_splits == 1 or workspace is not None, config
    assert not is_partial or out.shape[0] == config.num_splits, (out.shape, config)
    # What is not there is another tensor, which is not read.
    tensors = (
        x_TK, weight.data.view(torch.uint8) if weight.format == "fp8" else weight.data,
        x_TK if weight.scales is None else weight.scales,
        out,
        workspace.partials if workspace is not None and not is_partial else out,
        x_TK if workspace is None else workspace.counters,
    )  # fmt: skip
    limit = swiglu.limit if swiglu is not None else None
    strides = (x_TK.stride(0), out.stride(-2))
    flags: dict[str, Any] = {
        "GROUP": weight.group_size, "IS_FP8": weight.format == "fp8", "IS_SWIGLU": swiglu is not None,
        "HAS_LIMIT": limit is not None, "SPLITS": config.num_splits, "IS_PARTIAL": is_partial,
        "STAGES": config.num_stages, "num_warps": config.num_warps, **early_launch(),
    }  # fmt: skip
    launch = _launch_gemv if isinstance(config, GemvConfig) else _launch_dot
    launch(
        config, tensors, (num_tokens, num_rows, num_columns), strides, 0.0 if limit is None else limit, flags
    )


def workspace_sizes(config: LinearConfig, num_tokens: int, num_rows: int) -> tuple[int, int]:
    """Numbers of partial sums and of counters that a split product needs."""
    return config.num_splits * num_tokens * num_rows, -(-num_rows // config.block_n)


def _check(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    out: torch.Tensor,
    swiglu: SwiGLU | None,
) -> None:
    num_tokens, (num_rows, num_columns) = x_TK.shape[0], weight.shape
    assert weight.format != "int4" and weight.data.is_contiguous(), (weight.format, weight.data.stride())
    assert x_TK.shape[1] == num_columns and x_TK.stride(1) == 1, (x_TK.shape, x_TK.stride(), weight.shape)
    assert 1 <= num_tokens <= MOST_SMALL_TOKENS, num_tokens
    assert weight.format != "int8" or weight.group_size % LOAD_BYTES == 0, weight.group_size
    if out.ndim == 3:
        assert swiglu is None and out.is_contiguous(), "partial sums are sums only"
        assert out.shape[1:] == (num_tokens, num_rows) and out.dtype == torch.float32, (out.shape, out.dtype)
        return
    assert swiglu is None or num_rows % 2 == 0, num_rows
    shape = (num_tokens, num_rows if swiglu is None else num_rows // 2)
    assert out.shape == shape and out.stride(1) == 1, (out.shape, shape)


def _launch_gemv(
    config: LinearConfig,
    tensors: tuple[torch.Tensor, ...],
    sizes: tuple[int, int, int],
    strides: tuple[int, int],
    limit: float,
    flags: dict[str, Any],
) -> None:
    assert isinstance(config, GemvConfig)
    num_tokens, num_rows, num_columns = sizes
    values = LOAD_BYTES // tensors[1].element_size()
    block_k, block_n, is_swiglu = config.num_chunks * values, config.block_n, flags["IS_SWIGLU"]
    assert not is_swiglu or config.num_rows % 2 == 0, config
    per_split = split_columns(num_columns, config.num_splits, block_k)
    is_even = per_split * config.num_splits == num_columns
    gemv_kernel[(triton.cdiv(num_rows, block_n), config.num_splits)](
        *tensors, num_rows, *strides, limit, K=num_columns, K_PER_SPLIT=per_split, T=num_tokens,
        C=config.num_chunks, X=config.num_groups, R=config.num_rows, V=values,
        P=min(values, LOAD_BYTES // tensors[0].element_size()),
        IS_ONE_BLOCK=flags["IS_FP8"] and FP8_BLOCK % block_n == 0 and not is_swiglu,
        MASK=0 if is_even else 1 if num_columns % values == 0 else 2, **flags,
    )  # fmt: skip


def _launch_dot(
    config: LinearConfig,
    tensors: tuple[torch.Tensor, ...],
    sizes: tuple[int, int, int],
    strides: tuple[int, int],
    limit: float,
    flags: dict[str, Any],
) -> None:
    assert isinstance(config, DotConfig)
    num_tokens, num_rows, num_columns = sizes
    block_k, block_n, is_swiglu = config.block_k, config.block_n, flags["IS_SWIGLU"]
    assert not flags["GROUP"] or flags["GROUP"] % block_k == 0, (config, flags["GROUP"])
    num_out = num_rows // 2 if is_swiglu else num_rows
    per_split = split_columns(num_columns, config.num_splits, block_k)
    dot_kernel[(triton.cdiv(num_out, block_n), config.num_splits)](
        *tensors, num_rows, num_tokens, *strides, limit, K=num_columns, K_PER_SPLIT=per_split,
        TP=max(MIN_DOT_TOKENS, triton.next_power_of_2(num_tokens)), BN=block_n, BK=block_k,
        IS_ONE_BLOCK=flags["IS_FP8"] and FP8_BLOCK % block_n == 0 and not (is_swiglu and num_out % block_n),
        IS_MASKED=per_split * config.num_splits != num_columns, WEIGHTS_FIRST=config.weights_first, **flags,
    )  # fmt: skip
