"""Which tensor of a checkpoint lands where: one table, used to load, to check and to fingerprint.

Names and shapes are those of the hub (model card of Step-3.7-Flash; `save_pretrained` of the
transformers port writes the same). MTP layers and vision tower are groups that a file may leave out
whole; a group that is there in part is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.config import LayerConfig, ModelConfig, TextConfig, VisionConfig

Group = Literal["decoder", "vision", "mtp"]


@dataclass(frozen=True)
class Entry:
    """Tensor `name` of `shape` fills `parameter` (dotted path in our module), from `first_row` on.

    `adds_one`: files hold w, we hold 1 + w (RMS norms). `num_repeats`: the tensor is one row, repeated.
    `is_stacked`: dimension 0 counts experts, a rank takes its own, and `first_row` counts in dimension 1.
    """

    name: str
    shape: tuple[int, ...]
    group: Group
    parameter: str
    first_row: int = 0
    adds_one: bool = False
    is_stacked: bool = False
    num_repeats: int | None = None


def tensor_table(config: ModelConfig) -> dict[str, Entry]:
    """Every tensor a checkpoint of this config may hold, by name."""
    entries = [*_decoder(config.text), *_mtp(config.text)]
    if config.vision is not None:
        entries += _vision(config.vision, config.text.hidden_size)
    return {entry.name: entry for entry in entries}


def _decoder(text: TextConfig) -> Iterator[Entry]:
    hidden, vocab = text.hidden_size, text.vocab_size
    yield Entry("model.embed_tokens.weight", (vocab, hidden), "decoder", "embedding")
    yield Entry("model.norm.weight", (hidden,), "decoder", "norm.scale", adds_one=True)
    yield Entry("lm_head.weight", (vocab, hidden), "decoder", "head")
    for layer in text.layers:
        ours, theirs = f"layers.{layer.index}", f"model.layers.{layer.index}"
        yield from _attention(text, layer, theirs, ours, "decoder")
        yield from (
            _moe(text, theirs, ours)
            if layer.is_moe
            else _mlp(f"{theirs}.mlp", f"{ours}.mlp", hidden, text.dense_width, "decoder")
        )


def _attention(text: TextConfig, layer: LayerConfig, theirs: str, ours: str, group: Group) -> Iterator[Entry]:
    hidden, num_q, num_kv = (
        text.hidden_size,
        layer.num_heads * text.head_dim,
        text.num_kv_heads * text.head_dim,
    )
    heads = (text.head_dim,)
    for name, parameter in (
        ("input_layernorm", "attention_norm.scale"),
        ("post_attention_layernorm", "mlp_norm.scale"),
    ):
        yield Entry(f"{theirs}.{name}.weight", (hidden,), group, f"{ours}.{parameter}", adds_one=True)
    attention, target = f"{theirs}.self_attn", f"{ours}.attention"
    first_row = 0
    for name, rows in (("q", num_q), ("k", num_kv), ("v", num_kv), ("g", layer.num_heads)):
        yield Entry(f"{attention}.{name}_proj.weight", (rows, hidden), group, f"{target}.qkvg", first_row)
        first_row += rows
    yield Entry(f"{attention}.o_proj.weight", (hidden, num_q), group, f"{target}.output")
    for name, first_row, num_rows in (("q", 0, layer.num_heads), ("k", layer.num_heads, text.num_kv_heads)):
        yield Entry(
            f"{attention}.{name}_norm.weight", heads, group, f"{target}.qk_scale", first_row,
            adds_one=True, num_repeats=num_rows,
        )  # fmt: skip


def _mlp(theirs: str, ours: str, hidden: int, width: int, group: Group) -> Iterator[Entry]:
    yield Entry(f"{theirs}.gate_proj.weight", (width, hidden), group, f"{ours}.gate_up")
    yield Entry(f"{theirs}.up_proj.weight", (width, hidden), group, f"{ours}.gate_up", width)
    yield Entry(f"{theirs}.down_proj.weight", (hidden, width), group, f"{ours}.down")


def _moe(text: TextConfig, theirs: str, ours: str) -> Iterator[Entry]:
    num, width, hidden = text.num_experts, text.expert_width, text.hidden_size
    yield Entry(f"{theirs}.moe.gate.weight", (num, hidden), "decoder", f"{ours}.mlp.router")
    yield Entry(f"{theirs}.moe.router_bias", (num,), "decoder", f"{ours}.mlp.router_bias")
    for name, shape, parameter, first_row in (
        ("gate_proj", (num, width, hidden), "gate_up", 0),
        ("up_proj", (num, width, hidden), "gate_up", width),
        ("down_proj", (num, hidden, width), "down", 0),
    ):
        target = f"{ours}.mlp.experts.{parameter}"
        yield Entry(f"{theirs}.moe.{name}.weight", shape, "decoder", target, first_row, is_stacked=True)
    yield from _mlp(f"{theirs}.share_expert", f"{ours}.mlp.shared", hidden, text.shared_width, "decoder")


def _mtp(text: TextConfig) -> Iterator[Entry]:
    """A layer behind a join of embedding and hidden state, with a head of its own (model.net.mtp)."""
    hidden, vocab = text.hidden_size, text.vocab_size
    for index, layer in enumerate(text.mtp_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{layer.index}"
        for name in ("enorm", "hnorm"):
            yield Entry(f"{theirs}.{name}.weight", (hidden,), "mtp", f"{ours}.{name}.scale", adds_one=True)
        yield Entry(f"{theirs}.eh_proj.weight", (hidden, 2 * hidden), "mtp", f"{ours}.eh_proj")
        yield from _attention(text, layer, theirs, f"{ours}.block", "mtp")
        yield from _mlp(f"{theirs}.mlp", f"{ours}.block.mlp", hidden, text.dense_width, "mtp")
        head = f"{theirs}.transformer.shared_head"
        yield Entry(f"{head}.norm.weight", (hidden,), "mtp", f"{ours}.norm.scale", adds_one=True)
        yield Entry(f"{head}.output.weight", (vocab, hidden), "mtp", f"{ours}.head")


def _vision(vision: VisionConfig, hidden: int) -> Iterator[Entry]:
    width, patch, mlp = vision.width, vision.patch_size, vision.mlp_width
    num_positions = (vision.image_size // patch) ** 2
    yield Entry("vision_model.conv1.weight", (width, 3, patch, patch), "vision", "patch_weight")
    yield Entry("vision_model.positional_embedding", (num_positions, width), "vision", "positions")
    yield from _affine("vision_model.ln_pre", (width,), "norm")
    for index in range(vision.num_layers):
        theirs, ours = f"vision_model.transformer.resblocks.{index}", f"blocks.{index}"
        yield Entry(f"{theirs}.attn.in_proj_weight", (3 * width, width), "vision", f"{ours}.in_proj.weight")
        yield Entry(f"{theirs}.attn.in_proj_bias", (3 * width,), "vision", f"{ours}.in_proj.bias")
        yield from _affine(f"{theirs}.attn.out_proj", (width, width), f"{ours}.out_proj")
        yield from _affine(f"{theirs}.mlp.c_fc", (mlp, width), f"{ours}.fc1")
        yield from _affine(f"{theirs}.mlp.c_proj", (width, mlp), f"{ours}.fc2")
        for number in (1, 2):
            yield from _affine(f"{theirs}.ln_{number}", (width,), f"{ours}.norm{number}")
            yield Entry(f"{theirs}.ls_{number}.gamma", (width,), "vision", f"{ours}.scale{number}")
    yield from _affine("vision_model.vit_downsampler1", (2 * width, width, 3, 3), "down1")
    yield from _affine("vision_model.vit_downsampler2", (4 * width, 2 * width, 3, 3), "down2")
    yield Entry("vit_large_projector.weight", (hidden, 4 * width), "vision", "projector")
    if vision.projector_bias:
        yield Entry("vit_large_projector.bias", (hidden,), "vision", "projector_bias")


def _affine(theirs: str, shape: tuple[int, ...], ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", shape, "vision", f"{ours}.weight")
    yield Entry(f"{theirs}.bias", shape[:1], "vision", f"{ours}.bias")
