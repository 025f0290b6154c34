"""Pieces every layer shares: norm, rotary embedding, gated MLP, parameters without values.

Shapes: T tokens, H hidden, W MLP width, N heads, D head size, P = rotary_dim / 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from model.config import Llama3Scaling, RopeConfig
from model.kernels.linear import linear


def empty_parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter whose memory is not touched yet: `model.weights` fills every one or refuses."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm of the last dimension in float32; same dtype out as in.

    `F.rms_norm` is one kernel on a GPU only. On CPU its parts are 7 operators, these are 5.
    """
    wide = x.float()
    if x.is_cuda:
        return (F.rms_norm(wide, x.shape[-1:], eps=eps) * scale).type_as(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = torch.addcmul(torch.tensor(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (wide * inverse).mul_(scale).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32. Files hold w; `scale` is 1 + w (modeling_step3p7: Step3p7RMSNorm)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.scale = empty_parameter(size, dtype=torch.float32)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension; same dtype out as in."""
        return rms_norm(x, self.scale, self.eps)


def silu_gate(gate_up: torch.Tensor, limit: float | None) -> torch.Tensor:
    """SwiGLU of [..., 2W] = gate | up. The clamp comes after the SiLU (model card; swiglu_limits)."""
    gate, up = gate_up.chunk(2, dim=-1)
    if limit is None:
        return F.silu(gate) * up
    return F.silu(gate).clamp(max=limit) * up.clamp(min=-limit, max=limit)


class GatedMLP(nn.Module):
    """Dense MLP of the first layers, and the shared expert of the others."""

    def __init__(self, hidden: int, width: int, limit: float | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = empty_parameter(2 * width, hidden, dtype=dtype)
        self.down = empty_parameter(hidden, width, dtype=dtype)
        self.limit = limit

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]."""
        return linear(silu_gate(linear(x_TH, self.gate_up), self.limit), self.down)


def rope_frequencies(rope: RopeConfig) -> torch.Tensor:
    """Inverse frequencies [P], float32, made on the CPU; with llama3 scaling where the layer type has it."""
    steps = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32, device="cpu") / rope.rotary_dim
    frequencies = 1.0 / (rope.theta**steps)
    return frequencies if rope.scaling is None else _scale_llama3(frequencies, rope.scaling)


def _scale_llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1, section 3.4.1)."""
    wavelengths = 2 * math.pi / frequencies
    longest_kept = scaling.original_max_positions / scaling.high_freq_factor
    shortest_scaled = scaling.original_max_positions / scaling.low_freq_factor
    ramp = (scaling.original_max_positions / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    scaled = torch.where(wavelengths > shortest_scaled, frequencies / scaling.factor, frequencies)
    in_ramp = (wavelengths <= shortest_scaled) & (wavelengths >= longest_kept)
    return torch.where(in_ramp, between, scaled)


class Rope(nn.Module):
    """Angles of one layer type, computed once a step and shared by its layers."""

    def __init__(self, rope: RopeConfig) -> None:
        super().__init__()
        self.register_buffer("frequencies_P", rope_frequencies(rope), persistent=False)

    def forward(self, positions_T: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos [T, 1, 1, P] and (-sin, sin) [T, 1, 2, P]; float32 tables in any dtype, as the reference."""
        angles_TP = positions_T[:, None].float() * self.frequencies_P
        sin_TP = angles_TP.sin()
        signed_T2P = torch.stack((-sin_TP, sin_TP), dim=1)
        return angles_TP.cos().to(dtype)[:, None, None], signed_T2P.to(dtype)[:, None]


def rotate(x_TND: torch.Tensor, cos_T11P: torch.Tensor, sin_T12P: torch.Tensor) -> torch.Tensor:
    """Turn the first 2P of D in half-split order (x_i with x_{i+P}); the rest passes."""
    num_turned = 2 * cos_T11P.shape[-1]
    halves_TN2P = x_TND[..., :num_turned].unflatten(-1, (2, -1))
    turned_TND = torch.addcmul(halves_TN2P * cos_T11P, halves_TN2P.flip(-2), sin_T12P).flatten(-2)
    if num_turned == x_TND.shape[-1]:
        return turned_TND
    return torch.cat((turned_TND, x_TND[..., num_turned:]), dim=-1)
