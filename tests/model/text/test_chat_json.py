"""Conversations from JSON: images find their places, mistakes name theirs."""

from __future__ import annotations

import base64

import pytest

from model.errors import InvalidRequest
from model.text.chat_json import question, read_conversation
from model.text.images import ImageInput

A, B = ImageInput(b"a"), ImageInput(b"b")


def images_of(conversation):
    return [
        part.image.data
        for message in conversation.messages
        if not isinstance(message.content, str)
        for part in message.content
        if part.image is not None
    ]


def test_image_parts_take_the_given_images_in_order():
    content = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    conversation = read_conversation({"messages": [{"role": "user", "content": content}]}, [A, B])
    assert images_of(conversation) == [b"a", b"b"]


def test_images_without_a_place_stand_before_the_last_question():
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    conversation = read_conversation({"messages": messages}, [A])
    assert conversation.messages[0].content == "one"
    assert [part.type for part in conversation.messages[1].content] == ["image", "text"]


def test_a_data_address_is_decoded():
    url = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    part = {"type": "image_url", "image_url": {"url": url}, "max_tiles": 2}
    conversation = read_conversation({"messages": [{"role": "user", "content": [part]}]})
    assert conversation.messages[0].content[0].image == ImageInput(b"pixels", 2)


def test_a_question_has_its_images_first():
    conversation = question("what?", [A], system="be short")
    assert [message.role for message in conversation.messages] == ["system", "user"]
    assert [part.type for part in conversation.messages[1].content] == ["image", "text"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"mesages": []}, "mesages"),
        ({"messages": [{"role": "user", "text": "a"}]}, "messages[0].text"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [], "reasoning_effort": 3}, "reasoning_effort"),
        ({"messages": [], "tools": {"a": 1}}, "tools"),
        ({"messages": [], "add_generation_prompt": "no"}, "add_generation_prompt"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y"}]}]},
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_a_mistake_names_its_field(value, field):
    with pytest.raises(InvalidRequest) as caught:
        read_conversation(value)
    assert caught.value.field == field


def test_more_images_than_places_are_counted():
    content = [{"type": "image"}]
    with pytest.raises(InvalidRequest, match="1 image places, 2 images"):
        read_conversation({"messages": [{"role": "user", "content": content}]}, [A, B])
