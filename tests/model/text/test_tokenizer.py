"""Ids and text: what is special, what is not, and that joins are BPE's own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.text.tokenizer import Piece, Tokenizer

LITERALS = ["<|im_end|>", "<think>", "</think>", "<im_patch>", "<|begin|>", "<tool_call>"]
TEXTS = st.lists(
    st.one_of(st.sampled_from([*LITERALS, "<", "think", "|>", " ", "\n"]), st.text(max_size=6))
).map("".join)


@pytest.mark.parametrize("literal", LITERALS)
def test_text_with_a_control_literal_has_no_control_token(tokenizer, literal):
    ids = tokenizer.encode_text(f"a {literal} b")
    assert tokenizer.token_id(literal) not in ids
    assert tokenizer.decode(ids) == f"a {literal} b"


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_split_prompts_have_the_ids_of_the_library(tokenizer, reference, text):
    ours = tokenizer.encode_prompt(tokenizer.split(text))
    assert ours == reference.encode(text, add_special_tokens=False).ids


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="<>xy", max_size=12))
def test_of_control_tokens_that_begin_alike_the_longest_counts(checkpoint, text):
    definition = json.loads((checkpoint / "tokenizer.json").read_text())
    library = tokenizers.Tokenizer.from_str(json.dumps(definition))
    library.add_special_tokens(["<x", "<xy>", "<xyx", "<>", "y>"])
    ours = Tokenizer(json.loads(library.to_str()))
    assert ours.encode_prompt(ours.split(text)) == library.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 30)))
def test_pieces_of_text_join_before_bpe(tokenizer, text, cuts):
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [Piece(text[a:b]) for a, b in pairwise(borders)]
    assert tokenizer.encode_prompt(pieces) == tokenizer.encode_text(text)


def test_bos_is_known_and_never_added_by_encoding(tokenizer):
    assert tokenizer.bos_id == tokenizer.token_id("<|begin|>") == 0
    assert 0 not in tokenizer.encode_text("Hello") + tokenizer.encode_prompt([Piece("Hello")])


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""


def test_vocab_size_is_one_more_than_the_highest_id(tokenizer, reference):
    assert tokenizer.vocab_size == reference.get_vocab_size()
    assert reference.id_to_token(tokenizer.vocab_size - 1) is not None
    assert reference.id_to_token(tokenizer.vocab_size) is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": None}, "decoder"),
        ({"model": {"type": "Unheard"}}, r"tokenizer\.json"),
        (
            {"added_tokens": [{"id": 0, "content": "<x>", "special": True, "lstrip": True, "rstrip": False}]},
            "lstrip",
        ),
    ],
)
def test_an_unfit_tokenizer_is_refused(checkpoint, change, message):
    definition = json.loads((checkpoint / "tokenizer.json").read_text())
    with pytest.raises(CheckpointError, match=message):
        Tokenizer({**definition, **change})


def test_a_bos_that_is_no_control_token_is_refused(checkpoint):
    definition = json.loads((checkpoint / "tokenizer.json").read_text())
    with pytest.raises(CheckpointError, match="<nothing>"):
        Tokenizer(definition, "<nothing>")
