"""Plain-torch twin of `small_linear`: the oracle, and the CPU's path.

Shapes: T tokens, N rows of W (outputs), K columns (inputs), M columns of the result, S splits of K.
"""

from __future__ import annotations

import torch

from model.kernels.linear_config import LinearConfig, SwiGLU, Workspace
from model.kernels.packed import PackedWeight, dequantize


def small_linear(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    out: torch.Tensor,
    *,
    swiglu: SwiGLU | None = None,
    workspace: Workspace | None = None,  # noqa: ARG001 - the kernel's
    config: LinearConfig | None = None,  # noqa: ARG001
) -> None:
    """Fill `out` [T, M] with x @ W.T in float32, rounded once; of partial sums [S, T, N] one has all."""
    y_TM = x_TK.float() @ dequantize(weight).T
    if out.ndim == 3:
        out[0], out[1:] = y_TM, 0.0
        return
    if swiglu is not None:
        y_TM = swiglu_of(y_TM, swiglu.limit)
    out.copy_(y_TM)


def swiglu_of(gate_up: torch.Tensor, limit: float | None) -> torch.Tensor:
    """SiLU(gate) * up of [..., 2M] = gate | up, clamped behind the SiLU (model.net.layers.silu_gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = torch.nn.functional.silu(gate)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return gate * up
