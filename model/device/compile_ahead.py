"""Compiles what a rank's steps launch, side by side, before graphs are captured one after the other."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from model.device.chunks import PrefillChunks
from model.device.decoder import DeviceDecoder
from model.device.few_layers import few_layers
from model.device.sizes import PlanSizes
from model.device.state import allocate_scratch
from model.device.verify import VerifyRows, verify_step
from model.shown_rows import ShownRows

_MOST_THREADS = 16


def compile_ahead(decoder: DeviceDecoder, sizes: PlanSizes, dtype: torch.dtype) -> None:
    """Compile on a GPU's host; what does not compile is found when it is launched."""
    from model.kernels.precompile import precompile

    num_threads = (os.cpu_count() or 1) // decoder.exchange.num_expert_ranks
    precompile(lambda: every_step(decoder, sizes, dtype), max(1, min(_MOST_THREADS, num_threads)))


def every_step(decoder: DeviceDecoder, sizes: PlanSizes, dtype: torch.dtype) -> None:
    """A step of padding of each bucket, and a chunk of each length, in a few layers."""
    few = _with_few_layers(decoder)
    for num_queries in sizes.queries:
        for num_seqs in sizes.row_buckets:
            rows = VerifyRows.allocate(num_seqs, num_queries, sizes.num_columns, few.weights.device)
            scratch = allocate_scratch(few.weights, few.ops, num_seqs, num_queries, dtype, is_prefill=False)
            verify_step(few, rows, scratch)
    PrefillChunks(few, sizes, dtype, ShownRows(sizes.num_blocks["sliding"], sizes.block_size)).warm_up()


def _with_few_layers(decoder: DeviceDecoder) -> DeviceDecoder:
    """Which pool a layer has does not matter to its kernels."""
    few, num_mtp = few_layers(decoder.weights), len(decoder.weights.mtp)
    num_layers = len(decoder.weights.layers)
    pools = decoder.pools[: len(few.layers)] + decoder.pools[num_layers : num_layers + num_mtp]
    return replace(decoder, weights=few, pools=pools)
