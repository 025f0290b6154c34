"""Safetensors files: what their headers say, and reading a tensor or a slice of it.

Headers alone are trusted: an index file may leave tensors out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model.errors import CheckpointError

_BYTES_OF = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what its header says."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFiles:
    """Open files. Nothing but what is asked for is read."""

    stored: Mapping[str, StoredTensor]
    handles: Mapping[Path, Any]

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor; of a stack, number `index` of it."""
        slices = self.handles[self.stored[name].file].get_slice(name)
        result: torch.Tensor = slices[:] if index is None else slices[index]
        return result

    def num_bytes(self, name: str) -> int:
        """What a tensor takes in its file."""
        tensor = self.stored[name]
        return prod(tensor.shape) * _BYTES_OF[tensor.dtype]

    def read_scalar_list(self, name: str) -> list[int]:
        """The few whole numbers of a tensor, as weight_shape has them."""
        return [int(value) for value in self.read(name)]


@contextmanager
def open_files(stored: Mapping[str, StoredTensor]) -> Iterator[TensorFiles]:
    """The files in which the tensors lie, closed on leaving."""
    with ExitStack() as stack:
        files = sorted({tensor.file for tensor in stored.values()})
        handles = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
        yield TensorFiles(stored, handles)


def scan(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory's *.safetensors by name. Raises CheckpointError."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory}: no *.safetensors file")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in stored:
                raise CheckpointError(f"{name}: in {stored[name].file.name} and again in {file.name}")
            stored[name] = tensor
    return stored


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Header of one file: 8 bytes of length, then JSON (safetensors format)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{file}: not a safetensors file, or cut off (header says {length} bytes)")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file}: header is not JSON ({error})") from None
    header.pop("__metadata__", None)
    end = max((fields["data_offsets"][1] for fields in header.values()), default=0)
    if 8 + length + end > size:
        raise CheckpointError(f"{file}: cut off at {size} bytes; its header needs {8 + length + end}")
    return {
        name: StoredTensor(file, fields["dtype"], tuple(fields["shape"])) for name, fields in header.items()
    }
