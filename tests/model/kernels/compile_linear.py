"""Prints registers, stack and instructions of linear, router, norm and sampling kernels (`offline.py`).

Numbers of tokens as arguments; "few": only what a test looks at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from model.kernels import large_linear, router_config, sample
from model.kernels.linear_config import InputNorm, LinearConfig, SwiGLU, Workspace, choose_config
from model.kernels.norms import add_norm
from model.kernels.norms_plain import RoutedRows
from model.kernels.packed import PackedFormat, PackedWeight
from model.kernels.router import route
from model.kernels.sample_plain import Candidates, DecodeRows, SamplingRows, SlotGroup
from model.kernels.small_linear import small_linear
from tests.model.kernels.offline import Compiled, compile_calls

# Name: rows, columns, SwiGLU; of one GPU, or of one of two.
SHAPES = {
    "qkvg sliding": (14432, 4096, False),
    "qkvg full / 2": (5152, 4096, False),
    "o sliding": (4096, 12288, False),
    "o full / 2": (4096, 4096, False),
    "shared gate_up": (2560, 4096, True),
    "shared gate_up / 2": (1280, 4096, True),
    "shared down / 2": (4096, 640, False),
    "dense gate_up": (22528, 4096, True),
    "head / 2": (64448, 4096, False),
}
FEW_SHAPES = ("qkvg sliding", "o full / 2", "shared gate_up / 2")
FORMATS: tuple[PackedFormat, ...] = ("bf16", "fp8", "int8")
OPERATIONS = (
    "LDG.E.128", "LDG.E.64", "LDG.E ", "LDG.E.U16", "LDGSTS.E.BYPASS.128", "LDGSTS", "LDS", "STS",
    "BAR", "FFMA", "HMMA", "HGMMA", "QGMMA", "F2F.", "LDL", "STL",
)  # fmt: skip
HIDDEN, NUM_EXPERTS, NUM_CHOSEN, VOCABULARY = 4096, 288, 8, 128896


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def bf16(*shape: int) -> torch.Tensor:
    """Nobody reads its values."""
    return torch.empty(shape, dtype=torch.bfloat16)


def weight_of(num_rows: int, num_columns: int, weight_format: PackedFormat) -> PackedWeight:
    shape = (num_rows, num_columns)
    if weight_format == "bf16":
        return PackedWeight("bf16", bf16(*shape), None, None, 0, shape)
    if weight_format == "fp8":
        scales = torch.empty(-(-num_rows // 128), -(-num_columns // 128))
        return PackedWeight("fp8", torch.empty(shape, dtype=torch.float8_e4m3fn), scales, None, 128, shape)
    data = torch.empty(shape, dtype=torch.int8)
    return PackedWeight("int8", data, bf16(num_rows, num_columns // 128), None, 128, shape)


def config_of(name: str, weight_format: PackedFormat, num_tokens: int) -> LinearConfig:
    num_rows, num_columns, is_swiglu = SHAPES[name]
    group_size = 0 if weight_format == "bf16" else 128
    return choose_config(
        num_tokens, (num_rows, num_columns), weight_format, group_size,
        is_swiglu=is_swiglu,
    )  # fmt: skip


def linear(name: str, weight_format: PackedFormat, num_tokens: int, config: LinearConfig) -> None:
    num_rows, num_columns, is_swiglu = SHAPES[name]
    small_linear(
        bf16(num_tokens, num_columns), weight_of(num_rows, num_columns, weight_format),
        bf16(num_tokens, num_rows // 2 if is_swiglu else num_rows), swiglu=SwiGLU(7.0) if is_swiglu else None,
        workspace=Workspace.allocate(16, 16, "cpu"), config=config,
    )  # fmt: skip


def router(num_tokens: int, *, is_uniform: bool) -> None:
    config = router_config.choose_config(num_tokens, NUM_EXPERTS, HIDDEN)
    sizes = router_config.workspace_sizes(config, num_tokens, NUM_EXPERTS)
    step_1 = torch.zeros(1, dtype=torch.int64)
    route(
        bf16(num_tokens, HIDDEN), torch.empty(NUM_EXPERTS, HIDDEN), torch.empty(NUM_EXPERTS),
        router_config.RouterOutput.allocate(num_tokens, NUM_CHOSEN, "cpu"), positions_T=int32(num_tokens),
        uniform=router_config.UniformRouting(5, 3, step_1) if is_uniform else None,
        workspace=Workspace.allocate(*sizes, "cpu"),
    )  # fmt: skip


def norms(num_tokens: int, num_parts: int, *, has_rows: bool, has_norm: bool = True) -> None:
    shape = (num_tokens, HIDDEN)
    rows = RoutedRows(
        torch.empty(num_tokens * NUM_CHOSEN, HIDDEN), int32(num_tokens, NUM_CHOSEN),
        torch.empty(num_tokens, NUM_CHOSEN), 144, 144, 3.0,
    )  # fmt: skip
    add_norm(
        bf16(*shape), bf16(*shape), deltas_PTH=torch.empty(num_parts, *shape),
        routed=rows if has_rows else None, norm=InputNorm(torch.empty(HIDDEN), 1e-5) if has_norm else None,
        normed_TH=bf16(*shape) if has_norm else None,
    )  # fmt: skip


def sampling(num_rows: int, num_parts: int) -> None:
    num_tokens = VOCABULARY // num_parts
    int64 = torch.zeros(num_rows, dtype=torch.int64)
    scores_RT = torch.zeros(num_parts, num_rows, dtype=torch.float64)
    ids_RT, ids_T = int32(num_parts, num_rows), int32(num_rows)
    sample.sample_tokens(
        torch.empty(num_rows, num_tokens), SamplingRows(scores_RT[0], int64, int64),
        Candidates(ids_RT[0], scores_RT[0]), workspace=sample.allocate_workspace(num_rows, num_tokens, "cpu"),
    )  # fmt: skip
    groups = tuple(SlotGroup(int32(num_rows, columns), ids_T, 16) for columns in (16384, 96))
    sample.advance(DecodeRows(ids_T, ids_T, ids_T, int64, int64[:1], groups), Candidates(ids_RT, scores_RT))


def prefill(num_tokens: int) -> None:
    weight, x_TK = weight_of(14432, HIDDEN, "fp8"), bf16(num_tokens, HIDDEN)
    large_linear.large_linear(x_TK, weight, method="fp8")
    for weight_format in FORMATS[1:]:
        large_linear.dequantize_bf16(weight_of(14432, HIDDEN, weight_format), bf16(14432, HIDDEN))
    large_linear.swiglu_rows(bf16(num_tokens, 2560), 7.0)


def calls(token_counts: tuple[int, ...], shapes: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], None]]]:
    """What to compile, with a name."""
    for name in shapes:
        for weight_format in FORMATS:
            for num_tokens in token_counts:
                config = config_of(name, weight_format, num_tokens)
                label = f"{name} {weight_format} T={num_tokens} {config}"
                yield label, partial(linear, name, weight_format, num_tokens, config)
    for num_tokens in token_counts:
        yield f"router T={num_tokens}", partial(router, num_tokens, is_uniform=False)
    yield "router T=1 uniform", partial(router, 1, is_uniform=True)
    yield "norm of one part", partial(norms, 1, 1, has_rows=False)
    yield "norm of three parts and rows", partial(norms, 1, 3, has_rows=True)
    yield "sum of rows for an exchange", partial(norms, 40, 1, has_rows=True, has_norm=False)
    yield "sampling T=1", partial(sampling, 1, 1)
    yield "sampling T=40, two parts", partial(sampling, 40, 2)
    yield "prefill", partial(prefill, 4096)


def line(kernel: Compiled) -> str:
    counts = " ".join(
        f"{name.strip()}:{count}" for name in OPERATIONS if (count := kernel.instructions.count(name))
    )
    return (
        f"registers {kernel.num_registers} stack {kernel.stack_bytes} shared {kernel.shared_bytes} "
        f"instructions {kernel.instructions.count(';')} {counts}"
    )


def main() -> None:
    is_few = sys.argv[1:] == ["few"]
    token_counts = (1, 40) if is_few else tuple(map(int, sys.argv[1:])) or (1, 4, 8, 40)
    for label, call in calls(token_counts, FEW_SHAPES if is_few else tuple(SHAPES)):
        for kernel in compile_calls(call):
            print(f"{label} | {kernel.name} {line(kernel)}", flush=True)


if __name__ == "__main__":
    main()
