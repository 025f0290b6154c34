"""Small random models for both engines, and the CPU network's logits as the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from model.batch import Batch, GroupBatch, PrefillRows
from model.config import TextConfig
from model.device.shapes import small_text_config
from model.dispatch import LocalDispatcher
from model.net.decoder import Decoder, DecoderLayer
from model.net.kv import KVCache
from model.placement import ExpertMap

CPU = torch.device("cpu")
M = TypeVar("M", bound=torch.nn.Module)


def text_of(num_layers: int = 6, window: int = 24) -> TextConfig:
    text = small_text_config()
    return replace(text, layers=text.layers[:num_layers], window=window)


def random_decoder(text: TextConfig, seed: int = 0) -> Decoder:
    """Float32, but every value is one that bfloat16 has: packing loses nothing."""
    return random_values(Decoder(text, text.num_experts, torch.float32), text, seed)


def random_values(module: M, text: TextConfig, seed: int) -> M:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "embedding":
            value = noise
        elif "scale" in name:
            value = 1 + 0.1 * (noise if parameter.ndim == 1 else noise[:1])  # heads share one row
            if parameter.ndim == 2:
                q_row, k_row = 1 + 0.1 * noise[:1], 1 + 0.1 * noise[-1:]
                num_kv = text.num_kv_heads
                value = torch.cat((q_row.expand(len(parameter) - num_kv, -1), k_row.expand(num_kv, -1)))
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * parameter.shape[-1] ** -0.5 * (3.0 if name.endswith("head") else 1.0)
        parameter.data.copy_(value.to(torch.bfloat16).float())
    return module.eval()


def logits_of(decoder: Decoder, token_ids: list[int]) -> torch.Tensor:
    """[T, V]: every position's, all computed at once."""
    return forward(decoder, token_ids)[0]


@torch.inference_mode()
def forward(decoder: Decoder, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, V] and hidden states [T, H] before the final norm."""
    text, num_tokens = decoder.text, len(token_ids)
    groups, positions = groups_of(text, num_tokens), torch.arange(num_tokens)
    ids = torch.tensor(token_ids)
    batch = Batch(num_tokens, ids, positions, groups["full"], groups["sliding"], positions, None, None)
    cache = KVCache(tuple(empty_pool(text, num_tokens) for _ in text.layers), 1)
    return decoder(batch, cache, LocalDispatcher(ExpertMap(text.num_experts, 1)))


def groups_of(text: TextConfig, num_tokens: int) -> dict[str, GroupBatch]:
    positions = torch.arange(num_tokens)
    distance = positions[:, None] - positions
    sees = {"full": distance >= 0, "sliding": (distance >= 0) & (distance < text.window)}
    return {
        kind: GroupBatch(positions, (), (PrefillRows(0, num_tokens, positions, mask),))
        for kind, mask in sees.items()
    }


def empty_pool(text: TextConfig, num_tokens: int) -> torch.Tensor:
    return torch.zeros(num_tokens, 2, text.num_kv_heads, text.head_dim)


def run_block(block: DecoderLayer, decoder: Decoder, x_TH: torch.Tensor) -> torch.Tensor:
    """A layer with a dense MLP over whole sequences: [T, H] -> [T, H]."""
    num_tokens = x_TH.shape[0]
    turns = decoder.ropes[block.kind](torch.arange(num_tokens), torch.float32)
    pool, group = empty_pool(decoder.text, num_tokens), groups_of(decoder.text, num_tokens)[block.kind]
    x_TH = x_TH + block.attention(block.attention_norm(x_TH), turns, pool, group)
    return x_TH + block.mlp(block.mlp_norm(x_TH))


def prompts_of(text: TextConfig, lengths: tuple[int, ...], seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, text.vocab_size, (length,), generator=generator).tolist() for length in lengths]
