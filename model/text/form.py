"""What a caller asks an answer to be -> the grammar that it has to follow, tried out once.

Fields in errors are paths in the request: `response_format.json_schema.type`, `tools[0].function.name`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.errors import CheckpointError, InvalidRequest
from model.grammar import Grammar
from model.text.grammars import Grammars
from model.text.prompt import PreparedPrompt
from model.types import SamplingParams


@dataclass(frozen=True)
class Form:
    """What an answer shall be; nothing is asked by default.

    `tool_choice`: "auto", text and calls with valid arguments; "none", no calls; "required", one call; a
    function's name, one call of that; "", whatever the model writes.
    """

    response_format: Grammar | None = None
    tool_choice: str = ""


FREE = Form()


@dataclass(frozen=True)
class _Asked:
    grammar: Grammar
    field: str
    first_tool: int = 0  # where the first tool of the grammar stands among the request's


def with_form(
    sampling: SamplingParams, form: Form, prompt: PreparedPrompt, grammars: Grammars
) -> SamplingParams:
    """The parameters with what the prompt and the form say. Raises InvalidRequest naming the path."""
    sampling = replace(sampling, starts_in_thinking=prompt.starts_in_thinking)
    if sampling.max_think_tokens is not None:
        if prompt.think_end_id is None:
            raise InvalidRequest(
                "sampling.max_think_tokens",
                f"{sampling.max_think_tokens}, but the prompt does not end in an open <think>",
            )
        sampling = replace(sampling, think_end_id=prompt.think_end_id)
    asked = _asked(form, prompt.tools)
    if asked is None:
        return _without_calls(sampling, grammars) if form.tool_choice == "none" else sampling
    if prompt.starts_in_thinking and prompt.think_end_id is None:
        raise InvalidRequest(asked.field, "this model has no token that ends the thinking before it")
    if not sampling.eos_token_ids + sampling.stop_token_ids:
        raise InvalidRequest(
            "sampling.ignore_eos",
            f"{asked.field} needs a token that ends the answer: it ends where what was asked is complete",
        )
    try:
        grammars.compile(asked.grammar, asked.field)
    except CheckpointError as error:
        raise InvalidRequest(asked.field, f"this model cannot be held to it: {error}") from error
    except InvalidRequest as error:
        place = error.field.removeprefix(f"{asked.field}[0]")
        if asked.first_tool and place != error.field:
            raise InvalidRequest(f"{asked.field}[{asked.first_tool}]{place}", error.description) from error
        raise
    return replace(sampling, grammar=asked.grammar)


def _without_calls(sampling: SamplingParams, grammars: Grammars) -> SamplingParams:
    """No token that opens or ends a call. A bias costs nothing, a grammar of any text a mask a token."""
    try:
        barred = dict.fromkeys(grammars.call_ids(), -math.inf)
    except CheckpointError as error:
        raise InvalidRequest("tool_choice", f"this model cannot be held to it: {error}") from error
    return replace(sampling, logit_bias=tuple(sorted({**dict(sampling.logit_bias), **barred}.items())))


def _asked(form: Form, tools: tuple[Mapping[str, Any], ...]) -> _Asked | None:
    """The grammar of a form, and the field to blame. Raises InvalidRequest if a form contradicts itself."""
    response, choice = form.response_format, form.tool_choice
    if response is not None and choice not in ("", "none"):
        raise InvalidRequest("response_format", f"with tool_choice {choice!r}: an answer cannot be both")
    if response is not None:
        return _Asked(response, f"response_format.{response.kind}")
    if choice in ("", "none"):
        return None
    if not tools:
        raise InvalidRequest("tool_choice", f"{choice!r}, but the request declares no tools")
    if choice in ("auto", "required"):
        return _Asked(Grammar.tools(tools, forced=choice == "required"), "tools")
    names = [_name(tool) for tool in tools]
    if choice not in names:
        raise InvalidRequest("tool_choice", f"{choice!r} is not auto, none, required, or a declared function")
    index = names.index(choice)
    return _Asked(Grammar.tools([tools[index]], forced=True), "tools", index)


def _name(tool: Mapping[str, Any]) -> object:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None
