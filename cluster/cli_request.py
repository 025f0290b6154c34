"""From the flags of `fluyt ask` to a request. Needs nothing but the base install."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli_flags import Sampling, read_bytes
from cluster.client import chat_request
from model.errors import InvalidRequest
from protos.fluyt.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Wishes:
    """What is asked besides the question and its sampling. Files are read when the request is made."""

    priority: int = 0
    effort: str | None = None
    schema: Path | None = None
    regex: str | None = None
    grammar: Path | None = None
    choices: tuple[str, ...] = ()
    tools: Path | None = None
    tool_choice: str = ""
    logit_bias: tuple[str, ...] = ()  # ID=BIAS


def build_request(
    text: str, images: Sequence[Path], sampling: Sampling, wishes: Wishes
) -> pb.GenerateRequest:
    """The request. Raises InvalidRequest naming the flag; what a model has to judge the server checks."""
    data = [read_bytes(path, "--image") for path in images]
    tools = [] if wishes.tools is None else read_tools(wishes.tools)
    bias = read_bias(wishes.logit_bias)
    response_format = read_format(wishes)
    try:
        request = chat_request(text, data, reasoning_effort=wishes.effort, **sampling.given())
        request.priority, request.tool_choice = wishes.priority, wishes.tool_choice
        request.sampling.logit_bias.update(bias)
    except (TypeError, ValueError) as error:  # a number that the message cannot hold
        raise InvalidRequest("sampling", str(error)) from error
    request.chat.tools.extend(tools)
    if response_format is not None:
        request.response_format.CopyFrom(response_format)
    return request


def read_format(wishes: Wishes) -> pb.ResponseFormat | None:
    """One of --schema, --regex, --grammar and --choice. Raises InvalidRequest."""
    asked = {
        "--schema": wishes.schema,
        "--regex": wishes.regex,
        "--grammar": wishes.grammar,
        "--choice": wishes.choices or None,
    }
    given = [flag for flag, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InvalidRequest(given[1], f"an answer has one form; given: {', '.join(given)}")
    if wishes.schema is not None:
        return pb.ResponseFormat(json_schema=_text(wishes.schema, "--schema"))
    if wishes.regex is not None:
        return pb.ResponseFormat(regex=wishes.regex)
    if wishes.grammar is not None:
        return pb.ResponseFormat(ebnf=_text(wishes.grammar, "--grammar"))
    return pb.ResponseFormat(choice=pb.Choice(texts=wishes.choices)) if wishes.choices else None


def read_tools(path: Path) -> list[str]:
    """A file with a JSON list of tools, or a chat with `tools`. Raises InvalidRequest."""
    try:
        content = json.loads(_text(path, "--tools"))
    except ValueError as error:
        raise InvalidRequest("--tools", f"{path}: not JSON ({error})") from error
    tools = content.get("tools") if isinstance(content, dict) else content
    if not isinstance(tools, list):
        raise InvalidRequest("--tools", f"{path}: expected a list of tools, or an object that has `tools`")
    return [json.dumps(tool, ensure_ascii=False) for tool in tools]


def read_bias(pairs: Sequence[str]) -> dict[int, float]:
    """ID=BIAS of each. Raises InvalidRequest."""
    biases: dict[int, float] = {}
    for pair in pairs:
        token_id, _, bias = pair.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            raise InvalidRequest("--logit-bias", f"{pair!r} is not ID=BIAS, as in 1234=-5") from None
    return biases


def _text(path: Path, flag: str) -> str:
    return read_bytes(path, flag).decode(errors="replace")
