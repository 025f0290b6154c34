"""A checkpoint in few bits from one in bfloat16: right files, a layer at a time, nothing half done."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.errors import CheckpointError, InvalidRequest
from model.kernels.packed import dequantize, pack
from model.placement import ExpertMap
from model.quant import convert
from model.quant.convert import FileDone, QuantizePlan, quantize_checkpoint
from model.stored import scan
from model.weights import load_decoder, open_checkpoint

CPU = torch.device("cpu")
PLANS = {
    "int4": QuantizePlan("int4"),
    "int4 64": QuantizePlan("int4", group_size=64),
    "int8": QuantizePlan("int8"),
    "fp8": QuantizePlan("fp8"),
    "int4 + fp8": QuantizePlan("int4", "fp8"),
    "int4 + int8": QuantizePlan("int4", "int8"),
    "int8 + int8": QuantizePlan("int8", "int8", 32),
    "fp8 + fp8": QuantizePlan("fp8", "fp8"),
    "fp8 + int8": QuantizePlan("fp8", "int8"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bf16")
    return checkpoints.make_hub_checkpoint(
        directory, dtype="bfloat16", num_files=2, with_side_files=True, hidden=128
    )


def quantized(source: Path, target: Path, plan: QuantizePlan) -> tuple[int, int]:
    return quantize_checkpoint(source, target, plan, lambda done: None)


def decoder_of(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(directory)
    experts = ExpertMap(checkpoint.config.text.num_experts, 1)
    return dict(load_decoder(checkpoint, experts, 0, torch.float32, CPU).named_parameters())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_values_are_rounded_where_the_plan_says_and_nowhere_else(
    source: Path, tmp_path: Path, plan: QuantizePlan
) -> None:
    quantized(source, tmp_path, plan)
    before, after = decoder_of(source), decoder_of(tmp_path)
    for name, value in before.items():
        is_rest = any(part in name for part in ("qkvg", "output", "mlp.gate_up", "mlp.down", "shared"))
        is_rounded = ".experts." in name or (plan.rest is not None and is_rest)
        error = float((after[name] - value).norm() / value.norm())
        most = {"int4": 0.12, "int8": 0.01, "fp8": 0.04}
        if is_rounded:
            assert 0 < error < most[plan.experts if ".experts." in name else plan.rest or ""], (name, error)
        else:
            assert error == 0, name


def test_codes_are_those_of_the_quantizer(source: Path, tmp_path: Path) -> None:
    quantized(source, tmp_path, QuantizePlan("int4", group_size=64))
    name = "model.layers.3.moe.gate_proj.weight"
    stored = next(tensors for file in source.glob("*.safetensors") if name in (tensors := load_file(file)))
    rounded = dequantize(pack(stored[name], "int4", 64))
    assert torch.equal(decoder_of(tmp_path)["layers.3.mlp.experts.gate_up"][:, :32], rounded)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_index_and_sizes_are_those_of_the_files(source: Path, tmp_path: Path, plan: QuantizePlan) -> None:
    done: list[FileDone] = []
    bytes_in, bytes_out = quantize_checkpoint(source, tmp_path, plan, done.append)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: tensor.file.name for name, tensor in scan(tmp_path).items()}
    held = 0
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            held += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    assert index["metadata"]["total_size"] == bytes_out == held == sum(each.bytes_out for each in done)
    assert bytes_in == sum(each.bytes_in for each in done) > bytes_out
    assert [each.number for each in done] == list(range(1, done[0].num_files + 1))
    assert [each.what for each in done if "layer" in each.what] == [f"layer {index}" for index in range(11)]


def test_all_that_is_not_a_weight_is_copied(source: Path, tmp_path: Path) -> None:
    quantized(source, tmp_path, QuantizePlan("int8"))
    for name in checkpoints.SIDE_FILES:
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path))
    assert {key: value for key, value in after.items() if key != "quantization_config"} == before


def test_fp8_is_written_as_the_hub_does(source: Path, tmp_path: Path) -> None:
    quantized(source, tmp_path, QuantizePlan("fp8"))
    stored = scan(tmp_path)
    name = "model.layers.3.moe.down_proj.weight"
    assert (stored[name].dtype, stored[name].shape) == ("F8_E4M3", (16, 128, 32))
    assert (stored[f"{name}_scale_inv"].dtype, stored[f"{name}_scale_inv"].shape) == ("F32", (16, 1, 1))
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["weight_block_size"]) == ("fp8", [128, 128])
    assert "model.layers.3.self_attn.q_proj" in config["modules_to_not_convert"]
    assert "model.layers.3.moe.down_proj" not in config["modules_to_not_convert"]


def matching(config: dict[str, Any], name: str) -> list[str]:
    """Groups whose targets match, as compressed-tensors matches them; `ignore` is one of them."""
    lists = {group: value["targets"] for group, value in config["config_groups"].items()}
    lists["ignore"] = config["ignore"]
    return [
        group
        for group, targets in lists.items()
        if any(re.match(target.removeprefix("re:"), name) for target in targets)
    ]


def test_every_matrix_is_a_target_of_the_group_that_it_is_stored_by(source: Path, tmp_path: Path) -> None:
    quantized(source, tmp_path, QuantizePlan("int4", "int8"))
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    stored, num_packed = scan(tmp_path), 0
    for name, tensor in stored.items():
        if name.endswith(".weight_packed"):
            base = name.removesuffix(".weight_packed")
            (group,) = matching(config, base)
            weights = config["config_groups"][group]["weights"]
            assert weights["num_bits"] == (4 if ".experts." in name else 8)
            columns = tensor.shape[1] * 32 // weights["num_bits"]
            assert columns // stored[f"{base}.weight_scale"].shape[1] == weights["group_size"]
            num_packed += 1
        elif name.endswith("_proj.weight") or name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert matching(config, name.removesuffix(".weight")) == ["ignore"], name
    assert num_packed == 6 * 16 * 3 + 8 * 5 + 2 * 3 + 6 * 3


def test_out_may_be_there_if_it_is_empty(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    quantized(source, tmp_path / "out", QuantizePlan("fp8"))
    with pytest.raises(InvalidRequest, match=r"OUT: .*/out is there and not empty"):
        quantized(source, tmp_path / "out", QuantizePlan("fp8"))


def test_out_is_not_in_and_no_file(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"OUT: .* is IN itself"):
        quantized(source, source / "." / "", QuantizePlan("fp8"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidRequest, match=r"OUT: .*/file is there"):
        quantized(source, file, QuantizePlan("fp8"))


@pytest.mark.parametrize("plan", [QuantizePlan("int4"), QuantizePlan("fp8")], ids=["int4", "fp8"])
def test_what_is_quantized_already_is_refused(source: Path, tmp_path: Path, plan: QuantizePlan) -> None:
    quantized(source, tmp_path / "once", plan)
    with pytest.raises(CheckpointError, match=r"once: already quantized \(quant_method"):
        quantized(tmp_path / "once", tmp_path / "twice", plan)
    assert not (tmp_path / "twice").exists()


def test_what_was_cut_off_is_no_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(done: FileDone) -> None:
        if done.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path, QuantizePlan("int4"), report)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_checkpoint(tmp_path)


def test_a_value_that_is_not_finite_is_named(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "in")
    name = "model.layers.3.moe.up_proj.weight"
    for file in (tmp_path / "in").glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name][2, 3, 4] = torch.inf
            save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"{name}: not all values are finite"):
        quantized(tmp_path / "in", tmp_path / "out", QuantizePlan("fp8"))


def test_columns_that_no_group_divides_are_named(tmp_path: Path) -> None:
    checkpoints.make_hub_checkpoint(tmp_path / "in", dtype="bfloat16", with_vision=False, expert_width=24)
    with pytest.raises(CheckpointError, match=r"moe\.down_proj\.weight: no group of .* divides 24 columns"):
        quantized(tmp_path / "in", tmp_path / "out", QuantizePlan("int8"))


QUANTIZE_AND_MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from model.quant.convert import QuantizePlan, quantize_checkpoint

def anonymous_bytes():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) << 10

torch.set_num_threads(1)
before, peak, done = anonymous_bytes(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
layers = []
plan = QuantizePlan(sys.argv[3])
def report(file):
    if file.what.startswith("layer"):
        layers.append(file.bytes_in)
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), plan, report)
done.set()
thread.join()
print(peak[0] - before, max(layers), sum(layers))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("weight_format", ["int4", "fp8"])
def test_the_peak_is_below_two_layers(tmp_path: Path, weight_format: str) -> None:
    checkpoints.make_hub_checkpoint(
        tmp_path / "in", dtype="bfloat16", with_vision=False, hidden=512, num_experts=64, expert_width=512,
        num_layers=10,
    )  # fmt: skip
    command = [sys.executable, "-c", QUANTIZE_AND_MEASURE, str(tmp_path / "in"), str(tmp_path / "out")]
    output = subprocess.run(
        [*command, weight_format], check=True, capture_output=True, text=True, timeout=150
    ).stdout
    peak, layer, total = map(int, output.split())
    print(f"{weight_format}: peak {peak >> 20} MiB, layer {layer >> 20} MiB, all {total >> 20} MiB")
    assert peak < 2 * layer < total / 3, (peak, layer, total)


def test_plans_are_what_the_command_knows() -> None:
    from cluster import cli_quantize

    assert set(cli_quantize.FORMATS) == set(convert.Format.__args__)  # type: ignore[attr-defined]
