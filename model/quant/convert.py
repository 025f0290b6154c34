"""A checkpoint in bfloat16 -> one in few bits, layer by layer: never more in memory than a layer's result.

FP8 alone is written as the hub does (`weight_scale_inv`, stacks of experts as they are); everything else as
compressed-tensors, whose experts are matrices of their own (`model.packed_weights`).

One file for each layer. config.json is written last: what was cut off is no checkpoint.
Shapes: E experts, N rows, K columns of a matrix.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from model.errors import CheckpointError, InvalidRequest
from model.kernels.packed import FP8_BLOCK, PackedWeight, pack
from model.packed_weights import matrix_names
from model.quant.config_json import compressed_config, fp8_config
from model.quant.layouts import to_compressed
from model.quant.scheme import GROUP_SIZES
from model.stored import TensorFiles, open_files
from model.tensor_table import Entry, tensor_table
from model.weights import SCALE_SUFFIX, Checkpoint, open_checkpoint

Format = Literal["int4", "int8", "fp8"]
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
# Of decoder layers: attention with its gate, dense MLPs, the shared expert.
_REST = re.compile(r"^model\.layers\.\d+\.(self_attn|mlp|share_expert)\.\w+_proj\.weight$")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class QuantizePlan:
    """`rest`: attention, dense MLPs and shared experts of decoder layers; None leaves them alone.

    `group_size`: columns of an integer format that share a scale; fewer where that does not divide them.
    Never changed: embeddings, head, norms, routers, MTP layers, vision.
    """

    experts: Format
    rest: Literal["int8", "fp8"] | None = None
    group_size: int = 128

    @property
    def is_hub_fp8(self) -> bool:
        """Whether the hub's FP8 layout can hold it."""
        return self.experts == "fp8" and self.rest in (None, "fp8")

    def format_of(self, entry: Entry) -> Format | None:
        """What becomes of a tensor; None: it stays."""
        if entry.is_stacked:
            return self.experts
        return self.rest if entry.group == "decoder" and _REST.match(entry.name) else None


@dataclass(frozen=True)
class FileDone:
    """One file is written; `what` says what is in it."""

    what: str
    number: int
    num_files: int
    bytes_in: int
    bytes_out: int


@dataclass
class _Written:
    weight_map: dict[str, str] = field(default_factory=dict)
    packed: dict[str, tuple[Format, int]] = field(
        default_factory=dict
    )  # matrix -> format, columns in a group
    bytes_in: int = 0
    bytes_out: int = 0


def quantize_checkpoint(
    source: Path, target: Path, plan: QuantizePlan, report: Callable[[FileDone], None]
) -> tuple[int, int]:
    """Write `target` and return the bytes of all tensors, before and after.

    Raises InvalidRequest for a target that is the source or not empty, CheckpointError for a source that is
    no checkpoint, is quantized already, or has widths that no group divides.
    """
    _refuse_target(source, target)
    checkpoint = open_checkpoint(source)
    if checkpoint.config.scheme is not None:
        raise CheckpointError(
            f"{source}: already quantized (quant_method {checkpoint.config.scheme.method}); needed: bfloat16"
        )
    written = _Written()
    pieces = _pieces(checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    with open_files(checkpoint.stored) as files, torch.no_grad():
        for number, (what, entries) in enumerate(pieces.items(), 1):
            file = target / f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
            bytes_in, bytes_out = _write_piece(file, files, entries, plan, written)
            report(FileDone(what, number, len(pieces), bytes_in, bytes_out))
    index = {"metadata": {"total_size": written.bytes_out}, "weight_map": written.weight_map}
    _write_json(target / _INDEX, dict(index))
    _copy_side_files(source, target)
    _write_config(source, target, plan, written)
    return written.bytes_in, written.bytes_out


def _refuse_target(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        raise InvalidRequest("OUT", f"{target} is IN itself; needed: another directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest("OUT", f"{target} is there and not empty; needed: a new or empty directory")


def _pieces(checkpoint: Checkpoint) -> dict[str, list[Entry]]:
    """What goes into a file each: layers, and what is beside them."""
    pieces: dict[str, list[Entry]] = {}
    for entry in tensor_table(checkpoint.config).values():
        if entry.name in checkpoint.stored:
            layer = _LAYER.match(entry.name)
            what = f"layer {layer[1]}" if layer else "vision" if entry.group == "vision" else entry.name
            pieces.setdefault(what, []).append(entry)
    return pieces


def _write_piece(
    file: Path, files: TensorFiles, entries: list[Entry], plan: QuantizePlan, written: _Written
) -> tuple[int, int]:
    tensors: dict[str, torch.Tensor] = {}
    bytes_in = 0
    for entry in entries:
        tensors.update(_tensors_of(files, entry, plan, written))
        bytes_in += files.num_bytes(entry.name)
    bytes_out = sum(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, file, metadata={"format": "pt"})
    written.weight_map |= dict.fromkeys(sorted(tensors), file.name)
    written.bytes_in += bytes_in
    written.bytes_out += bytes_out
    return bytes_in, bytes_out


def _tensors_of(
    files: TensorFiles, entry: Entry, plan: QuantizePlan, written: _Written
) -> Iterator[tuple[str, torch.Tensor]]:
    weight_format = plan.format_of(entry)
    if weight_format is None:
        yield entry.name, files.read(entry.name)
    elif plan.is_hub_fp8:
        yield from _hub_fp8(files, entry, written)
    else:
        group_size = _group_size(entry, weight_format, plan.group_size)
        for expert, name in enumerate(matrix_names(entry)):
            weight = files.read(entry.name, expert if entry.is_stacked else None)
            yield from to_compressed(name, _pack(entry, weight, weight_format, group_size)).items()
            written.packed[name] = weight_format, group_size


def _hub_fp8(files: TensorFiles, entry: Entry, written: _Written) -> Iterator[tuple[str, torch.Tensor]]:
    """A matrix, or a stack filled matrix by matrix."""
    if not entry.is_stacked:
        packed = _pack(entry, files.read(entry.name), "fp8", FP8_BLOCK)
        codes, scales = packed.data, packed.scales
    else:
        blocks = [-(-size // FP8_BLOCK) for size in entry.shape[1:]]
        codes = torch.empty(entry.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(entry.shape[0], *blocks)
        for expert in range(entry.shape[0]):
            packed = _pack(entry, files.read(entry.name, expert), "fp8", FP8_BLOCK)
            assert packed.scales is not None
            codes[expert], scales[expert] = packed.data, packed.scales
    assert scales is not None
    yield entry.name, codes
    yield entry.name + SCALE_SUFFIX, scales
    written.packed[entry.name.removesuffix(".weight")] = "fp8", FP8_BLOCK


def _pack(entry: Entry, weight: torch.Tensor, weight_format: Format, group_size: int) -> PackedWeight:
    """Rounded; an error names the tensor."""
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{entry.name}: not all values are finite")
    return pack(weight, weight_format, group_size)


def _group_size(entry: Entry, weight_format: Format, most: int) -> int:
    if weight_format == "fp8":
        return FP8_BLOCK
    num_columns = entry.shape[-1]
    dividing = [size for size in GROUP_SIZES if size <= most and num_columns % size == 0]
    if not dividing:
        raise CheckpointError(f"{entry.name}: no group of {GROUP_SIZES} divides {num_columns} columns")
    return max(dividing)


def _copy_side_files(source: Path, target: Path) -> None:
    """Tokenizer, template and whatever else lies beside config and weights."""
    for path in sorted(source.iterdir()):
        is_weight = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
        if path.is_file() and not is_weight and path.name != "config.json":
            shutil.copyfile(path, target / path.name)


def _write_config(source: Path, target: Path, plan: QuantizePlan, written: _Written) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    packed: Mapping[str, tuple[Format, int]] = written.packed
    modules = [name.removesuffix(".weight") for name in written.weight_map if name.endswith(".weight")]
    left_alone = [name for name in modules if name not in packed and not name.endswith("norm")]
    config["quantization_config"] = (
        fp8_config(left_alone) if plan.is_hub_fp8 else compressed_config(packed, left_alone)
    )
    _write_json(target / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
