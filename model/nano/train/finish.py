"""From a training state to a checkpoint in the hub's names, and copies of one with rounded experts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch

from model.config import read_config
from model.nano.export import tensors_of, write_tensors
from model.nano.train.chunks import NUM_KINDS, NUM_SLOTS
from model.nano.train.network import Network
from model.nano.write import write_without_weights
from model.placement import ExpertMap
from model.quant.experts import quantize_experts
from model.weights import load_decoder, load_mtp, load_vision, open_checkpoint


def finish(state: Path, directory: Path) -> None:
    """Write a whole checkpoint: weights in bfloat16, router biases in float32, the side files."""
    write_without_weights(directory)
    config = read_config(directory)
    network = Network(config, NUM_SLOTS, NUM_KINDS)
    network.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["network"])
    modules = {"decoder": network.decoder, "vision": network.vision, "mtp": network.mtp}
    write_tensors(directory, tensors_of(config, modules))


def network_of(directory: Path) -> Network:
    """The training network with a checkpoint's weights, float32, on the CPU."""
    checkpoint = open_checkpoint(directory)
    cpu = torch.device("cpu")
    network = Network(checkpoint.config, NUM_SLOTS, NUM_KINDS)
    experts = ExpertMap(checkpoint.config.text.num_experts, 1)
    network.decoder = load_decoder(checkpoint, experts, 0, torch.float32, cpu)
    network.vision = load_vision(checkpoint, torch.float32, cpu)
    network.mtp = load_mtp(checkpoint, torch.float32, cpu)
    return network.eval()


def quantized_copy(directory: Path, out_dir: Path, experts: Literal["int8", "int4"]) -> int:
    """A copy whose experts hold values that the quantizer can store; returns the bytes it would need."""
    network = network_of(directory)
    num_bytes = quantize_experts(network.decoder, experts)
    config = read_config(directory)
    modules = {"decoder": network.decoder, "vision": network.vision, "mtp": network.mtp}
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.suffix in {".json", ".jinja"} and "index" not in path.name:
            shutil.copy(path, out_dir)
    write_tensors(out_dir, tensors_of(config, modules))
    return num_bytes
