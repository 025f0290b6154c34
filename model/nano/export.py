"""Parameters of our modules -> tensors of a hub checkpoint: the way of `model.weights`, backwards.

Both ways go by `model.tensor_table`, so a trained model is served by what loads any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from model.config import ModelConfig
from model.nano.weights import write_files
from model.tensor_table import Entry, tensor_table

# More than a tensor's dtype, shape, offsets and punctuation take in a file's header, besides its name.
_HEADER_BYTES = 128
_TIED = 1e-3  # rows that a file holds once may differ by a rounding after training, not by more


def tensors_of(config: ModelConfig, modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """All tensors of the given groups by hub name, on the CPU: bfloat16, router biases float32.

    `modules`: a Decoder with all experts as "decoder", a VisionTower as "vision", an MTP as "mtp".
    What was loaded from bfloat16 comes back bit for bit; norm weights below 2 ** -16 lose bits to 1 + w.
    """
    parameters = {group: dict(module.named_parameters()) for group, module in modules.items()}
    return {
        entry.name: _tensor(entry, parameters[entry.group][entry.parameter].detach())
        for entry in tensor_table(config).values()
        if entry.group in parameters
    }


def _tensor(entry: Entry, parameter: torch.Tensor) -> torch.Tensor:
    """What of the parameter the file holds as this entry; never a view of it."""
    if entry.is_stacked:
        tensor = parameter.narrow(1, entry.first_row, entry.shape[1])
    elif entry.num_repeats is not None:
        rows = parameter.narrow(0, entry.first_row, entry.num_repeats)
        assert torch.allclose(rows, rows[:1], atol=_TIED), f"{entry.name}: rows differ, a file holds one"
        tensor = rows[0]
    else:
        tensor = parameter.narrow(0, entry.first_row, entry.shape[0])
    assert tensor.shape == entry.shape, (entry, tensor.shape)
    if entry.adds_one:
        tensor = tensor - 1
    dtype = torch.float32 if entry.parameter.endswith("router_bias") else torch.bfloat16
    return tensor.to("cpu", dtype, copy=True).contiguous()


def write_tensors(
    directory: Path, tensors: Mapping[str, torch.Tensor], max_file_bytes: int = 15_000_000
) -> None:
    """Write the tensors in order into files of at most `max_file_bytes`, and their index."""
    write_files(directory, _split(tensors, max_file_bytes), lambda name: tensors[name])


def _split(tensors: Mapping[str, torch.Tensor], max_file_bytes: int) -> list[list[str]]:
    """Names in order; a file ends where the next tensor would make it too large."""
    files: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        needed = tensor.nbytes + len(name) + _HEADER_BYTES
        if needed > room:
            files.append([])
            room = max_file_bytes - _HEADER_BYTES
            assert needed <= room, f"{name}: {needed} bytes do not fit into a file of {max_file_bytes}"
        files[-1].append(name)
        room -= needed
    return files
