"""Has an answer run into a loop? What it wrote last is one stretch of tokens over and over.

A loop would otherwise go on to `max_tokens`: thousands of steps for nothing. A wrong alarm cuts a good answer
short (tables of zeros, ruled lines), so the rule waits for more than people ask for.
"""

from __future__ import annotations

from collections import deque

# The longest stretch that is looked for: a sentence or two, or a line of a table.
MAX_PERIOD = 64
# Both must hold: 256 tokens are a hundred times `0, ` or a long rule of dashes; 16 times is for sentences.
MIN_REPEATS = 16
MIN_TOKENS = 256


class LoopDetector:
    """Follows one answer; a function of its tokens. A token costs a search among the last 64."""

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=MAX_PERIOD)  # newest first
        self._runs: dict[
            int, int
        ] = {}  # by period: how many of the last tokens equal the one a period before

    def push(self, token_id: int) -> bool:
        """Take the next token; True if the answer loops now."""
        runs = self._runs
        if token_id not in self._last:
            if runs:
                self._runs = {}
        else:
            self._runs = {
                period: runs.get(period, 0) + 1
                for period, earlier in enumerate(self._last, 1)
                if earlier == token_id
            }
        self._last.appendleft(token_id)
        return any(_is_loop(period, num_equal) for period, num_equal in self._runs.items())


def _is_loop(period: int, num_equal: int) -> bool:
    return period + num_equal >= max(MIN_TOKENS, MIN_REPEATS * period)
