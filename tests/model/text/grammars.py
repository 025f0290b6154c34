"""Random schemas, and walks through a grammar that take any token it allows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from model.grammar import Grammar
from model.text.grammar import GrammarCompiler, Matcher
from model.text.grammar_masks import unpack
from model.text.tokenizer import Tokenizer

NANO = Path(__file__).parents[3] / "model/nano/checkpoint"
VOCAB_SIZE = 448  # rows of the default model, four more than it has ids
ENDS = (1, 2, 437)
DEFINITIONS = {  # random schemas refer to it
    "tree": {
        "type": "object",
        "properties": {"leaf": {"type": "boolean"}, "tree": {"$ref": "#/$defs/tree"}},
        "required": ["leaf"],
        "additionalProperties": False,
    }
}
CLOSERS = (b'"', b"}", b"]", b"\n", b",", b"<", b"1")


@cache
def nano() -> tuple[Tokenizer, GrammarCompiler]:
    tokenizer = Tokenizer.load(NANO)
    return tokenizer, GrammarCompiler(tokenizer, VOCAB_SIZE)


def matcher(grammar: Grammar, *, starts_in_thinking: bool = False) -> Matcher:
    return nano()[1].compile(grammar).matcher(ENDS, starts_in_thinking=starts_in_thinking)


def ids(text: str) -> list[int]:
    """Ids of a text in which control tokens are tokens."""
    return nano()[0].encode_prompt(nano()[0].split(text))


def allowed(state: Matcher) -> list[int]:
    return np.flatnonzero(unpack(state.mask(), VOCAB_SIZE)).tolist()


def matches(grammar: Grammar, text: str) -> bool:
    """Whether the tokens of a text lead to where the answer may end."""
    state = matcher(grammar)
    return all(state.accept(token_id) for token_id in ids(text)) and state.may_end


@dataclass(frozen=True)
class Walk:
    ids: tuple[int, ...]
    is_finished: bool

    @property
    def text(self) -> str:
        return nano()[0].decode(self.ids, skip_special=False)


def walk(grammar: Grammar, rng: random.Random, max_tokens: int = 600) -> Walk:
    """Any allowed tokens until the grammar ends; one in three is one that closes something, if it may."""
    state = matcher(grammar)
    taken: list[int] = []
    for _ in range(max_tokens):
        choices = allowed(state)
        assert choices, f"no token may follow {taken}"
        ends = [token_id for token_id in choices if token_id in ENDS]
        if ends and (len(ends) == len(choices) or rng.random() < 0.5):
            return Walk(tuple(taken), is_finished=True)
        choices = [token_id for token_id in choices if token_id not in ENDS]
        closers = [token_id for token_id in choices if nano()[0].token_bytes(token_id) in CLOSERS]
        token_id = rng.choice(closers if closers and rng.random() < 0.34 else choices)
        assert state.accept(token_id), (taken, token_id)
        taken.append(token_id)
    return Walk(tuple(taken), is_finished=False)


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema nested `depth` deep at most, of keywords that are served; DEFINITIONS stand beside it."""
    leaves = [_string, _integer, _number, _plain, _enum]
    inner = [_object, _object, _array, _any_of]
    return rng.choice(inner if depth > 0 else leaves)(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    extras: list[dict[str, Any]] = [
        {},
        {"maxLength": rng.randint(1, 12)},
        {"minLength": 2, "maxLength": 6},
        {"pattern": "^[a-f]{2,4}-[0-9]+$"},
        {"pattern": "a|bc"},
        {"format": rng.choice(["date", "uuid", "ipv4"])},
    ]
    return {"type": "string", **rng.choice(extras)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-1000, 1000)
    extras: list[dict[str, Any]] = [{}, {"minimum": low, "maximum": low + 50}, {"exclusiveMinimum": low}]
    return {"type": "integer", **rng.choice([*extras, {"multipleOf": 7, "minimum": 0}])}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    extras: list[dict[str, Any]] = [{}, {"minimum": -1.5, "maximum": 2.25}, {"exclusiveMaximum": 10}]
    return {"type": "number", **rng.choice(extras)}


def _plain(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["null", "integer"]])}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ["red", 'a "b" \\ c', "ä\n🙂", 1, -2.5, None, True, {"k": [1]}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["a", "b c", "ü", 'q"', "x.y", "long_name"], rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.7:
        schema["additionalProperties"] = False
    elif rng.random() < 0.5:
        schema["additionalProperties"] = random_schema(rng, 0)
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth - 1)}
    if rng.random() < 0.5:
        low = rng.randint(0, 2)
        schema |= {"minItems": low, "maxItems": low + rng.randint(0, 2)}
    return schema


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
