"""The paged KV cache of one rank: one pool per layer, MTP layers last, in two groups of blocks.

Full-attention layers share one block table, sliding layers another: a logical block is the same
physical block in every layer of its group. What MTP layers read of the decoder is kept like a sliding
layer's keys, so that a sequence finds it behind a prefix that others have computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import TextConfig
from model.sched.config import SchedulerConfig


@dataclass(frozen=True)
class KVCache:
    """`pools[i]` is [num_slots, 2 (key, value), K, D] of layer i; slot = block * block_size + offset.

    `hidden_XH`: rows of the decoder before its final norm, [slots of the sliding group, H]; None: no drafts.
    """

    pools: tuple[torch.Tensor, ...]
    block_size: int
    hidden_XH: torch.Tensor | None = None

    @classmethod
    def allocate(
        cls, text: TextConfig, sizes: SchedulerConfig, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Zeroed pools: a padded slot is masked, and 0 times a stale NaN would not be 0.

        MTP layers have pools where the plan has drafts.
        """
        layers = (*text.layers, *(text.mtp_layers if sizes.num_drafts else ()))
        num_blocks = {"full": sizes.num_full_blocks, "sliding": sizes.num_sliding_blocks}
        shape = (sizes.block_size, 2, text.num_kv_heads, text.head_dim)
        return cls(
            pools=tuple(
                torch.zeros(num_blocks[layer.attention] * shape[0], *shape[1:], dtype=dtype, device=device)
                for layer in layers
            ),
            block_size=sizes.block_size,
            hidden_XH=torch.zeros(
                num_blocks["sliding"] * sizes.block_size, text.hidden_size, dtype=dtype, device=device
            )
            if sizes.num_drafts
            else None,
        )

    @property
    def device(self) -> torch.device:
        """Where the pools are."""
        return self.pools[0].device

    def copy_block(self, text: TextConfig, group: str, source: int, target: int) -> None:
        """Copy one block in every pool of a group, "full" or "sliding"."""
        layers = (*text.layers, *text.mtp_layers)[: len(self.pools)]
        pools = [pool for layer, pool in zip(layers, self.pools, strict=True) if layer.attention == group]
        if group == "sliding" and self.hidden_XH is not None:
            pools.append(self.hidden_XH)
        size = self.block_size
        for pool in pools:
            pool[target * size : (target + 1) * size] = pool[source * size : (source + 1) * size]
