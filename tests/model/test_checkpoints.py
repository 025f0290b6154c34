"""The checkpoints that other tests use are what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from safetensors import safe_open

from model.nano.shape import NUM_TEXT_IDS, VisionShape

SMALL = {"num_layers": 5, "num_experts": 8, "vision": VisionShape(width=16, layers=2, heads=2)}
IDS_BT = (torch.arange(150)[None] * 389) % NUM_TEXT_IDS


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def text_config(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))["text_config"]


@torch.inference_mode()
def test_the_hub_dialect_and_its_conversion_give_equal_logits(tmp_path: Path) -> None:
    hub = checkpoints.reference_model(checkpoints.make_hub_checkpoint(tmp_path / "hub", **SMALL))
    hub.save_pretrained(tmp_path / "converted")
    converted = checkpoints.reference_model(tmp_path / "converted", torch.float64)
    assert torch.equal(hub.double()(IDS_BT).logits, converted(IDS_BT).logits)


def test_both_dialects_have_the_same_tensors_but_for_mtp(tmp_path: Path) -> None:
    hub = tensors(checkpoints.make_hub_checkpoint(tmp_path / "hub", with_mtp=False, **SMALL))
    saved = tensors(checkpoints.make_save_pretrained_checkpoint(tmp_path / "saved", **SMALL))
    assert {name: tensor.shape for name, tensor in hub.items()} == {n: t.shape for n, t in saved.items()}


def test_the_two_dialects_of_config_differ(tmp_path: Path) -> None:
    hub = text_config(checkpoints.make_hub_checkpoint(tmp_path / "hub", **SMALL))
    saved = text_config(checkpoints.make_save_pretrained_checkpoint(tmp_path / "saved", **SMALL))
    only_hub, only_saved = hub.keys() - saved.keys(), saved.keys() - hub.keys()
    assert {"moe_num_experts", "moe_layers_enum", "attention_other_setting", "rope_theta"} <= only_hub
    assert {"n_routed_experts", "mlp_layer_types", "per_layer_config", "rope_parameters"} <= only_saved


@pytest.mark.parametrize(("dtype", "bias_dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_save_pretrained_stores_router_biases_in_the_model_dtype(
    tmp_path: Path, dtype: str, bias_dtype: torch.dtype
) -> None:
    saved = tensors(checkpoints.make_save_pretrained_checkpoint(tmp_path, dtype=dtype, **SMALL))
    bias = saved["model.layers.4.moe.router_bias"]
    assert bias.dtype == bias_dtype
    assert bias.abs().min() > 0


@torch.inference_mode()
def test_a_saved_random_model_does_not_collapse(tmp_path: Path) -> None:
    model = checkpoints.reference_model(checkpoints.make_save_pretrained_checkpoint(tmp_path, **SMALL))
    logits = model(IDS_BT).logits
    assert 1 < logits.std() < 10
    assert logits.argmax(-1).unique().numel() > 60


def test_float64_reference_keeps_the_float32_weights(tmp_path: Path) -> None:
    directory = checkpoints.make_hub_checkpoint(tmp_path, **SMALL)
    head = checkpoints.reference_model(directory, torch.float64).lm_head.weight
    assert head.dtype == torch.float64
    assert torch.equal(head, tensors(directory)["lm_head.weight"].double())


def test_a_checkpoint_without_tower_and_mtp_has_the_other_weights_unchanged(tmp_path: Path) -> None:
    whole = tensors(checkpoints.make_hub_checkpoint(tmp_path / "whole", num_files=3, **SMALL))
    part = tensors(checkpoints.make_hub_checkpoint(tmp_path / "part", step35=True, with_mtp=False, **SMALL))
    assert part.keys() < whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())
    assert {name.split(".")[0] for name in part} == {"model", "lm_head"}
