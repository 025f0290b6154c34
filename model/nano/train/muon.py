"""Muon for matrices (Jordan and others, 2024), AdamW for everything else.

torch.optim.Muon takes matrices one by one and only two-dimensional ones; here all matrices of a shape,
and the experts' stacks, are orthogonalised in one batch: hundreds of small products become a few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.02
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration, 5 rounds
MATCHES_ADAM = 0.2  # root mean square of an AdamW update (Moonshot, "Muon is scalable", 2025)


class Muon:
    """Orthogonalised momentum. `learning_rate` means what it means to AdamW."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self._groups[_stacked(parameter).shape[-2:]].append(parameter)
        self._momentum = {shape: torch.zeros(0) for shape in self._groups}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every matrix."""
        for shape, parameters in self._groups.items():
            grads = torch.cat([_stacked(_grad(p)) for p in parameters])
            if not self._momentum[shape].numel():
                self._momentum[shape] = torch.zeros_like(grads)
            momentum = self._momentum[shape].lerp_(grads, 1 - MOMENTUM)
            update = orthogonalise(grads.lerp(momentum, MOMENTUM))
            update *= -learning_rate * MATCHES_ADAM * max(shape) ** 0.5
            sizes = [p.numel() // shape.numel() for p in parameters]
            for parameter, part in zip(parameters, update.split(sizes), strict=True):
                parameter.mul_(1 - learning_rate * WEIGHT_DECAY)
                parameter.add_(part.view_as(parameter))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Momentum by shape."""
        return {"x".join(map(str, shape)): tensor for shape, tensor in self._momentum.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse."""
        for shape in self._momentum:
            self._momentum[shape] = state["x".join(map(str, shape))]


def orthogonalise(matrices_BMN: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix of each, roughly: singular values end between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices_BMN.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: torch.Tensor = (x.mT if is_tall else x).float()
    return orthogonal


def _grad(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, parameter.shape
    return parameter.grad


def _stacked(weight: torch.Tensor) -> torch.Tensor:
    """As a stack of matrices: experts are one, a convolution's kernels are the columns of one matrix."""
    return weight if weight.dim() == 3 else weight.flatten(1)[None]
