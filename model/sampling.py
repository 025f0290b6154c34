"""From what a caller left open to complete `SamplingParams`: checks, and defaults of the checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.errors import CheckpointError, InvalidRequest
from model.types import SamplingParams

_T = TypeVar("_T")

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
# Each costs a place in the mask of a step; nobody needs more.
MAX_STOP_TOKEN_IDS = 128
# As many as the largest public services give; every one costs bytes in each event.
MAX_LOGPROBS = 20
# Logits divided by less leave the range in which float64 tells candidates apart; 0 is greedy.
MIN_TEMPERATURE = 1e-4
# The range of the OpenAI interface, from which these two penalties come.
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
MAX_SEED = 2**64 - 1
# Range and number of the OpenAI interface.
MAX_LOGIT_BIAS = 100.0
MAX_LOGIT_BIASES = 300
# Enough for best-of and voting; every one holds a place among the running sequences.
MAX_SAMPLES = 16


@dataclass(frozen=True)
class SamplingOptions:
    """What a caller may set; None takes the checkpoint's default, then the library's."""

    max_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    num_logprobs: int | None = None
    ignore_eos: bool | None = None
    max_think_tokens: int | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None  # (token id, bias), every id once
    mtp: bool | None = None  # verify drafts for this request: the same tokens, sooner or later
    n: int | None = None  # samples
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's `generation_config.json`, as far as it says something about sampling."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None

    @classmethod
    def load(cls, directory: Path | str) -> GenerationDefaults:
        """Read generation_config.json, and eos ids from config.json where it names none.

        Sampling is on if the file says a temperature or `do_sample: true`, off if it says
        `do_sample: false`. Raises CheckpointError for a file that cannot be read or holds wrong values.
        """
        directory = Path(directory)
        config = _read_json(directory / "generation_config.json")
        eos = config.get("eos_token_id")
        if eos is None:
            eos = _eos_of_model(_read_json(directory / "config.json"))
        temperature = config.get("temperature") or (1.0 if config.get("do_sample") else 0.0)
        defaults = SamplingOptions(
            temperature=0.0 if config.get("do_sample") is False else temperature,
            top_p=config.get("top_p"),
            top_k=config.get("top_k"),
            min_p=config.get("min_p"),
            repetition_penalty=config.get("repetition_penalty"),
            max_tokens=config.get("max_new_tokens"),
        )
        try:
            _check(defaults)
            return cls._from(defaults, _ids_of(eos))
        except InvalidRequest as error:
            field = error.field.removeprefix("sampling.")
            raise CheckpointError(
                f"{directory / 'generation_config.json'}: {field}: {error.description}"
            ) from None

    @classmethod
    def _from(cls, options: SamplingOptions, eos_token_ids: tuple[int, ...]) -> GenerationDefaults:
        return cls(
            eos_token_ids=eos_token_ids,
            temperature=_or(options.temperature, cls.temperature),
            top_p=_or(options.top_p, cls.top_p),
            top_k=_or(options.top_k, cls.top_k),
            min_p=_or(options.min_p, cls.min_p),
            repetition_penalty=_or(options.repetition_penalty, cls.repetition_penalty),
            max_new_tokens=options.max_tokens,
        )


def resolve(
    options: SamplingOptions,
    defaults: GenerationDefaults,
    *,
    num_prompt_tokens: int,
    context_len: int,
    seed: int,
    capacity_tokens: int | None = None,
    vocab_size: int | None = None,
    max_samples: int = MAX_SAMPLES,
) -> SamplingParams:
    """Complete `options`; `seed` is used where the caller gave none.

    `capacity_tokens`: what the KV cache holds of one sequence; `max_samples`: the limit of `n`. Raises
    InvalidRequest for the first wrong field, and for a prompt that leaves no room for a token.
    """
    _check(options, vocab_size)
    _check_int("n", options.n, 1, max_samples)
    max_tokens = _resolve_max_tokens(options, defaults, num_prompt_tokens, context_len, capacity_tokens)
    min_tokens = options.min_tokens or 0
    _require(min_tokens <= max_tokens, "min_tokens", f"{min_tokens} is above max_tokens, {max_tokens}")
    return SamplingParams(
        max_tokens=max_tokens,
        seed=_or(options.seed, seed),
        temperature=float(_or(options.temperature, defaults.temperature)),
        top_p=float(_or(options.top_p, defaults.top_p)),
        top_k=_or(options.top_k, defaults.top_k),
        min_p=float(_or(options.min_p, defaults.min_p)),
        repetition_penalty=float(_or(options.repetition_penalty, defaults.repetition_penalty)),
        presence_penalty=float(options.presence_penalty or 0.0),
        frequency_penalty=float(options.frequency_penalty or 0.0),
        min_tokens=min_tokens,
        stop=tuple(options.stop or ()),
        stop_token_ids=tuple(options.stop_token_ids or ()),
        eos_token_ids=() if options.ignore_eos else defaults.eos_token_ids,
        num_logprobs=options.num_logprobs,
        mtp=options.mtp is not False,
        max_think_tokens=options.max_think_tokens,
        num_samples=_or(options.n, 1),
        num_prompt_logprobs=options.num_prompt_logprobs,
        logit_bias=tuple(sorted({i: float(bias) for i, bias in options.logit_bias or ()}.items())),
    )


def _resolve_max_tokens(
    options: SamplingOptions,
    defaults: GenerationDefaults,
    num_prompt_tokens: int,
    context_len: int,
    capacity_tokens: int | None,
) -> int:
    """What was asked, or as much as checkpoint, context and cache allow."""
    room = context_len - num_prompt_tokens
    if room < 1:
        raise InvalidRequest(
            "prompt", f"{num_prompt_tokens} tokens leave no room for an answer in a context of {context_len}"
        )
    if options.max_tokens is not None:
        _require(
            options.max_tokens <= room,
            "max_tokens",
            f"{options.max_tokens} is above {room}, what the prompt's {num_prompt_tokens} tokens "
            f"leave in a context of {context_len}",
        )
        return options.max_tokens
    if capacity_tokens is not None:
        # A cache too small even for the prompt is the scheduler's to refuse, with need and have in blocks.
        room = max(1, min(room, capacity_tokens - num_prompt_tokens))
    return min(room, _or(defaults.max_new_tokens, room))


def _check(options: SamplingOptions, vocab_size: int | None = None) -> None:
    """Raise InvalidRequest for the first field outside its range."""
    _check_int("max_tokens", options.max_tokens, 1)
    _check_int("seed", options.seed, 0, MAX_SEED)
    _check_number("temperature", options.temperature, 0.0)
    if options.temperature:
        _require(
            options.temperature >= MIN_TEMPERATURE,
            "temperature",
            f"{options.temperature} is below {MIN_TEMPERATURE} (0 is greedy)",
        )
    _check_number("top_p", options.top_p, 0.0, 1.0)
    _require(options.top_p != 0, "top_p", "0 would keep no token: it must be above 0")
    _check_int("top_k", options.top_k, 0)
    _check_number("min_p", options.min_p, 0.0, 1.0)
    _check_number("repetition_penalty", options.repetition_penalty, 0.0, MAX_REPETITION_PENALTY)
    _require(options.repetition_penalty != 0, "repetition_penalty", "0 divides by zero: it must be above 0")
    _check_number("presence_penalty", options.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_number("frequency_penalty", options.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_int("min_tokens", options.min_tokens, 0)
    _check_int("max_think_tokens", options.max_think_tokens, 0)
    _check_int("num_logprobs", options.num_logprobs, 0, MAX_LOGPROBS)
    _check_int("num_prompt_logprobs", options.num_prompt_logprobs, 0, MAX_LOGPROBS)
    _check_stop(options, vocab_size)
    _check_bias(options.logit_bias or (), vocab_size)


def _check_stop(options: SamplingOptions, vocab_size: int | None) -> None:
    stop = options.stop or ()
    _require(len(stop) <= MAX_STOP_STRINGS, "stop", f"{len(stop)} strings; at most {MAX_STOP_STRINGS}")
    for i, text in enumerate(stop):
        _require(
            isinstance(text, str) and text != "",
            f"stop[{i}]",
            f"{text!r} is not a text of at least 1 character",
        )
        _require(
            len(text) <= MAX_STOP_STRING_CHARS,
            f"stop[{i}]",
            f"{len(text)} characters; at most {MAX_STOP_STRING_CHARS}",
        )
    ids = options.stop_token_ids or ()
    _require(
        len(ids) <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"{len(ids)} ids; at most {MAX_STOP_TOKEN_IDS}"
    )
    for i, token_id in enumerate(ids):
        _check_int(f"stop_token_ids[{i}]", token_id, 0, None if vocab_size is None else vocab_size - 1)


def _check_bias(biases: tuple[tuple[int, float], ...], vocab_size: int | None) -> None:
    _require(
        len(biases) <= MAX_LOGIT_BIASES, "logit_bias", f"{len(biases)} entries; at most {MAX_LOGIT_BIASES}"
    )
    for token_id, bias in biases:
        _check_int("logit_bias", token_id, 0, None if vocab_size is None else vocab_size - 1)
        _check_number(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)


def _check_int(field: str, value: Any, low: int, high: int | None = None) -> None:
    if value is not None:
        _require(
            isinstance(value, int) and not isinstance(value, bool), field, f"{value!r} is not a whole number"
        )
        _check_range(field, value, low, high)


def _check_number(field: str, value: Any, low: float, high: float | None = None) -> None:
    if value is not None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(is_number and math.isfinite(value), field, f"{value!r} is not a finite number")
        _check_range(field, value, low, high)


def _check_range(field: str, value: float, low: float, high: float | None) -> None:
    _require(value >= low, field, f"{value} is below {low:g}")
    if high is not None:
        _require(value <= high, field, f"{value} is above {high}")


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise InvalidRequest(f"sampling.{field}", message)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _ids_of(value: Any) -> tuple[int, ...]:
    """`eos_token_id` is one id, a list of them, or absent."""
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        _check_int("eos_token_id", token_id, 0)
    return tuple(ids)


def _eos_of_model(config: dict[str, Any]) -> Any:
    """config.json names eos at the top or in its text part, by dialect."""
    if config.get("eos_token_id") is not None:
        return config["eos_token_id"]
    return (config.get("text_config") or {}).get("eos_token_id")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(content).__name__}")
    return content
