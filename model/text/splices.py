"""Ids that were generated, for prompts that repeat what was answered.

A text has many spellings in tokens: what a model wrote is seldom what a tokenizer makes of it, and a prefix
cache compares ids. So the ids of an answer are kept, and where a later chat says the same turn behind the
same beginning, it gets those ids.

    prompt, up to the marker of the turn that is to be written -> OpenTurn
    OpenTurn + ids of the answer  -> kept under a hash of all text up to the end of the turn
    a chat that comes, turn by turn -> its hash is known -> the ids, once more compared with the text

Nothing wrong can be spliced: the name says tenant, every character, every control token and every picture
before, and ids whose text is not that of the turn are left alone. A turn whose thinking is dropped by the
template is another text, so it is encoded like any other.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from model.text.tokenizer import Piece, Tokenizer

TURN_BEGIN = Piece("<|im_start|>", is_control=True)
TURN_END = Piece("<|im_end|>", is_control=True)
IMAGE_PLACE = Piece("<im_patch>", is_control=True)

_NEVER_SAID = frozenset((TURN_BEGIN, TURN_END, IMAGE_PLACE))  # by a template, inside of an answer
_NAME_BYTES = 32
_ENTRY_BYTES = 300  # what an entry takes beside its ids (280 measured)
_CONTROL = b"\xff"  # in no UTF-8 text


@dataclass(frozen=True)
class OpenTurn:
    """The turn that an answer completes: a hash of all before it, and the ids it begins with."""

    before: bytes
    ids: tuple[int, ...]


@dataclass(frozen=True)
class SplicedTurn:
    """Ids in place of the pieces up to `end`."""

    end: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Turns:
    """What is known about the turns of a chat.

    `spliced` by the index of the piece behind the marker that opens a turn; `before` is the hash of
    everything up to the marker of a last turn that has no end yet.
    """

    spliced: Mapping[int, SplicedTurn]
    before: bytes | None


class SpliceStore:
    """Ids of answers, the one unused longest goes first. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self._ids: OrderedDict[bytes, array[int]] = OrderedDict()
        self._lock = Lock()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def keep(self, turn: OpenTurn, answer_ids: Sequence[int]) -> None:
        """Keep an answer, its end token left out; not one that no chat can say again, or that has no room."""
        ids = array("i", turn.ids)
        ids.extend(answer_ids)
        pieces = self._tokenizer.pieces(ids)
        if pieces is None or not _NEVER_SAID.isdisjoint(pieces) or _size(ids) > self._max_bytes:
            return
        name = _name(turn.before, pieces)
        with self._lock:
            self._forget(name)
            self._ids[name] = ids
            self.num_bytes += _size(ids)
            while self.num_bytes > self._max_bytes:
                self._forget(next(iter(self._ids)))

    def read(self, tenant: str, pieces: Sequence[Piece], pictures: Sequence[str]) -> Turns:
        """The turns of a tenant's chat; `pictures` say what stands at its image places, in order."""
        spliced: dict[int, SplicedTurn] = {}
        hashed = hashlib.blake2b(tenant.encode() + _CONTROL, digest_size=_NAME_BYTES)
        remaining, begin, before = iter(pictures), 0, None
        for index, piece in enumerate(pieces):
            if piece == TURN_END and before is not None:
                ids = self._find(before, pieces[begin:index])
                if ids is not None:
                    spliced[begin] = SplicedTurn(index, ids)
                before = None
            hashed.update(_bytes_of(piece))
            if piece == TURN_BEGIN:
                begin, before = index + 1, hashed.digest()
            elif piece == IMAGE_PLACE:
                hashed.update(next(remaining).encode() + _CONTROL)
        return Turns(spliced, before)

    def _find(self, before: bytes, pieces: Sequence[Piece]) -> Sequence[int] | None:
        name = _name(before, pieces)
        with self._lock:
            ids = self._ids.get(name)
            if ids is None:
                return None
            self._ids.move_to_end(name)
        return ids if self._tokenizer.pieces(ids) == list(_joined(pieces)) else None

    def _forget(self, name: bytes) -> None:
        """Holding the lock."""
        ids = self._ids.pop(name, None)
        if ids is not None:
            self.num_bytes -= _size(ids)


@dataclass(frozen=True)
class Splices:
    """The answers that one tenant got."""

    store: SpliceStore
    tenant: str

    def read(self, pieces: Sequence[Piece], pictures: Sequence[str]) -> Turns:
        """See `SpliceStore.read`."""
        return self.store.read(self.tenant, pieces, pictures)


def _size(ids: array[int]) -> int:
    return _ENTRY_BYTES + len(ids) * ids.itemsize


def _bytes_of(piece: Piece) -> bytes:
    """A piece as bytes: joined, they tell control tokens from text, however the text is cut."""
    text = piece.text.encode()
    return _CONTROL + text + _CONTROL if piece.is_control else text


def _name(before: bytes, pieces: Sequence[Piece]) -> bytes:
    """Of a turn and all that stands before it."""
    hashed = hashlib.blake2b(before, digest_size=_NAME_BYTES)
    for piece in pieces:
        hashed.update(_bytes_of(piece))
    return hashed.digest()


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbouring texts as one piece."""
    text = ""
    for piece in pieces:
        if piece.is_control:
            if text:
                yield Piece(text)
            yield piece
            text = ""
        else:
            text += piece.text
    if text:
        yield Piece(text)
