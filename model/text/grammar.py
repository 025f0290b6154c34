r"""Which tokens may come next, so that an answer is what was asked for.

    Grammar -> GrammarCompiler.compile -> CompiledGrammar -> Matcher, one per sequence

A compiler belongs to one tokenizer. A matcher is a function of (grammar, output ids): made anew and fed the
same ids it allows the same tokens. It stands in one of four places, W words of 32 tokens each:

    THINKING --</think>--> NEWLINE --"\n"--> ANSWER --an end token, where the grammar may end--> ENDED

Thinking is free but for end tokens and tool calls, which nobody would check there. After `</think>` comes
the newline that the chat template writes and the reader of the output takes away; then the grammar holds.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.text.grammar_lark import choice_lark, ebnf_lark, regex_lark, schema_lark
from model.text.grammar_masks import FoundMasks, Mask, all_tokens, clear_bits, one_token, set_bits, unpack
from model.text.grammar_schema import check_schema, from_json, locate, rebased
from model.text.grammar_tools import read_tools, tools_lark
from model.text.grammar_vocabulary import Vocabulary
from model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

# A hundred tools with long descriptions; 26 KiB of schemas compile in 15 ms.
MAX_GRAMMAR_BYTES = 256 * 1024
# States of the lexer are made when first met, 1 to 2 kB each: at most 100 MB for one grammar.
MAX_LEXER_STATES = 50_000
# Symbols of all productions, and work to build lexemes: about 20 ms (llguidance: 50,000 a ms).
MAX_GRAMMAR_SIZE = 100_000
MAX_LEXEME_FUEL = 1_000_000
# Work of the lexer for one mask: a call of tools takes 0.3 million once, 14,000 a ms.
MAX_MASK_FUEL = 5_000_000
# Work of the parser for one mask (20,000 a ms), and ways to read what was written so far: 50 ms a token for
# a grammar made to cost, a few us for others.
MAX_MASK_ITEMS = 50_000
MAX_PARSES = 1000
# The lexer is given new fuel by each mask: a matcher that is only fed computes one now and then.
REFUEL_TOKENS = 64
# Compiled grammars kept for the next request with the same one.
MAX_KEPT = 64


_NOTHING = "nothing can match it"
# The library's words for people who wrote a schema, not the Lark text that we made of it.
_PLAINER = (
    (r"^(?:error: |at \d+\(\d+\): )", ""),
    (r"^failed to compile JSON schema: ", ""),
    (r"^(oneOf constraints are not supported).*", r"\1 where more than one could hold"),
    (r"/\$defs/root", "#"),
)


class _Place(Enum):
    THINKING = "thinking"
    NEWLINE = "newline"
    ANSWER = "answer"
    ENDED = "ended"


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: rows of the model's head. Takes 0.3 s for 128,000 tokens.

        Raises CheckpointError for a tokenizer without a control token for an end.
        """
        import llguidance

        vocabulary = Vocabulary(tokenizer)
        self.vocab_size = vocab_size
        self.think_end_id = tokenizer.token_id("</think>")
        self.call_ids = (tokenizer.token_id("<tool_call>"), tokenizer.token_id("</tool_call>"))
        self.newline_id = vocabulary.tokens.index(b"\n")
        self._tokens = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), n_vocab=vocab_size, eos_token=[vocabulary.eos_token_id]
        )
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=MAX_LEXEME_FUEL,
            step_lexer_fuel=MAX_MASK_FUEL,
            step_max_items=MAX_MASK_ITEMS,
            max_items_in_row=MAX_PARSES,
            max_lexer_states=MAX_LEXER_STATES,
            max_grammar_size=MAX_GRAMMAR_SIZE,
            verbose_errors=False,  # they would print what the model wrote
        )
        no_text = [token_id for token_id, text in enumerate(vocabulary.tokens) if not text]
        padding = range(len(vocabulary.tokens), vocab_size)
        self._no_text_ids = {*vocabulary.special_token_ids, *no_text, *padding}
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._lock = Lock()
        self._executor = llguidance.LLExecutor(1)  # starts no thread before it is used

    def mask_work(self, matchers: Sequence[Matcher]) -> Callable[[], None]:
        """What the next masks of these need, as one call for any thread, which drops the GIL all the while.

        They lack one; until the call has returned they are to be left alone.
        """
        found = FoundMasks(np.stack([matcher.inside_W for matcher in matchers]))
        rows = [(matcher.parser, index) for index, matcher in enumerate(matchers)]
        for index, matcher in enumerate(matchers):
            matcher.expect(found, index)
        address, row_bytes = found.found_MW.ctypes.data, found.found_MW.strides[0]

        def work(_kept: FoundMasks = found) -> None:  # whatever becomes of the matchers
            self._executor.unsafe_compute_mask_ptr(rows, address, row_bytes, len(rows))

        return work

    def compile(self, grammar: Grammar, field: str = "grammar") -> CompiledGrammar:
        """Compile or find it. Raises InvalidRequest naming the path below `field`."""
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None and not kept.is_broken:
                self._kept.move_to_end(grammar)
                return kept
        num_bytes = len(grammar.source.encode(errors="surrogatepass"))
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(field, f"{num_bytes} bytes; at most {MAX_GRAMMAR_BYTES}")
        matcher = self._compile(grammar, field)
        compiled = CompiledGrammar(self, matcher, self._inside(grammar))
        with self._lock:
            self._kept[grammar] = compiled
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _compile(self, grammar: Grammar, field: str) -> llguidance.LLMatcher:
        if grammar.kind == "json_schema":
            return self._compile_schema(grammar.source, field)
        if grammar.kind in ("tools", "tools_forced"):
            return self._compile_tools(grammar, field)
        if grammar.kind == "ebnf":
            lark = ebnf_lark(grammar.source, field)
        elif grammar.kind == "choice":
            lark = choice_lark(grammar.source, field)
        else:
            lark = regex_lark(grammar.source)
        return self._built(lark, field)

    def _compile_schema(self, source: str, field: str) -> llguidance.LLMatcher:
        schema = from_json(source, field)
        check_schema(schema, field)
        try:
            return self._built(schema_lark(schema), field)
        except InvalidRequest as error:
            root = rebased(schema)
            raise self._located([(root, field)], root) or error from None

    def _compile_tools(self, grammar: Grammar, field: str) -> llguidance.LLMatcher:
        call_id, call_end_id = self.call_ids
        if call_id is None or call_end_id is None:
            raise InvalidRequest(field, "this model has no tokens for tool calls")
        functions = read_tools(grammar.source, field)
        forced = grammar.kind == "tools_forced"
        lark = tools_lark(functions, forced=forced, call_id=call_id, call_end_id=call_end_id)
        try:
            return self._built(lark, field)
        except InvalidRequest as error:
            for function in functions:
                root = rebased(function.parameters)
                parts = [(schema, path) for _, path, schema in function.properties()]
                located = self._located(parts, root)
                if located is not None:
                    raise located from None
            raise error from None

    def _located(self, parts: Iterable[tuple[Any, str]], root: Any) -> InvalidRequest | None:
        """The error of the first part that does not compile alone."""
        for part, path in parts:
            found = locate(part, root, path, self._schema_error)
            if found is not None:
                return InvalidRequest(*found)
        return None

    def _schema_error(self, schema: Any) -> str | None:
        try:
            self._built(schema_lark(schema), "")
        except InvalidRequest as error:
            return error.description
        return None

    def _built(self, lark: str, field: str) -> llguidance.LLMatcher:
        """A matcher at the beginning, its first mask computed. Raises InvalidRequest."""
        import llguidance

        source = llguidance.LLMatcher.grammar_from_lark(lark)
        matcher = llguidance.LLMatcher(self._tokens, source, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
            if matcher.is_stopped() and not matcher.is_error() and not matcher.is_accepting():
                raise InvalidRequest(field, _NOTHING)
        if matcher.is_error():
            raise InvalidRequest(field, _summary(matcher.get_error()))
        return matcher

    def _inside(self, grammar: Grammar) -> Mask:
        """Tokens that may stand in an answer: those with text, and of control tokens those of calls."""
        inside = all_tokens(self.vocab_size)
        allowed = self.call_ids if grammar.kind in ("tools", "tools_forced") else ()
        clear_bits(inside, self._no_text_ids.difference(allowed))
        return inside


class CompiledGrammar:
    """A grammar ready to be followed by any number of sequences, which share the states of its lexer.

    `is_broken`: one of them ran into a limit, and so will all; the compiler makes it anew when asked again.
    """

    def __init__(self, compiler: GrammarCompiler, start: llguidance.LLMatcher, inside_W: Mask) -> None:
        self.compiler = compiler
        self.inside_W = inside_W
        self.is_inside_V = unpack(inside_W, compiler.vocab_size).tobytes()  # read for every token
        self.is_broken = False
        self._start = start

    def matcher(self, end_ids: Sequence[int], *, starts_in_thinking: bool) -> Matcher:
        """A matcher before the first token. `end_ids`: every token that ends the sequence."""
        return Matcher(self, self._start.deep_copy(), end_ids, starts_in_thinking)


class Matcher:
    """Where one sequence stands in its grammar. Not for several threads at once; masks drop the GIL."""

    def __init__(
        self,
        compiled: CompiledGrammar,
        parser: llguidance.LLMatcher,
        end_ids: Sequence[int],
        starts_in_thinking: bool,
    ) -> None:
        self.compiler = compiled.compiler
        assert not starts_in_thinking or self.compiler.think_end_id is not None, "no </think>"
        self._compiled = compiled
        self.parser = parser  # of the library; it stands behind the tokens of the answer
        self._end_ids = frozenset(end_ids)
        self.inside_W = compiled.inside_W.copy()
        clear_bits(self.inside_W, self._end_ids)
        self._place = _Place.THINKING if starts_in_thinking else _Place.ANSWER
        self._places: list[_Place] = []  # before each token
        self._mask_W: Mask | None = None
        self._is_empty = False  # the mask, if there is one
        self._found: tuple[FoundMasks, int] | None = None  # where somebody else puts it, but for ends

    @property
    def lacks_mask(self) -> bool:
        """Whether the next mask is work for the parser that has not been done."""
        if self._mask_W is not None or self._found is not None:
            return False
        return self._place is _Place.ANSWER and not self.parser.is_error()

    def expect(self, found: FoundMasks, index: int) -> None:
        """The next mask, but for ends, will be a row of these before anybody asks for it."""
        self._found = found, index

    @property
    def num_tokens(self) -> int:
        """Tokens accepted and not rolled back."""
        return len(self._places)

    @property
    def failure(self) -> str | None:
        """Why no further token can be judged: a limit on the work for a token. The request is to be ended."""
        return _summary(self.parser.get_error()) if self.parser.is_error() else None

    @property
    def may_end(self) -> bool:
        """True where what was written is whole: end tokens are allowed."""
        return self._place is _Place.ENDED or (self._place is _Place.ANSWER and self.parser.is_accepting())

    @property
    def is_finished(self) -> bool:
        """True where nothing but an end may follow."""
        if self._place is not _Place.ANSWER:
            return self._place is _Place.ENDED
        return self.may_end and not (self.mask() & self.inside_W).any()

    def mask(self) -> Mask:
        """Tokens that may come next, as bits; not to be written to. None but ends after a failure."""
        if self._mask_W is None:
            self._mask_W = self._compute_mask()
        return self._mask_W

    def mask_if_any(self) -> Mask | None:
        """The same; None if nothing may come, or after a failure."""
        mask_W = self.mask()
        return None if self._is_empty or self.parser.is_error() else mask_W

    def accept(self, token_id: int) -> bool:
        """Take the next token. False: it may not come, and nothing has changed."""
        following = self._following(token_id)
        if following is None:
            return False
        self._places.append(self._place)
        self._place = following
        self._mask_W = self._found = None
        if len(self._places) % REFUEL_TOKENS == 0:
            self.mask()
        return True

    def rollback(self, num_tokens: int) -> None:
        """Take the last tokens back."""
        assert 0 <= num_tokens <= len(self._places), (num_tokens, len(self._places))
        if num_tokens == 0:
            return
        undone = self._places[-num_tokens:]
        del self._places[-num_tokens:]
        # A token that ended the sequence, or came after it, never reached the parser.
        num_parsed = undone.count(_Place.ANSWER) - (self._place is _Place.ENDED and _Place.ANSWER in undone)
        if num_parsed:
            assert self.parser.rollback(num_parsed), self.parser.get_error()
        self._place = undone[0]
        self._mask_W = self._found = None

    def _following(self, token_id: int) -> _Place | None:
        """The place after a token; None if it may not come."""
        place = self._place
        if place is _Place.THINKING:
            if token_id == self.compiler.think_end_id:
                return _Place.NEWLINE
            barred = token_id in self._end_ids or token_id in self.compiler.call_ids
            return None if barred else place
        if place is _Place.NEWLINE:
            return _Place.ANSWER if token_id == self.compiler.newline_id else None
        if place is _Place.ENDED or token_id in self._end_ids:
            return _Place.ENDED if token_id in self._end_ids and self.may_end else None
        is_inside = 0 <= token_id < self.compiler.vocab_size and self._compiled.is_inside_V[token_id]
        if is_inside and self.parser.try_consume_tokens([token_id]) == 1:
            return place
        if self.parser.is_error():
            self._compiled.is_broken = True
            self._mask_W = self._found = None
        return None

    def _compute_mask(self) -> Mask:
        size = self.compiler.vocab_size
        self._is_empty = False
        if self._place is _Place.THINKING:
            mask_W = all_tokens(size)
            clear_bits(mask_W, [*self._end_ids, *(i for i in self.compiler.call_ids if i is not None)])
            return mask_W
        if self._place is _Place.NEWLINE:
            return one_token(self.compiler.newline_id, size)
        if self._found is not None:
            found, index = self._found
            mask_W, has_any = found.take(index)
        elif self._place is _Place.ANSWER and not self.parser.is_error():
            found_W = np.frombuffer(self.parser.compute_bitmask(), dtype=np.uint32)
            mask_W = found_W[: len(self.inside_W)] & self.inside_W
            has_any = bool(mask_W.any())
        else:
            mask_W, has_any = np.zeros_like(self.inside_W), False
        # With the request's own ends, where they may come.
        is_error = self.parser.is_error()
        self._compiled.is_broken |= is_error
        if is_error or self.may_end:
            ends = [token_id for token_id in self._end_ids if token_id < self.compiler.vocab_size]
            set_bits(mask_W, ends)
            has_any |= bool(ends)
        self._is_empty = not has_any
        return mask_W


def _summary(text: str) -> str:
    """What is wrong, of a report of several lines that also shows the grammar we made of the request's."""
    lines = text.strip().splitlines() or [""]
    if lines[0].startswith("NoExtension"):
        return _NOTHING
    found = next((line for line in lines if line.startswith("error: ")), lines[0])
    for pattern, plain in _PLAINER:
        found = re.sub(pattern, plain, found)
    return found
