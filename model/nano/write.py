"""One checkpoint directory from a shape: config, weights, and the files around them."""

from __future__ import annotations

from pathlib import Path

from model.nano.files import write_json, write_side_files
from model.nano.shape import NANO, Shape, hub_config
from model.nano.tensors import tensor_table
from model.nano.tokenizer import write_tokenizer
from model.nano.weights import write_weights


def write_model(
    directory: Path, shape: Shape, *, dtype: str = "bfloat16", num_files: int = 2, seed: int = 0
) -> None:
    """Write config.json and the weights in the hub's names and dialect. dtype: bfloat16 or float32."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", hub_config(shape, dtype))
    write_weights(directory, tensor_table(shape), dtype=dtype, num_files=num_files, seed=seed)


def write_random_checkpoint(directory: Path) -> None:
    """A small random checkpoint with everything around it: shows that all works, and knows nothing."""
    shape = Shape()
    write_model(directory, shape)
    write_tokenizer(directory, shape.context_len)
    write_side_files(directory, shape)


def write_without_weights(directory: Path) -> None:
    """The default model's directory but for its weights: config, tokenizer, template, processor files."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", hub_config(NANO))
    write_tokenizer(directory, NANO.context_len)
    write_side_files(directory, NANO)
