"""Compiles for an H100, without a GPU, every kernel of the full-size step: kernels, registers, stack.

`python -m tests.model.device.compile_step EXPERTS REST RANKS ROWS...`, without TRITON_INTERPRET. A layer of
each kind with few experts: what is compiled depends on no more.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch

from model.device import ops_triton
from model.device.decoder import DeviceDecoder
from model.device.exchange import Addends, Alone
from model.device.layout import KVLayout, allocate_pools
from model.device.ops import Ops
from model.device.random_weights import random_weights
from model.device.shapes import full_text_config
from model.device.state import StepRows, allocate_scratch
from model.device.weights import DeviceWeights, Formats, Share
from model.kernels.linear_config import InputNorm
from model.kernels.peer import Inboxes, sum_add_norm
from model.kernels.sample_plain import Candidates
from tests.model.device.small_models import CPU
from tests.model.kernels.offline import compile_calls

LAYERS = (0, 1, 3, 4, 44)
# Experts of a rank do not change a kernel but as a bound of ids: few are enough, and fit into memory.
NUM_EXPERTS = 16


class PretendedExchange(Alone):
    """Several ranks, as far as launches go."""

    num_ranks = num_expert_ranks = 2

    def add_norm(
        self,
        addends: Addends,
        ops: Ops,
        hidden_TH: torch.Tensor,
        norm: InputNorm,
        normed_TH: torch.Tensor,
    ) -> None:
        num_rows, width = hidden_TH.shape[0], hidden_TH.shape[1] // 2
        own = torch.zeros(Inboxes.num_words(2, num_rows, width), dtype=torch.int64)
        turns_T = torch.zeros(num_rows, dtype=torch.int64)
        inboxes = Inboxes(0, torch.zeros(2, dtype=torch.int64), own, turns_T, num_rows, width)
        sum_add_norm(addends.deltas_PTH, inboxes, hidden_TH, norm, normed_TH, addends.routed)

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        return out


def step(weights: DeviceWeights, num_seqs: int, num_queries: int, num_ranks: int) -> None:
    layout = KVLayout.for_lengths(weights.text, num_seqs, 256, num_queries)
    pools = allocate_pools(weights.text, weights.share, layout, torch.bfloat16, CPU)
    exchange = Alone() if num_ranks == 1 else PretendedExchange()
    rows = StepRows.allocate(num_seqs, num_queries, layout.num_columns, CPU)
    scratch = allocate_scratch(weights, ops_triton, num_seqs, num_queries, torch.bfloat16, is_prefill=False)
    DeviceDecoder(weights, pools, ops_triton, exchange).decode_step(rows, scratch)


def main() -> None:
    experts, rest, num_ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
    text = full_text_config()
    layers = tuple(text.layers[index] for index in LAYERS)
    text = replace(text, layers=layers, num_experts=NUM_EXPERTS * num_ranks, vocab_size=4096 * num_ranks)
    weights = random_weights(text, Formats(experts, rest), Share(0, num_ranks), 0, CPU)  # type: ignore[arg-type]
    for num_seqs in map(int, sys.argv[4:]):
        begin, seen = time.perf_counter(), set()
        kernels = compile_calls(lambda rows=num_seqs: step(weights, rows, 1, num_ranks))  # type: ignore[misc]
        for kernel in kernels:
            seen.add((kernel.name, kernel.num_registers, kernel.stack_bytes, kernel.shared_bytes))
        print(f"rows {num_seqs}: {len(kernels)} launches, {len(LAYERS)} layers, {len(seen)} kernels,")
        print(f"  {time.perf_counter() - begin:.0f} s to compile one after the other")
        for line in sorted(seen):
            print("  ", *line)


if __name__ == "__main__":
    main()
