"""Routed experts with the errors of few bits: shows what the quality costs before any kernel reads them."""

from __future__ import annotations

from typing import Literal

import torch

from model.errors import CheckpointError
from model.net.decoder import Decoder
from model.net.moe import Experts
from model.quant.base import GroupFormat, dequantize, quantize

ExpertFormat = Literal["int8", "int4"]
GROUP_SIZES = (128, 64, 32, 16)


def expert_format(name: ExpertFormat, num_columns: int) -> GroupFormat:
    """The largest of GROUP_SIZES that divides the columns. Raises CheckpointError where none does."""
    for group_size in GROUP_SIZES:
        if num_columns % group_size == 0:
            return GroupFormat(8 if name == "int8" else 4, group_size)
    raise CheckpointError(
        f"{name} experts: no group of {', '.join(map(str, GROUP_SIZES))} divides {num_columns} columns"
    )


@torch.no_grad()
def quantize_experts(decoder: Decoder, name: ExpertFormat) -> int:
    """Round this rank's routed experts to the values that int8 or int4 could hold, in place.

    Router, shared expert, attention and everything else stay. Returns the bytes the experts would take as
    codes and scales. Raises CheckpointError for widths that no group divides (nothing is changed then) and
    for values that are not finite.
    """
    experts = [module for module in decoder.modules() if isinstance(module, Experts)]
    weights_ERC = [weight for module in experts for weight in (module.gate_up, module.down)]
    formats = [expert_format(name, weight.shape[-1]) for weight in weights_ERC]
    num_bytes = 0
    for weight_ERC, group_format in zip(weights_ERC, formats, strict=True):
        for matrix_RC in weight_ERC:  # one by one: no second copy of the stack
            quantized = quantize(matrix_RC, group_format)
            matrix_RC.copy_(dequantize(quantized, matrix_RC.dtype))
            num_bytes += quantized.num_bytes
    return num_bytes
