"""Text <-> token ids from a checkpoint's `tokenizer.json` (byte-level BPE).

Control tokens are those the file lists as added tokens: turns, images, thinking, tool calls. Two
ways in:

- `encode_text`: a user's text; "<|im_end|>" in it is twelve ordinary characters.
- `encode_prompt`: pieces of a rendered prompt, each either text or one control token.

Both cut text at control tokens only, so BPE joins are those of the whole stretch between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from model.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: text as it is, or (`is_control`) the spelling of one control token."""

    text: str
    is_control: bool = False


class Tokenizer:
    """Ids and text of one checkpoint. Says the same for ever; safe to use from several threads."""

    def __init__(self, definition: dict[str, Any], bos_token: str | None = None) -> None:
        """`definition` is the content of tokenizer.json. Raises CheckpointError if it is unfit."""
        added = definition.get("added_tokens", [])
        _refuse_greedy_tokens(added)
        self._full = _build(definition)
        # Without added tokens nothing in a text can become a control token.
        self._plain = _build({**definition, "added_tokens": [], "post_processor": None})
        self._control_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        self._control_by_id = {token_id: name for name, token_id in self._control_ids.items()}
        self._special_ids = frozenset(token["id"] for token in added if token["special"])
        self._known_bytes: dict[int, bytes] = {}  # of tokens that were asked for: microseconds each
        self.bos_token = bos_token
        self.bos_id = self.control_id(bos_token) if bos_token is not None else None

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read `tokenizer.json` (and the name of BOS from `tokenizer_config.json`) of a checkpoint.

        Raises CheckpointError for a file that is missing, broken or of another kind of tokenizer.
        """
        directory = Path(directory)
        definition = _read_json(directory / "tokenizer.json")
        config_path = directory / "tokenizer_config.json"
        config = _read_json(config_path) if config_path.exists() else {}
        bos = config.get("bos_token")
        return cls(definition, bos["content"] if isinstance(bos, dict) else bos)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id (the model's own vocabulary may be padded beyond)."""
        return max(self._full.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Spellings of all control tokens."""
        return tuple(self._control_ids)

    def token_id(self, token: str) -> int | None:
        """Id of a token given as the vocabulary spells it; None if there is none."""
        return self._control_ids.get(token, self._full.token_to_id(token))

    def control_id(self, token: str) -> int:
        """Id of a control token. Raises CheckpointError if this tokenizer has none of that name."""
        found = self._control_ids.get(token)
        if found is None:
            raise CheckpointError(f"tokenizer.json: control token {token!r} is missing")
        return found

    def is_special(self, token_id: int) -> bool:
        """True for control tokens that are never part of a text (turn ends, image markers)."""
        return token_id in self._special_ids

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds control tokens in a string, the longest first."""
        return re.compile(_alternatives(self._control_ids) or r"(?!)")

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special. No BOS."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a prompt, without BOS. Neighbouring text pieces are joined before BPE."""
        ids: list[int] = []
        pending: list[str] = []
        for piece in pieces:
            if piece.is_control:
                ids += self._encode_joined(pending)
                ids.append(self.control_id(piece.text))
            else:
                pending.append(piece.text)
        return ids + self._encode_joined(pending)

    def _encode_joined(self, pending: list[str]) -> list[int]:
        """Encode and empty the list of pending texts."""
        text = "".join(pending)
        pending.clear()
        return self.encode_text(text) if text else []

    def split(self, text: str) -> list[Piece]:
        """Cut a text whose author may write control tokens (a raw prompt) into pieces."""
        pieces: list[Piece] = []
        position = 0
        for match in self.control_pattern.finditer(text):
            if match.start() > position:
                pieces.append(Piece(text[position : match.start()]))
            pieces.append(Piece(match.group(), is_control=True))
            position = match.end()
        if position < len(text):
            pieces.append(Piece(text[position:]))
        return pieces

    def pieces(self, ids: Iterable[int]) -> list[Piece] | None:
        """What `encode_prompt` may have made these ids of, texts joined; None if a text is not UTF-8."""
        pieces: list[Piece] = []
        pending = bytearray()
        try:
            for token_id in ids:
                control = self._control_by_id.get(token_id)
                if control is None:
                    pending += self.token_bytes(token_id)
                    continue
                if pending:
                    pieces.append(Piece(pending.decode()))
                    pending.clear()
                pieces.append(Piece(control, is_control=True))
            if pending:
                pieces.append(Piece(pending.decode()))
        except UnicodeDecodeError:
            return None
        return pieces

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; ids beyond the vocabulary have none. Invalid UTF-8 becomes U+FFFD."""
        return str(self._full.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for (possibly part of a character); empty for an unknown id."""
        known = self._known_bytes.get(token_id)
        if known is None:
            known = self._known_bytes[token_id] = self._read_bytes(token_id)
        return known

    def _read_bytes(self, token_id: int) -> bytes:
        token = self._full.id_to_token(token_id)
        if token is None:
            return b""
        table = self._byte_of_char
        if token in self._control_ids or not all(char in table for char in token):
            return token.encode()
        return bytes(table[char] for char in token)

    @cached_property
    def _byte_of_char(self) -> dict[str, int]:
        return {char: byte for byte, char in enumerate(byte_level_alphabet())}


def byte_level_alphabet() -> list[str]:
    """The printable character that byte-level BPE writes for each byte 0..255.

    Printable Latin-1 stands for itself; the other bytes, in order, take the characters from
    U+0100 on (the scheme of GPT-2's `encoder.json`).
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    alphabet = [chr(byte) for byte in range(256)]
    others = [byte for byte in range(256) if byte not in own]
    for index, byte in enumerate(others):
        alphabet[byte] = chr(256 + index)
    return alphabet


def _alternatives(literals: Iterable[str]) -> str:
    """A pattern for any of the literals, the longest that fits; shared beginnings are tried once.

    Written as one long list, hundreds of control tokens cost a second per megabyte of text.
    """
    rests: dict[str, list[str]] = {}
    may_end = False
    for literal in literals:
        may_end = may_end or not literal
        if literal:
            rests.setdefault(literal[0], []).append(literal[1:])
    options = [re.escape(first) + _alternatives(rest) for first, rest in rests.items()]
    if len(options) == 1 and not may_end:
        return options[0]
    return f"(?:{'|'.join(options)})" + "?" * may_end if options else ""


def _refuse_greedy_tokens(added: Sequence[dict[str, Any]]) -> None:
    """Tokens that swallow spaces or want word borders would need other cuts than ours."""
    for token in added:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise CheckpointError(f"tokenizer.json: added token {token['content']!r} sets {flag}")


def _build(definition: dict[str, Any]) -> tokenizers.Tokenizer:
    decoder = (definition.get("decoder") or {}).get("type")
    if decoder != "ByteLevel":
        raise CheckpointError(f"tokenizer.json: decoder is {decoder}, expected ByteLevel")
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise CheckpointError(f"tokenizer.json: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(content).__name__}")
    return content
