"""What a caller asked the answer to be: plain data that crosses processes.

`model.text.grammar` checks and compiles it; nothing here imports the library that does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["json_schema", "regex", "ebnf", "choice", "tools", "tools_forced"]


@dataclass(frozen=True)
class Grammar:
    """A kind and its text. Small, hashable, picklable: the key under which a rank keeps what it compiled.

    `source`: the schema as JSON text; the regex, which the whole answer matches; the EBNF, as GBNF
    (`root ::= ...`) or Lark (`start: ...`); for choice a JSON list of texts; for tools a JSON list of the
    tools as the request declared them. `tools`: text and calls in any order; `tools_forced`: one call.
    """

    kind: Kind
    source: str

    @property
    def is_of_tools(self) -> bool:
        """True if the tools of the request are what it follows."""
        return self.kind in ("tools", "tools_forced")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """An answer in JSON that a schema describes. The order of keys is part of it."""
        return cls("json_schema", _json(schema))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        return cls("choice", _json(list(texts)))

    @classmethod
    def tools(cls, tools: Sequence[Mapping[str, Any]], *, forced: bool) -> Grammar:
        """Calls of these tools with valid arguments: exactly one, or as many as the model likes."""
        return cls("tools_forced" if forced else "tools", _json(list(tools)))


def _json(value: object) -> str:
    # Half a surrogate pair stays an escape: no text that crosses a wire may hold one.
    return json.dumps(value, separators=(",", ":"))
