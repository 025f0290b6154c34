"""Any kind of `Grammar` -> Lark text for llguidance.

A lexeme in CAPITALS is one regular expression; `%json` holds a schema. Every text that a caller wrote
is spelled as a regular expression of code points, so no character of it can be syntax.
"""

from __future__ import annotations

import json
import re

from model.errors import InvalidRequest
from model.text.grammar_schema import Schema, from_json

# What json.dumps writes with any indent, and no more: a model that may write white space for ever does.
JSON_WHITESPACE = r" |\n[ \t]{0,32}"
_JSON_OPTIONS = {"whitespace_pattern": JSON_WHITESPACE}
# Things of the library that reach past the text: control tokens by name, ends that hide what was written.
_LARK_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?://|#)[^\n]*')
_LARK_BANNED = re.compile(r"<[^>\n]*>|%llguidance|@\S+|\b(?:stop|suffix|max_tokens|temperature)\s*=")
# GBNF escapes by number; the library's own reader turns \u00e9 into \ue9.
_GBNF_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_GBNF_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\", "[": "\\[", "]": "\\]"}


def json_rule(name: str, schema: Schema) -> str:
    """A rule for JSON text of a schema."""
    body = schema if isinstance(schema, bool) else {"x-guidance": _JSON_OPTIONS, **schema}
    return f"{name}: %json {json.dumps(body)}\n"


def literal(text: str) -> str:
    """A terminal for exactly this text."""
    return f"/{''.join(_escaped(char) for char in text)}/" if text else '""'


def _escaped(char: str) -> str:
    return char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"


def schema_lark(schema: Schema) -> str:
    """Lark text of JSON under a schema that stands alone."""
    return "start: json\n" + json_rule("json", schema)


def regex_lark(source: str) -> str:
    """Lark text of a regular expression that matches the whole answer."""
    import llguidance

    return f"start: /{llguidance.regex_to_lark(source)}/\n"


def choice_lark(source: str, field: str) -> str:
    """Lark text of a list of texts. Raises InvalidRequest for a list that is none, or is empty."""
    texts = from_json(source, field)
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest(field, "expected a list of at least one text")
    options = [literal(checked_text(text, f"{field}[{i}]")) for i, text in enumerate(texts)]
    return f"start: CHOICE\nCHOICE: {' | '.join(options)}\n"


def checked_text(text: object, field: str) -> str:
    """The value, if it is a text that UTF-8 can write. Raises InvalidRequest."""
    if not isinstance(text, str):
        raise InvalidRequest(field, f"{text!r} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, "the text holds half of a surrogate pair") from error
    return text


def ebnf_lark(source: str, field: str) -> str:
    """Lark text of an EBNF, which is GBNF or Lark already. Raises InvalidRequest naming the line."""
    from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

    if not is_lark_syntax(source):
        try:
            return gbnf_to_lark(_GBNF_ESCAPE.sub(_gbnf_char, source))
        except Exception as error:  # the reader raises bare Exception for a wrong grammar
            raise InvalidRequest(field, f"not a grammar: {error}") from error
    bare = _LARK_QUOTED.sub(lambda match: " " * len(match.group()), source)
    banned = _LARK_BANNED.search(bare)
    if banned is not None:
        line = bare.count("\n", 0, banned.start()) + 1
        raise InvalidRequest(field, f"line {line}: {banned.group()!r} is not served")
    return source


def _gbnf_char(match: re.Match[str]) -> str:
    """The character that a numbered escape means; any other escape as it is."""
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match.group()
    number = int(digits, 16)
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return match.group()
    return _GBNF_NAMED.get(chr(number), chr(number))
