"""Two ranks over gloo: the same tokens and logits as one, and the same bits on both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
import torch.distributed as dist

from model.device import ops_plain
from model.device.decoder import DeviceDecoder
from model.device.exchange import Addends, Alone, GlooExchange
from model.device.layout import KINDS, KVLayout, allocate_pools
from model.device.ops import Ops
from model.device.prefill import prefill
from model.device.state import StepRows, allocate_scratch
from model.device.weights import Formats
from model.kernels.linear_config import InputNorm
from model.kernels.norms_plain import RoutedRows
from tests.model.device.pack_decoder import pack_decoder
from tests.model.device.small_models import CPU, prompts_of, random_decoder, text_of
from tests.model.ranks import run_ranks

NUM_STEPS = 6


@torch.inference_mode()
def answers(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [steps, B] and this rank's last logits [B, V]."""
    text = text_of(num_layers=5)
    exchange = Alone() if world_size == 1 else GlooExchange(dist.group.WORLD)
    weights = pack_decoder(random_decoder(text), Formats("bf16", "bf16"), rank, world_size)
    layout = KVLayout.for_lengths(text, 2, 64, 32)
    pools = allocate_pools(text, weights.share, layout, torch.float32, CPU)
    engine = DeviceDecoder(weights, pools, ops_plain, exchange)
    rows = StepRows.allocate(2, 1, layout.num_columns, CPU)
    for kind in KINDS:
        rows.sequences[kind].blocks_BM.copy_(layout.blocks(kind, CPU))
    large = allocate_scratch(weights, ops_plain, 48, 1, torch.float32, is_prefill=True)
    prefill(engine, rows, large, prompts_of(text, (31, 7)), 48, 32)
    scratch = allocate_scratch(weights, ops_plain, 2, 1, torch.float32, is_prefill=False)
    tokens = [rows.token_ids_T.clone()]
    for _ in range(NUM_STEPS):
        engine.decode_step(rows, scratch)
        tokens.append(rows.token_ids_T.clone())
    logits = scratch.view("logits", 2, weights.head.shape[0])
    assert logits is not None
    return torch.stack(tokens), logits.clone()


def run_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{directory}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(answers(rank, 2), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_answer_as_one() -> None:
    with tempfile.TemporaryDirectory() as directory:
        run_ranks(run_rank, directory)
        ranks = [torch.load(Path(directory) / f"{rank}.pt") for rank in (0, 1)]
    tokens, logits = answers(0, 1)
    assert torch.equal(ranks[0][0], ranks[1][0])
    assert torch.equal(ranks[0][0], tokens)
    both = torch.cat([part for _, part in ranks], dim=1)
    assert (both - logits).abs().max() < 1e-4 * logits.abs().max()


def test_alone_whatever_is_to_be_added_is_added_and_normed_in_one_launch() -> None:
    """Parts of a product and rows of experts: who adds them first by themselves pays a launch a sum."""
    launches = list[dict[str, object]]()
    ops = SimpleNamespace(add_norm=lambda *_, **what: launches.append(what))
    ids_TK = torch.zeros(1, 1, dtype=torch.int32)
    routed = RoutedRows(torch.zeros(1, 8), ids_TK, torch.ones(1, 1), 0, 1, 1.0)
    addends, hidden_TH = Addends(torch.zeros(3, 1, 8), routed), torch.zeros(1, 8)
    Alone().add_norm(addends, cast("Ops", ops), hidden_TH, InputNorm(torch.ones(8), 1e-5), hidden_TH.clone())
    assert [(what["deltas_PTH"], what["routed"]) for what in launches] == [(addends.deltas_PTH, routed)]
