"""Sizes of a small checkpoint of the real architecture, and its config.json in the hub's dialect.

The hub's dialect pads every per-layer list by the MTP layers, names the MoE layers in a string,
keeps the sliding layers' heads in `attention_other_setting`, and leaves out what never changes
(RMSNorm eps 1e-5, the vision MLP ratio 8960 / 1536).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class VisionShape:
    """The vision tower: the real geometry (728 px, patches of 14, two 3x3 convolutions), few channels."""

    width: int = 48
    layers: int = 3
    heads: int = 3
    image_size: int = 728
    patch_size: int = 14

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP; the ratio is the published model's."""
        return int(self.width * (8960 / 1536))

    @property
    def num_positions(self) -> int:
        """Learned positions: one for each patch of a 728 px view."""
        return (self.image_size // self.patch_size) ** 2


# Begin, end, padding, 256 bytes and 171 merges. Control tokens follow (model.nano.tokenizer).
NUM_TEXT_IDS = 430


@dataclass(frozen=True)
class TokenIds:
    """Ids that config files name. `bos` and the first two `eos` are those of the published model."""

    image: int = NUM_TEXT_IDS + 1
    eos: tuple[int, ...] = (1, 2, NUM_TEXT_IDS + 7)
    bos: int = 0
    # Ids from here on are control tokens or have no token: random weights shall speak text.
    num_text_ids: int = NUM_TEXT_IDS


@dataclass(frozen=True)
class Shape:
    """Sizes of everything. Defaults: a random checkpoint of 4 MB in bfloat16, for tests and benches.

    Every part of the published model is there: both layer types with different head counts, dense
    and MoE layers, clamped last layers, scaled RoPE, MTP layers, more rows than the tokenizer has ids.
    """

    vocab_size: int = 448
    hidden: int = 64
    num_layers: int = 8
    num_dense_layers: int = 2
    num_mtp_layers: int = 3
    full_attention_every: int = 4  # layers 0, 4, ... see everything; MTP layers never do
    num_full_heads: int = 4
    num_sliding_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    window: int = 64
    dense_width: int = 128
    num_experts: int = 16
    num_active_experts: int = 4
    expert_width: int = 32
    shared_width: int = 32
    router_scaling: float = 3.0
    num_clamped_layers: int = 2
    routed_clamp: float = 7.0
    shared_clamp: float = 16.0
    context_len: int = 16384
    rope_factor: float = 4.0
    original_context_len: int = 4096
    vision: VisionShape = field(default_factory=VisionShape)
    tokens: TokenIds = field(default_factory=TokenIds)

    @property
    def num_all_layers(self) -> int:
        """Decoder layers and, after them, MTP layers: the length of every per-layer list."""
        return self.num_layers + self.num_mtp_layers

    def is_mtp(self, layer: int) -> bool:
        """Whether the layer only drafts."""
        return layer >= self.num_layers

    def is_full(self, layer: int) -> bool:
        """Whether the layer attends to everything before it."""
        return not self.is_mtp(layer) and layer % self.full_attention_every == 0

    def is_moe(self, layer: int) -> bool:
        """Whether the layer has experts."""
        return self.num_dense_layers <= layer < self.num_layers

    def is_clamped(self, layer: int) -> bool:
        """Whether the layer's experts clamp their SwiGLU."""
        return self.num_layers - self.num_clamped_layers <= layer < self.num_layers

    def num_heads(self, layer: int) -> int:
        """Query heads of a layer."""
        return self.num_full_heads if self.is_full(layer) else self.num_sliding_heads


# The default model: 9.9 million parameters, 20 MB in bfloat16.
NANO = Shape(
    hidden=256,
    num_full_heads=6,
    num_sliding_heads=8,
    window=512,
    dense_width=240,
    shared_width=64,
    vision=VisionShape(width=128, layers=6, heads=2),
)


def hub_config(shape: Shape, dtype: str = "bfloat16") -> dict[str, Any]:
    """config.json of a Step-3.7 checkpoint as its makers publish it."""
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "model_type": "step3p7",
        "im_end_token": "<im_end>",
        "im_patch_token": "<im_patch>",
        "im_start_token": "<im_start>",
        "image_token_len": 169,
        "patch_token_len": 81,
        "image_token_id": shape.tokens.image,
        "understand_projector_stride": 2,
        "use_im_start_end": "true",
        "vision_select_layer": -1,
        "projector_bias": False,
        "vision_config": _vision_config(shape.vision),
        "text_config": text_config(shape, dtype),
    }


def _vision_config(vision: VisionShape) -> dict[str, Any]:
    return {
        "model_type": "perception_encoder",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.layers,
        "heads": vision.heads,
        "pool_type": "none",
        "output_dim": None,
        "use_cls_token": False,
        "ls_init_value": 0.1,
        "use_ln_post": False,
        "hidden_act": "quick_gelu",
    }


def text_config(shape: Shape, dtype: str = "bfloat16") -> dict[str, Any]:
    """The decoder's part of config.json; alone it is the config.json of a Step-3.5 checkpoint."""
    return {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_width,
        "num_hidden_layers": shape.num_layers,
        "max_seq_len": shape.context_len,
        "max_position_embeddings": shape.context_len,
        "vocab_size": shape.vocab_size,
        "torch_dtype": dtype,
        "num_nextn_predict_layers": shape.num_mtp_layers,
        "eos_token_id": list(shape.tokens.eos),
        "bos_token_id": shape.tokens.bos,
        **_attention_config(shape),
        **_moe_config(shape),
    }


def _attention_config(shape: Shape) -> dict[str, Any]:
    full = [shape.is_full(layer) for layer in range(shape.num_all_layers)]
    return {
        "layer_types": [FULL if is_full else SLIDING for is_full in full],
        "rope_theta": [5000000.0 if is_full else 10000.0 for is_full in full],
        "partial_rotary_factors": [0.5 if is_full else 1.0 for is_full in full],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": shape.rope_factor,
            "original_max_position_embeddings": shape.original_context_len,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
        },
        "yarn_only_types": [FULL],
        "use_rope_layers": [],
        "att_impl_type": "GQA",
        "use_mfa": False,
        "sink": False,
        "num_attention_heads": shape.num_full_heads,
        "num_attention_groups": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "attention_other_setting": {
            "attention_type": SLIDING,
            "num_attention_heads": shape.num_sliding_heads,
            "num_attention_groups": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "true_head_dim": shape.head_dim,
        },
        "use_head_wise_attn_gate": True,
        "sliding_window": shape.window,
    }


def _moe_config(shape: Shape) -> dict[str, Any]:
    layers = range(shape.num_all_layers)
    return {
        "use_moe": True,
        "moe_layers_enum": ",".join(str(layer) for layer in layers if shape.is_moe(layer)),
        "moe_num_experts": shape.num_experts,
        "moe_top_k": shape.num_active_experts,
        "moe_intermediate_size": shape.expert_width,
        "share_expert_dim": shape.shared_width,
        "moe_layer_offset": 0,
        "moe_every_n_layer": 1,
        "norm_expert_weight": True,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": shape.router_scaling,
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "swiglu_limits": [shape.routed_clamp if shape.is_clamped(layer) else 0.0 for layer in layers],
        "swiglu_limits_shared": [shape.shared_clamp if shape.is_clamped(layer) else 0.0 for layer in layers],
    }
