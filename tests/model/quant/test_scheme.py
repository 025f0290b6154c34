"""quantization_config: what is known is read, everything else is said with field, value and what is known."""

from __future__ import annotations

from typing import Any

import packing
import pytest

from model.quant.scheme import ONE_GROUP, parse_scheme

GPTQ = packing.QUANTIZATION_GPTQ
AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
}
INT4 = {"format": "pack-quantized", "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
INT8 = {"format": "int-quantized", "num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"format": "float-quantized", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}


def test_nothing_is_no_scheme() -> None:
    assert parse_scheme(None) is None
    assert parse_scheme({}) is None


@pytest.mark.parametrize(("written", "less_one"), [("gptq", True), ("gptq_v2", False), (None, True)])
def test_gptq_formats_differ_in_their_zero_points(written: str | None, less_one: bool) -> None:
    scheme = parse_scheme(GPTQ | ({"checkpoint_format": written} if written else {}))
    assert scheme is not None
    assert (scheme.forms, scheme.int4_groups, scheme.is_zero_less_one) == (("gptq",), (32,), less_one)


@pytest.mark.parametrize(
    ("packing_format", "less_one"),
    [("auto_round:auto_gptq", True), ("auto_round:gptqmodel", False), ("auto_round", False)],
)
def test_auto_round_packings_differ_in_their_zero_points(packing_format: str, less_one: bool) -> None:
    scheme = parse_scheme(AUTO_ROUND | {"packing_format": packing_format})
    assert scheme is not None and scheme.is_zero_less_one == less_one


def test_groups_of_several_formats_are_added_up() -> None:
    scheme = parse_scheme(packing.compressed(INT4, INT4 | {"group_size": 32}, INT8, FP8))
    assert scheme is not None
    assert scheme.forms == ("fp8", "int8", "packed4")
    assert (scheme.int4_groups, scheme.int8_groups, scheme.fp8_block) == ((32, 128), (ONE_GROUP,), (128, 128))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "awq"}, "quant_method is 'awq'; known: fp8, gptq"),
        ({"quant_method": "fp8"}, "weight_block_size is None"),
        (GPTQ | {"bits": 3}, "bits is 3; known: 4"),
        (GPTQ | {"group_size": -1}, "group_size is -1; known: 16, 32, 64, 128"),
        (GPTQ | {"desc_act": True}, "desc_act is True; known: False"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; known: gptq, gptq_v2"),
        (AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}, "packing_format is 'auto_round:auto_awq'"),
        (AUTO_ROUND | {"data_type": "mx_fp"}, "data_type is 'mx_fp'; known: int"),
        (
            packing.compressed(INT4 | {"num_bits": 3}),
            r"config_groups.group_0.weights.num_bits is 3; known: 4, 8",
        ),
        (packing.compressed(INT4 | {"group_size": 48}), "weights.group_size is 48"),
        (packing.compressed(INT4 | {"strategy": "channel"}), "weights.strategy is 'channel'; known: group"),
        (packing.compressed(INT4 | {"actorder": "group"}), "weights.actorder is 'group'"),
        (packing.compressed(INT8 | {"symmetric": False}), "weights.symmetric is False; known: True"),
        (packing.compressed(INT8 | {"format": "marlin-24"}), "group_0.format is 'marlin-24'"),
        (packing.compressed(FP8 | {"strategy": "tensor"}), "weights.strategy is 'tensor'; known: block"),
        (packing.compressed(INT4, INT4 | {"symmetric": False}), "int4 both symmetric and not"),
    ],
)
def test_what_is_not_known_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_scheme(config)
