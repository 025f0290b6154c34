"""Routed experts with the errors of int8 and int4: only they change, by no more than they may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.config import parse_config
from model.errors import CheckpointError
from model.nano.shape import Shape, hub_config
from model.net.decoder import Decoder
from model.net.moe import Experts
from model.quant.base import GroupFormat, dequantize, quantize
from model.quant.experts import ExpertFormat, expert_format, quantize_experts

NAMES = pytest.mark.parametrize("name", ["int8", "int4"])
HIDDEN, WIDTH, NUM_LOCAL = 256, 64, 4


def make_decoder(expert_width: int = WIDTH, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """Four layers, two of them MoE, as a rank with 4 of 16 experts holds them."""
    shape = Shape(
        hidden=HIDDEN, num_layers=4, num_mtp_layers=0, num_clamped_layers=1, expert_width=expert_width
    )
    decoder = Decoder(parse_config(hub_config(shape, "bfloat16")).text, NUM_LOCAL, dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    return decoder


def state(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in decoder.state_dict().items()}


def expert_weights(decoder: Decoder) -> Iterator[torch.Tensor]:
    for module in decoder.modules():
        if isinstance(module, Experts):
            yield from (module.gate_up, module.down)


@NAMES
def test_all_but_the_routed_experts_stays_bit_for_bit(name: ExpertFormat) -> None:
    decoder = make_decoder()
    before = state(decoder)
    quantize_experts(decoder, name)
    changed = {key for key, tensor in decoder.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {
        f"layers.{layer}.mlp.experts.{weight}" for layer in (2, 3) for weight in ("gate_up", "down")
    }


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.01), ("int4", 0.12)])
def test_experts_change_by_no_more_than_a_limit(name: ExpertFormat, limit: float) -> None:
    decoder = make_decoder()
    before = [weight.clone() for weight in expert_weights(decoder)]
    quantize_experts(decoder, name)
    for found, expected in zip(expert_weights(decoder), before, strict=True):
        assert 0 < (found - expected).float().norm() / expected.float().norm() < limit


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_new_values_are_those_of_the_quantized_stack(name: ExpertFormat, dtype: torch.dtype) -> None:
    decoder = make_decoder(dtype=dtype)
    (gate_up, down, *_) = expert_weights(decoder)
    bits = expert_format(name, HIDDEN).bits
    expected = [
        dequantize(quantize(weight, GroupFormat(bits, group_size)), dtype)
        for weight, group_size in ((gate_up, 128), (down, 64))
    ]
    quantize_experts(decoder, name)
    assert torch.equal(gate_up, expected[0])
    assert torch.equal(down, expected[1])


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_the_bytes_are_those_of_codes_and_scales(name: ExpertFormat, bits: int) -> None:
    num_weights = HIDDEN * WIDTH
    gate_up_bytes = 2 * num_weights * bits // 8 + 2 * (2 * num_weights // 128)
    down_bytes = num_weights * bits // 8 + 2 * (num_weights // 64)
    assert quantize_experts(make_decoder(), name) == 2 * NUM_LOCAL * (gate_up_bytes + down_bytes)


@pytest.mark.parametrize(
    ("num_columns", "group_size"), [(4096, 128), (1280, 128), (192, 64), (96, 32), (80, 16), (64, 64)]
)
def test_the_group_is_the_largest_that_divides(num_columns: int, group_size: int) -> None:
    assert expert_format("int4", num_columns) == GroupFormat(4, group_size)
    assert expert_format("int8", num_columns) == GroupFormat(8, group_size)


@NAMES
def test_a_width_that_no_group_divides_is_an_error_before_anything_changes(name: ExpertFormat) -> None:
    decoder = make_decoder(expert_width=72)
    before = state(decoder)
    with pytest.raises(
        CheckpointError, match=f"{name} experts: no group of 128, 64, 32, 16 divides 72 columns"
    ):
        quantize_experts(decoder, name)
    assert all(torch.equal(tensor, before[key]) for key, tensor in decoder.state_dict().items())
