"""The tokens of a checkpoint for the library that follows grammars."""

from __future__ import annotations

from model.errors import CheckpointError
from model.text.tokenizer import Tokenizer


class Vocabulary:
    """A tokenizer as llguidance wants it: bytes of every token, and which of them are no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError for a tokenizer without a control token for an end."""
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = [tokenizer.control_id(token) for token in tokenizer.control_tokens]
        self.bos_token_id = None
        markers = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
        ends = [token for token in tokenizer.control_tokens if token not in markers]
        if not ends:
            raise CheckpointError("tokenizer.json: no control token that could end a turn")
        # The library wants one for ends; a matcher puts the request's own in its place.
        self.eos_token_id = tokenizer.control_id(ends[0])

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode_text(text if isinstance(text, str) else text.decode(errors="replace"))
