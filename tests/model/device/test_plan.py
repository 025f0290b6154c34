"""Memory that is planned against memory that is taken: exactly for weights, on GPUs as it was measured."""

from __future__ import annotations

import pytest
import torch

from model.device.plan import plan_memory, weight_bytes
from model.device.random_weights import random_weights
from model.device.shapes import full_text_config, small_text_config
from model.device.weights import Formats, Share, num_bytes

ALL_FORMATS = [
    Formats("bf16", "bf16"), Formats("fp8", "bf16"), Formats("fp8", "fp8"), Formats("int8", "int8"),
    Formats("int4", "int8"), Formats("int4", "fp8"),
]  # fmt: skip
GIB = 1 << 30


@pytest.mark.parametrize("formats", ALL_FORMATS, ids=str)
@pytest.mark.parametrize("num_gpus", [1, 2])
@pytest.mark.parametrize("with_mtp", [False, True])
def test_weights_are_counted_to_the_byte(formats: Formats, num_gpus: int, with_mtp: bool) -> None:
    text, share = small_text_config(), Share(num_gpus - 1, num_gpus)
    weights = random_weights(text, formats, share, 0, torch.device("cpu"), with_mtp=with_mtp)
    assert weight_bytes(text, formats, share, with_mtp=with_mtp) == num_bytes(weights)


@pytest.mark.parametrize(
    ("formats", "num_gpus", "num_streams", "measured_gib"),
    [
        (Formats("fp8", "bf16"), 2, 40, 99.06),
        (Formats("fp8", "bf16"), 2, 64, 101.18),
        (Formats("int4", "fp8"), 1, 1, 98.45),
        (Formats("int4", "fp8"), 1, 40, 105.36),
    ],
)
def test_the_whole_model_takes_what_is_planned(
    formats: Formats, num_gpus: int, num_streams: int, measured_gib: float
) -> None:
    """Measured on H200s, in caches of 2,312 positions; within 1 %, 5 are due."""
    plan = plan_memory(
        full_text_config(), formats, num_gpus, num_streams=num_streams, context_len=2312,
        kv_dtype=torch.bfloat16, memory_bytes=139 * GIB,
    )  # fmt: skip
    assert plan.num_bytes / GIB == pytest.approx(measured_gib, rel=0.01)
    assert plan.longest_context > 2312


def test_what_does_not_fit_has_no_context() -> None:
    plan = plan_memory(
        full_text_config(), Formats("fp8", "bf16"), 1, num_streams=1, context_len=128,
        kv_dtype=torch.bfloat16, memory_bytes=139 * GIB,
    )  # fmt: skip
    assert plan.longest_context == 0
