"""Checkpoint directories: both dialects load, and what is wrong with one is said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ModelConfig, parse_config, read_config
from model.errors import CheckpointError
from model.placement import ExpertMap
from model.weights import Checkpoint, dequantize_fp8, load_decoder, load_vision, open_checkpoint

CPU = torch.device("cpu")
NORM = "model.layers.3.input_layernorm.weight"
EXPERTS = "model.layers.3.moe.gate_proj.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return checkpoints.make_hub_checkpoint(tmp_path / "hub", num_files=2)


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of the file that holds NORM."""
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if NORM in tensors:
            change(tensors)
            save_file(tensors, file)


def edit_config(directory: Path, **text_fields: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= text_fields
    path.write_text(json.dumps(config))


def decoder_state(checkpoint: Checkpoint, world_size: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
    experts = ExpertMap(checkpoint.config.text.num_experts, world_size)
    return dict(load_decoder(checkpoint, experts, rank, torch.float32, CPU).named_parameters())


def test_a_missing_tensor_is_named(directory: Path) -> None:
    edit(directory, lambda tensors: tensors.pop(NORM))
    with pytest.raises(CheckpointError, match=f"1 decoder tensors are missing: {NORM}"):
        open_checkpoint(directory)


def test_an_unknown_tensor_is_named(directory: Path) -> None:
    edit(directory, lambda tensors: tensors.update({"model.layers.3.surprise": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"1 unknown tensors: model.layers\.3\.surprise"):
        open_checkpoint(directory)


def test_a_misshapen_tensor_is_named_with_both_shapes(directory: Path) -> None:
    edit(directory, lambda tensors: tensors.update({NORM: torch.zeros(65)}))
    with pytest.raises(CheckpointError, match=rf"{NORM}: shape is \[65\] .* asks for \[64\]"):
        open_checkpoint(directory)


def test_a_dtype_nobody_knows_is_named(directory: Path) -> None:
    edit(directory, lambda tensors: tensors.update({NORM: torch.zeros(64, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match=f"{NORM}: dtype I32"):
        open_checkpoint(directory)


def test_a_group_that_is_there_in_part_is_an_error(directory: Path) -> None:
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if tensors.pop("vision_model.conv1.weight", None) is not None:
            save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 vision tensors are missing: vision_model\.conv1"):
        open_checkpoint(directory)


def test_a_tensor_in_two_files_is_an_error(directory: Path) -> None:
    save_file({NORM: torch.zeros(64)}, directory / "zz.safetensors")
    with pytest.raises(CheckpointError, match=f"{NORM}: in .* and again in zz.safetensors"):
        open_checkpoint(directory)


@pytest.mark.parametrize("num_bytes", [4, 200, 20_000])
def test_a_file_that_was_cut_off_is_named(directory: Path, num_bytes: int) -> None:
    file = min(directory.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=f"{file.name}: .*cut off"):
        open_checkpoint(directory)


def test_a_directory_without_weights_or_config_says_so(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_checkpoint(tmp_path)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file"):
        open_checkpoint(directory)


def test_a_config_field_that_is_missing_is_named(directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["sliding_window"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'sliding_window' is missing"):
        read_config(directory)


def test_another_model_is_refused_by_its_type(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        read_config(directory)


def test_mtp_and_vision_may_be_absent_as_groups(tmp_path: Path) -> None:
    bare = checkpoints.make_hub_checkpoint(tmp_path, with_mtp=False, with_vision=False)
    checkpoint = open_checkpoint(bare)
    assert (checkpoint.has_mtp, checkpoint.has_vision) == (False, False)
    with pytest.raises(CheckpointError, match="no vision tower"):
        load_vision(checkpoint, torch.float32, CPU)


def test_a_step_3_5_checkpoint_without_vision_config_loads(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.make_hub_checkpoint(tmp_path, step35=True))
    assert checkpoint.config.vision is None
    decoder_state(checkpoint)


def test_both_dialects_of_one_model_give_the_same_config_and_weights(tmp_path: Path, directory: Path) -> None:
    checkpoints.reference_model(directory).save_pretrained(tmp_path / "saved")
    hub, saved = open_checkpoint(directory), open_checkpoint(tmp_path / "saved")
    assert saved.config.text == hub.config.text
    assert saved.config.vision == hub.config.vision
    ours, theirs = decoder_state(hub), decoder_state(saved)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ranks_hold_their_own_experts_and_all_of_the_rest(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    whole = decoder_state(checkpoint)
    halves = [decoder_state(checkpoint, 2, rank) for rank in (0, 1)]
    for name, tensor in whole.items():
        parts = [half[name] for half in halves]
        if ".experts." in name:
            assert torch.equal(torch.cat(parts), tensor), name
        else:
            assert torch.equal(parts[0], tensor), name
            assert torch.equal(parts[1], tensor), name


def test_the_fingerprint_changes_with_a_shape_and_not_with_the_place(tmp_path: Path, directory: Path) -> None:
    twin = checkpoints.make_hub_checkpoint(tmp_path / "twin", num_files=1, seed=9)
    other = checkpoints.make_hub_checkpoint(tmp_path / "other", num_experts=8)
    assert open_checkpoint(twin).fingerprint() == open_checkpoint(directory).fingerprint()
    assert open_checkpoint(other).fingerprint() != open_checkpoint(directory).fingerprint()


def quantize(weight_ERC: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-wise e4m3 the way the published FP8 files are: the largest value of a block becomes 448."""
    experts, rows, columns = weight_ERC.shape
    blocks = weight_ERC.view(experts, rows // block, block, columns // block, block)
    scale = blocks.abs().amax((2, 4)) / 448
    scaled = blocks / scale[:, :, None, :, None]
    return scaled.view(weight_ERC.shape).to(torch.float8_e4m3fn), scale


def test_fp8_blocks_are_dequantized(directory: Path) -> None:
    block = 16
    original = decoder_state(open_checkpoint(directory))
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if ".moe." in name and "_proj" in name]:
            tensors[name], tensors[f"{name}_scale_inv"] = quantize(tensors[name], block)
        save_file(tensors, file)
    with pytest.raises(CheckpointError, match="FP8 without quantization_config"):
        open_checkpoint(directory)
    path = directory / "config.json"
    quantization = {"quant_method": "fp8", "weight_block_size": [block, block]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    loaded = decoder_state(open_checkpoint(directory))
    for name in ("layers.3.mlp.experts.gate_up", "layers.3.mlp.experts.down"):
        error = (loaded[name] - original[name]).norm() / original[name].norm()
        assert 0 < error < 0.04, (name, error)  # e4m3 keeps 3 bits: at most 1/16 of a value


def test_an_fp8_block_at_the_border_may_be_cut() -> None:
    weight = torch.ones(3, 5).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expected = torch.tensor([[1.0, 1, 2, 2, 3], [1, 1, 2, 2, 3], [4, 4, 5, 5, 6]])
    assert torch.equal(dequantize_fp8(weight, scale, (2, 2)), expected)


def test_the_published_config_is_read_as_the_model_card_says(shared_data: Path) -> None:
    config: ModelConfig = parse_config(json.loads((shared_data / "step-3.7-flash.config.json").read_text()))
    text = config.text
    kinds = [layer.attention for layer in text.layers]
    assert [index for index, kind in enumerate(kinds) if kind == "full"] == list(range(0, 45, 4))
    assert {layer.num_heads for layer in text.layers if layer.attention == "full"} == {64}
    assert {
        layer.num_heads for layer in (*text.layers, *text.mtp_layers) if layer.attention == "sliding"
    } == {96}
    assert [layer.index for layer in text.layers if not layer.is_moe] == [0, 1, 2]
    clamps = {layer.index: (layer.swiglu_limit, layer.shared_swiglu_limit) for layer in text.layers}
    assert {index: clamp for index, clamp in clamps.items() if clamp != (None, None)} == {
        43: (7, 16),
        44: (7, 16),
    }
    assert (text.num_experts, text.experts_per_token, text.routed_scale, text.window) == (288, 8, 3.0, 512)
    assert (text.layers[0].rope.theta, text.layers[0].rope.rotary_dim) == (5e6, 64)
    assert text.layers[0].rope.scaling is not None
    assert text.layers[1].rope.scaling is None
    assert (text.layers[1].rope.theta, text.layers[1].rope.rotary_dim) == (1e4, 128)
    assert config.vision is not None
    assert (config.vision.mlp_width, config.image_token_id, text.eos_ids) == (8960, 128001, (1, 2, 128007))
    assert [layer.index for layer in text.mtp_layers] == [45, 46, 47]
