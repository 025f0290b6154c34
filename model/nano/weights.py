"""Random weights, and how weights become safetensors files.

Values come from an integer hash of (seed, tensor name, position), not from a library's generator:
the same bytes on every machine and with every version, and a tensor keeps its values when others change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.nano.tensors import TensorSpec

DAMPING = 0.125
_CHUNK = 1 << 20  # values hashed at a time, so that large tensors need little besides themselves
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def make_tensor(name: str, spec: TensorSpec, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """The random tensor of that name, in `dtype` or float32 where the spec says so."""
    flat = torch.empty(math.prod(spec.shape), dtype=torch.float32 if spec.is_float32 else dtype)
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    offset = int.from_bytes(key, "little", signed=True)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk.copy_(_uniform(offset, start, chunk.numel()) * spec.spread + spec.mean)
    tensor = flat.view(spec.shape)
    if spec.damped_from is not None:
        tensor[spec.damped_from :] *= DAMPING
    return tensor


def _uniform(offset: int, start: int, count: int) -> torch.Tensor:
    """Floats in (-1, 1), multiples of 2**-23, from the finalizer of SplitMix64 (Steele and others, 2014)."""
    x = (torch.arange(start, start + count) + torch.tensor(offset)) * -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    bits = _shift(x ^ _shift(x, 31), 41)  # 23 bits and a half: exact in float32
    return (bits.to(torch.float32) + 0.5) / (1 << 22) - 1.0


def _shift(x: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Logical shift to the right of signed 64-bit integers."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def write_weights(
    directory: Path, table: Mapping[str, TensorSpec], *, dtype: str, num_files: int, seed: int
) -> None:
    """Write the random tensors into `num_files` files of about equal size, and their index."""
    write_files(
        directory, _split(table, num_files), lambda name: make_tensor(name, table[name], _DTYPES[dtype], seed)
    )


def write_files(
    directory: Path, files: Sequence[Sequence[str]], tensor_of: Callable[[str], torch.Tensor]
) -> None:
    """Write one file for each list of names, and the index; one file's tensors are in memory at a time.

    One file is called model.safetensors and has no index, as usual.
    """
    index: dict[str, str] = {}
    num_bytes = 0
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {name: tensor_of(name) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # safetensors writes files that only their owner may read
        index |= dict.fromkeys(names, file)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        content = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(index.items()))}
        text = json.dumps(content, indent=2) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _split(table: Mapping[str, TensorSpec], num_files: int) -> list[list[str]]:
    """Names in order, cut where a share of the values is reached; never an empty file."""
    assert 1 <= num_files <= len(table), f"{num_files} files for {len(table)} tensors"
    total = sum(math.prod(spec.shape) for spec in table.values())
    files: list[list[str]] = [[] for _ in range(num_files)]
    seen = 0
    for name, spec in table.items():
        files[min(seen * num_files // total, num_files - 1)].append(name)
        seen += math.prod(spec.shape)
    return [names for names in files if names]
