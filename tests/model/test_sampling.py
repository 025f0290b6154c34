"""What a caller may ask of sampling, and what stands where he asks nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckpointError, InvalidRequest
from model.sampling import GenerationDefaults, SamplingOptions, resolve
from model.types import SamplingParams


def complete(
    options: SamplingOptions, defaults: GenerationDefaults | None = None, **limits: Any
) -> SamplingParams:
    limits = {"num_prompt_tokens": 10, "context_len": 100, "seed": 77} | limits
    return resolve(options, defaults or GenerationDefaults(), **limits)


def defaults_of(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any] | None = None
) -> GenerationDefaults:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return GenerationDefaults.load(tmp_path)


WRONG = {
    "negative temperature": ({"temperature": -1.0}, "sampling.temperature", "-1.0 is below 0"),
    "temperature not a number": ({"temperature": float("nan")}, "sampling.temperature", "nan"),
    "infinite temperature": ({"temperature": float("inf")}, "sampling.temperature", "inf"),
    "text as temperature": ({"temperature": "hot"}, "sampling.temperature", "'hot'"),
    "temperature too small to divide by": ({"temperature": 1e-9}, "sampling.temperature", "below 0.0001"),
    "top_p of 0": ({"top_p": 0.0}, "sampling.top_p", "above 0"),
    "top_p above 1": ({"top_p": 1.5}, "sampling.top_p", "1.5 is above 1"),
    "top_p not a number": ({"top_p": float("nan")}, "sampling.top_p", "nan"),
    "negative top_k": ({"top_k": -1}, "sampling.top_k", "-1 is below 0"),
    "fractional top_k": ({"top_k": 1.5}, "sampling.top_k", "1.5 is not a whole number"),
    "min_p above 1": ({"min_p": 1.1}, "sampling.min_p", "1.1 is above 1"),
    "negative min_p": ({"min_p": -0.1}, "sampling.min_p", "-0.1 is below 0"),
    "repetition penalty of 0": ({"repetition_penalty": 0.0}, "sampling.repetition_penalty", "above 0"),
    "presence penalty out of range": (
        {"presence_penalty": 2.5},
        "sampling.presence_penalty",
        "2.5 is above 2",
    ),
    "frequency penalty out of range": (
        {"frequency_penalty": -3.0},
        "sampling.frequency_penalty",
        "-3.0 is below -2",
    ),
    "no tokens": ({"max_tokens": 0}, "sampling.max_tokens", "0 is below 1"),
    "more tokens than the context": ({"max_tokens": 91}, "sampling.max_tokens", "91 is above 90"),
    "negative budget of thinking": ({"max_think_tokens": -1}, "sampling.max_think_tokens", "-1 is below 0"),
    "too much bias": ({"logit_bias": ((4, 100.5),)}, "sampling.logit_bias[4]", "100.5 is above 100"),
    "bias of no token": ({"logit_bias": ((-1, 1.0),)}, "sampling.logit_bias", "-1 is below 0"),
    "too many biases": (
        {"logit_bias": tuple((i, 1.0) for i in range(301))},
        "sampling.logit_bias",
        "301 entries; at most 300",
    ),
    "negative min_tokens": ({"min_tokens": -1}, "sampling.min_tokens", "-1 is below 0"),
    "min_tokens over max_tokens": (
        {"min_tokens": 6, "max_tokens": 5},
        "sampling.min_tokens",
        "6 is above max_tokens, 5",
    ),
    "negative seed": ({"seed": -1}, "sampling.seed", "-1 is below 0"),
    "seed of 65 bits": ({"seed": 2**64}, "sampling.seed", "is above"),
    "true as seed": ({"seed": True}, "sampling.seed", "True is not a whole number"),
    "too many stop strings": ({"stop": ("x",) * 17}, "sampling.stop", "17 strings; at most 16"),
    "stop string too long": ({"stop": ("x", "y" * 257)}, "sampling.stop[1]", "257 characters; at most 256"),
    "empty stop string": ({"stop": ("",)}, "sampling.stop[0]", "at least 1 character"),
    "too many stop ids": ({"stop_token_ids": (5,) * 129}, "sampling.stop_token_ids", "129 ids; at most 128"),
    "negative stop id": ({"stop_token_ids": (1, -2)}, "sampling.stop_token_ids[1]", "-2 is below 0"),
    "stop id outside the vocabulary": (
        {"stop_token_ids": (50,)},
        "sampling.stop_token_ids[0]",
        "50 is above 49",
    ),
    "too many logprobs": ({"num_logprobs": 21}, "sampling.num_logprobs", "21 is above 20"),
    "too many logprobs of the prompt": (
        {"num_prompt_logprobs": 21},
        "sampling.num_prompt_logprobs",
        "21 is above 20",
    ),
    "no samples": ({"n": 0}, "sampling.n", "0 is below 1"),
    "too many samples": ({"n": 17}, "sampling.n", "17 is above 16"),
}


@pytest.mark.parametrize(("fields", "field", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_field_is_named_with_value_and_limit(
    fields: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete(SamplingOptions(**fields), vocab_size=50)
    assert refused.value.field == field
    assert message in refused.value.description


RIGHT = {
    "edges of every range, low": {
        "temperature": 0.0,
        "top_p": 1e-6,
        "top_k": 0,
        "min_p": 0.0,
        "seed": 0,
        "max_tokens": 1,
    },
    "edges of every range, high": {
        "top_p": 1.0,
        "min_p": 1.0,
        "seed": 2**64 - 1,
        "max_tokens": 90,
        "num_logprobs": 20,
    },
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": -2.0, "frequency_penalty": 2.0},
    "as much stop as is allowed": {"stop": ("y" * 256,) * 16, "stop_token_ids": (0,) * 128},
    "min_tokens equal to max_tokens": {"min_tokens": 5, "max_tokens": 5},
}


@pytest.mark.parametrize("fields", RIGHT.values(), ids=RIGHT)
def test_what_is_allowed_arrives_as_given(fields: dict[str, Any]) -> None:
    params = complete(SamplingOptions(**fields))
    assert {name: getattr(params, name) for name in fields} == fields


def test_a_deployment_may_allow_more_samples_or_fewer() -> None:
    assert complete(SamplingOptions(n=20), max_samples=32).num_samples == 20
    with pytest.raises(InvalidRequest, match=r"sampling\.n: 3 is above 2"):
        complete(SamplingOptions(n=3), max_samples=2)


def test_zero_counts_as_set() -> None:
    defaults = GenerationDefaults(temperature=0.6, top_k=20, min_p=0.1)
    params = complete(SamplingOptions(temperature=0.0, top_k=0, min_p=0.0, num_logprobs=0, seed=0), defaults)
    assert (params.temperature, params.top_k, params.min_p, params.num_logprobs, params.seed) == (
        0.0,
        0,
        0.0,
        0,
        0,
    )


def test_unset_fields_take_the_checkpoints_defaults(tmp_path: Path) -> None:
    file = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "eos_token_id": [1, 2],
    }
    params = complete(SamplingOptions(top_k=7), defaults_of(tmp_path, file))
    expected = SamplingParams(
        max_tokens=90,
        seed=77,
        temperature=0.6,
        top_p=0.95,
        top_k=7,
        min_p=0.05,
        repetition_penalty=1.1,
        eos_token_ids=(1, 2),
    )
    assert params == expected


def test_without_files_sampling_is_greedy_without_an_end_token(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()
    assert complete(SamplingOptions()) == SamplingParams(max_tokens=90, seed=77)


DO_SAMPLE = {
    "says no": ({"do_sample": False, "temperature": 0.6}, 0.0),
    "says yes": ({"do_sample": True, "temperature": 0.6}, 0.6),
    "says yes and no temperature": ({"do_sample": True}, 1.0),
    "says a temperature alone": ({"temperature": 0.6}, 0.6),
    "says nothing": ({"top_p": 0.9}, 0.0),
}


@pytest.mark.parametrize(("file", "temperature"), DO_SAMPLE.values(), ids=DO_SAMPLE)
def test_a_checkpoint_decides_whether_sampling_is_on(
    tmp_path: Path, file: dict[str, Any], temperature: float
) -> None:
    assert defaults_of(tmp_path, file).temperature == temperature


EOS = {
    "one id": ({"eos_token_id": 2}, None, (2,)),
    "a list": ({"eos_token_id": [1, 2, 128007]}, None, (1, 2, 128007)),
    "only in config.json": ({}, {"eos_token_id": [1, 2]}, (1, 2)),
    "in the text part of config.json": (None, {"text_config": {"eos_token_id": 3}}, (3,)),
    "in both": ({"eos_token_id": 2}, {"eos_token_id": [5]}, (2,)),
    "nowhere": ({}, {"text_config": None}, ()),
}


@pytest.mark.parametrize(("generation", "config", "expected"), EOS.values(), ids=EOS)
def test_end_tokens_come_from_the_checkpoint(
    tmp_path: Path, generation: Any, config: Any, expected: Any
) -> None:
    assert defaults_of(tmp_path, generation, config).eos_token_ids == expected


def test_ignoring_eos_leaves_no_end_token_but_keeps_stop_ids() -> None:
    defaults = GenerationDefaults(eos_token_ids=(1, 2))
    params = complete(SamplingOptions(ignore_eos=True, stop_token_ids=(9,)), defaults)
    assert (params.eos_token_ids, params.stop_token_ids) == ((), (9,))


WRONG_FILES = {
    "not json": ("{", "generation_config.json"),
    "not an object": ("[]", "expected an object, found list"),
    "top_p of 2": ('{"top_p": 2}', "top_p: 2 is above 1"),
    "text as temperature": ('{"temperature": "hot"}', "temperature: 'hot'"),
    "text as eos": ('{"eos_token_id": ["</s>"]}', "eos_token_id: '</s>'"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_generation_config_is_refused_with_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json") as refused:
        GenerationDefaults.load(tmp_path)
    assert message in refused.value.message


@pytest.mark.parametrize("num_prompt_tokens", [100, 101, 5000])
def test_a_prompt_that_fills_the_context_is_refused_with_count_and_limit(num_prompt_tokens: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        complete(SamplingOptions(), num_prompt_tokens=num_prompt_tokens)
    assert refused.value.field == "prompt"
    assert f"{num_prompt_tokens} tokens" in refused.value.description
    assert "context of 100" in refused.value.description


LENGTHS = {
    "the rest of the context": ({}, None, 90),
    "what the checkpoint says": ({}, 40, 40),
    "not more than the context": ({}, 4000, 90),
    "what the cache holds": ({"capacity_tokens": 50}, None, 40),
    "at least one, so that the scheduler can refuse": ({"capacity_tokens": 5}, None, 1),
}


@pytest.mark.parametrize(("limits", "max_new_tokens", "expected"), LENGTHS.values(), ids=LENGTHS)
def test_an_unset_length_is(limits: dict[str, Any], max_new_tokens: int | None, expected: int) -> None:
    defaults = GenerationDefaults(max_new_tokens=max_new_tokens)
    assert complete(SamplingOptions(), defaults, **limits).max_tokens == expected
