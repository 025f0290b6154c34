"""Kernels run on the CUDA device where there is one, and under Triton's interpreter where there is none."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Triton reads it when a kernel is defined: it must stand before the first import of a kernel file.
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels of this session run."""
    return torch.device(DEVICE)


@pytest.fixture
def generator(device: torch.device) -> torch.Generator:
    """Random numbers on that device, the same in each test."""
    return torch.Generator(device).manual_seed(1234)
