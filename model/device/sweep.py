"""`python -m model.device.sweep`: times a few configs of each kernel at the real shapes, best first.

A line of JSON for each kernel, shape and number of rows, with the configs that were tried: microseconds,
GB/s of what is read, and `default` where the kernel would choose it. Weights are copied until they exceed the
L2 and launched from one graph, so that times are those of a step. Configs are compiled side by side first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from model.device.bench_rows import timed
from model.device.graphs import GraphPool
from model.device.shapes import full_text_config
from model.device.sweep_cases import Case, Trial, attention_cases, expert_cases, linear_cases
from model.device.weights import Formats, Share
from model.errors import FluytError, InvalidRequest

_NUM_REPLAYS = 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a command line, measure, print."""
    parser = argparse.ArgumentParser("model.device.sweep", description=__doc__)
    parser.add_argument("--kernels", default="linear,experts,attention", help="some of these")
    parser.add_argument("--quant", choices=("fp8", "int8", "int4", "bf16"), default="fp8")
    parser.add_argument("--rest", choices=("bf16", "fp8", "int8"), default="bf16")
    parser.add_argument("--gpus", type=int, default=1, help="shapes of one of so many ranks")
    parser.add_argument("--rows", default="1,4,16,40,64")
    parser.add_argument("--shapes", default="", help="only names that contain this")
    parser.add_argument("--seconds", type=float, default=500, help="stop after so long")
    given = parser.parse_args(arguments)
    try:
        if not torch.cuda.is_available():
            raise InvalidRequest("sweep", "there is no CUDA device here")
        run(given)
    except FluytError as error:
        sys.exit(str(error))


@torch.inference_mode()
def run(given: argparse.Namespace) -> None:
    """All cases until the time is over."""
    begin, device = time.monotonic(), torch.device("cuda")
    text, share = full_text_config(), Share(0, given.gpus)
    counts = [int(part) for part in given.rows.split(",")]
    formats = Formats(given.quant, given.rest)
    makers: list[Iterator[Case]] = []
    if "linear" in given.kernels:
        makers.append(linear_cases(text, share, formats, counts, given.shapes, device))
    if "experts" in given.kernels:
        makers.append(expert_cases(text, share, formats, counts, device))
    if "attention" in given.kernels:
        makers.append(attention_cases(text, share, counts, given.shapes, device))
    for cases in makers:
        for case in cases:
            if time.monotonic() - begin > given.seconds:
                _write({"stopped_after_s": round(time.monotonic() - begin)})
                return
            _write(measure(case, device))


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Compile all configs, time each in a graph, and sort."""
    from model.kernels.precompile import precompile

    begin = time.monotonic()
    precompile(lambda: [trial.calls[0]() for trial in case.trials], os.cpu_count() or 1)
    compile_s, tried = time.monotonic() - begin, list[dict[str, Any]]()
    for trial in case.trials:
        entry = {"config": str(trial.config)} | ({"default": True} if trial.is_default else {})
        tried.append(entry | _time_of(trial, case.read_bytes, device))
    tried.sort(key=lambda entry: float(entry.get("us", "inf")))
    return {
        "kernel": case.name, "rows": case.num_rows, "mb": round(case.read_bytes / 1e6, 1),
        "compile_s": round(compile_s, 1), "tried": tried,
    }  # fmt: skip


def _time_of(trial: Trial, read_bytes: float, device: torch.device) -> dict[str, Any]:
    try:
        replay = GraphPool(device).capture(trial.run, ())
        time_us = statistics.median(timed(replay, _NUM_REPLAYS, device)) * 1e3 / len(trial.calls)
    except Exception as error:  # noqa: BLE001 - Triton's errors have no common base
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    return {"us": round(time_us, 2), "gb_s": round(read_bytes / time_us / 1e3)}


def _write(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
