"""Token ids -> text, one token at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from model.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Text of a growing list of ids. What was returned joins up to `Tokenizer.decode` of all ids.

    Bytes that may still become a character are kept back until they do, or cannot any more.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; special tokens have none."""
        skipped = self._tokenizer.is_special
        data = b"".join(self._tokenizer.token_bytes(token_id) for token_id in ids if not skipped(token_id))
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What an unfinished character amounts to (U+FFFD) when nothing follows it."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
