"""The vision tower is one module for serving and for training."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import torch

from model.nano.shape import VisionShape
from model.weights import load_vision, open_checkpoint


def test_every_parameter_of_the_tower_gets_a_gradient(tmp_path: Path) -> None:
    vision = VisionShape(width=16, layers=2, heads=2)
    checkpoint = open_checkpoint(checkpoints.make_hub_checkpoint(tmp_path, vision=vision))
    tower = load_vision(checkpoint, torch.float32, torch.device("cpu")).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    for side in (504, 728):
        tower(torch.randn(1, 3, side, side, generator=generator)).square().mean().backward()
        for name, parameter in tower.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        tower.zero_grad()
