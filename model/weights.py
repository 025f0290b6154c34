"""Safetensors files -> parameters by `model.tensor_table`, strict both ways.

Headers are scanned first (`model.stored`); then each rank reads only the bytes it needs, tensor by tensor
and expert by expert, into memory of the compute dtype. FP8 blocks and integer codes are dequantized on the
way: value * scale of its block, (code - zero) * scale of its group (`model.packed_weights`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import torch
from torch import nn

from model.config import ModelConfig, read_config
from model.errors import CheckpointError
from model.kernels.packed import dequantize
from model.net.decoder import Decoder
from model.net.mtp import MTP
from model.net.vision import VisionTower
from model.packed_weights import FP8_DTYPE, PLAIN_DTYPES, Matrices, StoredMatrix, find_matrices, read_packed
from model.placement import ExpertMap
from model.stored import StoredTensor, TensorFiles, open_files, scan
from model.tensor_table import Entry, Group, tensor_table

SCALE_SUFFIX = "_scale_inv"
NUM_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose headers were read and agree with its config.

    `matrices`: by entry of the table, those that are not stored under the entry's own name alone.
    """

    directory: Path
    config: ModelConfig
    stored: dict[str, StoredTensor]
    has_vision: bool
    has_mtp: bool
    matrices: Matrices = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Hash of config and tensor table: two nodes that differ must not serve together."""
        table = sorted((name, tensor.dtype, tensor.shape) for name, tensor in self.stored.items())
        return hashlib.sha256(repr((self.config, table)).encode()).hexdigest()[:16]


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """Read config and headers, and check them against each other. Raises CheckpointError."""
    directory = Path(directory)
    config = read_config(directory)
    stored = scan(directory)
    table = tensor_table(config)
    matrices = find_matrices(stored, table, config.scheme)
    packed = {name for group in matrices.values() for matrix in group for name in matrix.tensors}
    there = (stored.keys() - packed) | matrices.keys()
    _refuse_unknown(directory, stored.keys() - packed, table)
    present = {group: _group_is_present(directory, there, table, group) for group in ("vision", "mtp")}
    _refuse_missing(
        directory, "decoder", [n for n, e in table.items() if e.group == "decoder" and n not in there]
    )
    for name, tensor in stored.items():
        if name in table and name not in packed:
            _check_tensor(config, stored, table[name], tensor)
    return Checkpoint(directory, config, stored, present["vision"], present["mtp"], matrices)


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


def _refuse_unknown(directory: Path, stored: Iterable[str], table: dict[str, Entry]) -> None:
    unknown = [n for n in stored if n not in table and n.removesuffix(SCALE_SUFFIX) not in table]
    if unknown:
        raise CheckpointError(f"{directory}: {len(unknown)} unknown tensors: {_some(unknown)}")


def _refuse_missing(directory: Path, what: str, missing: list[str]) -> None:
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} {what} tensors are missing: {_some(missing)}")


def _group_is_present(directory: Path, there: set[str], table: dict[str, Entry], group: str) -> bool:
    """All of a group, or nothing of it."""
    names = [name for name, entry in table.items() if entry.group == group]
    missing = [name for name in names if name not in there]
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
    with open_files(checkpoint.stored) as files, torch.no_grad():
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
    files: TensorFiles

    def read(self, name: str, expert: int | None) -> torch.Tensor:
        if name in self.checkpoint.matrices:
            return self._read_matrix(self.checkpoint.matrices[name][expert or 0])
        tensor = self.files.read(name, expert)
        if self.checkpoint.stored[name].dtype != FP8_DTYPE:
            return tensor
        return self._dequantize_fp8(tensor, self.files.read(name + SCALE_SUFFIX, expert))

    def _read_matrix(self, matrix: StoredMatrix) -> torch.Tensor:
        if matrix.form == "plain":
            return self.files.read(f"{matrix.name}.weight")
        if matrix.form == "fp8":
            weight, scale = (self.files.read(name) for name in matrix.tensors)
            return self._dequantize_fp8(weight, scale)
        assert self.checkpoint.config.scheme is not None, matrix
        return dequantize(read_packed(self.files, matrix, self.checkpoint.config.scheme))

    def _dequantize_fp8(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        assert self.checkpoint.config.fp8_block is not None
        return dequantize_fp8(weight, scale, self.checkpoint.config.fp8_block)


def dequantize_fp8(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """w * scale of its block, float32 (FP8 checkpoint: e4m3, 128 x 128 blocks, `weight_scale_inv`)."""
    rows, columns = weight.shape[-2:]
    per_value = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return weight.float() * per_value[..., :rows, :columns].float()


def _some(names: list[str]) -> str:
    more = f", and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return ", ".join(sorted(names)[:NUM_NAMES_SHOWN]) + more
