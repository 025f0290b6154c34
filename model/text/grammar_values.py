"""A tool's parameter: what of its schema is written as raw text, and what as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import InvalidRequest
from model.text.grammar_lark import checked_text, literal

# Longer chains of references are left to the library, as JSON.
_MAX_REFS = 8
_NOTES = frozenset({"title", "description", "default", "examples", "$comment"})
_ANYTHING = "(?s:.*)"


@dataclass(frozen=True)
class _Splitter:
    root: Any  # rebased: references point below #/$defs/root
    raw: str  # the terminal for any text

    def split(self, schema: Any, field: str) -> tuple[list[str], Any]:
        schema = self._resolved(schema)
        if not isinstance(schema, dict):
            return ([self.raw], None) if schema is True else ([], schema)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                self._refuse_beside(keyword, schema, field)
                return self._split_branches(keyword, schema[keyword], f"{field}.{keyword}")
        if "allOf" in schema:
            return self._split_all(schema, field)
        if "enum" in schema or "const" in schema:
            return _split_values(schema)
        return self._split_types(schema, field)

    def _split_types(self, schema: Mapping[str, Any], field: str) -> tuple[list[str], Any]:
        declared = schema.get("type")
        names = declared if isinstance(declared, list) else [declared]
        if declared is not None and "string" not in names:
            return [], schema
        text = self._text(schema, field)
        others = [name for name in names if name not in ("string", None)]
        # Every text is a string: where any is allowed, the rest need not be told apart.
        if not others or text == self.raw:
            return [text], None
        return [text], {**schema, "type": others}

    def _split_branches(self, keyword: str, branches: list[Any], field: str) -> tuple[list[str], Any]:
        texts: list[str] = []
        rests: list[Any] = []
        for i, branch in enumerate(branches):
            found, rest = self.split(branch, f"{field}[{i}]")
            texts += found
            rests += [] if rest is None else [rest]
        if self.raw in texts:
            return [self.raw], None
        return texts, {keyword: rests} if rests else None

    def _split_all(self, schema: Mapping[str, Any], field: str) -> tuple[list[str], Any]:
        branches = [self._resolved(branch) for branch in schema["allOf"]]
        if len(branches) == 1 and set(schema) <= _NOTES | {"allOf"}:
            return self.split(branches[0], f"{field}.allOf[0]")
        for part in (schema, *branches):
            types = part.get("type") if isinstance(part, dict) else None
            if types is not None and "string" not in ([types] if isinstance(types, str) else types):
                return [], schema
        raise InvalidRequest(f"{field}.allOf", "is not supported for what may be a string")

    def _refuse_beside(self, keyword: str, schema: Mapping[str, Any], field: str) -> None:
        """A choice of schemas is taken apart: what constrains all of them would be lost."""
        for other in schema:
            if other not in _NOTES | {keyword, "$defs", "definitions"}:
                raise InvalidRequest(f"{field}.{other}", f"is not supported beside {keyword!r}")

    def _resolved(self, schema: Any) -> Any:
        """What a chain of references ends at; the schema itself where it goes in circles or nowhere."""
        found = schema
        for _ in range(_MAX_REFS):
            if not isinstance(found, dict) or "$ref" not in found or set(found) - _NOTES != {"$ref"}:
                return found
            found = self._target(found["$ref"])
        return schema

    def _target(self, ref: str) -> Any:
        found = self.root
        for step in ref.removeprefix("#/$defs/root").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = found[int(key)] if key.isdigit() and int(key) < len(found) else None
            else:
                found = found.get(key) if isinstance(found, dict) else None
        return {"$ref": ref, "not": {}} if found is None else found

    def _text(self, schema: Mapping[str, Any], field: str) -> str:
        """A terminal for raw text under a string's keywords. `format` is a note: raw text has no formats."""
        terms = [self.raw]
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        for keyword, value in (("minLength", low), ("maxLength", high)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise InvalidRequest(f"{field}.{keyword}", f"{value!r} is not a count")
        if low or high is not None:
            terms.append(f"/(?s:.{{{low},{'' if high is None else high}}})/")
        if "pattern" in schema:
            terms.append(f"/{_anywhere(schema['pattern'], f'{field}.pattern')}/")
        return " & ".join(terms)


def split_value(schema: Any, root: Any, field: str, raw: str) -> tuple[list[str], Any]:
    """Terminals for raw text, and the schema of what is written as JSON (None: nothing is).

    `schema` and `root` are rebased; `raw` is the terminal for any text. Raises InvalidRequest.
    """
    return _Splitter(root, raw).split(schema, field)


def _split_values(schema: Mapping[str, Any]) -> tuple[list[str], Any]:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list):
        return [], schema
    declared = schema.get("type")
    names = declared if isinstance(declared, list) else [declared]
    texts = [value for value in values if isinstance(value, str)]
    rest = [value for value in values if not isinstance(value, str)]
    if declared is not None and "string" not in names:
        return [], schema
    others = {key: value for key, value in schema.items() if key not in ("enum", "const")}
    is_written = rest and (declared is None or names != ["string"])
    return ([" | ".join(map(literal, texts))] if texts else []), (
        {**others, "enum": rest} if is_written else None
    )


def _anywhere(pattern: object, field: str) -> str:
    """A pattern, which may be found anywhere in a text, as an expression for the whole text."""
    import llguidance

    inner = checked_text(pattern, field)
    starts = inner.startswith("^")
    ends = inner.endswith("$") and not inner.endswith("\\$")
    if (starts or ends) and "|" in re.sub(r"\\.|\[[^\]]*\]|\((?:\\.|[^()\\])*\)", "", inner):
        raise InvalidRequest(field, "'^' or '$' beside '|' is not supported: use a group")
    inner = inner[1 if starts else 0 : -1 if ends else None]
    whole = f"{'' if starts else _ANYTHING}(?:{inner}){'' if ends else _ANYTHING}"
    return llguidance.regex_to_lark(whole, use_ascii="dw")
