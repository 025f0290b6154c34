"""Verify steps with drafts: greedy tokens are those without, and drafts are those of the CPU's chain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.device import ops_plain
from model.device.decoder import DeviceDecoder
from model.device.exchange import Alone
from model.device.layout import KINDS, KVLayout, allocate_pools
from model.device.prefill import prefill
from model.device.random_weights import random_weights
from model.device.state import StepRows, allocate_scratch
from model.device.verify import VerifyRows, verify_step
from model.device.weights import Formats, Share
from model.net.mtp import MTP
from tests.model.device.pack_decoder import pack_decoder, pack_mtp
from tests.model.device.small_models import (
    CPU,
    forward,
    logits_of,
    prompts_of,
    random_decoder,
    random_values,
    run_block,
    text_of,
)


@pytest.mark.parametrize("draft", ["wrong", "right"])
@torch.inference_mode()
def test_tokens_are_those_of_single_steps_whatever_is_drafted(draft: str) -> None:
    text = replace(text_of(num_layers=4), mtp_layers=text_of().mtp_layers)
    decoder, prompts = random_decoder(replace(text, mtp_layers=())), prompts_of(text, (30, 6))
    packed = pack_decoder(decoder, Formats("bf16", "bf16"), 0, 1)
    mtp = random_weights(text, Formats("bf16", "bf16"), Share(0, 1), 1, CPU, with_mtp=True).mtp
    weights = replace(packed, text=text, mtp=mtp)
    layout = KVLayout.for_lengths(text, 2, 80, 32)
    pools = allocate_pools(text, weights.share, layout, torch.float32, CPU, with_mtp=True)
    engine = DeviceDecoder(weights, pools, ops_plain, Alone())
    first = StepRows.allocate(2, 1, layout.num_columns, CPU)
    rows = VerifyRows.allocate(2, 4, layout.num_columns, CPU)
    for step in (first, rows.step):
        for kind in KINDS:
            step.sequences[kind].blocks_BM.copy_(layout.blocks(kind, CPU))
    large = allocate_scratch(weights, ops_plain, 64, 1, torch.float32, is_prefill=True)
    prefill(engine, first, large, prompts, 64, 32)
    answers = [[int(token)] for token in first.token_ids_T]
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
    rows.base_B.copy_(lengths)
    rows.prompts_B.copy_(lengths)
    rows.limits_B.fill_(3)
    rows.tokens_BQ.copy_(torch.tensor([[answer[0], 1, 2, 3] for answer in answers]))
    scratch = allocate_scratch(weights, ops_plain, 2, 4, torch.float32, is_prefill=False)
    counts = []
    for _ in range(3):
        if draft == "right":
            for seq, prompt in enumerate(prompts):
                known = list(prompt) + answers[seq]
                while len(known) < len(prompt) + len(answers[seq]) + 3:
                    known.append(int(logits_of(decoder, known)[-1].argmax()))
                rows.tokens_BQ[seq] = torch.tensor(known[-4:], dtype=torch.int32)
        verify_step(engine, rows, scratch)
        for seq, answer in enumerate(answers):
            answer.extend(rows.verified.following_BQ[seq, : int(rows.verified.counts_B[seq]) + 1].tolist())
        counts += rows.verified.counts_B.tolist()
        assert rows.tokens_BQ[:, 0].tolist() == [answer[-1] for answer in answers]
        assert rows.base_B.tolist() == [
            len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, answers, strict=True)
        ]
    assert counts == [3] * 6 if draft == "right" else min(counts) < 3
    for prompt, answer in zip(prompts, answers, strict=True):
        truth = logits_of(decoder, prompt + answer[:-1])[len(prompt) - 1 :]
        assert answer == truth.argmax(-1).tolist()


@torch.inference_mode()
def test_drafts_are_those_of_the_cpu_chain() -> None:
    text = replace(text_of(num_layers=3), mtp_layers=text_of().mtp_layers)
    decoder, chain = random_decoder(text), random_values(MTP(text, torch.float32), text, seed=9)
    formats = Formats("bf16", "bf16")
    packed = pack_decoder(decoder, formats, 0, 1)
    weights = replace(packed, mtp=pack_mtp(chain, text, formats, 0, 1))
    layout = KVLayout.for_lengths(text, 1, 16, 4)
    pools = allocate_pools(text, weights.share, layout, torch.float32, CPU, with_mtp=True)
    engine = DeviceDecoder(weights, pools, ops_plain, Alone())
    rows = VerifyRows.allocate(1, 4, layout.num_columns, CPU)
    for kind in KINDS:
        rows.step.sequences[kind].blocks_BM.copy_(layout.blocks(kind, CPU))
    scratch = allocate_scratch(weights, ops_plain, 1, 4, torch.float32, is_prefill=False)
    tokens = list(prompts_of(text, (1,))[0])
    while len(tokens) < 4:  # drafts that hold
        tokens.append(int(logits_of(decoder, tokens)[-1].argmax()))
    rows.tokens_BQ.copy_(torch.tensor([tokens]))
    rows.base_B.fill_(0)
    rows.prompts_B.fill_(1)
    rows.limits_B.fill_(3)
    verify_step(engine, rows, scratch)
    following = rows.verified.following_BQ[0].tolist()
    _, hidden_TH = forward(decoder, tokens)
    drafts = []
    for layer in chain.layers:
        joined_TH = layer.join(decoder.embedding[torch.tensor(following)], hidden_TH)
        hidden_TH = run_block(layer.block, decoder, joined_TH)
        drafts.append(int(layer.logits(hidden_TH)[-1].argmax()))
        following = [*following[1:], drafts[-1]]
    assert rows.verified.counts_B.tolist() == [3]
    assert rows.tokens_BQ[0].tolist()[1:] == drafts
