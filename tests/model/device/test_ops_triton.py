"""A two-layer step through the Triton kernels (interpreted without a GPU) against the plain ones.

Activations are bfloat16 on both sides and rounded in other places: 3 % of the largest logit.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of a kernel file
pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: E402, F401 - repairs it
from model.config import TextConfig  # noqa: E402
from model.device import ops_plain, ops_triton  # noqa: E402
from model.device.decoder import DeviceDecoder  # noqa: E402
from model.device.exchange import Alone  # noqa: E402
from model.device.layout import KINDS, KVLayout, allocate_pools  # noqa: E402
from model.device.ops import Ops  # noqa: E402
from model.device.prefill import prefill  # noqa: E402
from model.device.random_weights import random_weights  # noqa: E402
from model.device.shapes import small_text_config  # noqa: E402
from model.device.state import StepRows, allocate_scratch  # noqa: E402
from model.device.weights import DeviceWeights, Formats, Share  # noqa: E402

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU


def tiny_text() -> TextConfig:
    """Interpreted, every program costs: a full dense layer and a sliding sparse one, as narrow as may be."""
    text = small_text_config()
    layers = tuple(replace(layer, num_heads=4) for layer in (text.layers[0], text.layers[3]))
    return replace(
        text, layers=layers, mtp_layers=(), hidden_size=64, vocab_size=64, num_kv_heads=2, dense_width=64,
        num_experts=4, experts_per_token=2, expert_width=64, shared_width=64,
    )  # fmt: skip


def logits_by(ops: Ops, weights: DeviceWeights, tokens: list[list[int]]) -> torch.Tensor:
    """Of the second step; the first one's token is given, so that both see the same."""
    text = weights.text
    layout = KVLayout.for_lengths(text, 1, 16, 16)
    pools = allocate_pools(text, weights.share, layout, torch.bfloat16, DEVICE)
    engine = DeviceDecoder(weights, pools, ops, Alone())
    rows = StepRows.allocate(2, 1, layout.num_columns, DEVICE)
    for kind in KINDS:
        rows.sequences[kind].blocks_BM[:1] = layout.blocks(kind, DEVICE)
    large = allocate_scratch(weights, ops, 8, 1, torch.bfloat16, is_prefill=True)
    prefill(engine, rows, large, tokens, 8, 8)
    scratch = allocate_scratch(weights, ops, 2, 1, torch.bfloat16, is_prefill=False)
    for seq, prompt in enumerate(tokens):
        rows.set_sequence(seq, prompt[:1], len(prompt))
    engine.decode_step(rows, scratch)
    assert rows.positions_T.tolist() == [len(prompt) + 1 for prompt in tokens] + [-1]
    logits = scratch.view("logits", 2, text.vocab_size)
    assert logits is not None
    return logits[:1].float().cpu()


@pytest.mark.parametrize("formats", [Formats("fp8", "bf16"), Formats("int4", "int8")])
@torch.inference_mode()
def test_two_layers_by_triton_and_by_torch(formats: Formats) -> None:
    text = tiny_text()
    weights = random_weights(text, formats, Share(0, 1), 3, DEVICE)
    tokens = [[5, 9, 30, 7, 20, 11, 3]]
    ours, truth = (logits_by(ops, weights, tokens) for ops in (ops_triton, ops_plain))
    assert (ours - truth).abs().max() < 0.03 * truth.abs().max()
