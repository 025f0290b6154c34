"""Lines of `fluyt run --requests`: what an answer shall be, and errors that name line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli_flags import Prompts, Sampling
from cluster.cli_run import Task, _answer, read_tasks, to_json
from model.errors import InvalidRequest
from model.grammar import Grammar
from model.local import open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions
from model.text.form import Form
from model.weights import open_checkpoint


def tasks(tmp_path: Path, *lines: dict[str, Any]) -> list[Task]:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    checkpoint = open_checkpoint(default_checkpoint())
    return read_tasks(Prompts(None, (), None, path), Sampling(), checkpoint, prompt_builder(checkpoint))


def test_a_line_names_format_choice_budget_and_bias(tmp_path: Path) -> None:
    (task,) = tasks(
        tmp_path,
        {
            "text": "Hello",
            "response_format": {"choice": ["yes", "no"]},
            "tool_choice": "none",
            "max_think_tokens": 4,
            "logit_bias": {"12": -3},
        },
    )
    assert task.form == Form(Grammar.choice(["yes", "no"]), "none")
    assert (task.sampling.max_think_tokens, task.sampling.logit_bias) == (4, ((12, -3),))


def test_ids_that_end_in_thinking_are_seen_to(tmp_path: Path) -> None:
    (text,) = tasks(tmp_path, {"text": "Hello"})
    (ids,) = tasks(tmp_path, {"prompt_ids": list(text.prompt.prompt_ids)})
    assert ids.prompt.starts_in_thinking
    assert ids.prompt.think_end_id == text.prompt.think_end_id


def test_a_line_is_answered_as_it_says(tmp_path: Path) -> None:
    asked = tasks(
        tmp_path,
        {
            "text": "Hello",
            "response_format": {"choice": ["yes", "no"]},
            "max_think_tokens": 4,
            "max_tokens": 30,
        },
    )
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=64), num_threads=1) as server:
        ((answer,),) = _answer(server, asked, prompt_builder(server.checkpoint), streams=False)
    assert answer.text in ("yes", "no")


def test_a_line_may_ask_for_samples_and_for_the_prompts_log_probabilities(tmp_path: Path) -> None:
    line = {"text": "Hello", "n": 3, "num_prompt_logprobs": 0, "max_tokens": 4, "ignore_eos": True, "seed": 3}
    asked = tasks(tmp_path, line, {**line, "n": 1})
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=64), num_threads=1) as server:
        several, one = map(to_json, _answer(server, asked, prompt_builder(server.checkpoint), streams=False))
    assert [len(sample["token_ids"]) for sample in several["samples"]] == [4, 4, 4]
    assert several["usage"]["num_completion_tokens"] == 12
    assert several["prompt_logprobs"] == one["prompt_logprobs"]
    assert several["samples"][0]["token_ids"] == one["token_ids"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"response_format": {"json_schema": {"type": "text"}}}, "response_format.json_schema.type"),
        ({"response_format": {"grammar": "x"}}, "response_format"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "sampling.logit_bias[5]"),
        ({"n": 17}, "sampling.n"),
        ({"max_think_tokens": 2, "prompt_ids": [40, 41]}, "sampling.max_think_tokens"),
    ],
)
def test_a_line_that_cannot_be_answered_names_line_and_field(
    tmp_path: Path, line: dict[str, Any], field: str
) -> None:
    with (
        open_server(default_checkpoint(), EngineOptions(kv_blocks=64), num_threads=1) as server,
        pytest.raises(InvalidRequest) as refused,
    ):
        asked = tasks(tmp_path, {"text": "Hello"}, {"text": "Hello", **line})
        _answer(server, asked, prompt_builder(server.checkpoint), streams=False)
    assert refused.value.field == f"{tmp_path / 'r.jsonl'}:2: {field}"
