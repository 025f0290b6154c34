"""Agents whose model spells as no tokenizer would: with their own ids every prompt meets its prefix."""

from __future__ import annotations

import pytest

from model.nano import default_checkpoint
from model.text.chat import ChatMessage, Conversation
from model.text.outputs import OutputStreams
from model.text.prompt import PromptBuilder
from model.text.splices import Splices, SpliceStore
from model.text.tokenizer import Tokenizer, byte_level_alphabet
from model.types import Channel, Delta, Request, RequestKey, SamplingParams
from tests.model.sched import fakes

NUM_TURNS = 6
BLOCK_SIZE = 4
ALPHABET = byte_level_alphabet()


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder.load(default_checkpoint(), vocab_size=448)


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Byte by byte; control tokens count."""
    ids: list[int] = []
    for piece in tokenizer.split(text):
        if piece.is_control:
            ids.append(tokenizer.control_id(piece.text))
        else:
            ids += [tokenizer.token_id(ALPHABET[byte]) or 0 for byte in piece.text.encode()]
    return ids


@pytest.fixture
def writes_letter_by_letter(builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake gang answers turn n with words about n, whatever the prompt's ids are."""
    tokenizer = builder.tokenizer
    begin = tokenizer.control_id("<|im_start|>")
    header = len(tokenizer.encode_prompt(tokenizer.split("assistant\n<think>\n")))

    def next_token(ids: list[int], sample: int = 0) -> int:
        turn = ids.count(begin)
        last = len(ids) - 1 - ids[::-1].index(begin)
        answer = spelled(tokenizer, f"Step number {turn}.\n</think>\nI have done {turn} of them.<|im_end|>")
        position = len(ids) - last - 1 - header
        return answer[position] if position < len(answer) else begin  # planned behind the end

    monkeypatch.setattr(fakes, "next_token", next_token)


def chat(builder: PromptBuilder, splices: Splices | None) -> list[tuple[int, int, int]]:
    """For each turn: tokens of the prompt, those cached, and those that the turn before had computed."""
    bench = fakes.Bench(
        fakes.make_config(
            num_full_blocks=400, num_sliding_blocks=400, keeps_prefixes=True, context_len=4000
        )
    )  # fmt: skip
    end = builder.tokenizer.control_id("<|im_end|>")
    sampling = SamplingParams(max_tokens=200, eos_token_ids=(end,))
    messages, turns, known = [ChatMessage("user", "Do it step by step.")], [], 0
    for turn in range(NUM_TURNS):
        prompt = builder.from_chat(Conversation(tuple(messages)), splices)
        key = RequestKey("a", str(turn))
        request = Request(key, prompt.prompt_ids, sampling, prefix_ends=prompt.prefix_ends)
        bench.scheduler.add(request)
        bench.drain()
        usage, ids = bench.inbox.final[key].usage, bench.inbox.tokens[key]
        assert usage is not None
        turns.append((usage.num_prompt_tokens, usage.num_cached_tokens, known))
        known = len(prompt.prompt_ids) + len(ids) - 1
        outputs = OutputStreams.of(builder.tokenizer, sampling, starts_in_thinking=True)
        final = bench.inbox.final[key]
        events = outputs.push(
            Delta(key, 0, tuple(ids), finish_reason=final.finish_reason, stop_token_id=end)
        )  # fmt: skip
        said = {
            channel: "".join(event.text for event in events if event.channel is channel)
            for channel in Channel
        }  # fmt: skip
        messages += [
            ChatMessage("assistant", said[Channel.TEXT], reasoning_content=said[Channel.REASONING]),
            ChatMessage("tool", "Go on."),
        ]
        if splices is not None:
            assert prompt.open_turn is not None
            splices.store.keep(prompt.open_turn, outputs.answer_ids(0))
    return turns


def test_every_turn_meets_all_that_was_computed_before(
    builder: PromptBuilder, writes_letter_by_letter: None
) -> None:
    store = SpliceStore(builder.tokenizer, 1 << 20)
    turns = chat(builder, Splices(store, "a"))
    for _, cached, known in turns[1:]:
        assert cached == known // BLOCK_SIZE * BLOCK_SIZE
    plain = chat(builder, None)
    for _, cached, known in plain[1:]:
        assert cached < known - 20, "the answer was spelled otherwise"
    rates = [
        sum(cached for _, cached, _ in found) / sum(num for num, _, _ in found) for found in (turns, plain)
    ]
    assert rates[0] > max(0.8, rates[1] + 0.1), rates
