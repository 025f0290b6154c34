"""A conversation from JSON, in the spelling that most chat APIs share.

    {"messages": [{"role": "user", "content": "Hi"}], "tools": [...], "reasoning_effort": "low",
     "add_generation_prompt": true}

A content may be a list of parts: {"type": "text", "text": ...}, {"type": "image"} or
{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}. Image parts without data
take the images given beside the JSON, in order. Unknown keys are errors.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.errors import InvalidRequest
from model.text.chat import ChatMessage, ContentPart, Conversation, ToolCall
from model.text.images import ImageInput


def question(text: str, images: Sequence[ImageInput] = (), system: str | None = None) -> Conversation:
    """One user turn: the images, then the text; after a system turn if there is one."""
    parts = tuple(ContentPart("image", image=image) for image in images)
    user = ChatMessage("user", (*parts, ContentPart("text", text)) if parts else text)
    return Conversation((user,) if system is None else (ChatMessage("system", system), user))


def read_conversation(value: object, images: Sequence[ImageInput] = ()) -> Conversation:
    """Read the JSON object above. Raises InvalidRequest naming the field.

    If no part of any message is an image, `images` go to the front of the last user message.
    """
    known = ("messages", "tools", "reasoning_effort", "add_generation_prompt")
    fields = _object(value, "", known)
    remaining = iter(images)
    messages = [
        _message(item, f"messages[{index}]", remaining)
        for index, item in enumerate(_list(fields.get("messages", []), "messages"))
    ]
    left = tuple(remaining)
    if left and len(left) == len(images):
        messages = _put_images(messages, left)
    elif left:
        raise InvalidRequest("messages", f"{len(images) - len(left)} image places, {len(images)} images")
    tools = _list(fields.get("tools") or [], "tools")
    generate = fields.get("add_generation_prompt", True)
    if not isinstance(generate, bool):
        raise InvalidRequest("add_generation_prompt", f"expected true or false, found {generate!r}")
    return Conversation(
        tuple(messages),
        tuple(_object(tool, f"tools[{index}]") for index, tool in enumerate(tools)),
        _optional_str(fields, "reasoning_effort", ""),
        generate,
    )


def _put_images(messages: list[ChatMessage], images: Sequence[ImageInput]) -> list[ChatMessage]:
    index = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if index is None:
        raise InvalidRequest("messages", f"no user message for {len(images)} images")
    content = messages[index].content
    rest = (ContentPart("text", content),) if isinstance(content, str) else content
    parts = tuple(ContentPart("image", image=image) for image in images)
    return [*messages[:index], replace(messages[index], content=parts + rest), *messages[index + 1 :]]


def _message(value: object, path: str, images: Iterator[ImageInput]) -> ChatMessage:
    known = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")
    fields = _object(value, path, known)
    calls = _list(fields.get("tool_calls") or [], f"{path}.tool_calls")
    return ChatMessage(
        role=_optional_str(fields, "role", path) or "",
        content=_content(fields.get("content"), f"{path}.content", images),
        name=_optional_str(fields, "name", path),
        reasoning_content=_optional_str(fields, "reasoning_content", path),
        tool_calls=tuple(_tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)),
        tool_call_id=_optional_str(fields, "tool_call_id", path),
    )


def _content(value: object, path: str, images: Iterator[ImageInput]) -> str | tuple[ContentPart, ...]:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return tuple(_part(item, f"{path}[{index}]", images) for index, item in enumerate(_list(value, path)))


def _part(value: object, path: str, images: Iterator[ImageInput]) -> ContentPart:
    fields = _object(value, path, ("type", "text", "image_url", "max_tiles"))
    kind = fields.get("type")
    if kind == "text":
        text = fields.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{path}.text", f"expected a string, found {type(text).__name__}")
        return ContentPart("text", text)
    if kind not in ("image", "image_url"):
        raise InvalidRequest(f"{path}.type", f"{kind!r} is none of text, image, image_url")
    max_tiles = fields.get("max_tiles")
    if not isinstance(max_tiles, int | None):
        raise InvalidRequest(f"{path}.max_tiles", f"expected a number, found {max_tiles!r}")
    if "image_url" in fields:
        return ContentPart("image", image=ImageInput(_data_url(fields, path), max_tiles))
    image = next(images, None)
    if image is None:
        raise InvalidRequest(path, "an image part without an image")
    return ContentPart("image", image=image if max_tiles is None else replace(image, max_tiles=max_tiles))


def _data_url(fields: Mapping[str, Any], path: str) -> bytes:
    value = fields["image_url"]
    url = value.get("url") if isinstance(value, Mapping) else value
    head, comma, payload = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InvalidRequest(f"{path}.image_url.url", "only data:...;base64, addresses are read")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{path}.image_url.url", f"not base64: {error}") from error


def _tool_call(value: object, path: str) -> ToolCall:
    fields = _object(value, path, ("id", "type", "function"))
    function = _object(fields.get("function"), f"{path}.function", ("name", "arguments"))
    name, arguments = function.get("name"), function.get("arguments", "")
    if not isinstance(name, str):
        raise InvalidRequest(f"{path}.function.name", f"expected a string, found {type(name).__name__}")
    if not isinstance(arguments, str | Mapping):
        found = type(arguments).__name__
        raise InvalidRequest(f"{path}.function.arguments", f"expected an object, found {found}")
    return ToolCall(name, arguments, _optional_str(fields, "id", path) or "")


def _object(value: object, path: str, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(path or "messages", f"expected an object, found {type(value).__name__}")
    for key in value:
        if known is not None and key not in known:
            raise InvalidRequest(f"{path}.{key}".lstrip("."), f"unknown; known are {', '.join(known)}")
    return value


def _list(value: object, path: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidRequest(path, f"expected a list, found {type(value).__name__}")
    return value


def _optional_str(fields: Mapping[str, Any], key: str, path: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{path}.{key}".lstrip("."), f"expected a string, found {type(value).__name__}")
    return value
