"""`quantization_config` of a config.json -> what its packed matrices may look like.

Tools write lists of modules that they left alone (ignore, dynamic, extra_config). They are not read: the
tensors that a file has say how each matrix is stored, and every one of them is checked against this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Form = Literal["plain", "fp8", "gptq", "packed4", "packed8", "int8"]

GROUP_SIZES = (16, 32, 64, 128)
ONE_GROUP = -1  # a row has one scale, as int8 may
AUTO_ROUND_METHODS = ("auto-round", "auto_round", "intel/auto-round")
# Whether zero points lie in the file less one (auto_round_extension/torch: qlinear_torch_zp, qlinear_torch).
AUTO_ROUND_PACKINGS = {"auto_round:auto_gptq": True, "auto_round": False, "auto_round:gptqmodel": False}
GPTQ_FORMATS = {"gptq": True, "gptq_v2": False}
KNOWN_METHODS = "fp8, gptq, auto-round, compressed-tensors"


@dataclass(frozen=True)
class Scheme:
    """Forms that matrices may have besides "plain", and their groups.

    `int4_groups`, `int8_groups`: columns that may share a scale. `is_symmetric`: int4 without zero points
    (compressed-tensors alone: GPTQ files always have some). `is_zero_less_one`: GPTQ's first format.
    """

    method: str
    forms: tuple[Form, ...]
    fp8_block: tuple[int, int] | None = None
    int4_groups: tuple[int, ...] = ()
    int8_groups: tuple[int, ...] = ()
    is_symmetric: bool = True
    is_zero_less_one: bool = False


def parse_scheme(quantization: Json | None) -> Scheme | None:
    """None: not quantized. Raises ValueError naming field, value and what is known."""
    if not quantization:
        return None
    method = quantization.get("quant_method")
    if method == "fp8":
        return _fp8(quantization)
    if method == "gptq":
        packing = _choice(quantization, "checkpoint_format", GPTQ_FORMATS, "gptq")
        return _gptq(quantization, "gptq", GPTQ_FORMATS[packing])
    if method in AUTO_ROUND_METHODS:
        packing = _choice(quantization, "packing_format", AUTO_ROUND_PACKINGS, None)
        return _gptq(quantization, "auto-round", AUTO_ROUND_PACKINGS[packing])
    if method == "compressed-tensors":
        return _compressed(quantization)
    raise ValueError(f"quantization_config.quant_method is {method!r}; known: {KNOWN_METHODS}")


def _fp8(quantization: Json) -> Scheme:
    block = quantization.get("weight_block_size")
    if not block:
        raise ValueError(
            f"quantization_config.weight_block_size is {block!r}; fp8 is known in blocks, as [128, 128]"
        )
    return Scheme("fp8", ("fp8",), fp8_block=(int(block[0]), int(block[1])))


def _gptq(quantization: Json, method: str, is_zero_less_one: bool) -> Scheme:
    _expect("bits", quantization.get("bits"), (4,))
    _expect("data_type", quantization.get("data_type", "int"), ("int",))
    # An order of columns by activation gives each column a group of its own choice.
    _expect("desc_act", bool(quantization.get("desc_act")), (False,))
    group_size = _expect("group_size", quantization.get("group_size"), GROUP_SIZES)
    return Scheme(
        method, ("gptq",), int4_groups=(group_size,), is_zero_less_one=is_zero_less_one,
        is_symmetric=bool(quantization.get("sym", True)),
    )  # fmt: skip


def _compressed(quantization: Json) -> Scheme:
    forms: set[Form] = set()
    int4, int8, symmetric = set(), set(), set()
    block = None
    for name, group in quantization["config_groups"].items():
        where, weights = f"config_groups.{name}", group["weights"]
        form = _compressed_form(group.get("format") or quantization.get("format"), weights, where)
        forms.add(form)
        _expect(f"{where}.weights.actorder", weights.get("actorder"), (None, False, "weight", "static"))
        if form == "fp8":
            block = _compressed_block(weights, where)
            continue
        _expect(f"{where}.weights.type", weights.get("type", "int"), ("int",))
        is_symmetric = bool(weights.get("symmetric", True))
        if form == "packed4":
            int4.add(_compressed_group(weights, where, ("group",)))
            symmetric.add(is_symmetric)
        else:
            int8.add(_compressed_group(weights, where, ("group", "channel")))
            _expect(f"{where}.weights.symmetric", is_symmetric, (True,))
    if len(symmetric) > 1:
        raise ValueError("quantization_config.config_groups: int4 both symmetric and not; known: one of them")
    return Scheme(
        "compressed-tensors", tuple(sorted(forms)), block, tuple(sorted(int4)), tuple(sorted(int8)),
        is_symmetric=symmetric != {False},
    )  # fmt: skip


def _compressed_form(written: Any, weights: Json, where: str) -> Form:
    forms: dict[Any, dict[int, Form]] = {
        "pack-quantized": {4: "packed4", 8: "packed8"},
        "int-quantized": {8: "int8"},
        "float-quantized": {8: "fp8"},
    }
    by_bits = forms[_expect(f"{where}.format", written, tuple(forms))]
    return by_bits[_expect(f"{where}.weights.num_bits", weights["num_bits"], tuple(by_bits))]


def _compressed_block(weights: Json, where: str) -> tuple[int, int]:
    _expect(f"{where}.weights.strategy", weights.get("strategy"), ("block",))
    block = weights["block_structure"]
    return int(block[0]), int(block[1])


def _compressed_group(weights: Json, where: str, strategies: tuple[str, ...]) -> int:
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    if _expect(f"{where}.weights.strategy", strategy, strategies) == "channel":
        return ONE_GROUP
    return int(_expect(f"{where}.weights.group_size", weights.get("group_size"), GROUP_SIZES))


def _choice(quantization: Json, field: str, known: dict[str, bool], default: str | None) -> str:
    return str(_expect(field, quantization.get(field, default), tuple(known)))


def _expect(field: str, value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"quantization_config.{field} is {value!r}; known: {', '.join(map(str, known))}")
    return value
