"""Answers are what was asked for, whatever is sampled: the default model, hot, with and without drafts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from harness import Generated, local_runner, run

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.local import open_server, prompt_builder
from model.masks import GrammarMasks
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner
from model.sampling import GenerationDefaults, SamplingOptions
from model.sched import drafting
from model.sched.loops import MIN_TOKENS
from model.sched.scheduler import Scheduler
from model.text.form import Form
from model.text.prompt import PreparedPrompt, PromptBuilder
from model.types import FinishReason, SamplingParams
from model.weights import Checkpoint, open_checkpoint
from tests.model.text.grammars import DEFINITIONS, random_schema

OPTIONS = EngineOptions(dtype="float64", chunk_tokens=512, kv_blocks=512)
ANSWERS = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["place", "days"],
        },
    },
}


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


@pytest.fixture(scope="module")
def builder(trained: Checkpoint) -> PromptBuilder:
    return prompt_builder(trained)


@pytest.fixture(scope="module")
def runner(trained: Checkpoint) -> LocalRunner:
    return local_runner(trained, OPTIONS)[0]


def hot(trained: Checkpoint, grammar: Grammar | None, seed: int, **fields: Any) -> SamplingParams:
    ends = GenerationDefaults.load(trained.directory).eos_token_ids
    params = SamplingParams(max_tokens=160, temperature=1.5, seed=seed, eos_token_ids=ends, grammar=grammar)
    return replace(params, **fields)


def answers(
    trained: Checkpoint,
    runner: LocalRunner,
    prompt: PreparedPrompt,
    asked: Mapping[str, SamplingParams],
    options: EngineOptions = OPTIONS,
    *,
    has_drafts: bool,
) -> tuple[dict[str, Generated], Scheduler]:
    scheduler = Scheduler(scheduler_config(trained.config.text, options, has_mtp=has_drafts))
    requests = {name: (prompt.prompt_ids, sampling, ()) for name, sampling in asked.items()}
    return run(trained, runner, options, requests, scheduler), scheduler


def random_schemas(num: int) -> dict[str, dict[str, Any]]:
    """By name; they get deeper and begin anew."""
    return {
        str(seed): {**random_schema(random.Random(seed), depth=seed % 4), "$defs": DEFINITIONS}
        for seed in range(num)
    }


def assert_valid(
    builder: PromptBuilder, found: Mapping[str, Generated], schemas: Mapping[str, dict[str, Any]]
) -> int:
    """Whatever was not cut is what its schema says; returns how many these are."""
    whole = {name: answer for name, answer in found.items() if answer.finish_reason is FinishReason.STOP}
    cut = {answer.finish_reason for name, answer in found.items() if name not in whole}
    assert cut <= {FinishReason.LENGTH}, cut
    for name, answer in whole.items():
        value = json.loads(builder.tokenizer.decode(answer.token_ids[:-1]))
        jsonschema.validate(value, schemas[name], format_checker=jsonschema.FormatChecker())
    return len(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_500_hot_answers_with_drafts_are_valid(
    trained: Checkpoint, builder: PromptBuilder, record_property: Callable[[str, object], None]
) -> None:
    """At temperature 1.5; float32, which a CPU computes faster."""
    options = replace(OPTIONS, dtype="float32", kv_blocks=1024)
    schemas = random_schemas(500)
    asked = {name: hot(trained, Grammar.json_schema(schema), int(name)) for name, schema in schemas.items()}
    runner, prompt = local_runner(trained, options)[0], builder.from_text(ANSWERS)
    found, scheduler = answers(trained, runner, prompt, asked, options, has_drafts=True)
    num_whole = assert_valid(builder, found, schemas)
    record_property("finished_by_length", 500 - num_whole)
    assert num_whole > 350, f"{500 - num_whole} of 500 were cut by max_tokens (103 are)"
    load = scheduler.load()
    assert load.num_held[0] > 0.2 * load.num_verified[0], "hardly a draft held"


@pytest.mark.parametrize(
    "num_schemas", [8, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_hot_answers_are_valid_and_the_same_with_drafts(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, num_schemas: int
) -> None:
    prompt = builder.from_text(ANSWERS)
    schemas = random_schemas(num_schemas)
    asked = {name: hot(trained, Grammar.json_schema(schema), int(name)) for name, schema in schemas.items()}
    plain, _ = answers(trained, runner, prompt, asked, has_drafts=False)
    drafted, scheduler = answers(trained, runner, prompt, asked, has_drafts=True)
    assert drafted == plain
    num_whole = assert_valid(builder, plain, schemas)
    assert num_whole > num_schemas / 2, "most answers were cut: the test shows little"
    load = scheduler.load()
    assert load.num_held[0] > 0.2 * load.num_verified[0], "hardly a draft held"


def test_where_masks_do_not_reach_no_draft_is_taken(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar, prompt = Grammar("regex", "([0-9]{2}[a-f])*"), builder.from_text(ANSWERS)
    asked = {str(seed): hot(trained, grammar, seed, min_tokens=40) for seed in range(6)}
    plain, _ = answers(trained, runner, prompt, asked, has_drafts=False)
    after = GrammarMasks.after
    monkeypatch.setattr(
        GrammarMasks,
        "after",
        lambda self, output_ids, drafts: None if len(drafts) == 2 else after(self, output_ids, drafts),
    )
    drafted, scheduler = answers(trained, runner, prompt, asked, has_drafts=True)
    assert drafted == plain
    assert scheduler.load().num_held[0] > 0
    assert scheduler.load().num_held[1] == 0


@pytest.mark.slow
def test_preemption_changes_no_token(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner
) -> None:
    grammar = Grammar("regex", "[a-z]{20,60}( [0-9]{3}){20}")
    asked = {str(seed): hot(trained, grammar, seed) for seed in range(6)}
    prompt = builder.from_text(ANSWERS)
    plain, _ = answers(trained, runner, prompt, asked, has_drafts=False)
    tight = replace(OPTIONS, kv_blocks=24)
    found, scheduler = answers(trained, runner, prompt, asked, tight, has_drafts=True)
    assert scheduler.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"
    assert found == plain


@pytest.mark.parametrize("grammar", [Grammar.choice(["yes", "no"]), Grammar("regex", "[0-9]{4}")])
@pytest.mark.parametrize("has_drafts", [False, True])
def test_what_is_complete_ends_the_answer_before_min_tokens(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, grammar: Grammar, has_drafts: bool
) -> None:
    asked = {str(seed): hot(trained, grammar, seed, min_tokens=40) for seed in range(4)}
    found, _ = answers(trained, runner, builder.from_text(ANSWERS), asked, has_drafts=has_drafts)
    assert {answer.finish_reason for answer in found.values()} == {FinishReason.STOP}
    assert all(len(answer.token_ids) < 40 for answer in found.values())


def test_min_tokens_hold_an_end_back_where_more_may_come(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner
) -> None:
    asked = {str(seed): hot(trained, Grammar("regex", "[a-z ]*"), seed, min_tokens=30) for seed in range(6)}
    found, _ = answers(trained, runner, builder.from_text(ANSWERS), asked, has_drafts=True)
    assert min(len(answer.token_ids) for answer in found.values()) >= 30


def test_a_dead_end_ends_its_request_with_an_error_and_no_other(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner
) -> None:
    (stop,) = builder.tokenizer.encode_text("z")
    asked = {
        "dead": hot(trained, Grammar("regex", "z{3}"), 1, eos_token_ids=(), stop_token_ids=(stop,)),
        "good": hot(trained, Grammar("regex", "[0-9]{3}"), 1),
    }
    found, scheduler = answers(trained, runner, builder.from_text(ANSWERS), asked, has_drafts=True)
    error = found["dead"].error
    assert isinstance(error, InvalidRequest)
    assert (error.field, error.description[:21]) == ("response_format", "no token may come nex")
    assert found["good"].finish_reason is FinishReason.STOP
    assert scheduler.load().num_running == 0


AMBIGUOUS = Grammar("ebnf", 'root ::= s\ns ::= "a" s s | s s | "a" s "b" | "a" | "b" s s s | ""')


@pytest.mark.slow
@pytest.mark.parametrize("has_drafts", [False, True])
def test_a_grammar_that_costs_too_much_ends_its_request_alone(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, has_drafts: bool
) -> None:
    asked = {
        "costly": hot(trained, AMBIGUOUS, 1, max_tokens=300, min_tokens=290),
        "good": hot(trained, Grammar("regex", "[a-z]{100}"), 2),
    }
    found, _ = answers(trained, runner, builder.from_text(ANSWERS), asked, has_drafts=has_drafts)
    assert isinstance(found["costly"].error, InvalidRequest)
    assert "max is 1000" in str(found["costly"].error)
    assert found["good"].finish_reason is FinishReason.STOP


# ---- thinking


THINKS = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize("grammar", [None, Grammar("regex", "[a-z]{5}")])
def test_a_budget_of_thinking_is_kept_and_drafts_change_no_token(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, grammar: Grammar | None
) -> None:
    prompt = builder.from_text(THINKS)
    assert prompt.think_end_id is not None
    asked = {
        str(most): hot(
            trained,
            grammar,
            most,
            starts_in_thinking=True,
            max_think_tokens=most,
            think_end_id=prompt.think_end_id,
            logit_bias=((prompt.think_end_id, -100.0),),
            min_tokens=0 if grammar else 40,
        )
        for most in (0, 1, 2, 3, 4, 5, 6, 7, 30)
    }
    plain, _ = answers(trained, runner, prompt, asked, has_drafts=False)
    drafted, _ = answers(trained, runner, prompt, asked, has_drafts=True)
    assert drafted == plain
    ends = {name: found.token_ids.index(prompt.think_end_id) for name, found in plain.items()}
    assert ends == {name: int(name) for name in asked}
    assert all(len(found.token_ids) > int(name) + 1 for name, found in plain.items())


# ---- loops


@pytest.mark.parametrize("has_drafts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_loop_ends_where_it_is_found_with_drafts_or_without(
    trained: Checkpoint, builder: PromptBuilder, runner: LocalRunner, has_drafts: bool
) -> None:
    (a,) = builder.tokenizer.encode_text("a")
    asked = {
        "loops": hot(trained, None, 1, max_tokens=400, logit_bias=((a, 100.0),)),
        "wants all": hot(trained, None, 1, max_tokens=300, logit_bias=((a, 100.0),), eos_token_ids=()),
    }
    found, _ = answers(trained, runner, builder.from_text(ANSWERS), asked, has_drafts=has_drafts)
    assert found["loops"] == Generated([a] * MIN_TOKENS, FinishReason.LOOP)
    assert found["wants all"] == Generated([a] * 300, FinishReason.LENGTH)


# ---- fluyt run's path: forms


@pytest.mark.parametrize("choice", ["required", "weather"])
@pytest.mark.parametrize("mtp", [False, True])
def test_a_forced_call_is_complete_and_its_arguments_valid(
    trained: Checkpoint, builder: PromptBuilder, choice: str, mtp: bool
) -> None:
    prompt = replace(builder.from_text(ANSWERS), tools=(WEATHER,))
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=256), num_threads=1) as server:
        found = [
            server.submit(
                prompt,
                SamplingOptions(temperature=1.5, seed=seed, max_tokens=200, mtp=mtp),
                builder,
                form=Form(tool_choice=choice),
            )
            for seed in range(4)
        ]
        server.run()
    for answer in found:
        assert answer.finish_reason is FinishReason.TOOL_CALLS
        (call,) = answer.tool_calls
        assert (call.name, call.is_complete, answer.text) == ("weather", True, "")
        jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])


def test_the_form_holds_behind_thinking(trained: Checkpoint, builder: PromptBuilder) -> None:
    prompt = builder.from_text(
        "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=256), num_threads=1) as server:
        form = Form(Grammar("regex", "<[0-9]{3}>"))
        answer = server.submit(prompt, SamplingOptions(temperature=0, max_tokens=80), builder, form=form)
        server.run()
    assert answer.finish_reason is FinishReason.STOP
    assert len(answer.text) == 5
    assert answer.text[0] + answer.text[-1] == "<>"


def test_a_form_that_cannot_be_is_refused_before_anything_is_queued(
    trained: Checkpoint, builder: PromptBuilder
) -> None:
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=256), num_threads=1) as server:
        with pytest.raises(InvalidRequest, match=r"response_format\.json_schema\.properties\.a\.type"):
            schema = {"type": "object", "properties": {"a": {"type": "text"}}}
            server.submit(
                builder.from_text(ANSWERS), SamplingOptions(), builder, form=Form(Grammar.json_schema(schema))
            )
        assert server.load().num_waiting == 0
