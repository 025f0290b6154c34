"""A checkpoint's own codes on a device stand for the same values as the CPU network's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import checkpoints
import packing
import pytest
import torch

from model.config import read_config
from model.device import ops_plain
from model.device.decoder import DeviceDecoder
from model.device.exchange import Alone
from model.device.layout import KINDS, KVLayout, allocate_pools
from model.device.load import load_device_weights
from model.device.prefill import prefill
from model.device.state import StepRows, allocate_scratch
from model.device.weights import DeviceWeights, Formats, MoEWeights, Share, num_bytes, tensors_of
from model.errors import CheckpointError
from model.kernels.packed import PackedWeight, dequantize
from model.nano import default_checkpoint
from model.placement import ExpertMap
from model.quant.convert import QuantizePlan, quantize_checkpoint
from model.tensor_table import tensor_table
from model.weights import load_decoder, load_mtp, open_checkpoint
from tests.model.device import small_models
from tests.model.device.pack_decoder import pack_decoder, pack_mtp

CPU = torch.device("cpu")
# Blocks of 128 fit everywhere, as in the published shape, also when two ranks share.
ALIGNED = {
    "hidden": 128, "num_full_heads": 8, "num_sliding_heads": 16, "num_kv_heads": 8, "dense_width": 256,
    "expert_width": 128, "shared_width": 256, "num_experts": 4, "num_active_experts": 2, "num_layers": 4,
    "num_dense_layers": 1, "vocab_size": 512,
}  # fmt: skip
ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkvgo")
PLANS = {
    "fp8": QuantizePlan("fp8"),
    "fp8 + fp8": QuantizePlan("fp8", "fp8"),
    "int8 + int8": QuantizePlan("int8", "int8"),
    "int4 + fp8": QuantizePlan("int4", "fp8", 32),
    "int4 + int8": QuantizePlan("int4", "int8", 64),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    return checkpoints.make_hub_checkpoint(directory, dtype="bfloat16", with_vision=False, **ALIGNED)


@pytest.fixture(scope="module", params=PLANS.values(), ids=PLANS)
def packed(request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("packed")
    quantize_checkpoint(plain, directory, request.param, lambda done: None)
    return directory


def matrices(value: DeviceWeights) -> Iterator[PackedWeight]:
    for layer in (*value.layers, *(draft.block for draft in value.mtp)):
        mlp = layer.mlp
        yield from (layer.attention.qkvg, layer.attention.output)
        yield from (mlp.gate_up, mlp.down)
        if isinstance(mlp, MoEWeights):
            yield from (mlp.shared.gate_up, mlp.shared.down)
    for draft in value.mtp:
        yield from (draft.join, draft.head)
    yield value.head


def from_cpu(directory: Path, world_size: int = 1, rank: int = 0) -> DeviceWeights:
    """The CPU network's weights in bfloat16, cut by `pack_decoder`."""
    checkpoint = open_checkpoint(directory)
    text = checkpoint.config.text
    decoder = load_decoder(checkpoint, ExpertMap(text.num_experts, 1), 0, torch.float32, CPU)
    drafts = pack_mtp(
        load_mtp(checkpoint, torch.float32, CPU), text, Formats("bf16", "bf16"), rank, world_size
    )
    return replace(pack_decoder(decoder, Formats("bf16", "bf16"), rank, world_size), mtp=drafts)


def assert_same_values(found: DeviceWeights, expected: DeviceWeights) -> None:
    """bfloat16 of the values; what is not a matrix is equal bit for bit."""
    for ours, theirs in zip(matrices(found), matrices(expected), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(dequantize(ours).bfloat16(), theirs.data), (ours.format, ours.shape)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(ours.attention_norm_H, theirs.attention_norm_H)
        assert torch.equal(ours.attention.k_norm_D, theirs.attention.k_norm_D)
        assert (ours.attention.num_heads, ours.config) == (theirs.attention.num_heads, theirs.config)
        if isinstance(ours.mlp, MoEWeights) and isinstance(theirs.mlp, MoEWeights):
            assert torch.equal(ours.mlp.router_EH, theirs.mlp.router_EH)
            assert torch.equal(ours.mlp.bias_E, theirs.mlp.bias_E)
            assert ours.mlp.first_expert == theirs.mlp.first_expert
            assert (ours.mlp.limit, ours.mlp.shared.limit) == (theirs.mlp.limit, theirs.mlp.shared.limit)
    assert torch.equal(found.embedding_VH, expected.embedding_VH)
    assert found.first_token == expected.first_token


def load(
    directory: Path, world_size: int = 1, rank: int = 0, formats: Formats | None = None
) -> DeviceWeights:
    return load_device_weights(open_checkpoint(directory), Share(rank, world_size), formats, with_mtp=True)


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_values_are_those_of_the_cpu_network(
    packed: Path, world_size: int, rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = load(packed, world_size, rank)
    assert caplog.messages == []
    assert_same_values(found, from_cpu(packed, world_size, rank))


def test_integer_codes_stand_for_exactly_the_float32_values(plain: Path, tmp_path: Path) -> None:
    quantize_checkpoint(plain, tmp_path, QuantizePlan("int4", "int8"), lambda done: None)
    checkpoint = open_checkpoint(tmp_path)
    decoder = load_decoder(checkpoint, ExpertMap(4, 1), 0, torch.float32, CPU)
    for ours, theirs in zip(load(tmp_path).layers, decoder.layers, strict=True):
        assert torch.equal(dequantize(ours.attention.qkvg), theirs.attention.qkvg)
        if isinstance(ours.mlp, MoEWeights):
            assert ours.mlp.gate_up.format == "int4"
            assert torch.equal(dequantize(ours.mlp.gate_up), theirs.mlp.experts.gate_up)
            assert torch.equal(dequantize(ours.mlp.down), theirs.mlp.experts.down)


@pytest.mark.parametrize(("plan", "formats"), [
    (QuantizePlan("fp8"), Formats("fp8", "bf16")),
    (QuantizePlan("int4", "fp8"), Formats("int4", "fp8")),
    (QuantizePlan("int8", "int8"), Formats("int8", "int8")),
])  # fmt: skip
def test_formats_are_those_of_the_checkpoint(
    plain: Path, tmp_path: Path, plan: QuantizePlan, formats: Formats
) -> None:
    quantize_checkpoint(plain, tmp_path, plan, lambda done: None)
    found = load(tmp_path, 2, 1)
    assert found.formats == formats
    for layer in found.layers:
        assert layer.attention.qkvg.format == layer.attention.output.format == formats.rest
        if isinstance(layer.mlp, MoEWeights):
            assert layer.mlp.gate_up.format == layer.mlp.down.format == formats.experts
            assert layer.mlp.shared.gate_up.format == formats.rest
    assert found.head.format == "bf16"


def test_codes_of_the_file_are_kept_as_they_are(plain: Path, tmp_path: Path) -> None:
    quantize_checkpoint(plain, tmp_path, QuantizePlan("fp8", "fp8"), lambda done: None)
    found, again = load(tmp_path), pack_decoder_fp8(plain)
    for ours, theirs in zip(found.layers, again.layers, strict=True):
        for name in ("gate_up", "down"):
            kept, rounded = getattr(ours.mlp, name), getattr(theirs.mlp, name)
            assert torch.equal(kept.data.view(torch.uint8), rounded.data.view(torch.uint8))
            assert torch.equal(kept.scales, rounded.scales)


def pack_decoder_fp8(directory: Path) -> DeviceWeights:
    decoder = load_decoder(open_checkpoint(directory), ExpertMap(4, 1), 0, torch.float32, CPU)
    return pack_decoder(decoder, Formats("fp8", "fp8"), 0, 1)


@pytest.mark.parametrize("formats", [Formats("int4", "int8"), Formats("fp8", "fp8"), Formats("bf16", "bf16")])
def test_bfloat16_is_rounded_on_the_way_if_that_is_asked(plain: Path, formats: Formats) -> None:
    decoder = load_decoder(open_checkpoint(plain), ExpertMap(4, 1), 0, torch.float32, CPU)
    found, expected = load(plain, 2, 1, formats), pack_decoder(decoder, formats, 1, 2)
    assert found.formats == formats
    for ours, theirs in zip(tensors_of(found), tensors_of(expected), strict=False):
        assert torch.equal(ours.float(), theirs.float())


def test_experts_are_not_rounded_twice(plain: Path, tmp_path: Path) -> None:
    quantize_checkpoint(plain, tmp_path, QuantizePlan("fp8"), lambda done: None)
    with pytest.raises(CheckpointError, match="experts are fp8 in the checkpoint; asked for: int4"):
        load(tmp_path, formats=Formats("int4", "bf16"))
    assert load(tmp_path, formats=Formats("fp8", "int8")).head.format == "int8"


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("with_attention", [False, True])
def test_gptq_codes_keep_their_zero_points(
    plain: Path, tmp_path: Path, group_size: int, with_attention: bool
) -> None:
    checkpoints.make_hub_checkpoint(tmp_path, with_vision=False, **ALIGNED)
    names = [f"moe.{name}_proj.weight" for name in ("gate", "up", "down")]
    names += ATTENTION if with_attention else ()
    writers = dict.fromkeys(names, packing.gptq_writer(group_size))
    config = packing.QUANTIZATION_GPTQ | {"group_size": group_size}
    packing.repacked(tmp_path, tensor_table(read_config(tmp_path)), config, writers)
    decoder = load_decoder(open_checkpoint(tmp_path), ExpertMap(4, 1), 0, torch.float32, CPU)
    for rank in (0, 1):
        found = load(tmp_path, 2, rank)
        assert found.formats == Formats("int4", "int8" if with_attention else "bf16")
        own = slice(2 * rank, 2 * rank + 2)
        for ours, theirs in zip(found.layers, decoder.layers, strict=True):
            if isinstance(ours.mlp, MoEWeights):
                assert ours.mlp.gate_up.zeros is not None
                assert torch.equal(dequantize(ours.mlp.gate_up), theirs.mlp.experts.gate_up[own])
                assert torch.equal(dequantize(ours.mlp.down), theirs.mlp.experts.down[own])
            half = range(rank * ours.attention.num_heads * 32, (rank + 1) * ours.attention.num_heads * 32)
            if with_attention:
                output = theirs.attention.output[:, half.start : half.stop]
                assert torch.equal(dequantize(ours.attention.output), output)


def test_fp8_that_has_to_be_cut_becomes_bfloat16_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default model's widths are no multiples of 128."""
    quantize_checkpoint(default_checkpoint(), tmp_path, QuantizePlan("fp8", "fp8"), lambda done: None)
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path, 2, 1)
    assert found.formats == Formats("bf16", "bf16")
    assert any(
        "moe.gate_proj" in message and "fp8 codes cannot be kept" in message for message in caplog.messages
    )
    assert any("self_attn.q_proj" in message for message in caplog.messages)
    assert_same_values(found, from_cpu(tmp_path, 2, 1))


def test_blocks_of_another_size_are_refused(tmp_path: Path) -> None:
    checkpoints.make_hub_checkpoint(tmp_path, with_vision=False, **ALIGNED)
    config = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    writers = {"mlp.down_proj.weight": packing.fp8_writer(64, "weight_scale_inv")}
    packing.repacked(tmp_path, tensor_table(read_config(tmp_path)), config, writers)
    with pytest.raises(
        CheckpointError, match=r"fp8 in blocks of \(64, 64\); kernels read blocks of 128, 128"
    ):
        load(tmp_path)


def test_mtp_that_is_not_there_is_said(tmp_path: Path) -> None:
    checkpoints.make_hub_checkpoint(tmp_path, with_vision=False, with_mtp=False, **ALIGNED)
    with pytest.raises(CheckpointError, match="no MTP layers"):
        load(tmp_path)


def test_a_share_of_the_experts_alone(plain: Path) -> None:
    checkpoint = open_checkpoint(plain)
    found = load_device_weights(checkpoint, Share(0, 1), own_experts=Share(1, 2))
    whole = load_device_weights(checkpoint, Share(0, 1))
    halves = load_device_weights(checkpoint, Share(1, 2))
    assert torch.equal(found.head.data, whole.head.data)
    for layer, of_whole, of_half in zip(found.layers, whole.layers, halves.layers, strict=True):
        assert torch.equal(layer.attention.qkvg.data, of_whole.attention.qkvg.data)
        expected = of_half if isinstance(layer.mlp, MoEWeights) else of_whole
        assert torch.equal(dequantize(layer.mlp.gate_up), dequantize(expected.mlp.gate_up))
        if isinstance(layer.mlp, MoEWeights) and isinstance(of_half.mlp, MoEWeights):
            assert layer.mlp.first_expert == of_half.mlp.first_expert > 0
            assert torch.equal(layer.mlp.shared.down.data, of_half.mlp.shared.down.data)
    assert any(isinstance(layer.mlp, MoEWeights) for layer in found.layers)


def test_nothing_holds_more_memory_than_it_shows(packed: Path) -> None:
    found = load(packed, 2, 0)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(found)
    }
    assert sum(storages.values()) <= 1.01 * num_bytes(found)


@torch.inference_mode()
@pytest.mark.parametrize("plan", [QuantizePlan("int4", "int8"), QuantizePlan("fp8")], ids=["int4", "fp8"])
def test_the_device_decoder_computes_with_them(plain: Path, tmp_path: Path, plan: QuantizePlan) -> None:
    quantize_checkpoint(plain, tmp_path, plan, lambda done: None)
    weights, prompts = load(tmp_path), [[5, 6, 7, 8, 9], [70, 71, 72]]
    layout = KVLayout.for_lengths(weights.text, 2, 32, 16)
    pools = allocate_pools(weights.text, weights.share, layout, torch.float32, CPU)
    engine = DeviceDecoder(weights, pools, ops_plain, Alone())
    rows = StepRows.allocate(2, 1, layout.num_columns, CPU)
    for kind in KINDS:
        rows.sequences[kind].blocks_BM[:] = layout.blocks(kind, CPU)
    scratch = allocate_scratch(weights, ops_plain, 16, 1, torch.float32, is_prefill=True)
    prefill(engine, rows, scratch, prompts, 16, 16)
    decoder = load_decoder(open_checkpoint(tmp_path), ExpertMap(4, 1), 0, torch.float32, CPU)
    expected = [int(small_models.logits_of(decoder, prompt)[-1].argmax()) for prompt in prompts]
    assert rows.token_ids_T.tolist() == expected
