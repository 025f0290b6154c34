"""The device engine's steps in plain torch against the CPU network.

Weights are values of bfloat16, activations and cache float32 on both sides: what differs is the order of
sums, 1e-4 of the largest logit. Greedy tokens are equal unless the two best logits are closer than that.
"""

from __future__ import annotations

import pytest
import torch

from model.device import ops_plain
from model.device.decoder import DeviceDecoder
from model.device.exchange import Alone
from model.device.layout import KINDS, KVLayout, allocate_pools
from model.device.prefill import plan_chunks, prefill
from model.device.state import Scratch, StepRows, allocate_scratch
from model.device.weights import Formats
from model.net.decoder import Decoder
from tests.model.device.pack_decoder import pack_decoder
from tests.model.device.small_models import CPU, logits_of, prompts_of, random_decoder, text_of

CLOSE = 1e-4
LENGTHS = (3, 30, 70)  # below, across and far beyond the window of 24


def device_decoder(
    decoder: Decoder, num_seqs: int, context_len: int, chunk_len: int
) -> tuple[DeviceDecoder, KVLayout]:
    weights = pack_decoder(decoder, Formats("bf16", "bf16"), 0, 1)
    layout = KVLayout.for_lengths(decoder.text, num_seqs, context_len, chunk_len)
    pools = allocate_pools(decoder.text, weights.share, layout, torch.float32, CPU)
    return DeviceDecoder(weights, pools, ops_plain, Alone()), layout


def step_of(
    engine: DeviceDecoder, layout: KVLayout, num_queries: int, num_padding: int = 0
) -> tuple[StepRows, Scratch]:
    num_seqs = layout.num_seqs + num_padding
    rows = StepRows.allocate(num_seqs, num_queries, layout.num_columns, CPU)
    for kind in KINDS:
        rows.sequences[kind].blocks_BM[: layout.num_seqs] = layout.blocks(kind, CPU)
    scratch = allocate_scratch(
        engine.weights, ops_plain, num_seqs, num_queries, torch.float32, is_prefill=False
    )
    return rows, scratch


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float((ours - truth).abs().max() / truth.abs().max())


def prefilled(
    engine: DeviceDecoder, rows: StepRows, prompts: list[list[int]], chunk: int, piece: int
) -> None:
    scratch = allocate_scratch(engine.weights, ops_plain, chunk, 1, torch.float32, is_prefill=True)
    prefill(engine, rows, scratch, prompts, chunk, piece)


@torch.inference_mode()
def test_chunked_prefill_and_24_steps_give_the_cpu_networks_tokens() -> None:
    text = text_of()
    decoder, prompts = random_decoder(text), prompts_of(text, LENGTHS)
    engine, layout = device_decoder(decoder, len(prompts), 128, 16)
    rows, scratch = step_of(engine, layout, 1, num_padding=1)
    prefilled(engine, rows, [*prompts], chunk=37, piece=16)
    logits_VTV, tokens = [], [[int(token)] for token in rows.token_ids_T[: len(prompts)]]
    for _ in range(23):
        engine.decode_step(rows, scratch)
        logits = scratch.view("logits", rows.num_seqs, text.vocab_size)
        assert logits is not None
        logits_VTV.append(logits[: len(prompts)].clone())
        for seq, answer in enumerate(tokens):
            answer.append(int(rows.token_ids_T[seq]))
    for seq, (prompt, answer) in enumerate(zip(prompts, tokens, strict=True)):
        truth = logits_of(decoder, prompt + answer[:-1])[len(prompt) - 1 :]
        ours = torch.stack([step[seq] for step in logits_VTV])
        assert difference(ours, truth[1:]) < CLOSE
        for step, token in enumerate(answer):
            assert truth[step].max() - truth[step, token] <= CLOSE * truth.abs().max()
    assert rows.positions_T[-1] == -1 and rows.context_lens_B[-1] == 0  # padding stays padding


@pytest.mark.parametrize("num_queries", [1, 2, 3, 4])
@torch.inference_mode()
def test_rows_to_verify_have_the_logits_of_single_tokens(num_queries: int) -> None:
    text = text_of(num_layers=4)
    decoder, prompts = random_decoder(text, seed=1), prompts_of(text, (29, 5), seed=2)
    engine, layout = device_decoder(decoder, 2, 64, 16)
    first, _ = step_of(engine, layout, 1)
    prefilled(engine, first, prompts, chunk=32, piece=16)
    rows, scratch = step_of(engine, layout, num_queries)
    drafts = prompts_of(text, (num_queries, num_queries), seed=3)
    for seq, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
        rows.set_sequence(seq, draft, len(prompt))
    engine.decode_step(rows, scratch)
    logits = scratch.view("logits", 2, num_queries, text.vocab_size)
    assert logits is not None
    for seq, (prompt, draft) in enumerate(zip(prompts, drafts, strict=True)):
        truth = logits_of(decoder, prompt + draft)[len(prompt) :]
        assert difference(logits[seq], truth) < CLOSE
    assert int(scratch.own.token_ids[0]) == int(logits[0, 0].argmax())


@torch.inference_mode()
def test_prefill_leaves_what_decoding_token_by_token_leaves() -> None:
    text = text_of(num_layers=5)
    decoder, prompts = random_decoder(text, seed=4), prompts_of(text, (40,), seed=6)
    chunked, layout = device_decoder(decoder, 1, 48, 48)
    single, _ = device_decoder(decoder, 1, 48, 48)
    rows, _ = step_of(chunked, layout, 1)
    prefilled(chunked, rows, prompts, chunk=16, piece=16)
    steps, scratch = step_of(single, layout, 1)
    for position, token in enumerate(prompts[0]):
        steps.set_sequence(0, [token], position)
        single.decode_step(steps, scratch)
    assert steps.token_ids_T.tolist() == rows.token_ids_T.tolist()
    for one, other in zip(chunked.pools, single.pools, strict=True):
        torch.testing.assert_close(one.pool_XK2SD, other.pool_XK2SD, rtol=1e-4, atol=1e-4)


def test_chunks_bring_every_token_once_and_in_order() -> None:
    lengths, seen = [5, 0, 33, 16], [0, 0, 0, 0]
    for pieces in plan_chunks(lengths, chunk_tokens=20, piece_tokens=8):
        assert 0 < sum(piece.end - piece.first for piece in pieces) <= 20
        for piece in pieces:
            assert piece.first == seen[piece.seq] and 0 < piece.end - piece.first <= 8
            seen[piece.seq] = piece.end
    assert seen == lengths


@pytest.mark.parametrize("formats", [Formats("int4", "int8"), Formats("fp8", "fp8"), Formats("int8", "bf16")])
@torch.inference_mode()
def test_quantized_weights_run_and_stay_near(formats: Formats) -> None:
    text = text_of(num_layers=4)
    decoder, prompts = random_decoder(text, seed=7), prompts_of(text, (12,), seed=8)
    weights = pack_decoder(decoder, formats, 0, 1)
    layout = KVLayout.for_lengths(text, 1, 32, 16)
    engine = DeviceDecoder(
        weights, allocate_pools(text, weights.share, layout, torch.float32, CPU), ops_plain, Alone()
    )
    rows, scratch = step_of(engine, layout, 1)
    prefilled(engine, rows, prompts, chunk=16, piece=16)
    answer = int(rows.token_ids_T[0])
    engine.decode_step(rows, scratch)
    logits, truth = scratch.view("logits", text.vocab_size), logits_of(decoder, [*prompts[0], answer])[-1]
    assert logits is not None
    correlation = torch.corrcoef(torch.stack((logits, truth)))[0, 1]
    assert correlation > (0.95 if formats.experts == "int4" else 0.99)
