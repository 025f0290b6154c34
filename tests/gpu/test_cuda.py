"""The same network on a GPU: float32 without TF32 gives the tokens of the CPU, logits within 1e-3."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.nano.shape import NUM_TEXT_IDS, Shape
from model.nano.write import write_model
from model.options import EngineOptions
from model.text.images import ImageLimits, tile_image
from model.weights import Checkpoint, load_vision, open_checkpoint
from tests.model.harness import greedy, local_runner, random_prompts, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

NUM_TOKENS = 24
MAX_DIFFERENCE = 1e-3
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
OPTIONS = EngineOptions(chunk_tokens=96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("cuda")
    write_model(directory, Shape(original_context_len=64), dtype="float32", num_files=1)
    return open_checkpoint(directory)


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def test_text_of_any_length_continues_as_on_the_cpu(checkpoint: Checkpoint) -> None:
    prompts = random_prompts((1, 5, 63, 64, 65, 333), NUM_TEXT_IDS)
    on_cpu, cpu_decoder = local_runner(checkpoint, OPTIONS, CPU)
    on_cuda, cuda_decoder = local_runner(checkpoint, OPTIONS, CUDA)
    for name, prompt in prompts.items():
        cpu_decoder.logits.clear()
        cuda_decoder.logits.clear()
        request = {name: (prompt, greedy(NUM_TOKENS), ())}
        expected = run(checkpoint, on_cpu, OPTIONS, request)[name].token_ids
        assert run(checkpoint, on_cuda, OPTIONS, request)[name].token_ids == expected, name
        for ours, theirs in zip(cuda_decoder.logits, cpu_decoder.logits, strict=True):
            assert float((ours.cpu() - theirs).abs().max()) < MAX_DIFFERENCE


def test_a_mixed_batch_gives_the_tokens_of_each_alone(checkpoint: Checkpoint) -> None:
    options = replace(OPTIONS, dtype="float64")
    runner, _ = local_runner(checkpoint, options, CUDA)
    requests = {
        name: (prompt, greedy(NUM_TOKENS), ())
        for name, prompt in random_prompts((3, 17, 64, 65, 130, 150, 9), NUM_TEXT_IDS, seed=3).items()
    }
    together = run(checkpoint, runner, options, requests)
    for name, request in requests.items():
        assert run(checkpoint, runner, options, {name: request})[name].token_ids == together[name].token_ids


@torch.inference_mode()
def test_the_vision_tower_gives_the_rows_of_the_cpu(checkpoint: Checkpoint) -> None:
    views = torch.randn(2, 3, 504, 504, generator=torch.Generator().manual_seed(0))
    expected = load_vision(checkpoint, torch.float32, CPU)(views)
    rows = load_vision(checkpoint, torch.float32, CUDA)(views.cuda()).cpu()
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)


def test_an_image_is_encoded_as_on_the_cpu(checkpoint: Checkpoint) -> None:
    data = BytesIO()
    Image.effect_noise((900, 700), 60).save(data, "PNG")
    image = tile_image(data.getvalue(), ImageLimits())
    expected = load_vision(checkpoint, torch.float32, CPU).encode(image)
    rows = load_vision(checkpoint, torch.float32, CUDA).encode(image).cpu()
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)
