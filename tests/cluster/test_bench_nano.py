"""A conversation of the examination as a request."""

from __future__ import annotations

import json

import pytest

from cluster.bench_nano import to_request
from model.nano.evaluate import MAX_TOKENS
from model.nano.tools import SEARCH, ZOOM
from model.text.chat import ChatMessage, ContentPart, Conversation, ToolCall
from model.text.images import ImageInput
from protos.fluyt.v1 import inference_pb2 as pb


@pytest.fixture(scope="module")
def request_() -> pb.GenerateRequest:
    image = ContentPart("image", image=ImageInput(b"png", 0))
    call = ToolCall("zoom", {"box": [1, 2, 3, 4]})
    messages = (
        ChatMessage("user", (image, ContentPart("text", "Read the red card."))),
        ChatMessage("assistant", "", reasoning_content="Too small", tool_calls=(call,)),
        ChatMessage("tool", (ContentPart("image", image=ImageInput(b"crop")),)),
        ChatMessage("tool", "nothing found"),
    )
    return to_request(Conversation(messages, (ZOOM, SEARCH), "high"))


def test_turns_keep_their_order(request_: pb.GenerateRequest) -> None:
    assert [message.role for message in request_.chat.messages] == ["user", "assistant", "tool", "tool"]


def test_image_and_text_keep_their_order(request_: pb.GenerateRequest) -> None:
    image, text = request_.chat.messages[0].content
    assert image.image.data == b"png" and text.text == "Read the red card."


def test_no_tiles_is_another_thing_than_any_number_of_tiles(request_: pb.GenerateRequest) -> None:
    first, crop = (request_.chat.messages[index].content[0].image for index in (0, 2))
    assert first.HasField("max_tiles") and first.max_tiles == 0
    assert not crop.HasField("max_tiles")


def test_arguments_of_a_call_are_json(request_: pb.GenerateRequest) -> None:
    turn = request_.chat.messages[1]
    assert turn.reasoning_content == "Too small"
    (call,) = turn.tool_calls
    assert call.name == "zoom" and json.loads(call.arguments) == {"box": [1, 2, 3, 4]}


def test_a_result_in_words_is_one_part(request_: pb.GenerateRequest) -> None:
    assert [part.text for part in request_.chat.messages[3].content] == ["nothing found"]


def test_tools_and_effort_are_named(request_: pb.GenerateRequest) -> None:
    assert [json.loads(tool) for tool in request_.chat.tools] == [ZOOM, SEARCH]
    assert request_.chat.reasoning_effort == "high"


def test_no_effort_stays_unnamed() -> None:
    conversation = Conversation((ChatMessage("user", "1 + 1 = ?"),))
    assert not to_request(conversation).chat.HasField("reasoning_effort")


def test_answers_are_greedy_and_bounded(request_: pb.GenerateRequest) -> None:
    assert request_.sampling.HasField("temperature") and request_.sampling.temperature == 0.0
    assert request_.sampling.max_tokens == MAX_TOKENS
