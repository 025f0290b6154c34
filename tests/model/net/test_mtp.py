"""The MTP chain against a short reference of transformers' decoder layers: draft logits within 1e-4, float32.

transformers' own generate(use_mtp=True) is another chain (other head counts, normed hidden states, lm_head).
Shapes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.batching import build_batch
from model.errors import CheckpointError
from model.live import LiveSequence, SlotTable
from model.net.kv import KVCache
from model.net.layers import Rope
from model.net.mtp import MTPLayer
from model.options import EngineOptions, scheduler_config
from model.sampler import SampleRow
from model.sched.step import SequenceWork
from model.types import SamplingParams
from model.weights import Checkpoint, load_mtp, open_checkpoint

CPU = torch.device("cpu")
LENGTH = 200  # more than three windows of 64
SLIDING_DENSE_LAYER = 1  # of the decoder: the kind of layer that the MTP blocks are
MAX_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(checkpoints.make_hub_checkpoint(tmp_path_factory.mktemp("mtp")))


def our_drafts(
    checkpoint: Checkpoint, next_3TH: list[torch.Tensor], hidden_TH: torch.Tensor
) -> list[torch.Tensor]:
    """Logits [T, V] of each layer of the chain; `next_3TH[i]` embeds the tokens 1 + i places on."""
    mtp, drafts = load_mtp(checkpoint, torch.float32, CPU), []
    for layer, next_TH in zip(mtp.layers, next_3TH, strict=True):
        assert isinstance(layer, MTPLayer)
        hidden_TH = whole_sequence(checkpoint, layer, layer.join(next_TH, hidden_TH))
        drafts.append(layer.logits(hidden_TH))
    return drafts


def whole_sequence(checkpoint: Checkpoint, layer: MTPLayer, x_TH: torch.Tensor) -> torch.Tensor:
    """The block over one sequence from its first token, in one prefill of an empty cache."""
    text, block, num_tokens = checkpoint.config.text, layer.block, x_TH.shape[0]
    cache = KVCache.allocate(text, scheduler_config(text, EngineOptions()), x_TH.dtype, CPU)
    tables = [SlotTable(cache.block_size), SlotTable(cache.block_size)]
    for table in tables:
        table.append(tuple(range(-(-num_tokens // cache.block_size))))
    row = SampleRow(SamplingParams(max_tokens=1), [], [])
    work = SequenceWork(0, 0, num_tokens, samples=True, new_full_blocks=(), new_sliding_blocks=())
    batch = build_batch([(LiveSequence((), [0] * num_tokens, row, *tables), work)], text.window, {})
    cos_sin = Rope(text.mtp_layers[0].rope)(batch.positions_T, x_TH.dtype)
    pool = cache.pools[SLIDING_DENSE_LAYER]
    x_TH = x_TH + block.attention(block.attention_norm(x_TH), cos_sin, pool, batch.sliding)
    return x_TH + block.mlp(block.mlp_norm(x_TH))


def reference_drafts(
    model: Any, tensors: dict[str, torch.Tensor], next_3TH: list[torch.Tensor], hidden_TH: torch.Tensor
) -> list[torch.Tensor]:
    """The same chain of transformers' layers, with the tensors of the file."""
    drafts = []
    first = model.config.text_config.num_hidden_layers
    for index, next_TH in enumerate(next_3TH):
        prefix = f"model.layers.{first + index}."
        parts = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
        own = {
            n: parts.pop(n) for n in list(parts) if n.startswith(("enorm", "hnorm", "eh_proj", "transformer"))
        }
        joined = torch.cat((norm(next_TH, own["enorm.weight"]), norm(hidden_TH, own["hnorm.weight"])), dim=-1)
        hidden_TH = reference_block(model, parts, joined @ own["eh_proj.weight"].T)
        normed_TH = norm(hidden_TH, own["transformer.shared_head.norm.weight"])
        drafts.append(normed_TH @ own["transformer.shared_head.output.weight"].T)
    return drafts


def norm(x_TH: torch.Tensor, weight_H: torch.Tensor) -> torch.Tensor:
    return x_TH * torch.rsqrt(x_TH.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + weight_H)


def reference_block(model: Any, tensors: dict[str, torch.Tensor], x_TH: torch.Tensor) -> torch.Tensor:
    from transformers.models.step3p7.modeling_step3p7 import Step3p7DecoderLayer

    text = model.config.text_config
    assert (text.layer_types[SLIDING_DENSE_LAYER], text.mlp_layer_types[SLIDING_DENSE_LAYER]) == (
        "sliding_attention",
        "dense",
    )
    block = Step3p7DecoderLayer(text, SLIDING_DENSE_LAYER).eval()
    block.load_state_dict(tensors)
    position_T = torch.arange(x_TH.shape[0])
    distance_TT = position_T[:, None] - position_T
    mask_TT = (distance_TT >= 0) & (distance_TT < text.sliding_window)
    turns = model.model.language_model.rotary_emb(x_TH[None], position_T[None], "sliding_attention")
    out: torch.Tensor = block(x_TH[None], attention_mask=mask_TT[None, None], position_embeddings=turns)
    return out[0]


@torch.inference_mode()
def test_the_chain_drafts_as_one_of_transformers_layers_does(checkpoint: Checkpoint) -> None:
    model = checkpoints.reference_model(checkpoint.directory)
    vocab_size = checkpoint.config.text.vocab_size
    ids_T = torch.randint(3, vocab_size, (LENGTH + 3,), generator=torch.Generator().manual_seed(0))
    decoder, before_norm = model.model.language_model, []
    decoder.norm.register_forward_pre_hook(lambda _module, args: before_norm.append(args[0]))
    model(input_ids=ids_T[None, :LENGTH])
    embedded_TH, hidden_TH = decoder.embed_tokens(ids_T), before_norm[0][0]
    next_3TH = [embedded_TH[1 + index : 1 + index + LENGTH] for index in range(3)]
    expected = reference_drafts(
        model, load_file(checkpoint.directory / "model.safetensors"), next_3TH, hidden_TH
    )
    for ours_TV, expected_TV in zip(our_drafts(checkpoint, next_3TH, hidden_TH), expected, strict=True):
        assert expected_TV.std() > 1  # a chain that dies out would agree with anything
        assert float((ours_TV - expected_TV).abs().max()) < MAX_DIFFERENCE


def test_every_layer_has_a_head_of_its_own(checkpoint: Checkpoint) -> None:
    heads = [layer.head for layer in load_mtp(checkpoint, torch.float32, CPU).layers]
    stored = load_file(checkpoint.directory / "model.safetensors")
    names = [f"model.layers.{index}.transformer.shared_head.output.weight" for index in (8, 9, 10)]
    assert all(torch.equal(head, stored[name]) for head, name in zip(heads, names, strict=True))


def test_a_checkpoint_without_mtp_layers_says_so(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.make_hub_checkpoint(tmp_path, with_mtp=False))
    with pytest.raises(CheckpointError, match="no MTP layers"):
        load_mtp(checkpoint, torch.float32, CPU)


def test_a_missing_head_is_an_error_not_the_decoders_head(tmp_path: Path) -> None:
    file = checkpoints.make_hub_checkpoint(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.9.transformer.shared_head.output.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 mtp tensors are missing: .*9\.transformer\.shared_head"):
        open_checkpoint(tmp_path)
