"""Checkpoints in few bits load as the values they stand for, and what is wrong with one is said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import packing
import pytest
import torch
from packing import Writer
from safetensors.torch import load_file, save_file

from model.config import read_config
from model.errors import CheckpointError
from model.placement import ExpertMap
from model.tensor_table import tensor_table
from model.weights import load_decoder, load_mtp, open_checkpoint

CPU = torch.device("cpu")
INT4 = {"format": "pack-quantized", "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"format": "int-quantized", "num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"format": "float-quantized", "num_bits": 8, "strategy": "block", "block_structure": [16, 16]}
GPTQ = packing.QUANTIZATION_GPTQ
EXPERTS = ("moe.gate_proj.weight", "moe.up_proj.weight", "moe.down_proj.weight")
ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkvgo")
EXPERT = "model.layers.3.moe.experts.5.up_proj"


def write(
    directory: Path, quantization: dict[str, Any], writers: dict[str, Writer]
) -> dict[str, torch.Tensor]:
    checkpoints.make_hub_checkpoint(directory, with_vision=False)
    table = tensor_table(read_config(directory))
    return packing.repacked(directory, table, quantization, writers)


def loaded(directory: Path, world_size: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
    """Values by hub name, of the experts that a rank holds."""
    checkpoint = open_checkpoint(directory)
    experts = ExpertMap(checkpoint.config.text.num_experts, world_size)
    modules: dict[str, torch.nn.Module] = {
        "decoder": load_decoder(checkpoint, experts, rank, torch.float32, CPU),
        "mtp": load_mtp(checkpoint, torch.float32, CPU),
    }
    parameters = {group: dict(module.named_parameters()) for group, module in modules.items()}
    values = {}
    for name, entry in tensor_table(checkpoint.config).items():
        if entry.group in parameters:
            axis = 1 if entry.is_stacked else 0
            parameter = parameters[entry.group][entry.parameter]
            values[name] = parameter.narrow(axis, entry.first_row, entry.num_repeats or entry.shape[axis])
    return values


@pytest.mark.parametrize(
    ("quantization", "writers"),
    [
        (GPTQ, dict.fromkeys(EXPERTS, packing.gptq_writer(32))),
        (
            GPTQ | {"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"},
            dict.fromkeys((*EXPERTS, *ATTENTION), packing.gptq_writer(32, 0, with_g_idx=False)),
        ),
        (packing.compressed(INT4), dict.fromkeys(EXPERTS, packing.packed_writer(32))),
        (
            packing.compressed(INT4 | {"symmetric": False}, INT8, FP8),
            dict.fromkeys(EXPERTS, packing.packed_writer(32, is_symmetric=False))
            | dict.fromkeys(ATTENTION, packing.int8_writer)
            | {"mlp.down_proj.weight": packing.fp8_writer(16), "lm_head.weight": packing.int8_writer}
            | {"eh_proj.weight": packing.int8_writer},
        ),
        (packing.compressed(INT8), dict.fromkeys(EXPERTS, packing.int8_writer)),
        ({}, dict.fromkeys(EXPERTS, packing.plain_writer)),
    ],
    ids=["gptq", "auto-round", "packed", "mixed", "int8", "experts of their own"],
)
def test_values_are_those_that_the_codes_stand_for(
    tmp_path: Path, quantization: dict[str, Any], writers: dict[str, Writer]
) -> None:
    expected = write(tmp_path, quantization, writers)
    found = loaded(tmp_path)
    assert len(expected) >= 18
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_what_is_not_packed_is_as_before(tmp_path: Path) -> None:
    plain = loaded(checkpoints.make_hub_checkpoint(tmp_path / "plain", with_vision=False))
    packed = write(tmp_path / "packed", GPTQ, dict.fromkeys(EXPERTS, packing.gptq_writer()))
    found = loaded(tmp_path / "packed")
    assert all(torch.equal(found[name], plain[name]) for name in plain if name not in packed)


def test_ranks_hold_their_own_packed_experts(tmp_path: Path) -> None:
    expected = write(tmp_path, GPTQ, dict.fromkeys(EXPERTS, packing.gptq_writer()))
    halves = [loaded(tmp_path, 2, rank) for rank in (0, 1)]
    for name, value in expected.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), value)


def edited(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def put(part: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({f"{EXPERT}.{part}": tensor})


WORDS = torch.zeros(2, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{EXPERT}.scales"), rf"{EXPERT}\.scales: missing; {EXPERT}\.qweight is there"),
        (lambda t: [t.pop(f"{EXPERT}.{p}") for p in ("qweight", "scales", "qzeros", "g_idx")],
         rf"{EXPERT}: missing; .*experts\.0\.up_proj of the same stack is there"),
        (put("qweight", torch.zeros(9, 32, dtype=torch.int32)), rf"{EXPERT}\.qweight: shape is \[9, 32\]"),
        (put("qweight", torch.zeros(8, 32)), rf"{EXPERT}\.qweight: dtype F32; known: I32"),
        (put("qzeros", WORDS), rf"{EXPERT}\.qzeros: shape is \[2, 2\] .* needed \[2, 4\]"),
        (put("scales", torch.zeros(4, 32)), r"scales: shape is \[4, 32\], for 64 columns in groups of 32"),
        (put("bias", torch.zeros(32)), rf"1 unknown tensors: {EXPERT}\.bias"),
        (lambda t: t.update({"model.layers.3.moe.experts.16.up_proj.qweight": WORDS}), r"experts\.16\.up"),
        (lambda t: t.update({"model.layers.3.moe.gate.qweight": WORDS}), r"1 unknown .*moe\.gate\.qweight"),
        (lambda t: t.update({"model.layers.3.moe.up_proj.weight": torch.zeros(16, 32, 64)}),
         r"64 unknown tensors: model\.layers\.3\.moe\.experts\.0\.up_proj\.g_idx"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    write(tmp_path, GPTQ, dict.fromkeys(EXPERTS, packing.gptq_writer()))
    edited(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)


def test_a_form_that_the_config_does_not_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path, packing.compressed(INT8), dict.fromkeys(EXPERTS, packing.gptq_writer()))
    with pytest.raises(CheckpointError, match=r"\.qweight: stored as gptq; config\.json says int8"):
        open_checkpoint(tmp_path)


def test_zero_points_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    write(tmp_path, packing.compressed(INT4), {EXPERTS[0]: packing.packed_writer(32, is_symmetric=False)})
    with pytest.raises(CheckpointError, match=r"weight_zero_point: there; config\.json says symmetric: True"):
        open_checkpoint(tmp_path)


def test_groups_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    write(tmp_path, packing.compressed(INT4), {EXPERTS[0]: packing.packed_writer(16)})
    with pytest.raises(
        CheckpointError, match=r"weight_scale: shape is \[32, 4\], for 64 columns in groups of 32"
    ):
        open_checkpoint(tmp_path)


def test_a_shape_that_is_written_down_wrong_is_refused(tmp_path: Path) -> None:
    write(tmp_path, packing.compressed(INT4), dict.fromkeys(EXPERTS, packing.packed_writer(32)))
    edited(tmp_path, put("weight_shape", torch.tensor([32, 63])))
    with pytest.raises(CheckpointError, match=rf"{EXPERT}\.weight_shape: \[32, 63\]; .* asks for \[32, 64\]"):
        loaded(tmp_path)


def test_an_unknown_method_is_said_with_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"quant_method": "awq"}, {})
    with pytest.raises(
        CheckpointError, match=r"config\.json: quantization_config\.quant_method is 'awq'; known: fp8"
    ):
        open_checkpoint(tmp_path)


def test_the_fingerprint_is_the_same_in_every_process_and_not_that_of_other_codes(tmp_path: Path) -> None:
    write(tmp_path / "a", packing.compressed(INT4, INT8), dict.fromkeys(EXPERTS, packing.packed_writer(32)))
    write(tmp_path / "b", packing.compressed(INT8, INT4), dict.fromkeys(EXPERTS, packing.packed_writer(32)))
    write(tmp_path / "c", packing.compressed(INT8, INT4), dict.fromkeys(EXPERTS, packing.int8_writer))
    a, b, c = (open_checkpoint(tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c
    assert json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
