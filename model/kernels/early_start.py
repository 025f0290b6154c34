"""Kernels that start before the one in front of them ends (programmatic dependent launch, sm_90).

The start of a kernel, about a microsecond in a graph, then lies under the end of the one before it. Whoever
is launched so must wait before it reads or writes what another kernel may still use; what nobody writes,
weights, can be on its way before.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE_BYTES = tl.constexpr(128)
FIRST_CAPABILITY = (9, 0)


@cache
def early_launch() -> dict[str, bool]:
    """What a kernel with IS_EARLY is launched with: early wherever the device knows of it."""
    is_early = not triton.knobs.runtime.interpret and torch.cuda.is_available()
    is_early = is_early and torch.cuda.get_device_capability() >= FIRST_CAPABILITY
    return {"IS_EARLY": is_early, "launch_pdl": is_early}


@triton.jit
def wait_for_inputs(IS_EARLY: tl.constexpr):
    """Wait for the kernels before. For early starts only.

    A kernel that was waited for has itself waited for those before it: after this everything earlier is done.
    And before this everything is done but the kernel just before, if that lets others start behind its wait.
    """
    if IS_EARLY:
        gdc_wait()


@triton.jit
def let_next_start(IS_EARLY: tl.constexpr):
    """Let the next kernel come up, once all programs have said so.

    Kernels of few programs say so as soon as their inputs are there: what comes up finds room and brings in
    what it may (0.7 % of a step of one row, 1.4 % of one that verifies drafts, two H200s). Kernels that fill
    the device say it when their loops are done: at their start it took 9 % more time in all, for programs of
    the next filled some multiprocessors while others were busy (H100, a step of 12 layers at one row).
    """
    if IS_EARLY:
        gdc_launch_dependents()


@triton.jit
def prefetch_rows(w, row_N, column, K: tl.constexpr, NUM_COLUMNS: tl.constexpr, IS_EARLY: tl.constexpr):
    """Ask for NUM_COLUMNS columns of rows of a weight [N, K] to come into the L2, from `column` on."""
    if IS_EARLY:
        per_line: tl.constexpr = LINE_BYTES * 8 // w.dtype.element_ty.primitive_bitwidth
        num_lines: tl.constexpr = (NUM_COLUMNS + per_line - 1) // per_line
        column_L = tl.minimum(column + tl.arange(0, num_lines) * per_line, K - 1)
        ask_for_lines(w + row_N.to(tl.int64)[:, None] * K + column_L[None, :])


@triton.jit
def ask_for_lines(at_NL):
    """Ask for the lines at some addresses to come into the L2. Not interpreted."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at_NL.to(tl.int64)], dtype=tl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip
