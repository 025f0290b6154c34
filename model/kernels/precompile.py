"""Compiles what calls would launch, many kernels at a time and without launching any."""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton
from triton.runtime import jit


@dataclass(frozen=True)
class Precompiled:
    """How many different kernels there were, and what did not compile."""

    num_kernels: int
    errors: tuple[str, ...]


def precompile(call: Callable[[], object], num_threads: int) -> Precompiled:
    """Run `call` with kernels compiled instead of launched, `num_threads` at a time (ptxas takes most of it).

    Not for use beside threads that launch kernels: launching is turned off while it runs.
    """
    run = jit.JITFunction.run
    errors: list[str] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:  # noqa: ARG001
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    with ThreadPoolExecutor(num_threads) as executor:
        mode = triton.AsyncCompileMode(executor, ignore_errors=True)
        jit.JITFunction.run = compile_only
        try:
            with mode:
                call()
        finally:
            jit.JITFunction.run = run
        for future in mode.raw_futures:
            error = future.exception()
            if error is not None:
                errors.append(f"{type(error).__name__}: {error}"[:300])
    return Precompiled(len(mode.raw_futures), tuple(errors))
