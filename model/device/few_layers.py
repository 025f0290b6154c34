"""The same model with a few of its layers: what is compiled, or checked, depends on no more."""

from __future__ import annotations

from dataclasses import replace

from model.device.weights import DeviceWeights


def few_layers(weights: DeviceWeights) -> DeviceWeights:
    """One layer of each kind: full and sliding, dense and sparse, clamped or not; what has to be compiled."""
    kinds: dict[tuple[object, ...], int] = {}
    for index, layer in enumerate(weights.layers):
        config = layer.config
        kinds.setdefault((config.attention, config.is_moe, config.swiglu_limit is None), index)
    return with_layers(weights, sorted(kinds.values()))


def with_layers(weights: DeviceWeights, indices: list[int]) -> DeviceWeights:
    """The same with some of its layers; indices ascend."""
    text = replace(weights.text, layers=tuple(weights.text.layers[index] for index in indices))
    return replace(weights, text=text, layers=tuple(weights.layers[index] for index in indices))
