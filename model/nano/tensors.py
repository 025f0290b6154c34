"""Every tensor of a checkpoint by its name on the hub: its shape and how large its random values are.

H hidden, V vocabulary, E experts, I width of an expert, P vision width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from model.nano.shape import Shape, VisionShape

# Root mean square of a block's output when its SwiGLU is not clamped: silu(n) * n for normal n.
_SWIGLU_RMS = 0.6
_BLOCK_RMS = 0.5  # every block adds this much to a residual stream that starts at 1


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: values are uniform in mean +- spread.

    `damped_from`: rows from here on are an eighth as large. `is_float32`: kept so in any checkpoint.
    """

    shape: tuple[int, ...]
    spread: float
    mean: float = 0.0
    damped_from: int | None = None
    is_float32: bool = False


def tensor_table(shape: Shape) -> dict[str, TensorSpec]:
    """All tensors, in the order in which files hold them."""
    table = {"model.embed_tokens.weight": TensorSpec((shape.vocab_size, shape.hidden), math.sqrt(3))}
    for layer in range(shape.num_all_layers):
        prefix = f"model.layers.{layer}."
        parts = _mtp_layer(shape) if shape.is_mtp(layer) else iter(())
        table |= {prefix + name: spec for name, spec in (*_block(shape, layer), *parts)}
    table["model.norm.weight"] = _norm(shape.hidden)
    table["lm_head.weight"] = _head(shape)
    return table | dict(_vision_tower(shape.vision)) | _projector(shape)


def _matrix(rows: int, columns: int, gain: float = 1.0) -> TensorSpec:
    """Output variance = gain squared x input variance; a uniform in +-a has the variance a * a / 3."""
    return TensorSpec((rows, columns), gain * math.sqrt(3 / columns))


def _norm(size: int, mean: float = 0.0) -> TensorSpec:
    return TensorSpec((size,), 0.2, mean)


def _head(shape: Shape) -> TensorSpec:
    # Standard deviation of logits 3: a test sees which of the best two is taken.
    size = (shape.vocab_size, shape.hidden)
    return TensorSpec(size, 3 * math.sqrt(3 / shape.hidden), damped_from=shape.tokens.num_text_ids)


def _block(shape: Shape, layer: int) -> Iterator[tuple[str, TensorSpec]]:
    yield "input_layernorm.weight", _norm(shape.hidden)
    yield from _attention(shape, layer)
    yield "post_attention_layernorm.weight", _norm(shape.hidden)
    if shape.is_moe(layer):
        yield from _moe(shape, layer)
    else:
        yield from _mlp("mlp", shape.hidden, shape.dense_width, 0.0)


def _attention(shape: Shape, layer: int) -> Iterator[tuple[str, TensorSpec]]:
    num_heads, hidden, head_dim = shape.num_heads(layer), shape.hidden, shape.head_dim
    yield "self_attn.q_proj.weight", _matrix(num_heads * head_dim, hidden)
    yield "self_attn.k_proj.weight", _matrix(shape.num_kv_heads * head_dim, hidden)
    yield "self_attn.v_proj.weight", _matrix(shape.num_kv_heads * head_dim, hidden)
    yield "self_attn.o_proj.weight", _matrix(hidden, num_heads * head_dim)
    yield "self_attn.g_proj.weight", _matrix(num_heads, hidden)
    # Scores twice as sharp as with weight 0, or attention would be an average over everything.
    yield "self_attn.q_norm.weight", _norm(head_dim, mean=0.5)
    yield "self_attn.k_norm.weight", _norm(head_dim, mean=0.5)


def _moe(shape: Shape, layer: int) -> Iterator[tuple[str, TensorSpec]]:
    clamped = shape.is_clamped(layer)
    up, down = _swiglu_gains(shape.routed_clamp if clamped else 0.0)
    experts, hidden, width = shape.num_experts, shape.hidden, shape.expert_width
    yield "moe.gate.weight", _matrix(experts, hidden)
    yield "moe.router_bias", TensorSpec((experts,), 0.2, is_float32=True)
    yield "moe.gate_proj.weight", TensorSpec((experts, width, hidden), up * math.sqrt(3 / hidden))
    yield "moe.up_proj.weight", TensorSpec((experts, width, hidden), up * math.sqrt(3 / hidden))
    yield "moe.down_proj.weight", TensorSpec((experts, hidden, width), down * math.sqrt(3 / width))
    yield from _mlp("share_expert", hidden, shape.shared_width, shape.shared_clamp if clamped else 0.0)


def _mlp(name: str, hidden: int, width: int, clamp: float) -> Iterator[tuple[str, TensorSpec]]:
    up, down = _swiglu_gains(clamp)
    yield f"{name}.gate_proj.weight", _matrix(width, hidden, up)
    yield f"{name}.up_proj.weight", _matrix(width, hidden, up)
    yield f"{name}.down_proj.weight", _matrix(hidden, width, down)


def _swiglu_gains(clamp: float) -> tuple[float, float]:
    """Gains before and after a SwiGLU. With a clamp, about one value in five must meet it."""
    if not clamp:
        return 1.0, _BLOCK_RMS / _SWIGLU_RMS
    return 0.8 * clamp, _BLOCK_RMS / (0.27 * clamp * clamp)


def _mtp_layer(shape: Shape) -> Iterator[tuple[str, TensorSpec]]:
    yield "enorm.weight", _norm(shape.hidden)
    yield "hnorm.weight", _norm(shape.hidden)
    yield "eh_proj.weight", _matrix(shape.hidden, 2 * shape.hidden)
    yield "transformer.shared_head.norm.weight", _norm(shape.hidden)
    yield "transformer.shared_head.output.weight", _head(shape)


def _vision_tower(vision: VisionShape) -> Iterator[tuple[str, TensorSpec]]:
    width, patch = vision.width, vision.patch_size
    prefix = "vision_model."
    yield prefix + "conv1.weight", TensorSpec((width, 3, patch, patch), math.sqrt(3 / (3 * patch * patch)))
    yield prefix + "positional_embedding", TensorSpec((vision.num_positions, width), 0.5)
    yield from _layer_norm(prefix + "ln_pre", width)
    for layer in range(vision.layers):
        yield from _vision_block(f"{prefix}transformer.resblocks.{layer}.", vision)
    for number, channels in ((1, width), (2, 2 * width)):
        name = f"{prefix}vit_downsampler{number}"
        yield f"{name}.weight", TensorSpec((2 * channels, channels, 3, 3), math.sqrt(3 / (9 * channels)))
        yield f"{name}.bias", _bias(2 * channels)


def _vision_block(prefix: str, vision: VisionShape) -> Iterator[tuple[str, TensorSpec]]:
    width = vision.width
    yield from _layer_norm(prefix + "ln_1", width)
    yield prefix + "attn.in_proj_weight", _matrix(3 * width, width, gain=1.5)
    yield prefix + "attn.in_proj_bias", _bias(3 * width)
    yield prefix + "attn.out_proj.weight", _matrix(width, width)
    yield prefix + "attn.out_proj.bias", _bias(width)
    yield prefix + "ls_1.gamma", TensorSpec((width,), 0.2, mean=0.5)
    yield from _layer_norm(prefix + "ln_2", width)
    yield prefix + "mlp.c_fc.weight", _matrix(vision.mlp_width, width)
    yield prefix + "mlp.c_fc.bias", _bias(vision.mlp_width)
    yield prefix + "mlp.c_proj.weight", _matrix(width, vision.mlp_width, gain=2.0)
    yield prefix + "mlp.c_proj.bias", _bias(width)
    yield prefix + "ls_2.gamma", TensorSpec((width,), 0.2, mean=0.5)


def _layer_norm(name: str, size: int) -> Iterator[tuple[str, TensorSpec]]:
    yield f"{name}.weight", _norm(size, mean=1.0)
    yield f"{name}.bias", _bias(size)


def _bias(size: int) -> TensorSpec:
    return TensorSpec((size,), 0.1)


def _projector(shape: Shape) -> dict[str, TensorSpec]:
    # Two convolutions doubled the width twice.
    return {"vit_large_projector.weight": _matrix(shape.hidden, 4 * shape.vision.width)}
