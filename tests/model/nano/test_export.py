"""Loading and exporting are inverses, and exported files are a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
import pytest
import torch
from safetensors.torch import load_file

from model.nano.export import tensors_of, write_tensors
from model.nano.shape import VisionShape
from model.placement import ExpertMap
from model.weights import Checkpoint, load_decoder, load_mtp, load_vision, open_checkpoint

CPU = torch.device("cpu")
MAX_FILE_BYTES = 400_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("hub")
    vision = VisionShape(width=16, layers=2, heads=2)
    return open_checkpoint(checkpoints.make_hub_checkpoint(directory, dtype="bfloat16", vision=vision))


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def exported(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    experts = ExpertMap(checkpoint.config.text.num_experts, 1)
    return tensors_of(
        checkpoint.config,
        {
            "decoder": load_decoder(checkpoint, experts, 0, dtype, CPU),
            "vision": load_vision(checkpoint, dtype, CPU),
            "mtp": load_mtp(checkpoint, dtype, CPU),
        },
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_loaded_is_exported_bit_for_bit(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    expected, tensors = stored(checkpoint.directory), exported(checkpoint, dtype)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


def test_untied_rows_of_a_head_norm_are_refused(checkpoint: Checkpoint) -> None:
    mtp = load_mtp(checkpoint, torch.float32, CPU)
    with torch.no_grad():
        mtp.get_parameter("layers.1.block.attention.qk_scale")[1] += 0.1
    with pytest.raises(AssertionError, match=r"layers\.9\.self_attn\.q_norm.*rows differ"):
        tensors_of(checkpoint.config, {"mtp": mtp})


def test_written_files_are_small_and_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = exported(checkpoint, torch.bfloat16)
    write_tensors(tmp_path, tensors, MAX_FILE_BYTES)
    shutil.copyfile(checkpoint.directory / "config.json", tmp_path / "config.json")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) <= MAX_FILE_BYTES
    assert open_checkpoint(tmp_path).has_mtp
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored(tmp_path).items())


def test_the_index_names_the_file_of_every_tensor(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = exported(checkpoint, torch.bfloat16)
    write_tensors(tmp_path, tensors, MAX_FILE_BYTES)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for file in tmp_path.glob("*.safetensors"):
        assert {name for name, at in index["weight_map"].items() if at == file.name} == load_file(file).keys()


def test_a_tensor_larger_than_a_file_may_be_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"embed: .* do not fit"):
        write_tensors(tmp_path, {"embed": torch.zeros(100)}, 500)
