"""What copying a block brings along."""

from __future__ import annotations

import torch

from model.nano import default_checkpoint
from model.net.kv import KVCache
from model.options import EngineOptions, scheduler_config
from model.weights import open_checkpoint


def test_a_copied_block_of_the_sliding_group_has_what_drafts_are_made_of() -> None:
    text = open_checkpoint(default_checkpoint()).config.text
    sizes = scheduler_config(text, EngineOptions(kv_blocks=8, max_running=1, chunk_tokens=16), has_mtp=True)
    cache = KVCache.allocate(text, sizes, torch.float32, torch.device("cpu"))
    assert cache.hidden_XH is not None
    for pool in (*cache.pools, cache.hidden_XH):
        pool.normal_()
    cache.copy_block(text, "sliding", 1, 3)

    def has_copy(pool: torch.Tensor) -> bool:
        blocks = pool.unflatten(0, (-1, cache.block_size))
        return torch.equal(blocks[3], blocks[1])

    layers = (*text.layers, *text.mtp_layers)
    assert [has_copy(pool) for pool in cache.pools] == [layer.attention == "sliding" for layer in layers]
    assert has_copy(cache.hidden_XH)
