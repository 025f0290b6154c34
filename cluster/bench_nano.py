"""`fluyt bench nano`: the examination of the default model, over gRPC through a running application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from cluster.client import Answer, Client
from model.nano.data.canvas import Style
from model.nano.data.episodes import ROWS, Reply
from model.nano.data.fonts import held_out_faces
from model.nano.evaluate import MAX_TOKENS, SEED, Replier, examine
from model.text.chat import ChatMessage, ContentPart, Conversation, ToolCall
from protos.fluyt.v1 import inference_pb2 as pb


def bench_nano(address: str, count: int) -> dict[str, Any]:
    """Every row, its first `count` questions. Raises ServerError."""
    with asyncio.Runner() as runner:
        client = Client(address)
        try:
            replies = _replier(client, runner)
            style = Style(held_out_faces())
            return {row: examine(row, style, replies, count=count, seed=SEED).summary() for row in ROWS}
        finally:
            runner.run(client.close())


def _replier(client: Client, runner: asyncio.Runner) -> Replier:
    async def ask_all(conversations: Sequence[Conversation]) -> list[Reply]:
        answers = await asyncio.gather(*(client.answer(to_request(c)) for c in conversations))
        return [_reply(answer) for answer in answers]

    return lambda conversations: runner.run(ask_all(conversations))


def _reply(answer: Answer) -> Reply:
    calls = (ToolCall(call.name, call.arguments) for call in answer.tool_calls if call.is_complete)
    return Reply(answer.text, answer.reasoning, tuple(calls))


def to_request(conversation: Conversation) -> pb.GenerateRequest:
    """A conversation as a greedy request."""
    return pb.GenerateRequest(
        chat=pb.ChatPrompt(
            messages=[_message(message) for message in conversation.messages],
            tools=[json.dumps(tool) for tool in conversation.tools],
            reasoning_effort=conversation.reasoning_effort,
        ),
        sampling=pb.SamplingOptions(temperature=0.0, max_tokens=MAX_TOKENS),
    )


def _message(message: ChatMessage) -> pb.ChatMessage:
    content = message.content
    parts = [ContentPart("text", content)] if isinstance(content, str) else list(content)
    return pb.ChatMessage(
        role=message.role,
        content=[_part(part) for part in parts],
        reasoning_content=message.reasoning_content,
        tool_calls=[
            pb.ToolCall(name=call.name, arguments=json.dumps(call.arguments)) for call in message.tool_calls
        ],
    )


def _part(part: ContentPart) -> pb.ContentPart:
    if part.image is None:
        return pb.ContentPart(text=part.text)
    return pb.ContentPart(image=pb.Image(data=part.image.data, max_tiles=part.image.max_tiles))
