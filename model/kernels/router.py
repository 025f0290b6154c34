"""Router of the mixture of experts: float32 logits, sigmoid, biased top-K, renormalised weights.

Shapes: T tokens, H hidden, E experts (EP: a power of two), K experts per token, S splits of H; of one program
X groups of R experts, BT tokens, BE experts, BH columns.

Two tokens or fewer: one launch. All programs add up logits, the last to come chooses. More tokens: logits on
tensor cores, then one program a token chooses. x in bf16 times a float32 weight is exact there in three
products: the weight's 24 bits are the sum of three bf16 numbers. x in float32 is multiplied in float32.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, prefetch_rows, wait_for_inputs
from model.kernels.gemv import gemv, sum_of_chunks
from model.kernels.linear_config import LOAD_BYTES, WARP_SIZE, Workspace, split_columns
from model.kernels.noise import GAMMA, mix
from model.kernels.router_config import (
    RouterConfig,
    RouterOutput,
    UniformRouting,
    choose_config,
    workspace_sizes,
)
from model.kernels.splits import is_last
from model.kernels.tiles import INTERPRETED


def route(
    x_TH: torch.Tensor,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    out: RouterOutput,
    *,
    positions_T: torch.Tensor | None = None,
    uniform: UniformRouting | None = None,
    workspace: Workspace | None = None,
    config: RouterConfig | None = None,
) -> None:
    """Fill `out`: top-K of sigmoid(x @ weight.T) + bias, weights without the bias, summing to 1.

    x bf16 or float32, weight and bias float32. Of equals the lowest id. Rows whose position is negative are
    padding. The workspace is needed: logits are in it.
    """
    num_tokens, hidden = x_TH.shape
    num_experts = weight_EH.shape[0]
    config = config or choose_config(num_tokens, num_experts, hidden)
    assert workspace is not None, "logits lie in a workspace"
    assert weight_EH.shape == (num_experts, hidden) and weight_EH.is_contiguous(), weight_EH.shape
    assert weight_EH.dtype == torch.float32 and x_TH.stride(1) == 1, (weight_EH.dtype, x_TH.stride())
    assert workspace.partials.numel() >= workspace_sizes(config, num_tokens, num_experts)[0], config
    choice = _choice_arguments(bias_E, out, positions_T, uniform)
    constants = _choice_constants(num_experts, out, positions_T, uniform) | {
        "SPLITS": config.num_splits, **early_launch()
    }  # fmt: skip
    if config.block_t:
        _launch_logits(x_TH, weight_EH, workspace, config)
        _choose_kernel[(num_tokens,)](
            workspace.partials, *choice, num_tokens, **constants, num_warps=config.num_choosing_warps
        )
        return
    values = LOAD_BYTES // weight_EH.element_size()
    per_split = split_columns(hidden, config.num_splits, config.num_chunks * values)
    groups = max(1, config.num_warps * WARP_SIZE // config.num_chunks)
    grid = (triton.cdiv(num_experts, groups * config.num_rows), config.num_splits)
    _route_kernel[grid](
        x_TH, weight_EH, workspace.partials, workspace.counters, *choice, x_TH.stride(0), H=hidden,
        H_PER_SPLIT=per_split, T=num_tokens, C=config.num_chunks, X=groups, R=config.num_rows, V=values,
        MASK=0 if per_split * config.num_splits == hidden else 1 if hidden % values == 0 else 2, **constants,
        num_warps=config.num_warps,
    )  # fmt: skip


def choose(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    out: RouterOutput,
    *,
    positions_T: torch.Tensor | None = None,
    uniform: UniformRouting | None = None,
) -> None:
    """The choice alone, from float32 logits."""
    num_tokens, num_experts = logits_TE.shape
    assert logits_TE.dtype == torch.float32 and logits_TE.is_contiguous(), logits_TE.dtype
    _choose_kernel[(num_tokens,)](
        logits_TE, *_choice_arguments(bias_E, out, positions_T, uniform), num_tokens,
        **_choice_constants(num_experts, out, positions_T, uniform), SPLITS=1, num_warps=1,
        **early_launch(),
    )  # fmt: skip


def _launch_logits(
    x_TH: torch.Tensor, weight_EH: torch.Tensor, workspace: Workspace, config: RouterConfig
) -> None:
    (num_tokens, hidden), num_experts = x_TH.shape, weight_EH.shape[0]
    per_split = split_columns(hidden, config.num_splits, config.block_h)
    grid = (
        triton.cdiv(num_experts, config.block_e), config.num_splits, triton.cdiv(num_tokens, config.block_t)
    )  # fmt: skip
    _logits_kernel[grid](
        x_TH, weight_EH, workspace.partials, num_tokens, x_TH.stride(0), H=hidden, H_PER_SPLIT=per_split,
        E=num_experts, BT=config.block_t, BE=config.block_e, BH=config.block_h,
        IS_MASKED=per_split * config.num_splits != hidden, STAGES=config.num_stages,
        num_warps=config.num_warps, **early_launch(),
    )  # fmt: skip


def _choice_arguments(
    bias_E: torch.Tensor,
    out: RouterOutput,
    positions_T: torch.Tensor | None,
    uniform: UniformRouting | None,
) -> tuple[torch.Tensor | int, ...]:
    """What is not there is another tensor, which is not read."""
    assert bias_E.dtype == torch.float32 and out.expert_ids_TK.dtype == torch.int32, bias_E.dtype
    assert out.expert_ids_TK.is_contiguous() and out.weights_TK.is_contiguous()
    return (
        bias_E, out.expert_ids_TK, out.weights_TK, bias_E if positions_T is None else positions_T,
        bias_E if uniform is None else uniform.step_1, 0 if uniform is None else uniform.seed,
        0 if uniform is None else uniform.layer,
    )  # fmt: skip


def _choice_constants(
    num_experts: int, out: RouterOutput, positions_T: torch.Tensor | None, uniform: UniformRouting | None
) -> dict[str, int | bool]:
    num_chosen = out.expert_ids_TK.shape[1]
    assert num_chosen <= num_experts, (num_chosen, num_experts)
    return {
        "E": num_experts, "EP": triton.next_power_of_2(num_experts), "K": num_chosen,
        "KP": triton.next_power_of_2(num_chosen), "HAS_POSITIONS": positions_T is not None,
        "IS_UNIFORM": uniform is not None,
    }  # fmt: skip


@triton.jit
def _random_keys(seed, layer, step, token, EP: tl.constexpr):
    """Distinct positive int64 for the experts of a token; see `router_plain.random_keys`."""
    key = mix(seed.to(tl.uint64) + GAMMA)
    key = mix(key + layer.to(tl.uint64) + GAMMA)
    key = mix(key + step.to(tl.uint64) + GAMMA)
    key = mix(key + token.to(tl.uint64) + GAMMA)
    id_E = tl.arange(0, EP).to(tl.uint64)
    bits_E = mix(key + (id_E + 1) * GAMMA)
    return ((bits_E & (0x8000000000000000 - EP)) | (EP - 1 - id_E)).to(tl.int64, bitcast=True)


@triton.jit
def _score_keys(choice_E, EP: tl.constexpr):
    """int64 in the order of float32 values, among equals the lowest index first."""
    bits_E = choice_E.to(tl.int32, bitcast=True)
    ordered_E = (bits_E ^ ((bits_E >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return ordered_E * EP + (EP - 1 - tl.arange(0, EP))


@triton.jit
def _choose_row(
    partials, bias, expert_ids, weights, positions, step_1, seed, layer, token, num_tokens,
    E: tl.constexpr, EP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    IS_UNIFORM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Choose K experts of one token from its logits, the sums of SPLITS parts."""
    id_E = tl.arange(0, EP)
    at_E = partials + token.to(tl.int64) * E + id_E
    logit_E = tl.load(at_E, mask=id_E < E, other=0.0, cache_modifier=".cg")
    for _ in tl.static_range(1, SPLITS):
        at_E += num_tokens * E
        logit_E += tl.load(at_E, mask=id_E < E, other=0.0, cache_modifier=".cg")
    score_E = 1.0 / (1.0 + tl.exp(-logit_E))
    if IS_UNIFORM:
        key_E = _random_keys(seed, layer, tl.load(step_1), token, EP)
    else:
        key_E = _score_keys(score_E + tl.load(bias + id_E, mask=id_E < E, other=0.0), EP)
    lowest = -(2**63) + 1
    key_E = tl.where(id_E < E, key_E, lowest)
    rank_K = tl.arange(0, KP)
    chosen_K = tl.full((KP,), EP, tl.int32)  # behind every id, where K is not a power of two
    for rank in tl.static_range(K):
        best = (EP - 1 - (tl.max(key_E, axis=0) & (EP - 1))).to(tl.int32)
        chosen_K = tl.where(rank_K == rank, best, chosen_K)
        key_E = tl.where(id_E == best, lowest, key_E)
    is_chosen_KE = id_E[None, :] == chosen_K[:, None]
    weight_K = tl.sum(tl.where(is_chosen_KE, score_E[None, :], 0.0), axis=1)
    weight_K = weight_K / tl.sum(weight_K, axis=0)
    if HAS_POSITIONS:
        is_padding = tl.load(positions + token) < 0
        weight_K = tl.where(is_padding, 0.0, weight_K)
    place_K = tl.sum((chosen_K[None, :] < chosen_K[:, None]).to(tl.int32), axis=1)
    if HAS_POSITIONS:
        chosen_K = tl.where(is_padding, -1, chosen_K)
    at_K = token.to(tl.int64) * K + place_K
    tl.store(expert_ids + at_K, chosen_K, mask=rank_K < K)
    tl.store(weights + at_K, weight_K, mask=rank_K < K)


@triton.jit(do_not_specialize=["seed", "layer"])
def _choose_kernel(
    partials, bias, expert_ids, weights, positions, step_1, seed, layer, num_tokens,
    E: tl.constexpr, EP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    IS_UNIFORM: tl.constexpr, SPLITS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    _choose_row(
        partials, bias, expert_ids, weights, positions, step_1, seed, layer, tl.program_id(0), num_tokens,
        E, EP, K, KP, HAS_POSITIONS, IS_UNIFORM, SPLITS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["seed", "layer"])
def _route_kernel(
    x, weight, partials, counters, bias, expert_ids, weights, positions, step_1, seed, layer, x_stride,
    H: tl.constexpr, H_PER_SPLIT: tl.constexpr, T: tl.constexpr, C: tl.constexpr, X: tl.constexpr,
    R: tl.constexpr, V: tl.constexpr, MASK: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, HAS_POSITIONS: tl.constexpr, IS_UNIFORM: tl.constexpr, SPLITS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    program, split = tl.program_id(0), tl.program_id(1)
    first = program * (X * R)
    expert_XR = first + tl.arange(0, X)[:, None] * R + tl.arange(0, R)[None, :]
    row_XR = tl.minimum(expert_XR, E - 1)
    prefetch_rows(weight, tl.reshape(row_XR, (X * R,)), split * H_PER_SPLIT, H, C * V, IS_EARLY)
    wait_for_inputs(IS_EARLY)
    sums = gemv(
        x, weight, weight, row_XR, first, split, E, x_stride,
        H, H_PER_SPLIT, T, C, X, R, V, V, 0, False, False, MASK, 1,
    )  # fmt: skip
    let_next_start(IS_EARLY)
    sums = sum_of_chunks(sums, T)
    for t in tl.static_range(T):
        tl.store(partials + (split * T + t) * E + expert_XR, sums[t], mask=expert_XR < E)
    if is_last(counters, tl.num_programs(0) * SPLITS):
        for t in tl.static_range(T):
            _choose_row(
                partials, bias, expert_ids, weights, positions, step_1, seed, layer, program * 0 + t, T,
                E, EP, K, KP, HAS_POSITIONS, IS_UNIFORM, SPLITS,
            )  # fmt: skip


@triton.jit
def _cut_bf16(x):
    """The upper 16 bits of float32 values, and what is left: exact, and cheaper than rounding."""
    bits = x.to(tl.int32, bitcast=True)
    rest = x - (bits & -65536).to(tl.float32, bitcast=True)
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), rest


@triton.jit
def _logits_kernel(
    x, weight, partials, num_tokens, x_stride,
    H: tl.constexpr, H_PER_SPLIT: tl.constexpr, E: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
    BH: tl.constexpr, IS_MASKED: tl.constexpr, STAGES: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """A split's part of the logits of BT tokens and BE experts."""
    wait_for_inputs(IS_EARLY)
    split = tl.program_id(1)
    token_T = tl.program_id(2) * BT + tl.arange(0, BT)
    expert_E = tl.program_id(0) * BE + tl.arange(0, BE)
    column_H = tl.arange(0, BH)
    x_at_TH = x + tl.minimum(token_T, num_tokens - 1).to(tl.int64)[:, None] * x_stride + column_H[None, :]
    w_at_HE = weight + (tl.minimum(expert_E, E - 1) * H)[None, :] + column_H[:, None]
    sum_TE = tl.zeros((BT, BE), tl.float32)
    for turn in tl.range(0, H_PER_SPLIT, BH, num_stages=STAGES):
        first = split * H_PER_SPLIT + turn
        if IS_MASKED:
            x_TH = tl.load(x_at_TH + first, mask=(column_H < H - first)[None, :], other=0.0)
            w_HE = tl.load(w_at_HE + first, mask=(column_H < H - first)[:, None], other=0.0)
        else:
            x_TH = tl.load(x_at_TH + first)
            w_HE = tl.load(w_at_HE + first)
        if x.dtype.element_ty == tl.bfloat16 and not INTERPRETED:
            high_HE, rest_HE = _cut_bf16(w_HE)
            middle_HE, rest_HE = _cut_bf16(rest_HE)
            low_HE, rest_HE = _cut_bf16(rest_HE)
            sum_TE = tl.dot(x_TH, high_HE, tl.dot(x_TH, middle_HE, tl.dot(x_TH, low_HE, sum_TE)))
        else:
            sum_TE = tl.dot(x_TH.to(tl.float32), w_HE, sum_TE, input_precision="ieee")
    let_next_start(IS_EARLY)
    at_TE = (split.to(tl.int64) * num_tokens + token_T[:, None]) * E + expert_E[None, :]
    tl.store(partials + at_TE, sum_TE, mask=(token_T < num_tokens)[:, None] & (expert_E < E)[None, :])
