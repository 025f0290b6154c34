"""Compiles for an H100 what calls of kernel wrappers would launch, on a machine without a GPU.

To be used in a process of its own, without TRITON_INTERPRET: Triton's driver is replaced for good.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """What the assembler says of a kernel. `instructions`: SASS, to look for widths and matrix operations."""

    name: str
    num_registers: int
    stack_bytes: int  # of a thread: spilled registers, and arrays in local memory
    shared_bytes: int
    instructions: str


def compile_calls(call: Callable[[], None]) -> list[Compiled]:
    """The kernels that `call` launches, in order. Its tensors are on the CPU, nothing runs."""
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
        )
    )
    compiled: list[Compiled] = []
    run = jit.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(_read(self.fn.__name__, kernel))
        return kernel

    jit.JITFunction.run = compile_only
    try:
        call()
    finally:
        jit.JITFunction.run = run
    return compiled


def _read(name: str, kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(name, int(found[1]), int(found[2]), kernel.metadata.shared, sass)
