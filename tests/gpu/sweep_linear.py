"""Times configs of `small_linear` on a GPU: python -m tests.gpu.sweep_linear --shapes "o sliding" --tokens 1

For every shape, format and number of tokens: each config is checked against the twin and timed in a graph
that goes round among copies of the weight, so that it comes from memory. One line for best and chosen config,
with --all one for each. First what is around the products: router, norms, sampling.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from model.kernels import router_config, sample
from model.kernels.linear_config import (
    MOST_GEMV_TOKENS,
    DotConfig,
    GemvConfig,
    InputNorm,
    LinearConfig,
    SwiGLU,
    Workspace,
    choose_config,
)
from model.kernels.norms import add_norm
from model.kernels.packed import PackedFormat, PackedWeight, random_packed
from model.kernels.router import route
from model.kernels.sample_plain import Candidates, SamplingRows
from model.kernels.small_linear import small_linear, workspace_sizes
from model.kernels.small_linear_plain import small_linear as plain
from tests.model.kernels.compile_linear import FORMATS, HIDDEN, NUM_CHOSEN, NUM_EXPERTS, SHAPES, VOCABULARY

CUDA = torch.device("cuda")
BYTES_IN_TURN = 256 << 20  # of weight copies: several times the L2
NUM_REPLAYS = 20
MAX_ERROR = 0.02  # roundings of x and of results to bf16 are 0.003 each


def time_us(calls: list[Callable[[], None]]) -> float:
    """Median microseconds of a call within a graph of all of them."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    repeats = max(1, 64 // len(calls))
    with torch.cuda.graph(graph):
        for call in calls * repeats:
            call()
    graph.replay()
    times = []
    for _ in range(NUM_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (len(calls) * repeats))
    return statistics.median(times)


def candidates(chosen: LinearConfig, num_tokens: int, *, may_split: bool) -> Iterator[LinearConfig]:
    """Around what `choose_config` gives; `dot` also for few tokens, `gemv` also for one more bucket."""
    yield chosen
    splits = (1, 2, 3, 4, 6, 8) if may_split else (1,)
    if num_tokens <= 2 * MOST_GEMV_TOKENS:
        for chunks, rows, stages, num_splits in itertools.product((32, 128), (2, 4, 8), (1, 3), splits[:4]):
            if rows * num_tokens <= 32:
                yield GemvConfig(chunks, rows, num_splits=num_splits, num_stages=stages)
    for block_n, stages, num_splits in itertools.product((32, 64), (3, 4, 6), splits):
        block_k = chosen.block_k if isinstance(chosen, DotConfig) else 128
        yield DotConfig(block_n, block_k, num_splits=num_splits, num_stages=stages)


def measure(
    run: Callable[..., None], weights: list[PackedWeight], out: torch.Tensor, expected: torch.Tensor
) -> tuple[float, float]:
    """Microseconds and relative error of a config."""
    out.fill_(torch.nan)
    run(weight=weights[0])
    error = float((out.double() - expected.double()).norm() / expected.double().norm())
    assert error < MAX_ERROR, error
    return time_us([partial(run, weight=weight) for weight in weights]), error


def sweep(name: str, weight_format: PackedFormat, num_tokens: int, *, show_all: bool, is_early: bool) -> None:
    """Check and time the configs of one product."""
    num_rows, num_columns, is_swiglu, has_norm = SHAPES[name]
    generator = torch.Generator(CUDA).manual_seed(0)
    group_size = 0 if weight_format == "bf16" else 128
    shape = (num_rows, num_columns)
    first = random_packed(shape, weight_format, group_size, generator, CUDA)
    num_copies = max(2, BYTES_IN_TURN // first.num_bytes)
    weights = [first] + [
        random_packed(shape, weight_format, group_size, generator, CUDA) for _ in range(num_copies - 1)
    ]
    x_TK = torch.randn(num_tokens, num_columns, generator=generator, device=CUDA).to(torch.bfloat16)
    out, expected = torch.empty(
        2, num_tokens, num_rows // 2 if is_swiglu else num_rows, dtype=torch.bfloat16, device=CUDA
    )
    swiglu = SwiGLU(7.0) if is_swiglu else None
    norm = (
        InputNorm(torch.rand(num_columns, generator=generator, device=CUDA) + 0.5, 1e-5) if has_norm else None
    )
    plain(x_TK, first, expected, norm=norm, swiglu=swiglu)
    chosen = choose_config(
        num_tokens, shape, weight_format, group_size, may_split=not has_norm, is_swiglu=is_swiglu
    )
    results = []
    for candidate in dict.fromkeys(candidates(chosen, num_tokens, may_split=not has_norm)):
        config = replace(candidate, is_early=is_early)
        space = Workspace.allocate(*workspace_sizes(config, num_tokens, num_rows), CUDA)
        run = partial(small_linear, x_TK, out=out, norm=norm, swiglu=swiglu, workspace=space, config=config)
        try:
            results.append((*measure(run, weights, out, expected), config))
        except Exception as failure:  # noqa: BLE001 - too much shared memory, say: the next config
            print("   ", config, type(failure).__name__, str(failure)[:120])
    own = next(micros for micros, _, config in results if replace(config, is_early=False) == chosen)
    results.sort(key=lambda result: result[0])
    best, error, best_config = results[0]
    rate = first.num_bytes / best / 1e6
    print(
        f"{name:25s} {weight_format:5s} T={num_tokens:2d} best {best:7.2f} us {rate:5.2f} TB/s "
        f"error {error:.1e} chosen {own:7.2f} us  {best_config}",
        flush=True,
    )
    for micros, _, config in results[1:] if show_all else ():
        print(f"    {micros:7.2f} us {config}")


def around(num_tokens: int) -> None:
    """Launches between the products."""
    x_TH = torch.randn(num_tokens, HIDDEN, device=CUDA).to(torch.bfloat16)
    config = router_config.choose_config(num_tokens, NUM_EXPERTS, HIDDEN)
    space = Workspace.allocate(*router_config.workspace_sizes(config, num_tokens, NUM_EXPERTS), CUDA)
    bias_E = torch.randn(NUM_EXPERTS, device=CUDA)
    chosen = router_config.RouterOutput.allocate(num_tokens, NUM_CHOSEN, CUDA)
    run = partial(route, x_TH, bias_E=bias_E, out=chosen, workspace=space, config=config)
    weights = [
        torch.randn(NUM_EXPERTS, HIDDEN, device=CUDA)
        for _ in range(BYTES_IN_TURN // (NUM_EXPERTS * HIDDEN * 4))
    ]
    micros = time_us([partial(run, weight_EH=weight) for weight in weights])
    print(f"router T={num_tokens} {micros:.2f} us {config}")
    normed_TH, norm = torch.empty_like(x_TH), InputNorm(torch.ones(HIDDEN, device=CUDA), 1e-5)
    for num_parts, num_warps in itertools.product((1, 4), (4, 8, 16, 32)):
        deltas_PTH = torch.randn(num_parts, num_tokens, HIDDEN, device=CUDA)
        run = partial(
            add_norm, x_TH, torch.empty_like(x_TH), deltas_PTH=deltas_PTH, norm=norm, normed_TH=normed_TH
        )
        micros = time_us([partial(run, num_warps=num_warps)])
        print(f"norm T={num_tokens} parts {num_parts} warps {num_warps} {micros:.2f} us")
    logits_TV = torch.randn(num_tokens, VOCABULARY, device=CUDA)
    scores_T = torch.empty(num_tokens, dtype=torch.float64, device=CUDA)
    best = Candidates(torch.empty(num_tokens, dtype=torch.int32, device=CUDA), scores_T)
    counts_T = torch.zeros(num_tokens, dtype=torch.int64, device=CUDA)
    for temperature, block in itertools.product((0.0, 1.0), (512, 1024, 2048, 4096)):
        rows = SamplingRows(torch.full_like(scores_T, temperature), counts_T, counts_T)
        meeting = sample.allocate_workspace(num_tokens, VOCABULARY, CUDA, block)
        micros = time_us(
            [partial(sample.sample_tokens, logits_TV, rows, best, workspace=meeting, block=block)]
        )
        print(f"sample T={num_tokens} temperature {temperature} block {block} {micros:.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 4, 8, 40])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--early", action="store_true")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name())
    for num_tokens in arguments.tokens:
        around(num_tokens)
        for name, weight_format in itertools.product(arguments.shapes, arguments.formats):
            sweep(name, weight_format, num_tokens, show_all=arguments.all, is_early=arguments.early)


if __name__ == "__main__":
    main()
