"""Which tokens may come next in a sequence: what its grammar and the budget of its thinking allow.

A function of (sampling parameters, output ids), so a sequence that is taken up again anywhere goes on the
same. What is kept between calls is a matcher that has been fed, and it is made anew where that does not fit.
W words of 32 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from model.errors import FluytError
from model.text.grammar import Matcher
from model.text.grammar_masks import Mask, one_token
from model.text.grammars import Grammars
from model.types import SamplingParams

if TYPE_CHECKING:
    from model.sampler import SampleRow

Drafts = tuple[int, ...]

# Of more new tokens than this (one that is taken up again) the masks' own thread feeds the matcher.
_MOST_FED_AT_ONCE = 8
# A grammar that runs into a limit does so for all that follow it; of each, once made anew.
_NUM_ATTEMPTS = 2
_DEAD_END = "no token may come next: stop_token_ids take those that could"


class TokenMasks:
    """The masks of one sequence. One thread at a time. `failure`: why the request has to end ("" if not)."""

    def __init__(self, sampling: SamplingParams, grammars: Grammars) -> None:
        self.failure = ""
        self._sampling = sampling
        self._vocab_size = grammars.vocab_size
        self._grammar = None if sampling.grammar is None else GrammarMasks(sampling, grammars)
        self._num_output = 0
        self._known: dict[Drafts, Mask | None] = {}  # for these many output ids
        self._unjudged: set[Drafts] = set()

    @classmethod
    def of(cls, sampling: SamplingParams, grammars: Grammars | None) -> TokenMasks | None:
        """None for a sequence that may go on with any token at any time."""
        if sampling.grammar is None and sampling.max_think_tokens is None:
            return None
        assert grammars is not None, "the request needs masks, this rank has no tokenizer to make them by"
        return cls(sampling, grammars)

    def after(self, output_ids: Sequence[int], drafts: Drafts) -> Mask | None:
        """What may come behind these; None: any token, or it does not matter (see `judges`, `failure`)."""
        if not self.knows(output_ids, drafts):
            self._known[drafts] = self._after(output_ids, drafts)
        return self._known[drafts]

    def knows(self, output_ids: Sequence[int], drafts: Drafts) -> bool:
        """Whether `after` has been asked before."""
        if len(output_ids) != self._num_output:
            self._known.clear()
            self._unjudged.clear()
            self._num_output = len(output_ids)
        return drafts in self._known

    def matcher_at(self, output_ids: Sequence[int], drafts: Drafts) -> Matcher | None:
        """Where the parser's work is all that `after` still needs: the matcher, which stands there."""
        if self._grammar is None or self.failure or self._must_answer(output_ids, drafts):
            return None
        return self._grammar.matcher_at(output_ids, drafts)

    def judges(self, output_ids: Sequence[int], drafts: Drafts) -> bool:
        """Whether what comes behind these drafts can be told: if not, no token from there may be taken."""
        self.after(output_ids, drafts)
        return drafts not in self._unjudged

    def _after(self, output_ids: Sequence[int], drafts: Drafts) -> Mask | None:
        if self._must_answer(output_ids, drafts):
            assert self._sampling.think_end_id is not None, self._sampling
            return one_token(self._sampling.think_end_id, self._vocab_size)
        if self._grammar is None or self.failure:
            return None
        try:
            mask_W = self._grammar.after(output_ids, drafts)
        except FluytError as error:  # of this request alone: the others go on
            self.failure = str(error)
            return None
        if mask_W is None and drafts:
            self._unjudged.add(drafts)
        elif mask_W is None:
            self.failure = self._grammar.failure or _DEAD_END
        return mask_W

    def _must_answer(self, output_ids: Sequence[int], drafts: Drafts) -> bool:
        """Whether the thinking ends here because its budget is spent: can be so for one token alone."""
        most = self._sampling.max_think_tokens
        if most is None or len(output_ids) + len(drafts) != most:
            return False
        return self._sampling.think_end_id not in (*output_ids, *drafts)


class GrammarMasks:
    """A matcher that follows the output, and drafts ahead of it."""

    def __init__(self, sampling: SamplingParams, grammars: Grammars) -> None:
        self.failure = ""
        self._sampling = sampling
        self._grammars = grammars
        self._looks_ahead = True
        self._matcher: Matcher | None = None
        self._num_settled = 0  # output ids that the matcher was fed
        self._ahead: list[int] = []  # what it was fed behind them
        self._stands_at: tuple[int, Drafts] | None = (
            None  # so many output ids, drafts: asked next, it need not move
        )

    def after(self, output_ids: Sequence[int], drafts: Drafts) -> Mask | None:
        """What may come; None for nothing: behind a draft that may not come, at a dead end, after a failure.

        Raises FluytError where there can be no matcher.
        """
        if drafts and not self._looks_ahead:
            return None
        for _ in range(_NUM_ATTEMPTS):
            matcher = self._matcher or self._start()
            stands_there, self._stands_at = self._stands_at == (len(output_ids), drafts), None
            is_there = stands_there or self._move(matcher, output_ids, drafts)
            mask_W = matcher.mask_if_any() if is_there else None
            if mask_W is not None or matcher.failure is None:
                return mask_W
            failure, self._matcher = matcher.failure, None
        if drafts:  # what may never be written must not end a request, and not cost it time again
            self._looks_ahead = False
        else:
            self.failure = failure
        return None

    def matcher_at(self, output_ids: Sequence[int], drafts: Drafts) -> Matcher | None:
        """The matcher behind these, if it comes there in a few tokens and has no mask yet."""
        matcher, num_new = self._matcher, len(output_ids) - self._num_settled
        if matcher is None or num_new > _MOST_FED_AT_ONCE or (drafts and not self._looks_ahead):
            return None
        is_there = self._move(matcher, output_ids, drafts)
        self._stands_at = (len(output_ids), drafts) if is_there else None
        return matcher if is_there and matcher.lacks_mask else None

    def _start(self) -> Matcher:
        sampling = self._sampling
        assert sampling.grammar is not None, sampling
        self._matcher = self._grammars.compile(sampling.grammar).matcher(
            sampling.eos_token_ids + sampling.stop_token_ids, starts_in_thinking=sampling.starts_in_thinking
        )
        self._num_settled, self._ahead = 0, []
        return self._matcher

    def _move(self, matcher: Matcher, output_ids: Sequence[int], drafts: Drafts) -> bool:
        """Feed and take back until the matcher stands behind output and drafts. False: they may not come."""
        assert len(output_ids) >= self._num_settled, (len(output_ids), self._num_settled)
        if not self._ahead and not drafts:
            return self._settle(matcher, output_ids)
        new = list(output_ids[self._num_settled :])
        wanted = [*new, *drafts]
        num_common = _num_common(self._ahead, wanted)
        matcher.rollback(len(self._ahead) - num_common)
        del self._ahead[num_common:]
        for token_id in wanted[num_common:]:
            if not matcher.accept(token_id):
                break
            self._ahead.append(token_id)
        is_there = len(self._ahead) == len(wanted)
        num_settled = min(len(new), len(self._ahead))
        self._num_settled += num_settled
        del self._ahead[:num_settled]
        return is_there

    def _settle(self, matcher: Matcher, output_ids: Sequence[int]) -> bool:
        """The same where nothing is ahead: what every sequence needs at every step, and no more."""
        for token_id in output_ids[self._num_settled :]:
            if not matcher.accept(token_id):
                return False
            self._num_settled += 1
        return True


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the beginning that two lists share."""
    num = min(len(left), len(right))
    return next((i for i in range(num) if left[i] != right[i]), num)


class MaskWorker:
    """Computes masks in a thread of its own, beside a forward pass: they are there when logits are.

    Matchers are fed before the pass. Beside it, all of them are one call that needs no interpreter: a thread
    that takes turns with the pass for each sequence costs several times its own work, for every operator of
    the pass then waits to get the interpreter back.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._last: Future[None] | None = None

    def begin(self, rows: Sequence[SampleRow]) -> Future[None] | None:
        """Start on the masks of these rows: to be left alone until `result()`. None: all is known."""
        if self._last is not None:
            self._last.result()  # who did not ask for it must not meet it at work
        unknown: dict[TokenMasks, list[SampleRow]] = {}
        for row in rows:
            if row.masks is not None and not row.masks.knows(row.output_ids, row.drafts):
                unknown.setdefault(row.masks, []).append(row)
        if not unknown:
            return None
        matchers: list[Matcher] = []
        others: list[SampleRow] = []
        for masks, of_sequence in unknown.items():
            row = of_sequence[0]
            matcher = masks.matcher_at(row.output_ids, row.drafts) if len(of_sequence) == 1 else None
            if matcher is None:
                others += of_sequence
            else:
                matchers.append(matcher)
        work = matchers[0].compiler.mask_work(matchers) if matchers else None
        self._last = self._thread.submit(_compute, work, others)
        return self._last


def _compute(work: Callable[[], None] | None, others: Sequence[SampleRow]) -> None:
    if work is not None:
        work()
    for row in others:
        row.allowed_W()
