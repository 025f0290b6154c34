"""The `quantization_config` that goes with what `model.quant.convert` writes.

Names of matrices are told as regular expressions in which experts are any number, and layers, too, but where
they differ (MTP layers, say). Servers put prefixes before names, so any may come before.
Integers are "pack-quantized" in 8 bits, too: vLLM and SGLang read weights without activations only so
(CompressedTensorsWNA16). FP8 in blocks goes with activations rounded as they come (FP8_BLOCK).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from model.kernels.packed import FP8_BLOCK

Json = dict[str, Any]
Packed = tuple[str, int]  # format, columns of a group

_LAYER = re.compile(r"(?<=\.layers\.)\d+|(?<=\.resblocks\.)\d+")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+")
# Whatever a server calls the tower's modules, some of which it fuses.
_VISION = r"re:.*vision_model\..*"
_FORMATS = {"int4": "pack-quantized", "int8": "pack-quantized", "fp8": "float-quantized"}


def fp8_config(left_alone: Iterable[str]) -> Json:
    """As the hub's FP8 checkpoint says it: activations are rounded by whoever likes to."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        "modules_to_not_convert": sorted(left_alone),
    }


def compressed_config(packed: Mapping[str, Packed], left_alone: Iterable[str]) -> Json:
    """A group of matrices for each format and group size; activations as presets of the format have them."""
    targets: dict[Packed | None, list[str]] = defaultdict(list)
    alone = (name for name in left_alone if not name.startswith("vision_model."))
    for pattern, kind in _patterns({**packed, **dict.fromkeys(alone)}):
        targets[kind].append(f"re:.*{pattern}$")
    ignored = [*targets.pop(None, []), _VISION]
    kinds = sorted(kind for kind in targets if kind is not None)
    groups = {f"group_{number}": _group(kind, sorted(targets[kind])) for number, kind in enumerate(kinds)}
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
    }


def _patterns(kind_of: Mapping[str, Packed | None]) -> Iterator[tuple[str, Packed | None]]:
    """A pattern for each kind of matrices called the same in all layers."""
    layers: dict[str, dict[Packed | None, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, kind in kind_of.items():
        number = _LAYER.search(name)
        layers[_LAYER.sub("#", _EXPERT.sub("*", name))][kind].add(int(number[0]) if number else 0)
    for name, by_kind in layers.items():
        for kind, numbers in by_kind.items():
            listed = "|".join(map(str, sorted(numbers)))
            layer = r"\d+" if len(by_kind) == 1 else f"({listed})"
            yield name.replace(".", r"\.").replace("*", r"\d+").replace("#", layer), kind


def _group(kind: Packed, targets: list[str]) -> Json:
    weight_format, group_size = kind
    activations: Json | None = None
    weights: Json = {"num_bits": 4 if weight_format == "int4" else 8, "symmetric": True, "dynamic": False}
    if weight_format == "fp8":
        weights |= {"type": "float", "strategy": "block", "block_structure": [FP8_BLOCK, FP8_BLOCK]}
        activations = {
            "num_bits": 8, "type": "float", "symmetric": True, "dynamic": True,
            "strategy": "group", "group_size": FP8_BLOCK,
        }  # fmt: skip
    else:
        weights |= {"type": "int", "strategy": "group", "group_size": group_size}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": _FORMATS[weight_format],
    }
