"""Codes as other tools pack them. `other_tools.safetensors` was written and read back by those tools alone.

compressed-tensors 0.20.0 (compress, decompress in float32) and AutoRound 0.16.1 (pack; the layer's own
product with the identity in float32). Metadata: the quantization_config that each writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import packing
import pytest
import torch
from safetensors import safe_open

from model.errors import CheckpointError
from model.kernels.packed import PackedWeight, dequantize, pack
from model.packed_weights import StoredMatrix, read_packed
from model.quant.layouts import from_gptq, from_int8, from_packed4, from_packed8, to_compressed
from model.quant.scheme import Form, Scheme, parse_scheme
from model.stored import TensorFiles, open_files, scan
from model.weights import dequantize_fp8

HERE = Path(__file__).parent
PARTS: dict[Form, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "packed4": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"),
    "packed8": ("weight_packed", "weight_scale", "weight_shape"),
    "int8": ("weight", "weight_scale"),
}
CASES = [
    "packed_g32",
    "packed_g64_f16",
    "packed_g128_zeros",
    "packed8_g64",
    "packed8_rows",
    "int8_rows",
    "int8_g64",
    "gptq_g32",
    "gptq_g128_zeros",
    "gptq_g64_raw_zeros",
]


def scheme_of(case: str) -> Scheme:
    with safe_open(HERE / "other_tools.safetensors", framework="pt") as file:
        scheme = parse_scheme(json.loads(file.metadata()[case]))
    assert scheme is not None
    return scheme


def read(files: TensorFiles, case: str, scheme: Scheme) -> PackedWeight:
    (form,) = scheme.forms
    shape = files.stored[f"{case}.decompressed"].shape
    parts = tuple(part for part in PARTS[form] if f"{case}.{part}" in files.stored)
    return read_packed(files, StoredMatrix(case, form, (shape[0], shape[1]), parts), scheme)


@pytest.mark.parametrize("case", CASES)
def test_values_are_exactly_those_of_the_tool_that_packed_them(case: str) -> None:
    with open_files(scan(HERE)) as files:
        packed, expected = read(files, case, scheme_of(case)), files.read(f"{case}.decompressed")
    assert torch.equal(dequantize(packed), expected)
    assert (packed.zeros is not None) == ("zeros" in case)


def test_blocks_of_compressed_fp8_are_those_of_the_hub() -> None:
    scheme = scheme_of("fp8_blocks")
    assert scheme.forms == ("fp8",) and scheme.fp8_block == (16, 64)
    with open_files(scan(HERE)) as files:
        weight, scale, expected = (
            files.read(f"fp8_blocks.{part}") for part in ("weight", "weight_scale", "decompressed")
        )
    assert torch.equal(dequantize_fp8(weight, scale, scheme.fp8_block), expected)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptq_packs_along_inputs_and_zero_points_along_outputs(group_size: int, zero_offset: int) -> None:
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(group_size))
    stored, value = packing.gptq_writer(group_size, zero_offset)("m", weight)
    parts = [stored[f"m.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")]
    packed = from_gptq("m", *parts, is_zero_less_one=zero_offset == 1)
    assert torch.equal(dequantize(packed), value)
    assert packed.group_size == group_size


@pytest.mark.parametrize("num_rows", [8, 12])
def test_zero_points_of_rows_that_fill_no_word_are_read(num_rows: int) -> None:
    weight = torch.randn(num_rows, 64, generator=torch.Generator().manual_seed(0))
    stored, value = packing.packed_writer(32, is_symmetric=False)("m", weight)
    parts = [stored[f"m.{part}"] for part in ("weight_packed", "weight_scale", "weight_zero_point")]
    assert torch.equal(dequantize(from_packed4(*parts)), value)


def test_an_order_of_activations_is_refused_by_name() -> None:
    stored, _ = packing.gptq_writer(32)("m", torch.randn(8, 64))
    parts = [stored[f"m.{part}"] for part in ("qweight", "qzeros", "scales")]
    order = stored["m.g_idx"].flip(0)
    with pytest.raises(CheckpointError, match=r"m\.g_idx: columns in an order of activations"):
        from_gptq("m", *parts, order, is_zero_less_one=True)


def test_a_zero_point_that_tools_read_differently_is_refused() -> None:
    words = torch.full((8, 16), 0x77777777, dtype=torch.int32)
    scales = torch.ones(1, 16)
    zeros = torch.full((1, 2), 0x7777777F, dtype=torch.int32)
    with pytest.raises(CheckpointError, match=r"m\.qzeros: stored, less one, is 15"):
        from_gptq("m", words, zeros, scales, None, is_zero_less_one=True)
    raw = from_gptq("m", words, zeros, scales, None, is_zero_less_one=False)
    assert raw.zeros is not None and raw.zeros[0, 0] == 15


@pytest.mark.parametrize("weight_format", ["int4", "int8"])
def test_what_is_written_is_what_is_read(weight_format: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    packed = pack(weight, weight_format, 32)  # type: ignore[arg-type]
    tensors = to_compressed("m", packed)
    assert tensors["m.weight_shape"].tolist() == [16, 128]
    parts = tensors["m.weight_packed"], tensors["m.weight_scale"]
    again = from_packed4(*parts, None) if weight_format == "int4" else from_packed8(*parts)
    assert torch.equal(again.data, packed.data)
    assert torch.equal(dequantize(again), dequantize(packed))


def test_a_row_with_one_scale_is_one_group() -> None:
    packed = from_int8(torch.ones(4, 48, dtype=torch.int8), torch.arange(4.0).view(4, 1))
    assert packed.group_size == 48
    assert torch.equal(dequantize(packed)[:, 0], torch.arange(4.0))
