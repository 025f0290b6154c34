"""Products of up to 64 tokens against their plain-torch twin, over formats, odd shapes and every fused part.

Shapes: T tokens, N rows of the weight, K columns, S splits.
"""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.linear_config import (
    DotConfig,
    GemvConfig,
    LinearConfig,
    SwiGLU,
    Workspace,
    choose_config,
)
from model.kernels.packed import PackedFormat, PackedWeight, random_packed
from model.kernels.small_linear import small_linear, workspace_sizes
from model.kernels.small_linear_plain import small_linear as plain

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

GROUPS: dict[PackedFormat, int] = {"bf16": 0, "fp8": 128, "int8": 32}
# Rounding of x and of the weight's sums on tensor cores, and of bf16 results.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert not got.isnan().any(), "not all elements were written"
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def run(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    config: LinearConfig,
    dtype: torch.dtype = torch.float32,
    *,
    swiglu: SwiGLU | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives, poisoned before, and what the twin gives in float32."""
    num_tokens, num_rows = x_TK.shape[0], weight.shape[0]
    shape = (num_tokens, num_rows // 2 if swiglu else num_rows)
    out = torch.full(shape, torch.nan, dtype=dtype, device=x_TK.device)
    expected = torch.empty(shape, device=x_TK.device)
    space = Workspace.allocate(*workspace_sizes(config, num_tokens, num_rows), x_TK.device)
    space.partials.fill_(torch.nan)
    small_linear(x_TK, weight, out, swiglu=swiglu, workspace=space, config=config)
    plain(x_TK, weight, expected, swiglu=swiglu)
    assert not space.counters.any(), "counters are zero between kernels"
    return out, expected


def columns_of(weight_format: PackedFormat, seed: int) -> int:
    """Ints have whole groups of columns; the others any number."""
    unit = GROUPS[weight_format] if weight_format == "int8" else 1
    return random.Random(seed).choice([32, 96, 160, 288] if unit > 1 else [40, 128, 200, 255, 384])


@pytest.mark.parametrize("weight_format", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("seed", range(6))
def test_gemv_is_the_twin(
    weight_format: PackedFormat, seed: int, device: torch.device, generator: torch.Generator
) -> None:
    choice = random.Random(seed)
    num_tokens, num_rows, num_columns = (
        choice.randint(1, 5),
        choice.randint(1, 150),
        columns_of(weight_format, seed),
    )
    config = GemvConfig(
        num_chunks=choice.choice([4, 8, 32]), num_rows=choice.choice([1, 2, 4]),
        num_warps=choice.choice([1, 2]),
        num_splits=choice.choice([1, 1, 3]), num_stages=choice.choice([1, 3]),
    )  # fmt: skip
    weight = random_packed((num_rows, num_columns), weight_format, GROUPS[weight_format], generator, device)
    x_TK = torch.randn(num_tokens, num_columns, generator=generator, device=device)
    x_TK = x_TK.to(choice.choice([torch.bfloat16, torch.float32]))
    out, expected = run(x_TK, weight, config)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("weight_format", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("seed", range(6))
def test_dot_is_the_twin(
    weight_format: PackedFormat, seed: int, device: torch.device, generator: torch.Generator
) -> None:
    choice = random.Random(seed)
    num_tokens, num_rows = choice.choice([1, 5, 16, 17, 40, 64]), choice.randint(1, 150)
    num_columns = columns_of(weight_format, seed)
    block_k = 32 if weight_format == "int8" else choice.choice([64, 128])
    config = DotConfig(
        choice.choice([16, 32, 64]), block_k, num_splits=choice.choice([1, 1, 2]),
        weights_first=choice.choice([False, True]),
    )  # fmt: skip
    weight = random_packed((num_rows, num_columns), weight_format, GROUPS[weight_format], generator, device)
    x_TK = torch.randn(num_tokens, num_columns, generator=generator, device=device).to(torch.bfloat16)
    out, expected = run(x_TK, weight, config)
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


CONFIGS = {
    "gemv": GemvConfig(num_chunks=8, num_rows=2, num_warps=1),
    "gemv in splits": GemvConfig(num_chunks=8, num_rows=4, num_warps=1, num_splits=2),
    "dot": DotConfig(32, 32),
    "dot in splits": DotConfig(32, 32, num_splits=3),
    "weights first": DotConfig(64, 32, num_splits=2, weights_first=True),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weight_format", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_swiglu_is_clamped_behind_the_silu(
    name: str,
    weight_format: PackedFormat,
    limit: float | None,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    weight = random_packed((2 * 75, 160), weight_format, GROUPS[weight_format], generator, device)
    x_TK = torch.randn(3, 160, generator=generator, device=device).to(torch.bfloat16) * 2
    out, expected = run(x_TK, weight, CONFIGS[name], swiglu=SwiGLU(limit))
    assert relative_error(out, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", CONFIGS)
def test_partial_sums_add_up(name: str, device: torch.device, generator: torch.Generator) -> None:
    config = CONFIGS[name]
    weight = random_packed((70, 96), "bf16", 0, generator, device)
    x_TK = torch.randn(3, 96, generator=generator, device=device).to(torch.bfloat16)
    out_STN = torch.full((config.num_splits, 3, 70), torch.nan, device=device)
    expected = torch.empty(3, 70, device=device)
    small_linear(x_TK, weight, out_STN, config=config)
    plain(x_TK, weight, expected)
    assert relative_error(out_STN.sum(0), expected) < TOLERANCE[torch.float32]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter starts nothing early")
@pytest.mark.parametrize("name", CONFIGS)
def test_an_early_start_changes_nothing(name: str, device: torch.device, generator: torch.Generator) -> None:
    """Each product reads what the one before has just written, and writes what that has just read.

    Where the host waits for each, none can start early.
    """
    config = CONFIGS[name]
    weight = random_packed((4096, 4096), "bf16", 0, generator, device)
    space = Workspace.allocate(*workspace_sizes(config, 3, 4096), device)
    results = []
    for waits in (True, False):
        tensors = [torch.ones(3, 4096, dtype=torch.bfloat16, device=device) for _ in range(2)]
        for step in range(20):
            small_linear(tensors[step % 2], weight, tensors[1 - step % 2], workspace=space, config=config)
            if waits:
                torch.cuda.synchronize()
        results.append(tensors[0])
    assert torch.equal(*results)


def test_rows_may_be_apart(device: torch.device, generator: torch.Generator) -> None:
    weight = random_packed((40, 64), "bf16", 0, generator, device)
    wide_TK = torch.randn(3, 80, generator=generator, device=device).to(torch.bfloat16)
    wide_out = torch.full((3, 50), torch.nan, device=device)
    expected = torch.empty(3, 40, device=device)
    for config in CONFIGS["gemv"], CONFIGS["dot"]:
        small_linear(wide_TK[:, :64], weight, wide_out[:, :40], config=config)
        plain(wide_TK[:, :64], weight, expected)
        assert relative_error(wide_out[:, :40], expected) < TOLERANCE[torch.float32]
        assert wide_out[:, 40:].isnan().all()


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 64])
@pytest.mark.parametrize(
    "shape",
    [(14432, 4096), (5152, 4096), (4096, 12288), (4096, 4096), (1280, 4096), (4096, 640), (64448, 4096)],
)
@pytest.mark.parametrize("weight_format", ["bf16", "fp8"])
def test_chosen_splits_cover_the_columns(
    num_tokens: int, shape: tuple[int, int], weight_format: PackedFormat
) -> None:
    config = choose_config(num_tokens, shape, weight_format, GROUPS[weight_format])
    assert 1 <= config.num_splits <= 8
