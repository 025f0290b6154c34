"""The random checkpoint: written the same every time, loads in transformers, and gives answers that vary.

Tests that compare tokens are made with it: one that repeats itself would hide mistakes. Begin, end and
padding are among its text ids, so it ends an answer as soon as chance says one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from model.nano.__main__ import main
from model.nano.shape import NUM_TEXT_IDS

PROMPTS = ("What is in the image?", "Hello", "def f(x):", "1 + 1 =")


@pytest.fixture(scope="module")
def model(random_checkpoint: Path) -> Any:
    return checkpoints.reference_model(random_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(random_checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_checkpoint)


def chat_ids(tokenizer: Any, text: str) -> torch.Tensor:
    messages = [{"role": "user", "content": text}]
    encoding = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids: torch.Tensor = encoding["input_ids"]
    return ids


def test_the_command_writes_the_same_bytes_every_time(random_checkpoint: Path, tmp_path: Path) -> None:
    main(["random", str(tmp_path)])
    first, second = (
        {path.name: path.read_bytes() for path in directory.iterdir()}
        for directory in (random_checkpoint, tmp_path)
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@torch.inference_mode()
def test_answers_vary(model: Any, tokenizer: Any) -> None:
    answers = []
    for prompt in PROMPTS:
        ids = chat_ids(tokenizer, prompt)
        answer = model.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        assert len(set(answer)) > 25, f"repeats itself: {tokenizer.decode(answer)!r}"
        answers.append(tuple(answer))
    assert len(set(answers)) == len(PROMPTS)


@torch.inference_mode()
def test_random_answers_hold_no_control_tokens(model: Any, tokenizer: Any) -> None:
    ids = chat_ids(tokenizer, "Hello")
    answer = model.generate(ids, max_new_tokens=100, min_new_tokens=100, do_sample=False)[0, ids.shape[1] :]
    assert len(answer) == 100
    assert int(answer.max()) < NUM_TEXT_IDS


@torch.inference_mode()
def test_the_best_two_tokens_are_seldom_close(model: Any) -> None:
    ids = (torch.arange(512)[None] * 389) % NUM_TEXT_IDS
    best = model(ids).logits.topk(2).values
    gaps = best[..., 0] - best[..., 1]
    assert gaps.median() > 0.3
    assert (gaps < 1e-4).sum() <= 1


@torch.inference_mode()
@pytest.mark.parametrize("layer", [6, 7])
def test_values_in_the_last_layers_meet_the_clamp(model: Any, layer: int) -> None:
    mlp = model.model.language_model.layers[layer].mlp
    seen: list[torch.Tensor] = []
    handles = [
        mlp.shared_experts.up_proj.register_forward_hook(lambda _m, _i, out: seen.append(out)),
        mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0])),
    ]
    model((torch.arange(64)[None] * 389) % NUM_TEXT_IDS)
    for handle in handles:
        handle.remove()
    x_TH, shared_up = seen
    routed_up = torch.nn.functional.linear(x_TH, mlp.experts.gate_up_proj[0].chunk(2)[1])
    assert 0.05 < (shared_up.abs() > 16).float().mean() < 0.5
    assert 0.05 < (routed_up.abs() > 7).float().mean() < 0.5


@torch.inference_mode()
def test_every_expert_is_chosen(model: Any) -> None:
    gate = model.model.language_model.layers[4].mlp.gate
    chosen: list[torch.Tensor] = []
    handle = gate.register_forward_hook(lambda _m, _i, out: chosen.append(out[2]))
    model((torch.arange(512)[None] * 389) % NUM_TEXT_IDS)
    handle.remove()
    assert chosen[0].unique().tolist() == list(range(16))


@torch.inference_mode()
def test_rows_of_an_image_are_about_as_large_as_embeddings_of_text(model: Any) -> None:
    views = torch.randn(1, 3, 728, 728, generator=torch.Generator().manual_seed(0))
    (rows,) = model.get_image_features(views, None, [0], return_dict=True).pooler_output
    assert 0.3 < rows.std() < 3
