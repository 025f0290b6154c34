"""`python -m model.device.bench`: the whole model with random weights on one GPU or several.

One process for each GPU. Rank 0 prints rows as they come: start-up, errors of single layers against plain
torch in float32, decode, prefill, verify steps. A row that fails says so, and the next one runs. Without a
GPU everything runs in plain torch: `--config small` takes seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.multiprocessing as mp

from model.device import bench_rows as rows
from model.device.bench_options import BenchOptions, parse_options
from model.device.bench_report import Printer
from model.device.bench_rows import VERIFY_ROWS, Bench
from model.device.few_layers import few_layers
from model.device.random_weights import random_weights
from model.device.rank import Engine, RankContext, close_rank, open_rank
from model.device.shapes import text_config
from model.device.verify import VerifyRows, verify_step
from model.device.weights import Share
from model.errors import FluytError, InvalidRequest

_MOST_COMPILERS = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a command line and run."""
    try:
        run(parse_options(arguments))
    except FluytError as error:
        sys.exit(str(error))


def run(options: BenchOptions) -> None:
    """Run on so many GPUs, or in so many processes without any. Raises InvalidRequest if there are fewer."""
    started = time.time()
    num_here = torch.cuda.device_count()
    if torch.cuda.is_available() and options.num_gpus > num_here:
        raise InvalidRequest("--gpus", f"{options.num_gpus} is more than the {num_here} of this machine")
    if options.num_gpus == 1:
        run_rank(0, options, 0, started)
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(run_rank, args=(options, port, started), nprocs=options.num_gpus)


@torch.inference_mode()
def run_rank(rank: int, options: BenchOptions, port: int, started: float) -> None:
    """All rows of one rank."""
    text = text_config(options.config)
    text = replace(text, layers=text.layers[: options.num_layers])
    context = open_rank(rank, options.num_gpus, port, text.hidden_size)
    write = Printer(as_json=options.as_json) if rank == 0 else _write_nothing
    begin = time.perf_counter()
    read_tb_s = rows.measured_read_rate(context.device)
    context.free()
    weights = random_weights(
        text, options.formats, Share(rank, options.num_gpus), options.seed, context.device,
        with_mtp=bool(options.mtp_batches),
    )  # fmt: skip
    context.synchronize()
    bench = Bench(context, weights, options, started, read_tb_s)
    weights_s = time.perf_counter() - begin
    write(
        "start",
        _start(bench) | {"weights_s": round(weights_s, 2), "since_start_s": round(time.time() - started, 2)},
    )
    if context.device.type == "cuda":
        _attempt(context, write, "compile", {}, lambda: _compile(bench))
    if options.check:
        _attempt(context, write, "errors", {}, lambda: rows.layer_errors(bench))
    for kind, key, measure in _rows(bench):
        _attempt(context, write, kind, key, measure)
    write("end", {"first_token_s": bench.first_token_s, "total_s": round(time.time() - started, 1)})
    close_rank(options.num_gpus)


def _rows(bench: Bench) -> Iterator[tuple[str, dict[str, int], Callable[[], dict[str, Any]]]]:
    """What is measured, in order; the measurements of a row allocate what it needs."""
    options = bench.options
    for prompt in options.prompts:
        for batch in options.batches:
            yield "decode", {"batch": batch, "prompt": prompt}, partial(_decode, bench, batch, prompt)
    for batch in options.mtp_batches:
        prompt = options.prompts[0]
        yield "mtp", {"batch": batch, "prompt": prompt}, partial(_mtp, bench, batch, prompt)
    for count, length in options.prefills:
        key = {"prompts": count, "length": length}
        yield "prefill", key, partial(rows.prefill_row, bench, count, length)


def _decode(bench: Bench, batch: int, prompt: int) -> dict[str, Any]:
    engine = _agreed(bench, lambda: bench.engine(rows.buckets((batch,))[0], 1))
    return rows.decode_row(bench, engine, batch, prompt)


def _mtp(bench: Bench, batch: int, prompt: int) -> dict[str, Any]:
    engine = _agreed(bench, lambda: bench.engine(batch, VERIFY_ROWS))
    return rows.mtp_row(bench, engine, batch, prompt)


def _agreed(bench: Bench, allocate: Callable[[], Engine]) -> Engine:
    """An engine on all ranks or on none: who runs out of memory alone would leave the others waiting."""
    engine, failure = None, None
    try:
        engine = allocate()
    except torch.OutOfMemoryError as error:
        failure = error
    if not bench.context.votes.all_agree(is_good=engine is not None):
        raise failure or torch.OutOfMemoryError("another rank ran out of memory")
    assert engine is not None
    return engine


def _attempt(
    context: RankContext,
    write: Callable[[str, dict[str, Any]], None],
    kind: str,
    key: dict[str, int],
    measure: Callable[[], dict[str, Any]],
) -> None:
    """Measure and print a row, or say what went wrong."""
    context.free()
    begin = time.perf_counter()
    try:
        values = measure()
    except Exception as error:  # noqa: BLE001 - Triton's errors have no common base
        write(kind, key | {"error": f"{type(error).__name__}: {error}"[:500]})
        return
    write(kind, values | {"row_s": round(time.perf_counter() - begin, 2)})


def _compile(bench: Bench) -> dict[str, Any]:
    """Compile the decode kernels of all buckets side by side."""
    from model.kernels.precompile import precompile

    options, few = bench.options, few_layers(bench.weights)
    begin = time.perf_counter()

    def steps() -> None:
        for bucket in rows.buckets(options.batches):
            engine = bench.engine(bucket, 1, few)
            engine.decoder.decode_step(engine.rows, engine.scratch)
        for batch in options.mtp_batches:
            engine = bench.engine(batch, VERIFY_ROWS, few)
            verify_step(engine.decoder, VerifyRows.around(engine.rows), engine.scratch)

    num_threads = max(1, min(_MOST_COMPILERS, (os.cpu_count() or 1) // options.num_gpus))
    done = precompile(steps, num_threads)
    bench.context.synchronize()
    seconds = round(time.perf_counter() - begin, 2)
    return {
        "kernels": done.num_kernels, "seconds": seconds, "threads": num_threads, "errors": list(done.errors)
    }  # fmt: skip


def _start(bench: Bench) -> dict[str, Any]:
    context, options = bench.context, bench.options
    name = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu"
    return {
        "device": name, "gpus": options.num_gpus, "config": options.config,
        "experts": options.formats.experts, "rest": options.formats.rest, "kv": options.kv,
        "routing": "uniform" if options.is_uniform else "router",
        "read_tb_s": round(bench.read_tb_s, 3), "memory_gib": round(context.memory_gib(), 2),
    } | rows.sizes(bench)  # fmt: skip


def _write_nothing(kind: str, values: dict[str, Any]) -> None:
    """Ranks but the first."""


if __name__ == "__main__":
    main()
