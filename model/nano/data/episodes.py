"""The examination: held-out questions, and what counts as right.

An episode is a conversation that waits for a reply; each reply ends it with a verdict or makes it go on
(a crop was asked for, a search). Who replies is no concern of this file: the engine in this process,
or a cluster.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from model.nano.data.canvas import Box, Style
from model.nano.data.looking import MAX_LOOKS, LookTask, look_task
from model.nano.data.scene import Exchange
from model.nano.data.searching import search_task
from model.nano.data.talk import Effort
from model.nano.data.tasks import SCENE_NAMES, SCENES, large_size, small_size, unit_of
from model.nano.data.texts import text_exchange
from model.nano.tools import COORDINATES, SEARCH, ZOOM, crop
from model.text.chat import ChatMessage, ContentPart, Conversation, ToolCall
from model.text.images import ImageInput

LARGE_SHARE = 0.3  # of the pictures: large enough for tiles
ROWS = (*SCENE_NAMES, "look", "look_without_tool", "search", "text")


@dataclass(frozen=True)
class Reply:
    """One turn of the model. Of its calls, those that are complete."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def call(self) -> ToolCall | None:
        """The first tool call."""
        return next(iter(self.tool_calls), None)

    @property
    def shown(self) -> str:
        """What was replied, in a line for people."""
        return "; ".join(f"{call.name} {call.arguments}" for call in self.tool_calls) or self.text


@dataclass(frozen=True)
class Episode:
    """`proceed(reply)` gives the next episode, or True or False: right or wrong."""

    row: str
    conversation: Conversation
    proceed: Callable[[Reply], Episode | bool]


def episodes(row: str, style: Style, count: int, seed: int, effort: Effort = None) -> Iterator[Episode]:
    """`count` episodes of a row of the examination. The same for the same arguments."""
    for number in range(count):
        yield _episode(row, style, random.Random(f"{row}/{seed}/{number}"), effort)


def _episode(row: str, style: Style, rng: random.Random, effort: Effort) -> Episode:
    if row == "text":
        return _asked(row, None, text_exchange(rng), effort)
    if row == "search":
        return _search_episode(rng, style, effort)
    if row.startswith("look"):
        task = look_task(rng, style, needs_zoom=True)
        return _look_episode(row, task, effort, has_tool=row == "look")
    size = large_size(rng) if rng.random() < LARGE_SHARE else small_size(rng)
    maker = rng.choice([task.maker for task in SCENES if task.name == row])
    scene = maker(rng, replace(style, unit=unit_of(*size)), *size)
    return _asked(row, scene.picture, rng.choice(scene.exchanges), effort)


def _asked(row: str, picture: Image.Image | None, exchange: Exchange, effort: Effort) -> Episode:
    """One question, one answer."""
    parts = () if picture is None else (_image_part(picture),)
    turn = ChatMessage("user", (*parts, ContentPart("text", exchange.question)))
    size = (0, 0) if picture is None else picture.size
    return Episode(row, Conversation((turn,), (), effort), lambda reply: is_right(exchange, reply.text, size))


def is_right(exchange: Exchange, answer: str, size: tuple[int, int]) -> bool:
    """A point inside its box; JSON with the same content; else the very text."""
    if exchange.box is not None:
        return _point_is_inside(answer, exchange.box, size)
    if exchange.answer.startswith("{"):
        try:
            return bool(json.loads(answer) == json.loads(exchange.answer))
        except ValueError:
            return False
    return answer.strip() == exchange.answer


def _point_is_inside(answer: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    try:
        x, y = (float(value) for value in json.loads(answer)["point"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
    return Box(*box).holds(x * size[0] / COORDINATES, y * size[1] / COORDINATES)


def _look_episode(row: str, task: LookTask, effort: Effort, *, has_tool: bool) -> Episode:
    turn = ChatMessage("user", (_image_part(task.desk.picture, 0), ContentPart("text", task.question)))
    tools = (ZOOM,) if has_tool else ()
    return _looking(row, task, (turn,), tools, effort, MAX_LOOKS)


def _looking(
    row: str,
    task: LookTask,
    messages: tuple[ChatMessage, ...],
    tools: tuple[Mapping[str, Any], ...],
    effort: Effort,
    looks_left: int,
) -> Episode:
    def proceed(reply: Reply) -> Episode | bool:
        if reply.call is None:
            return reply.text.strip() == task.answer
        box = _argument(reply.call, "zoom", "box")
        part = _cropped(task.desk.picture, box)
        if part is None or looks_left == 0:
            return False
        more = _answered(reply, ToolCall("zoom", {"box": box}), (_image_part(part, 0),))
        return _looking(row, task, (*messages, *more), tools, effort, looks_left - 1)

    return Episode(row, Conversation(messages, tools, effort), proceed)


def _cropped(picture: Image.Image, box: object) -> Image.Image | None:
    """What the zoom tool gives; None for a box that makes no sense."""
    if not isinstance(box, list):
        return None
    try:
        left, top, right, bottom = (int(edge) for edge in box)
        return crop(picture, (left, top, right, bottom))
    except (ValueError, TypeError, OverflowError):
        return None


def _search_episode(rng: random.Random, style: Style, effort: Effort) -> Episode:
    size = small_size(rng)
    task = search_task(rng, replace(style, unit=unit_of(*size)), *size)
    turn = ChatMessage("user", (_image_part(task.picture), ContentPart("text", task.question)))

    def answered(reply: Reply) -> bool:
        return reply.call is None and reply.text.strip() == task.answer

    def proceed(reply: Reply) -> Episode | bool:
        if not task.needs_search or reply.call is None:
            return not task.needs_search and answered(reply)
        query = _argument(reply.call, "search", "query")
        if query is None:
            return False
        found = task.found if query == task.query else "nothing found"
        more = _answered(reply, ToolCall("search", {"query": query}), found)
        return Episode("search", Conversation((turn, *more), (SEARCH,), effort), answered)

    return Episode("search", Conversation((turn,), (SEARCH,), effort), proceed)


def _argument(call: ToolCall, name: str, parameter: str) -> Any:
    """The value of a function's parameter; None for another function or without it."""
    arguments = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    return arguments.get(parameter) if call.name == name else None


def _answered(
    reply: Reply, call: ToolCall, result: str | tuple[ContentPart, ...]
) -> tuple[ChatMessage, ChatMessage]:
    """The model's call as it stood, and the tool's result."""
    asked = ChatMessage("assistant", reply.text, reasoning_content=reply.reasoning, tool_calls=(call,))
    return asked, ChatMessage("tool", result)


def _image_part(picture: Image.Image, max_tiles: int | None = None) -> ContentPart:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return ContentPart("image", image=ImageInput(stream.getvalue(), max_tiles))
