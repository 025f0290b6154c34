"""The grammar compiler of a checkpoint, made when the first grammar comes."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from model.grammar import Grammar
from model.text.grammar import CompiledGrammar, GrammarCompiler
from model.text.tokenizer import Tokenizer


class Grammars:
    """Reads the tokenizer for itself: a rank has no other use for one. Safe to use from several threads."""

    def __init__(self, directory: str | Path, vocab_size: int) -> None:
        self._directory = directory
        self.vocab_size = vocab_size
        self._compiler: GrammarCompiler | None = None
        self._lock = Lock()

    def compile(self, grammar: Grammar, field: str = "grammar") -> CompiledGrammar:
        """See `GrammarCompiler.compile`. Raises CheckpointError where no tokenizer fits."""
        return self._made().compile(grammar, field)

    def call_ids(self) -> tuple[int, ...]:
        """Tokens around a tool call, as far as there are any. Raises CheckpointError."""
        return tuple(token_id for token_id in self._made().call_ids if token_id is not None)

    def _made(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(Tokenizer.load(self._directory), self.vocab_size)
            return self._compiler
