"""Ids that were generated come back in the next prompt: exactly where the text is the same, nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.text.chat import ChatMessage, Conversation, ToolCall
from model.text.images import ImageInput
from model.text.prompt import PreparedPrompt, PromptBuilder
from model.text.splices import OpenTurn, Splices, SpliceStore
from model.text.tokenizer import Piece, Tokenizer, byte_level_alphabet
from tests.model.text.test_prompt import picture

ALPHABET = byte_level_alphabet()
THINKS = "I look.\n</think>\nThe Bär runs."
CALL = "<tool_call>\n<function=look>\n<parameter=at>\nthe left\n</parameter>\n</function>\n</tool_call>"


@pytest.fixture
def store(tokenizer: Tokenizer) -> SpliceStore:
    return SpliceStore(tokenizer, 1 << 20)


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text byte by byte, as no tokenizer would cut it; control tokens in it count."""
    ids: list[int] = []
    for piece in tokenizer.split(text):
        if piece.is_control:
            ids.append(tokenizer.control_id(piece.text))
        else:
            found = [tokenizer.token_id(ALPHABET[byte]) for byte in piece.text.encode()]
            ids += [token_id for token_id in found if token_id is not None]
    assert tokenizer.decode(ids, skip_special=False) == text
    return ids


def chat(*messages: ChatMessage, **fields: Any) -> Conversation:
    return Conversation((ChatMessage("user", "What is it?"), *messages), **fields)


def answered(content: str = "The Bär runs.", **fields: Any) -> ChatMessage:
    return ChatMessage("assistant", content, **{"reasoning_content": "I look.", **fields})


RESULT = ChatMessage("tool", "nothing")  # its thinking is kept in front of a tool's result


def ask(
    builder: PromptBuilder, store: SpliceStore, conversation: Conversation, tenant: str = "a"
) -> PreparedPrompt:
    return builder.from_chat(conversation, Splices(store, tenant))


def keep(store: SpliceStore, prompt: PreparedPrompt, ids: list[int]) -> None:
    assert prompt.open_turn is not None
    store.keep(prompt.open_turn, ids)


def test_the_next_prompt_begins_with_the_ids_that_were_generated(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore
) -> None:
    first, ids = ask(builder, store, chat()), spelled(tokenizer, THINKS)
    keep(store, first, ids)
    then = chat(answered(), RESULT)
    found, plain = ask(builder, store, then), builder.from_chat(then)
    assert found.prompt_ids[: len(first.prompt_ids) + len(ids)] == first.prompt_ids + tuple(ids)
    assert len(found.prompt_ids) > len(plain.prompt_ids), "a tokenizer would have cut it like this"
    assert found.text == plain.text
    decoded = [tokenizer.decode(prompt.prompt_ids, skip_special=False) for prompt in (found, plain)]
    assert decoded[0] == decoded[1]


def test_every_turn_of_a_chat_comes_back_as_it_was_generated(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore
) -> None:
    messages: list[ChatMessage] = []
    for turn in range(6):
        prompt = ask(builder, store, chat(*messages))
        text = f"Step {turn}.\n</think>\nI look again." + CALL
        ids = spelled(tokenizer, text)
        keep(store, prompt, ids)
        call = ToolCall("look", {"at": "the left"})
        messages += [
            answered("I look again.", reasoning_content=f"Step {turn}.", tool_calls=(call,)), RESULT
        ]  # fmt: skip
        found = ask(builder, store, chat(*messages)).prompt_ids
        assert found[: len(prompt.prompt_ids) + len(ids)] == prompt.prompt_ids + tuple(ids), turn
    assert len(store) == 6


OTHERS = {
    "another answer": chat(answered("The Bär ran."), RESULT),
    "a space more": chat(answered("The Bär runs. "), RESULT),
    "other thoughts": chat(answered(reasoning_content="I looked."), RESULT),
    "a call more": chat(answered(tool_calls=(ToolCall("look"),)), RESULT),
    "another question": Conversation((ChatMessage("user", "What was it?"), answered(), RESULT)),
    "a system turn before": Conversation(
        (ChatMessage("system", "x"), ChatMessage("user", "What is it?"), answered(), RESULT)
    ),
    "another effort": chat(answered(), RESULT, reasoning_effort="low"),
    "its thinking is dropped": chat(answered(), ChatMessage("user", "And now?")),
    "a marker that is text": chat(
        answered("", reasoning_content="I look.\n</think>\nThe Bär runs."), RESULT
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_the_same_is_encoded_as_ever(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore, name: str
) -> None:
    keep(store, ask(builder, store, chat()), spelled(tokenizer, THINKS))
    assert ask(builder, store, OTHERS[name]).prompt_ids == builder.from_chat(OTHERS[name]).prompt_ids


def test_another_tenant_gets_nothing(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore
) -> None:
    keep(store, ask(builder, store, chat(), "a"), spelled(tokenizer, THINKS))
    then = chat(answered(), RESULT)
    plain = builder.from_chat(then).prompt_ids
    assert ask(builder, store, then, "b").prompt_ids == plain
    assert ask(builder, store, then, "a").prompt_ids != plain


def test_the_picture_before_it_counts(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore
) -> None:
    from model.text.chat_json import question

    def shown(image: ImageInput, *messages: ChatMessage) -> Conversation:
        conversation = question("What is it?", [image])
        return replace(conversation, messages=(*conversation.messages, *messages))

    red, blue = picture(40, 40, "red"), picture(40, 40, "blue")
    first, ids = ask(builder, store, shown(red)), spelled(tokenizer, THINKS)
    keep(store, first, ids)
    found = ask(builder, store, shown(red, answered(), RESULT))
    assert found.prompt_ids[: len(first.prompt_ids) + len(ids)] == first.prompt_ids + tuple(ids)
    assert found.spans == first.spans
    other = shown(blue, answered(), RESULT)
    assert ask(builder, store, other).prompt_ids == builder.from_chat(other).prompt_ids


def test_the_end_of_a_chat_without_an_open_turn_says_so(builder: PromptBuilder, store: SpliceStore) -> None:
    assert ask(builder, store, chat(add_generation_prompt=False)).open_turn is None
    assert builder.from_chat(chat()).open_turn is None, "nobody keeps answers"


@pytest.mark.parametrize("text", ["two turns<|im_end|>\n<|im_start|>user\nx", "a place <im_patch>"])
def test_ids_that_a_chat_cannot_say_again_are_not_kept(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore, text: str
) -> None:
    keep(store, ask(builder, store, chat()), spelled(tokenizer, text))
    keep(store, ask(builder, store, chat()), spelled(tokenizer, "half a character: ä")[:-1])
    assert (len(store), store.num_bytes) == (0, 0)


def test_memory_is_bounded_and_the_one_unused_longest_goes(
    builder: PromptBuilder, tokenizer: Tokenizer
) -> None:
    one = SpliceStore(tokenizer, 1 << 20)
    first, ids = ask(builder, one, chat()), spelled(tokenizer, THINKS)
    keep(one, first, ids)
    store = SpliceStore(tokenizer, 3 * one.num_bytes)

    def known(letter: str) -> bool:
        then = Conversation((ChatMessage("user", letter), answered(), RESULT))
        return ask(builder, store, then).prompt_ids != builder.from_chat(then).prompt_ids

    for letter in "abc":
        keep(store, ask(builder, store, Conversation((ChatMessage("user", letter),))), ids)
    assert known("a")  # used now: b is the oldest
    keep(store, ask(builder, store, Conversation((ChatMessage("user", "d"),))), ids)
    assert [known(letter) for letter in "abcd"] == [True, False, True, True]
    for number in range(500):
        keep(store, ask(builder, store, Conversation((ChatMessage("user", str(number)),))), ids)
        assert store.num_bytes <= 3 * one.num_bytes
    assert len(store) == 3
    store.keep(OpenTurn(b"long", ()), ids * 100)
    assert len(store) == 3, "one that has no room takes none"


def test_an_answer_kept_twice_counts_once(
    builder: PromptBuilder, tokenizer: Tokenizer, store: SpliceStore
) -> None:
    first = ask(builder, store, chat())
    keep(store, first, tokenizer.encode_prompt(tokenizer.split(THINKS)))
    keep(store, first, spelled(tokenizer, THINKS))
    assert len(store) == 1
    found = ask(builder, store, chat(answered(), RESULT)).prompt_ids
    start = len(first.prompt_ids)
    assert found[start : start + 10] == tuple(spelled(tokenizer, THINKS)[:10]), "the last one"


def test_pieces_are_what_ids_were_made_of(tokenizer: Tokenizer) -> None:
    pieces = [Piece("a Bär"), Piece("<think>", is_control=True), Piece("<|im_end|> 🙂")]
    assert tokenizer.pieces(tokenizer.encode_prompt(pieces)) == pieces
    assert tokenizer.pieces(spelled(tokenizer, "🙂")[:-1]) is None
