"""The small tokenizer: nothing is lost, and control tokens are whole."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from model.nano import default_checkpoint
from model.nano.tokenizer import CONTROL_TOKENS, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(default_checkpoint() / "tokenizer.json"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " two  spaces and a tab\t",
        "line\n\nfeeds\r\n",
        "Zürich, Ελλάδα, Москва, 東京, नमस्ते, 🙂‍↔️",
        "1234567890.5e-7",
        "\x00\x7f\ufffd",
        "{'a': [1, 2]}  # comment",
    ],
)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize("text", CONTROL_TOKENS)
def test_a_control_token_is_one_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(f"a{text}b", add_special_tokens=False).ids
    assert ids.count(tokenizer.token_to_id(text)) == 1
    assert len(ids) == 3


def test_some_tokens_are_parts_of_a_character(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("🙃", add_special_tokens=False).ids) > 1


@pytest.mark.parametrize(
    "word", ["function", "parameter", "type", "object", " the", " does", " value", " line"]
)
def test_common_words_of_prompts_are_single_tokens(tokenizer: Tokenizer, word: str) -> None:
    assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1


@pytest.mark.parametrize("text", ["K7XQ2", "31.08.2026", "A\n\nB", "12\n", "TOTAL"])
def test_digits_capitals_and_line_feeds_stay_single(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, add_special_tokens=False).ids == [
        token_id for char in text for token_id in tokenizer.encode(char, add_special_tokens=False).ids
    ]


def test_no_token_is_added_around_a_text(tokenizer: Tokenizer) -> None:
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    assert tokenizer.encode("a", add_special_tokens=True).ids == bare


def test_training_gives_the_committed_tokenizer(tokenizer: Tokenizer) -> None:
    assert train_tokenizer().to_str() == tokenizer.to_str()
