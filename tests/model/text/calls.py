"""Blocks of tool calls: tools to call, fragments to make blocks from, and a reader of whole blocks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from model.text.tool_values import ToolSchemas
from model.text.tools import CallEnd, CallParser, Stretch, join


def tool(name: str, **parameters: str) -> dict[str, Any]:
    """A tool whose parameters have the given types."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
    }


TOOLS = (tool("write", text="string", mode="integer"), tool("get_weather", city="string", days="integer"))

FRAGMENTS = [
    *("<function=write>", "<function=get_weather>", "<function=", "</function>", "<function=a<b>"),
    *("<parameter=text>", "<parameter=mode>", "<parameter=city>", "<parameter=zz>", "</parameter>"),
    *("\n", " ", "x", "12", "True", "null", '"', "\\", "{", "[1, 'a']", "</", "<", ">", "</para", "é🙂"),
]


def read(text: str, cuts: Iterable[int] = (), end: CallEnd = CallEnd.COMPLETE) -> list[Stretch]:
    """Stretches of a block, neighbours joined, so that two ways of cutting can be compared."""
    parser = CallParser(ToolSchemas.of(TOOLS))
    borders = [0, *sorted(cuts), len(text)]
    parts = [stretch for a, b in pairwise(borders) for stretch in parser.push(text[a:b])]
    joined: list[Stretch] = []
    for part in parts + parser.close(end):
        if joined and joined[-1].is_stray is part.is_stray:
            last = joined[-1]
            joined[-1] = Stretch(last.text + part.text, last.is_stray, join((*last.pieces, *part.pieces)))
        else:
            joined.append(part)
    return joined
