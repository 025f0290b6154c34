"""A chat that comes back over gRPC goes on with the ids that were generated for it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.preprocess import TextStage
from model.nano import default_checkpoint
from model.text.tokenizer import byte_level_alphabet
from protos.fluyt.v1 import inference_pb2 as pb
from tests.cluster.front.harness import ask, front_door, tokenizer
from tests.fakes import FakeLink

ALPHABET = byte_level_alphabet()
END = "<|im_end|>"


def spelled(text: str) -> tuple[int, ...]:
    """Byte by byte; control tokens count."""
    ids: list[int] = []
    for piece in tokenizer().split(text):
        if piece.is_control:
            ids.append(tokenizer().control_id(piece.text))
        else:
            ids += [tokenizer().token_id(ALPHABET[byte]) or 0 for byte in piece.text.encode()]
    return tuple(ids)


def writing(text: str) -> FakeLink:
    """A link that spells `text` letter by letter, whatever is asked, several tokens at a time."""
    return FakeLink(tokens_of=lambda request: spelled(text)[: request.sampling.max_tokens], delta_size=3)


def then(first: pb.GenerateRequest, reasoning: str, text: str) -> pb.GenerateRequest:
    """The chat goes on with what was answered, and the result of a tool."""
    request = pb.GenerateRequest()
    request.CopyFrom(first)
    request.chat.messages.extend(
        [
            pb.ChatMessage(
                role="assistant", content=[pb.ContentPart(text=text)], reasoning_content=reasoning
            ),
            pb.ChatMessage(role="tool", content=[pb.ContentPart(text="done")]),
        ]
    )
    return request


async def prompts(
    written: str, *, kept_answers_mib: int = 1, **fields: object
) -> tuple[Sequence[int], Sequence[int]]:
    """Ids of the first prompt, and of the one in which its answer is said again."""
    stage = TextStage.load(default_checkpoint(), kept_answers_mib=kept_answers_mib)
    async with front_door(writing(written), text=stage) as door:
        request = ask("What is it?", max_tokens=100, **fields)
        answer = await door.client.answer(request)
        await door.client.answer(then(request, answer.reasoning, answer.text))
        return [request.prompt_ids for request in door.link.submitted]


async def test_the_answer_comes_back_in_its_own_ids() -> None:
    written = "I see.\n</think>\nNothing at all."
    first, second = await prompts(written)
    assert second[: len(first) + len(spelled(written))] == first + spelled(written)


async def test_it_does_not_where_no_answers_are_kept() -> None:
    written = "I see.\n</think>\nNothing at all."
    first, second = await prompts(written, kept_answers_mib=0)
    assert second[: len(first)] == first
    assert second[len(first) : len(first) + 5] != spelled(written)[:5]


async def test_an_answer_that_a_stop_string_cut_is_not_what_was_generated() -> None:
    written = "I see.\n</think>\nNothing at all."
    first, second = await prompts(written, stop=[" at"])
    assert second[len(first) : len(first) + 5] != spelled(written)[:5]
