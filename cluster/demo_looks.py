"""One question of the demo, with up to three looks at parts of its picture: a loop around Generate."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cluster.client import Answer, Client
from model.nano.tools import ZOOM, crop
from protos.fluyt.v1 import inference_pb2 as pb

MAX_LOOKS = 3
MAX_TOKENS = 256  # it thinks first


@dataclass(frozen=True)
class Question:
    """As deploy/demo/questions.json says it; `drawn` is what stands in the picture."""

    picture: str
    question: str
    drawn: str
    zoom: bool


@dataclass(frozen=True)
class Looked:
    """The answer, the boxes that were looked at, and what the whole took."""

    text: str
    boxes: tuple[tuple[int, ...], ...]
    num_tokens: int
    spent_s: float


def read_questions(folder: Path) -> tuple[Question, ...]:
    """All of them, in order."""
    return tuple(Question(**each) for each in json.loads((folder / "questions.json").read_text("utf-8")))


async def ask(client: Client, folder: Path, question: Question) -> Looked:
    """Ask, show what the model wants to see closer, until it answers. Raises ServerError."""
    picture = Image.open(folder / question.picture)
    # With the tool at hand the picture comes as one view; without it, it is cut into tiles where it is large.
    asked = [_image(picture, 0 if question.zoom else None), pb.ContentPart(text=question.question)]
    messages = [pb.ChatMessage(role="user", content=asked)]
    boxes, num_tokens, began_s = list[tuple[int, ...]](), 0, time.perf_counter()
    while True:
        answer = await client.answer(_request(messages, has_zoom=question.zoom))
        num_tokens += len(answer.token_ids)
        box = _box(answer)
        if box is None or len(boxes) == MAX_LOOKS:
            return Looked(answer.text.strip(), tuple(boxes), num_tokens, time.perf_counter() - began_s)
        boxes.append(box)
        messages += _shown(answer, crop(picture, box))


def _request(messages: list[pb.ChatMessage], *, has_zoom: bool) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        chat=pb.ChatPrompt(messages=messages, tools=[json.dumps(ZOOM)] if has_zoom else []),
        sampling=pb.SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS),
    )


def _box(answer: Answer) -> tuple[int, int, int, int] | None:
    """What the model wants to see; None if it wants nothing, or nothing that is in the picture."""
    call = next((call for call in answer.tool_calls if call.is_complete and call.name == "zoom"), None)
    if call is None:
        return None
    try:
        left, top, right, bottom = (int(edge) for edge in json.loads(call.arguments)["box"])
    except (ValueError, TypeError, KeyError):
        return None
    inside = 0 <= left < right <= 1000 and 0 <= top < bottom <= 1000
    return (left, top, right, bottom) if inside else None


def _shown(answer: Answer, part: Image.Image) -> list[pb.ChatMessage]:
    """The model's call, and the picture that it gets for it."""
    calls = [pb.ToolCall(name=call.name, arguments=call.arguments) for call in answer.tool_calls]
    return [
        pb.ChatMessage(role="assistant", reasoning_content=answer.reasoning, tool_calls=calls),
        pb.ChatMessage(role="tool", content=[_image(part, 0)]),
    ]


def _image(picture: Image.Image, max_tiles: int | None) -> pb.ContentPart:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return pb.ContentPart(image=pb.Image(data=file.getvalue(), max_tiles=max_tiles))
