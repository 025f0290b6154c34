"""What a sweep times: kernels at the shapes of one rank, and configs to try for each.

Shapes: T rows, N outputs, K inputs, H hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from model.config import TextConfig
from model.device.bench_rows import fill_rows
from model.device.layout import KVLayout
from model.device.state import ATTENTION_PROGRAMS, StepRows
from model.device.weights import Formats, Share, packed_group_size
from model.kernels import experts_config
from model.kernels.experts_config import ExpertsConfig, ExpertsShape, SharedExpert, make_workspace
from model.kernels.linear_config import (
    DotConfig,
    GemvConfig,
    LinearConfig,
    SwiGLU,
    Workspace,
    choose_config,
)
from model.kernels.packed import PackedFormat, PackedWeight, random_packed, tiled
from model.kernels.paged import PagedKV, allocate_pool, allocate_workspace

_L2_BYTES, _MOST_COPIES, _MOST_CONFIGS = 128 << 20, 16, 24
_MOST_GEMV_TOKENS = 4
_CONTEXTS = (128, 2048, 32_768)
_MOST_POSITIONS = 1 << 19  # of all sequences together


@dataclass(frozen=True, eq=False)
class Trial:
    """One config, and a call for each copy of the weights."""

    config: Any
    is_default: bool
    calls: list[Callable[[], object]]

    def run(self) -> None:
        """All calls."""
        for call in self.calls:
            call()


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel at a shape; `read_bytes`: what one call reads of weights or cache."""

    name: str
    num_rows: int
    read_bytes: float
    trials: list[Trial]


def linear_shapes(text: TextConfig, share: Share) -> dict[str, tuple[int, int, bool]]:
    """Name -> outputs, inputs, whether SwiGLU follows, of one rank."""
    kv, size, hidden = len(share.of(text.num_kv_heads)), text.head_dim, text.hidden_size
    shapes: dict[str, tuple[int, int, bool]] = {}
    for layer in text.layers[:2]:
        heads = len(share.of(layer.num_heads))
        shapes[f"qkvg {layer.attention}"] = ((heads + 2 * kv) * size + heads, hidden, False)
        shapes[f"output {layer.attention}"] = (hidden, heads * size, False)
    width = len(share.of(text.dense_width))
    shapes["dense gate_up"] = (2 * width, hidden, True)
    shapes["dense down"] = (hidden, width, False)
    shapes["head"] = (len(share.of(text.vocab_size)), hidden, False)
    return shapes


def linear_cases(
    text: TextConfig, share: Share, formats: Formats, counts: list[int], part: str, device: torch.device
) -> Iterator[Case]:
    """Products of few rows whose name contains `part`."""
    generator = torch.Generator(device).manual_seed(0)
    workspace = Workspace.allocate(1 << 26, 1 << 16, device)
    for name, (num_out, num_in, is_swiglu) in linear_shapes(text, share).items():
        if part not in name:
            continue
        weights = _copies((num_out, num_in), formats.rest, generator)
        for num_rows in counts:
            x_TK = torch.randn(num_rows, num_in, device=device, generator=generator).bfloat16()
            trials = _linear_trials(x_TK, weights, workspace, SwiGLU(None) if is_swiglu else None)
            yield Case(f"{name} {formats.rest}", num_rows, weights[0].num_bytes, trials)


def _linear_trials(
    x_TK: torch.Tensor, weights: list[PackedWeight], workspace: Workspace, swiglu: SwiGLU | None
) -> list[Trial]:
    from model.kernels.small_linear import small_linear

    num_out = weights[0].shape[0] // (1 if swiglu is None else 2)
    out_TM = torch.empty(x_TK.shape[0], num_out, dtype=torch.bfloat16, device=x_TK.device)
    trials = []
    for config, is_default in linear_configs(x_TK.shape[0], weights[0], is_swiglu=swiglu is not None):
        product_of = partial(small_linear, swiglu=swiglu, workspace=workspace, config=config)
        calls: list[Callable[[], object]] = [partial(product_of, x_TK, weight, out_TM) for weight in weights]
        trials.append(Trial(config, is_default, calls))
    return trials


def linear_configs(
    num_rows: int, weight: PackedWeight, *, is_swiglu: bool
) -> list[tuple[LinearConfig, bool]]:
    """The default first."""
    default = choose_config(num_rows, weight.shape, weight.format, weight.group_size, is_swiglu=is_swiglu)
    others: list[LinearConfig] = []
    if num_rows <= _MOST_GEMV_TOKENS:
        tried = product((32, 64), (2, 4, 8), (4, 8), (1, 2, 4), (1, 3))
        others += _some([GemvConfig(*values) for values in tried])
    if num_rows > 1:
        block_k = min(128, weight.group_size) if weight.group_size else 128
        for weights_first in (False, True):
            sizes = (64, 128) if weights_first else (32, 64, 128)
            dots = product(sizes, (4, 8), (1, 2, 4), (3, 4))
            configs = [DotConfig(values[0], block_k, *values[1:], weights_first) for values in dots]
            others += _some([config for config in configs if config.block_n >= 16 * config.num_warps])
    return [(default, True), *((config, False) for config in others if config != default)]


def expert_cases(
    text: TextConfig, share: Share, formats: Formats, counts: list[int], device: torch.device
) -> Iterator[Case]:
    """Routed and shared experts of one layer; ids are uniform over the experts of all ranks."""
    generator = torch.Generator(device).manual_seed(0)
    hidden, num_own = text.hidden_size, len(share.of(text.num_experts))
    shared_width = len(share.of(text.shared_width))
    shape = ExpertsShape(num_own, text.experts_per_token, hidden, text.expert_width, share.world_size)
    gate_up = tiled(_packed((num_own, 2 * text.expert_width, hidden), formats.experts, generator))
    down = tiled(_packed((num_own, hidden, text.expert_width), formats.experts, generator))
    shared = SharedExpert(
        _packed((2 * shared_width, hidden), formats.rest, generator),
        _packed((hidden, shared_width), formats.rest, generator),
        None,
    )
    of_expert = (gate_up.num_bytes + down.num_bytes) / num_own
    for num_rows in counts:
        x_TH = torch.randn(num_rows, hidden, device=device, generator=generator).bfloat16()
        draws = torch.rand(_MOST_COPIES, num_rows, text.num_experts, device=device, generator=generator)
        ids_CTK = draws.topk(text.experts_per_token).indices.sort(-1).values.int().contiguous()
        hit = statistics.mean(int((ids_TK.unique() < num_own).sum()) for ids_TK in ids_CTK)
        read_bytes = hit * of_expert + shared.gate_up.num_bytes + shared.down.num_bytes
        trials = _expert_trials(x_TH, ids_CTK, gate_up, down, shared, shape)
        yield Case(f"experts {formats.experts}, shared {formats.rest}", num_rows, read_bytes, trials)


def _expert_trials(
    x_TH: torch.Tensor,
    ids_CTK: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    shared: SharedExpert,
    shape: ExpertsShape,
) -> list[Trial]:
    from model.kernels.experts import experts_forward

    weights_TK = torch.full(ids_CTK.shape[1:], 1 / ids_CTK.shape[2], device=x_TH.device)
    out_TH = torch.empty(x_TH.shape, device=x_TH.device)
    workspace = make_workspace(x_TH.shape[0], shape, x_TH.device, shared_width=shared.down.shape[1])
    trials = []
    for config, is_default in expert_configs(x_TH.shape[0], shape, gate_up.format):
        forward = partial(
            experts_forward, limit=None, first_expert=0, workspace=workspace, shared=shared,
            routed_scale=3.0, config=config, out_TH=out_TH,
        )  # fmt: skip
        calls: list[Callable[[], object]] = [
            partial(forward, x_TH, ids_TK, weights_TK, gate_up, down) for ids_TK in ids_CTK
        ]
        trials.append(Trial(config, is_default, calls))
    return trials


def expert_configs(
    num_rows: int, shape: ExpertsShape, weight_format: PackedFormat
) -> list[tuple[ExpertsConfig, bool]]:
    """The default, and the tiles of one product changed at a time."""
    default = experts_config.choose_config(num_rows, shape, weight_format)
    others: list[ExpertsConfig] = []
    for gated, tile in ((True, default.gate_up), (False, default.down)):
        if tile.kind == "gemv":
            tiles = list(experts_config.gemv_tiles(gated=gated, weight_format=weight_format))
        elif default.sort and weight_format == "int4":
            tiles = list(experts_config.quad_tiles(tile.block_rows, gated=gated))
        else:
            tiles = list(experts_config.dot_tiles(tile.block_rows, gated=gated))
        others += [
            replace(default, gate_up=other) if gated else replace(default, down=other)
            for other in _some(tiles)
        ]
    if default.gate_up.kind == "gemv":
        others.append(replace(default, fuse_combine=not default.fuse_combine))
    return [(default, True), *((config, False) for config in others if config != default)]


def attention_cases(
    text: TextConfig, share: Share, counts: list[int], part: str, device: torch.device
) -> Iterator[Case]:
    """Decode over caches of noise, one token of each sequence."""
    num_kv, size = len(share.of(text.num_kv_heads)), text.head_dim
    for layer, num_seqs, context in product(text.layers[:2], counts, _CONTEXTS):
        window = text.window if layer.attention == "sliding" else None
        name = f"attention {layer.attention} {context}"
        if part not in name or num_seqs * context > _MOST_POSITIONS:
            continue
        layout = KVLayout.for_lengths(text, num_seqs, context + 16, 1)
        num_blocks = num_seqs * layout.num_columns[layer.attention]
        pool = allocate_pool(num_blocks, num_kv, layout.block_size, size, torch.bfloat16, device).normal_()
        rows = StepRows.allocate(num_seqs, 1, layout.num_columns, device)
        rows.sequences[layer.attention].blocks_BM.copy_(layout.blocks(layer.attention, device))
        fill_rows(rows, num_seqs, context, text.vocab_size)
        seen = context if window is None else min(context, window)
        trials = _attention_trials(rows, PagedKV(pool), len(share.of(layer.num_heads)), window)
        yield Case(name, num_seqs, num_seqs * seen * 4 * num_kv * size, trials)


def _attention_trials(rows: StepRows, kv: PagedKV, num_heads: int, window: int | None) -> list[Trial]:
    from model.kernels.paged_decode import choose_tuning, paged_decode

    device, num_seqs = rows.token_ids_T.device, rows.num_seqs
    q_TND = torch.randn(num_seqs, num_heads, kv.head_dim, device=device).bfloat16()
    gate_TN = torch.zeros(num_seqs, num_heads, dtype=torch.bfloat16, device=device)
    workspace = allocate_workspace(
        ATTENTION_PROGRAMS, num_seqs * kv.num_kv_heads, num_heads // kv.num_kv_heads, kv.head_dim, device
    )
    sequences = rows.sequences["full" if window is None else "sliding"]
    default = choose_tuning(num_seqs, kv.num_kv_heads, window, kv.pool_XK2SD.dtype)
    trials = []
    for tile, warps, stages, apart, programs in product(
        (32, 64, 128), (4, 8), (3, 5), (False, True), (132, None)
    ):
        tuning = replace(
            default, tile=tile, num_warps=warps, num_stages=stages, adds_apart=apart, most_programs=programs
        )
        call = partial(
            paged_decode, q_TND, kv, sequences, gate_TN, torch.empty_like(q_TND), workspace, window, tuning
        )  # fmt: skip
        trials.append(Trial(tuning, tuning == default, [call] * _MOST_COPIES))
    return trials


def _some(configs: list[Any]) -> list[Any]:
    """Evenly spread over all, at most as many as there is time for."""
    return configs[:: max(1, -(-len(configs) // _MOST_CONFIGS))]


def _packed(shape: tuple[int, ...], weight_format: PackedFormat, generator: torch.Generator) -> PackedWeight:
    group_size = packed_group_size(weight_format, shape[-1])
    return random_packed(shape, weight_format, group_size, generator, generator.device)


def _copies(
    shape: tuple[int, int], weight_format: PackedFormat, generator: torch.Generator
) -> list[PackedWeight]:
    """As many as the L2 cannot hold."""
    first = _packed(shape, weight_format, generator)
    count = max(2, min(_MOST_COPIES, -(-_L2_BYTES // first.num_bytes)))
    return [first] + [_packed(shape, weight_format, generator) for _ in range(count - 1)]
