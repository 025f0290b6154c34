"""Safetensors files -> parameters by `model.tensor_table`, strict both ways.

Headers are scanned first (the index file is not trusted: it leaves tensors out); then each rank reads
only the bytes it needs, tensor by tensor and expert by expert, into memory of the compute dtype.
FP8 blocks are dequantized on the way: value * weight_scale_inv of its block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from model.config import ModelConfig, read_config
from model.errors import CheckpointError
from model.net.decoder import Decoder
from model.net.mtp import MTP
from model.net.vision import VisionTower
from model.placement import ExpertMap
from model.tensor_table import Entry, Group, tensor_table

PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")
FP8_DTYPE = "F8_E4M3"
SCALE_SUFFIX = "_scale_inv"
NUM_NAMES_SHOWN = 5


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what its header says."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose headers were read and agree with its config."""

    directory: Path
    config: ModelConfig
    stored: dict[str, StoredTensor]
    has_vision: bool
    has_mtp: bool

    def fingerprint(self) -> str:
        """Hash of config and tensor table: two nodes that differ must not serve together."""
        table = sorted((name, tensor.dtype, tensor.shape) for name, tensor in self.stored.items())
        return hashlib.sha256(repr((self.config, table)).encode()).hexdigest()[:16]


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """Read config and headers, and check them against each other. Raises CheckpointError."""
    directory = Path(directory)
    config = read_config(directory)
    stored = _scan(directory)
    table = tensor_table(config)
    _refuse_unknown(directory, stored, table)
    present = {group: _group_is_present(directory, stored, table, group) for group in ("vision", "mtp")}
    _refuse_missing(
        directory, "decoder", [n for n, e in table.items() if e.group == "decoder" and n not in stored]
    )
    for name, tensor in stored.items():
        if name in table:
            _check_tensor(config, stored, table[name], tensor)
    return Checkpoint(directory, config, stored, has_vision=present["vision"], has_mtp=present["mtp"])


def load_decoder(
    checkpoint: Checkpoint, experts: ExpertMap, rank: int, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The decoder as `rank` holds it: everything but the experts of other ranks."""
    with device:
        decoder = Decoder(checkpoint.config.text, experts.num_local, dtype)
    _fill(decoder, checkpoint, "decoder", experts.local_range(rank))
    return decoder.to(device).eval()  # buffers are made on the CPU, so that they are the same everywhere


def load_vision(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> VisionTower:
    """The vision tower. Raises CheckpointError where the checkpoint has none."""
    if checkpoint.config.vision is None or not checkpoint.has_vision:
        raise CheckpointError(f"{checkpoint.directory}: this checkpoint has no vision tower")
    with device:
        tower = VisionTower(checkpoint.config.vision, checkpoint.config.text.hidden_size, dtype)
    _fill(tower, checkpoint, "vision", range(0))
    return tower.eval()


def load_mtp(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> MTP:
    """The MTP layers. Raises CheckpointError where the checkpoint has none."""
    if not checkpoint.has_mtp:
        raise CheckpointError(f"{checkpoint.directory}: this checkpoint has no MTP layers")
    with device:
        mtp = MTP(checkpoint.config.text, dtype)
    _fill(mtp, checkpoint, "mtp", range(0))
    return mtp.eval()


def _scan(directory: Path) -> dict[str, StoredTensor]:
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


def _refuse_unknown(directory: Path, stored: Iterable[str], table: dict[str, Entry]) -> None:
    unknown = [n for n in stored if n not in table and n.removesuffix(SCALE_SUFFIX) not in table]
    if unknown:
        raise CheckpointError(f"{directory}: {len(unknown)} unknown tensors: {_some(unknown)}")


def _refuse_missing(directory: Path, what: str, missing: list[str]) -> None:
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} {what} tensors are missing: {_some(missing)}")


def _group_is_present(
    directory: Path, stored: dict[str, StoredTensor], table: dict[str, Entry], group: str
) -> bool:
    """All of a group, or nothing of it."""
    names = [name for name, entry in table.items() if entry.group == group]
    missing = [name for name in names if name not in stored]
    if len(missing) == len(names):
        return False
    _refuse_missing(directory, group, missing)
    return True


def _check_tensor(
    config: ModelConfig, stored: dict[str, StoredTensor], entry: Entry, tensor: StoredTensor
) -> None:
    if tensor.shape != entry.shape:
        raise CheckpointError(
            f"{entry.name}: shape is {list(tensor.shape)} in {tensor.file.name}; "
            f"config.json asks for {list(entry.shape)}"
        )
    scale = stored.get(entry.name + SCALE_SUFFIX)
    if tensor.dtype in PLAIN_DTYPES and scale is None:
        return
    if tensor.dtype != FP8_DTYPE:
        raise CheckpointError(
            f"{entry.name}: dtype {tensor.dtype}; known: {', '.join(PLAIN_DTYPES)}, {FP8_DTYPE}"
        )
    if scale is None or config.fp8_block is None:
        lacking = "its weight_scale_inv" if scale is None else "quantization_config.weight_block_size"
        raise CheckpointError(f"{entry.name}: FP8 without {lacking}")
    *stack, rows, columns = entry.shape
    expected = (*stack, ceil(rows / config.fp8_block[0]), ceil(columns / config.fp8_block[1]))
    if scale.shape != expected:
        raise CheckpointError(
            f"{entry.name}{SCALE_SUFFIX}: shape is {list(scale.shape)}; needed {list(expected)}"
        )


def _fill(module: nn.Module, checkpoint: Checkpoint, group: Group, experts: range) -> None:
    """Copy every tensor of a group into its parameter; every element of every parameter is filled once."""
    parameters = dict(module.named_parameters())
    num_filled = dict.fromkeys(parameters, 0)
    table = tensor_table(checkpoint.config)
    with ExitStack() as stack, torch.no_grad():
        files = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {tensor.file for tensor in checkpoint.stored.values()}
        }
        reader = _Reader(checkpoint, files)
        for entry in table.values():
            if entry.group == group:
                num_filled[entry.parameter] += _copy(reader, entry, parameters[entry.parameter], experts)
    unfilled = [name for name, parameter in parameters.items() if num_filled[name] != parameter.numel()]
    assert not unfilled, f"the tensor table does not fill {unfilled}"


def _copy(reader: _Reader, entry: Entry, parameter: nn.Parameter, experts: range) -> int:
    """Copy one tensor (of a stack: this rank's experts, one at a time); returns the number of elements."""
    if not entry.is_stacked:
        target = parameter[entry.first_row : entry.first_row + (entry.num_repeats or entry.shape[0])]
        target.copy_(reader.read(entry.name, None))
        if entry.adds_one:
            target += 1
        return target.numel()
    for local, expert in enumerate(experts):
        parameter[local, entry.first_row : entry.first_row + entry.shape[1]].copy_(
            reader.read(entry.name, expert)
        )
    return len(experts) * prod(entry.shape[1:])


@dataclass(frozen=True)
class _Reader:
    """Reads a tensor, or one expert of a stack, dequantized; nothing else is read from the file."""

    checkpoint: Checkpoint
    files: dict[Path, Any]

    def read(self, name: str, expert: int | None) -> torch.Tensor:
        tensor = self._raw(name, expert)
        if self.checkpoint.stored[name].dtype != FP8_DTYPE:
            return tensor
        assert self.checkpoint.config.fp8_block is not None, name
        scale = self._raw(name + SCALE_SUFFIX, expert)
        return dequantize_fp8(tensor, scale, self.checkpoint.config.fp8_block)

    def _raw(self, name: str, expert: int | None) -> torch.Tensor:
        slices = self.files[self.checkpoint.stored[name].file].get_slice(name)
        result: torch.Tensor = slices[:] if expert is None else slices[expert]
        return result


def dequantize_fp8(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """w * scale of its block, float32 (FP8 checkpoint: e4m3, 128 x 128 blocks, `weight_scale_inv`)."""
    rows, columns = weight.shape[-2:]
    per_value = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return weight.float() * per_value[..., :rows, :columns].float()


def _some(names: list[str]) -> str:
    more = f", and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return ", ".join(sorted(names)[:NUM_NAMES_SHOWN]) + more
