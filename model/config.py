"""config.json -> frozen configs. Reads both dialects: the hub's and the one `save_pretrained` writes.

The hub pads per-layer lists with the MTP layers, and says `moe_layers_enum`,
`attention_other_setting`, `num_attention_groups`, vision `width/layers/heads`;
`save_pretrained` says `mlp_layer_types`, `num_sliding_attention_heads`, `num_key_value_heads`,
`rope_parameters` by layer type. Nothing is guessed from a library's defaults: they describe another
model. A missing field is a `CheckpointError` that names file and field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.errors import CheckpointError
from model.quant.scheme import Scheme, parse_scheme

Json = dict[str, Any]
VIT_MLP_RATIO = 8960 / 1536  # Step3p7VisionConfig.mlp_ratio; the hub's file does not say it
VIT_ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Llama3Scaling:
    """RoPE frequency scaling of the full-attention layers (`rope_scaling`, rope_type llama3)."""

    factor: float
    original_max_positions: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one layer type: the first `rotary_dim` of each head turn."""

    theta: float
    rotary_dim: int
    scaling: Llama3Scaling | None


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer. `swiglu_limit` clamps after the SiLU; None: no clamp."""

    index: int
    attention: Literal["full", "sliding"]
    num_heads: int
    rope: RopeConfig
    is_moe: bool
    swiglu_limit: float | None = None
    shared_swiglu_limit: float | None = None


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `window`: a sliding layer's position p attends to (p - window, p]."""

    vocab_size: int
    hidden_size: int
    head_dim: int
    num_kv_heads: int
    window: int
    context_len: int
    rms_eps: float
    dense_width: int
    num_experts: int
    experts_per_token: int
    expert_width: int
    shared_width: int
    routed_scale: float
    bos_id: int | None
    eos_ids: tuple[int, ...]
    layers: tuple[LayerConfig, ...]
    mtp_layers: tuple[LayerConfig, ...]


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: ViT, two stride-2 convolutions, projector (`projector_bias` as the file says)."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    rope_theta: float
    layer_norm_eps: float
    projector_bias: bool


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint's shape. `vision` is None for the text-only Step-3.5."""

    text: TextConfig
    vision: VisionConfig | None
    image_token_id: int | None
    fp8_block: tuple[int, int] | None
    scheme: Scheme | None = None  # of packed weights


def read_config(directory: Path | str) -> ModelConfig:
    """Read `directory`/config.json. Raises CheckpointError naming the field that is missing or wrong."""
    path = Path(directory) / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is this a checkpoint directory?") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    try:
        return parse_config(raw)
    except KeyError as error:
        raise CheckpointError(f"{path}: field {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def parse_config(raw: Json) -> ModelConfig:
    """Build the frozen config from parsed JSON; Step-3.5 has the text fields at top level."""
    model_type = raw.get("model_type")
    if model_type not in ("step3p7", "step3p5"):
        raise ValueError(f"model_type is {model_type!r}; this server runs 'step3p7' and 'step3p5'")
    text = raw.get("text_config", raw)
    vision = raw.get("vision_config")
    scheme = parse_scheme(raw.get("quantization_config") or text.get("quantization_config"))
    return ModelConfig(
        text=_text_config(text),
        vision=_vision_config(vision, bool(raw.get("projector_bias", False))) if vision else None,
        image_token_id=raw["image_token_id"] if vision else None,
        fp8_block=scheme.fp8_block if scheme else None,
        scheme=scheme,
    )


def _text_config(text: Json) -> TextConfig:
    num_layers, num_mtp = text["num_hidden_layers"], _num_mtp_layers(text)
    eos = text["eos_token_id"]
    layers = tuple(_layer(text, index) for index in range(num_layers + num_mtp))
    return TextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        head_dim=text["head_dim"],
        num_kv_heads=_either(text, "num_attention_groups", "num_key_value_heads"),
        window=text["sliding_window"],
        context_len=text["max_position_embeddings"],
        rms_eps=text.get("rms_norm_eps", 1e-5),  # the hub's file leaves it out; its code says 1e-5
        dense_width=text["intermediate_size"],
        num_experts=_either(text, "moe_num_experts", "n_routed_experts"),
        experts_per_token=_either(text, "moe_top_k", "num_experts_per_tok"),
        expert_width=text["moe_intermediate_size"],
        shared_width=text["share_expert_dim"],
        routed_scale=text["moe_router_scaling_factor"],
        bos_id=text.get("bos_token_id"),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        layers=layers[:num_layers],
        mtp_layers=layers[num_layers:],
    )


def _num_mtp_layers(text: Json) -> int:
    """`save_pretrained` may name their number and not their types: then it has no tensors of them."""
    num_mtp: int = text.get("num_nextn_predict_layers") or 0
    has_types = len(text["layer_types"]) >= text["num_hidden_layers"] + num_mtp or text.get("mtp_layer_types")
    return num_mtp if has_types else 0


def _layer(text: Json, index: int) -> LayerConfig:
    num_layers = text["num_hidden_layers"]
    kind = _entry(text, "layer_types", index, "mtp_layer_types")
    if kind not in ("full_attention", "sliding_attention"):
        raise ValueError(f"layer_types[{index}] is {kind!r}; known: full_attention, sliding_attention")
    sliding = kind == "sliding_attention"
    return LayerConfig(
        index=index,
        attention="sliding" if sliding else "full",
        num_heads=_sliding_heads(text) if sliding else text["num_attention_heads"],
        rope=_rope(text, index, kind),
        is_moe=index < num_layers and _is_moe(text, index),
        swiglu_limit=_limit(text, "swiglu_limits", index),
        shared_swiglu_limit=_limit(text, "swiglu_limits_shared", index),
    )


def _sliding_heads(text: Json) -> int:
    if "attention_other_setting" in text:
        return int(text["attention_other_setting"]["num_attention_heads"])
    return int(text["num_sliding_attention_heads"])


def _is_moe(text: Json, index: int) -> bool:
    if "moe_layers_enum" in text:
        listed = text["moe_layers_enum"]
        items = listed.split(",") if isinstance(listed, str) else listed
        return index in {int(item) for item in items if str(item).strip()}
    return bool(text["mlp_layer_types"][index] == "sparse")


def _rope(text: Json, index: int, kind: str) -> RopeConfig:
    if "rope_parameters" in text:
        by_type = text["rope_parameters"][kind]
        theta, part = by_type["rope_theta"], by_type.get("partial_rotary_factor", 1.0)
        scaling = by_type if by_type["rope_type"] != "default" else None
    else:
        theta = text["rope_theta"][index] if isinstance(text["rope_theta"], list) else text["rope_theta"]
        part = text["partial_rotary_factors"][index]
        scaled_types = text.get("yarn_only_types", ["full_attention"])  # where scaling applies; not yarn
        scaling = text.get("rope_scaling") if kind in scaled_types else None
    return RopeConfig(theta=theta, rotary_dim=int(text["head_dim"] * part), scaling=_llama3(scaling))


def _llama3(scaling: Json | None) -> Llama3Scaling | None:
    if scaling is None:
        return None
    if scaling["rope_type"] != "llama3":
        raise ValueError(f"rope_scaling.rope_type is {scaling['rope_type']!r}; known: llama3")
    return Llama3Scaling(
        factor=scaling["factor"],
        original_max_positions=scaling["original_max_position_embeddings"],
        low_freq_factor=scaling["low_freq_factor"],
        high_freq_factor=scaling["high_freq_factor"],
    )


def _limit(text: Json, field: str, index: int) -> float | None:
    values = text.get(field) or []
    return float(values[index]) if index < len(values) and values[index] else None


def _vision_config(vision: Json, projector_bias: bool) -> VisionConfig:
    width = _either(vision, "width", "hidden_size")
    rope = vision.get("rope_parameters") or {}
    return VisionConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=width,
        num_layers=_either(vision, "layers", "num_hidden_layers"),
        num_heads=_either(vision, "heads", "num_attention_heads"),
        mlp_width=int(width * vision.get("mlp_ratio", VIT_MLP_RATIO)),
        rope_theta=rope.get("rope_theta", VIT_ROPE_THETA),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-5),
        projector_bias=projector_bias,
    )


def _either(fields: Json, hub: str, saved: str) -> Any:
    """The value under the hub's name, else under the name `save_pretrained` uses."""
    return fields[hub] if hub in fields else fields[saved]


def _entry(text: Json, field: str, index: int, mtp_field: str) -> Any:
    """Entry of a per-layer list that is padded with the MTP layers (hub) or split in two (saved)."""
    values = text[field]
    if index < len(values):
        return values[index]
    return text[mtp_field][index - text["num_hidden_layers"]]
