"""The published model's text config in code, and a small one like it: benches need no checkpoint."""

from __future__ import annotations

from typing import Literal

from model.config import LayerConfig, Llama3Scaling, RopeConfig, TextConfig

NUM_LAYERS, NUM_MTP_LAYERS, NUM_DENSE_LAYERS = 45, 3, 3
FULL_ATTENTION_EVERY = 4
SMALL_LAYERS = 6
EOS_IDS = (1, 2, 128007)
BLOCK_SIZE = 16

ConfigName = Literal["full", "small"]


def text_config(name: ConfigName) -> TextConfig:
    """Step-3.7-Flash's decoder ("full"), or one of 6 layers with the same kinds of them."""
    return full_text_config() if name == "full" else small_text_config()


def full_text_config() -> TextConfig:
    """Sizes of the published config.json."""
    scaling = Llama3Scaling(2.0, 131_072, 1.0, 32.0)
    return TextConfig(
        vocab_size=128_896, hidden_size=4096, head_dim=128, num_kv_heads=8, window=512, context_len=262_144,
        rms_eps=1e-5, dense_width=11_264, num_experts=288, experts_per_token=8, expert_width=1280,
        shared_width=1280, routed_scale=3.0, bos_id=0, eos_ids=EOS_IDS,
        layers=_layers(NUM_LAYERS, 0, 128, (64, 96), scaling, NUM_DENSE_LAYERS),
        mtp_layers=_layers(NUM_MTP_LAYERS, NUM_LAYERS, 128, (64, 96), scaling, NUM_LAYERS),
    )  # fmt: skip


def small_text_config() -> TextConfig:
    """Two ranks can share it: 4 key heads, 16 experts."""
    scaling = Llama3Scaling(2.0, 64, 1.0, 32.0)
    return TextConfig(
        vocab_size=512, hidden_size=128, head_dim=32, num_kv_heads=4, window=64, context_len=4096,
        rms_eps=1e-5, dense_width=256, num_experts=16, experts_per_token=4, expert_width=128,
        shared_width=128, routed_scale=3.0, bos_id=0, eos_ids=(1,),
        layers=_layers(SMALL_LAYERS, 0, 32, (8, 12), scaling, 2),
        mtp_layers=_layers(NUM_MTP_LAYERS, SMALL_LAYERS, 32, (8, 12), scaling, SMALL_LAYERS),
    )  # fmt: skip


def _layers(
    num_layers: int,
    first: int,
    head_dim: int,
    num_heads: tuple[int, int],
    scaling: Llama3Scaling,
    num_dense: int,
) -> tuple[LayerConfig, ...]:
    """Layers 0, 4, ... see everything; MTP layers, which come behind (`first` > 0), never do."""
    layers = []
    for index in range(first, first + num_layers):
        is_full = not first and index % FULL_ATTENTION_EVERY == 0
        rope = RopeConfig(5e6, head_dim // 2, scaling) if is_full else RopeConfig(1e4, head_dim, None)
        is_clamped = not first and index >= num_layers - 2
        layers.append(
            LayerConfig(
                index=index,
                attention="full" if is_full else "sliding",
                num_heads=num_heads[0] if is_full else num_heads[1],
                rope=rope,
                is_moe=not first and index >= num_dense,
                swiglu_limit=7.0 if is_clamped else None,
                shared_swiglu_limit=16.0 if is_clamped else None,
            )
        )
    return tuple(layers)
