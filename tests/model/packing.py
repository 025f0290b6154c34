"""Checkpoints as quantizing tools write them, made from a plain one by a second, slower way to pack.

`repacked` takes the stacks of experts apart and stores each matrix by a writer, which gets its name and
float32 weight and returns its tensors and what a reader has to make of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.tensor_table import Entry

Stored = dict[str, torch.Tensor]
Writer = Callable[[str, torch.Tensor], tuple[Stored, torch.Tensor]]
QUANTIZATION_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes [X, Y] -> int32 [X, Y * bits / 32], the first code in the lowest bits."""
    places = torch.arange(0, 32, bits)
    words = (codes.long().unflatten(-1, (-1, len(places))) << places).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def codes_of(weight_NK: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned 4-bit codes [N, K], zero points [N, B] from 1 to 15 and float16 scales [N, B]."""
    groups = weight_NK.unflatten(-1, (-1, group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low).clamp(min=1e-6) / 15).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(1, 15)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.flatten(-2), zeros, scales


def value_of(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    each = codes.shape[-1] // scales.shape[-1]
    zeros, scales = (part.float().repeat_interleave(each, -1) for part in (zeros, scales))
    return (codes - zeros) * scales


def gptq_writer(group_size: int = 32, zero_offset: int = 1, with_g_idx: bool = True) -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        codes, zeros, scales = codes_of(weight, group_size)
        stored = {
            f"{name}.qweight": pack_words(codes, 4).T.contiguous(),
            f"{name}.qzeros": pack_words(_padded((zeros - zero_offset).T), 4),
            f"{name}.scales": scales.T.contiguous(),
        }
        if with_g_idx:
            stored[f"{name}.g_idx"] = torch.arange(weight.shape[1], dtype=torch.int32) // group_size
        # Packed along inputs: eight of them in a word.
        return stored, value_of(codes, zeros, scales)

    return write


def packed_writer(group_size: int = 32, *, is_symmetric: bool = True) -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        codes, zeros, scales = codes_of(weight, group_size)
        stored = {
            f"{name}.weight_packed": pack_words(codes, 4),
            f"{name}.weight_scale": scales,
            f"{name}.weight_shape": torch.tensor(weight.shape),
        }
        if is_symmetric:
            return stored, value_of(codes, torch.full_like(zeros, 8), scales)
        stored[f"{name}.weight_zero_point"] = pack_words(_padded(zeros.T), 4).T.contiguous()
        return stored, value_of(codes, zeros, scales)

    return write


def int8_writer(name: str, weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    scales = (weight.abs().amax(-1, keepdim=True) / 127).to(torch.bfloat16)
    codes = (weight / scales.float()).round().clamp(-128, 127)
    return {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scales}, codes * scales.float()


def fp8_writer(block: int, scale_name: str = "weight_scale") -> Writer:
    def write(name: str, weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        blocks = [-(-size // block) for size in weight.shape]
        codes, scales, values = torch.empty(weight.shape), torch.empty(blocks), torch.empty(weight.shape)
        for i in range(blocks[0]):
            for j in range(blocks[1]):
                at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                scales[i, j] = weight[at].abs().max() / 448
                codes[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn).float()
                values[at] = codes[at] * scales[i, j]
        stored = {f"{name}.weight": codes.to(torch.float8_e4m3fn), f"{name}.{scale_name}": scales}
        return stored, values

    return write


def plain_writer(name: str, weight: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    return {f"{name}.weight": weight}, weight


def repacked(
    directory: Path, table: dict[str, Entry], quantization: dict[str, object], writers: dict[str, Writer]
) -> dict[str, torch.Tensor]:
    """Rewrite the weights whose names end with a key of `writers`; returns their values by hub name."""
    tensors: Stored = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    values = {}
    for name in list(tensors):
        writer = next((writers[key] for key in writers if name.endswith(key)), None)
        if writer is None or name not in table:
            continue
        weight = tensors.pop(name).float()
        base = name.removesuffix(".weight")
        if weight.ndim == 2:
            stored, values[name] = writer(base, weight)
            tensors |= stored
            continue
        layer, projection = base.rsplit(".", 1)
        rows = []
        for expert, matrix in enumerate(weight):
            stored, value = writer(f"{layer}.experts.{expert}.{projection}", matrix)
            tensors |= stored
            rows.append(value)
        values[name] = torch.stack(rows)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return values


def compressed(*groups: dict[str, object], **fields: object) -> dict[str, object]:
    """A compressed-tensors config of groups that are each {"format": ..., weights...}."""
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"],
                "format": group["format"],
                "weights": {key: value for key, value in group.items() if key != "format"},
            }
            for number, group in enumerate(groups)
        },
    } | fields


def _padded(codes: torch.Tensor) -> torch.Tensor:
    """Columns up to a multiple of 8."""
    return torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8))
