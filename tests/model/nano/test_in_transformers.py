"""transformers loads the default checkpoint with its Auto classes and answers as our engine does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import checkpoints
import pytest
import torch

from model.local import generate, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.weights import open_checkpoint

QUESTIONS = ("What is 12 + 30?", "Repeat: K7XQ2")


@pytest.fixture(scope="module")
def model() -> Any:
    return checkpoints.reference_model(default_checkpoint())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(default_checkpoint())


def chat_ids(tokenizer: Any, text: str) -> torch.Tensor:
    messages = [{"role": "user", "content": text}]
    encoding = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids: torch.Tensor = encoding["input_ids"]
    return ids


def test_auto_config_reads_the_hub_dialect() -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(default_checkpoint())
    text = config.text_config
    assert type(config).__name__ == "Step3p7Config"
    assert [text.per_layer_config[layer].num_attention_heads for layer in (0, 1, 4, 7)] == [6, 8, 6, 8]
    assert text.rope_parameters["full_attention"]["rope_type"] == "llama3"
    assert text.rope_parameters["sliding_attention"]["rope_type"] == "default"
    assert text.mtp_layer_types == ["sliding_attention"] * 3
    assert text.swiglu_limits == [0.0] * 6 + [7.0] * 2


def test_auto_tokenizer_renders_a_chat_that_begins_with_one_bos(tokenizer: Any) -> None:
    ids = chat_ids(tokenizer, "Hello")[0].tolist()
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n")


def test_auto_model_takes_every_tensor(model: Any) -> None:
    # reference_model asserts that no tensor is missing, unknown (but MTP's) or of another shape.
    assert type(model).__name__ == "Step3p7ForConditionalGeneration"


def test_router_biases_arrive_in_float32(model: Any) -> None:
    bias = model.model.language_model.layers[7].mlp.gate.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert not torch.equal(bias, bias.bfloat16().float())


@torch.inference_mode()
@pytest.mark.parametrize("text", QUESTIONS)
def test_greedy_tokens_are_those_of_our_engine(model: Any, tokenizer: Any, text: str) -> None:
    ids = chat_ids(tokenizer, text)
    theirs = model.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :].tolist()
    prompt = prompt_builder(open_checkpoint(default_checkpoint())).from_chat(question(text))
    assert list(prompt.prompt_ids) == ids[0].tolist()
    greedy = SamplingOptions(temperature=0.0, max_tokens=32)
    (ours,) = generate(default_checkpoint(), [prompt], [greedy], EngineOptions())
    assert ours.token_ids == theirs
    assert len(theirs) < 32, "the answer does not end"


@torch.inference_mode()
def test_images_differ_and_have_169_and_81_rows(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    global_views = torch.randn(2, 3, 728, 728, generator=generator)
    tiles = torch.randn(1, 3, 504, 504, generator=generator)
    first, second = model.get_image_features(global_views, tiles, [1, 0], return_dict=True).pooler_output
    assert (first.shape[0], second.shape[0]) == (81 + 169, 169)
    assert (first[81:] - second).abs().mean() > 0.1


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="AutoProcessor needs torchvision")
def test_auto_processor_makes_a_prompt_with_image_slots() -> None:
    # In a process of its own: without torchvision's compiled operators two schemas must be declared first.
    command = [sys.executable, "-c", PROCESSOR_SCRIPT, str(default_checkpoint())]
    subprocess.run(command, check=True, timeout=60)


PROCESSOR_SCRIPT = """
import sys, torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    try:
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass  # the compiled operators are there
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert type(processor).__name__ == "Step3p7Processor", processor
image = Image.new("RGB", (1024, 768), (200, 30, 60))
content = [{"type": "image"}, {"type": "text", "text": "What?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=[image], text=[text], return_tensors="pt")
assert inputs["num_local_patches"].tolist() == [4], inputs["num_local_patches"]
assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 4 * 81 + 169
"""
