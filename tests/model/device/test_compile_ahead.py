"""What is compiled ahead is what steps launch: on a CPU the same steps run, in plain torch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from model.device import compile_ahead, ops_plain
from model.device.compile_ahead import every_step
from model.device.decoder import DeviceDecoder
from model.device.exchange import Alone
from model.device.layout import allocate_blocks
from model.device.ops import Ops
from model.device.random_weights import random_weights
from model.device.sizes import PlanSizes
from model.device.verify import VerifyRows
from model.device.weights import Formats, Share
from tests.model.device.small_models import CPU, text_of

SIZES = PlanSizes(
    num_blocks={"full": 8, "sliding": 8}, num_columns={"full": 8, "sliding": 4}, block_size=16, max_rows=3,
    chunk_tokens=160, num_drafts=3,
)  # fmt: skip


NUM_LAYERS = 5


def decoder_of(ops: Ops) -> DeviceDecoder:
    text = replace(text_of(num_layers=NUM_LAYERS), mtp_layers=text_of().mtp_layers)
    weights = random_weights(text, Formats("bf16", "bf16"), Share(0, 1), 1, CPU, with_mtp=True)
    pools = allocate_blocks(text, weights.share, SIZES.num_blocks, 16, torch.float32, CPU, with_mtp=True)
    return DeviceDecoder(weights, pools, ops, Alone())


@torch.inference_mode()
def test_every_bucket_of_rows_and_every_length_of_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, chunks = list[tuple[int, int]](), list[int]()
    run_layers = DeviceDecoder.run_layers

    def noting(self: DeviceDecoder, tokens: object, *rest: object) -> None:
        num_rows, num_layers = tokens.token_ids_T.shape[0], len(self.weights.layers)  # type: ignore[attr-defined]
        assert num_layers < NUM_LAYERS, "a layer of each kind is enough"
        if tokens.query_starts_B1 is not None:  # type: ignore[attr-defined]
            chunks.append(num_rows)
        run_layers(self, tokens, *rest)  # type: ignore[arg-type]

    def verifying(decoder: DeviceDecoder, rows: VerifyRows, scratch: object) -> None:
        steps.append((rows.step.num_seqs, rows.step.num_queries))
        verify_step(decoder, rows, scratch)  # type: ignore[arg-type]

    verify_step = compile_ahead.verify_step
    monkeypatch.setattr(DeviceDecoder, "run_layers", noting)
    monkeypatch.setattr(compile_ahead, "verify_step", verifying)
    every_step(decoder_of(ops_plain), SIZES, torch.float32)
    assert steps == [(1, 1), (2, 1), (3, 1), (1, 4), (2, 4), (3, 4)]
    assert chunks == [128, 160]


@torch.inference_mode()
def test_while_nothing_is_launched_rows_are_read_that_there_are() -> None:
    ops = SimpleNamespace(**vars(ops_plain) | {"accept_rows": lambda *_: None})
    torch.use_deterministic_algorithms(mode=True)  # what nobody has written is the largest integer
    try:
        every_step(decoder_of(cast("Ops", ops)), SIZES, torch.float32)
    finally:
        torch.use_deterministic_algorithms(mode=False)
