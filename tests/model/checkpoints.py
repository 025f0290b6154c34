"""Small checkpoint directories for tests, in both dialects, and the model that is the oracle for them.

`import checkpoints` works in every test below tests/model (conftest.py there puts this folder on the path).

make_hub_checkpoint              the hub's names and config, as model.nano writes them, any shape
make_save_pretrained_checkpoint  the dialect of transformers' save_pretrained, made by transformers alone
reference_model                  transformers' own model of either, for logits and tokens
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from model.nano import default_checkpoint
from model.nano.shape import FULL, SLIDING, Shape, hub_config, text_config
from model.nano.tensors import tensor_table
from model.nano.weights import write_weights

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def make_hub_checkpoint(
    directory: Path,
    *,
    dtype: str = "float32",
    num_files: int = 1,
    seed: int = 0,
    with_mtp: bool = True,
    with_vision: bool = True,
    with_side_files: bool = False,
    step35: bool = False,
    **overrides: Any,
) -> Path:
    """Write a hub-dialect checkpoint of `Shape(**overrides)`; dtype float32 or bfloat16.

    The values of a tensor depend on (seed, name, shape) only, so a checkpoint without MTP or
    vision tensors has the other weights unchanged. `step35` leaves out the tower and writes the
    flat config.json of a Step-3.5 model. `with_side_files` adds tokenizer, template and the like.
    """
    shape = Shape(**overrides)
    directory.mkdir(parents=True, exist_ok=True)
    config = text_config(shape, dtype) if step35 else hub_config(shape, dtype)
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    table = tensor_table(shape)
    if not with_mtp:
        table = {name: spec for name, spec in table.items() if not _is_mtp_tensor(name, shape)}
    if step35 or not with_vision:
        table = {name: spec for name, spec in table.items() if not name.startswith(("vision_model.", "vit_"))}
    write_weights(directory, table, dtype=dtype, num_files=num_files, seed=seed)
    return _with_side_files(directory) if with_side_files else directory


def make_save_pretrained_checkpoint(
    directory: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_shard_size: str = "5GB",
    with_side_files: bool = False,
    **overrides: Any,
) -> Path:
    """Let transformers build a random model of `Shape(**overrides)` and save it its own way.

    Nothing of model.nano's names or config takes part. It has no MTP tensors, and in bfloat16 its
    router biases are bfloat16: so does save_pretrained.
    """
    from transformers.models.step3p7 import Step3p7Config, Step3p7ForConditionalGeneration

    shape = Shape(**overrides)
    torch_dtype = getattr(torch, dtype)
    model = Step3p7ForConditionalGeneration(Step3p7Config(**port_config(shape))).eval()
    _randomize(model, shape, torch.Generator().manual_seed(seed))
    model.to(torch_dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return _with_side_files(directory) if with_side_files else directory


def reference_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a checkpoint, loaded in float32 and then made `dtype` (float32, float64).

    Every tensor of the model must come from the files. Attention is SDPA: the eager one of
    transformers takes its softmax in float32 whatever the dtype.
    """
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(info.values()), f"transformers did not take all of {directory}: {info}"
    return model.to(dtype).eval()


def port_config(shape: Shape) -> dict[str, Any]:
    """Arguments of transformers' Step3p7Config in its own terms, without the hub's."""
    layers = range(shape.num_layers)
    rope_full = {
        "rope_type": "llama3",
        "rope_theta": 5000000.0,
        "partial_rotary_factor": 0.5,
        "factor": shape.rope_factor,
        "original_max_position_embeddings": shape.original_context_len,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    }
    rope_sliding = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    text = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_width,
        "num_hidden_layers": shape.num_layers,
        "num_nextn_predict_layers": shape.num_mtp_layers,
        "num_attention_heads": shape.num_full_heads,
        "num_sliding_attention_heads": shape.num_sliding_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_len,
        "sliding_window": shape.window,
        "layer_types": [FULL if shape.is_full(i) else SLIDING for i in layers],
        "mlp_layer_types": ["sparse" if shape.is_moe(i) else "dense" for i in layers],
        "rope_parameters": {FULL: rope_full, SLIDING: rope_sliding},
        "n_routed_experts": shape.num_experts,
        "num_experts_per_tok": shape.num_active_experts,
        "moe_intermediate_size": shape.expert_width,
        "share_expert_dim": shape.shared_width,
        "moe_router_scaling_factor": shape.router_scaling,
        "swiglu_limits": [shape.routed_clamp if shape.is_clamped(i) else 0.0 for i in layers],
        "swiglu_limits_shared": [shape.shared_clamp if shape.is_clamped(i) else 0.0 for i in layers],
        "bos_token_id": shape.tokens.bos,
        "eos_token_id": list(shape.tokens.eos),
    }
    vision = {
        "hidden_size": shape.vision.width,
        "num_hidden_layers": shape.vision.layers,
        "num_attention_heads": shape.vision.heads,
        "image_size": shape.vision.image_size,
        "patch_size": shape.vision.patch_size,
    }
    return {"text_config": text, "vision_config": vision, "image_token_id": shape.tokens.image}


def _randomize(model: Any, shape: Shape, generator: torch.Generator) -> None:
    """Fill parameters and router biases so that activations stay near 1 and clamped layers do clamp."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _distribution(name, parameter, shape)
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def _distribution(name: str, parameter: torch.Tensor, shape: Shape) -> tuple[float, float]:
    """Mean and standard deviation for a parameter of transformers' model."""
    if "lambda_" in name:
        return 0.5, 0.1
    if parameter.ndim == 1:
        is_layer_norm = "layernorm" in name and "vision_model" in name and name.endswith("weight")
        return (1.0 if is_layer_norm else 0.0), 0.1
    if "embed" in name and "patch" not in name:
        return 0.0, 1.0
    if name.startswith("lm_head"):
        return 0.0, 3 / math.sqrt(shape.hidden)
    fan_in = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
    return 0.0, _clamp_gain(name, shape) / math.sqrt(fan_in)


def _clamp_gain(name: str, shape: Shape) -> float:
    """How much larger than usual the SwiGLU's matrices are in layers that clamp."""
    parts = name.split(".")
    layer = int(parts[parts.index("layers") + 1]) if "language_model" in parts and "layers" in parts else -1
    if not shape.is_clamped(layer) or not shape.is_moe(layer) or "mlp.gate." in name or "mlp" not in parts:
        return 1.0
    limit = shape.shared_clamp if "shared_experts" in name else shape.routed_clamp
    return 2 / (limit * limit) if "down_proj" in name else 0.8 * limit


def _is_mtp_tensor(name: str, shape: Shape) -> bool:
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and shape.is_mtp(int(parts[2]))


def _with_side_files(directory: Path) -> Path:
    for name in SIDE_FILES:
        shutil.copyfile(default_checkpoint() / name, directory / name)
    return directory
