"""Whether drafts pay, by measurement: for a sequence by what is accepted, for a gang by tokens per second.

A step that verifies drafts gains more tokens and takes longer. How much longer depends on machine, model and
the number of sequences; so both kinds of step are timed, and the better one is taken, for each
size of batch by itself. The other one is tried again now and then, as long as that costs little.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

# A draft that holds more rarely costs more than it brings: drafting and verifying a row take a quarter to a
# third of a decoding step of one sequence.
LEAST_HELD = 0.3
_WEIGHT = 0.1  # of the newest step in a sequence's running shares
FIRST_PAUSE, LONGEST_PAUSE = 32, 1024  # tokens without drafts, doubled each time that they did not pay

_RATE_WEIGHT = 0.2
_TRIAL_STEPS = 4
_TRIAL_EVERY = 100  # steps
_TRIAL_SHARE = 0.02  # of the time may be lost to trials


@dataclass(slots=True)
class Acceptance:
    """A sequence's record. `held[i]`: running share of verify steps in which drafts 1 .. i + 1 all held."""

    held: list[float]
    num_paused: int = 0  # tokens still to come without drafts
    _next_pause: int = FIRST_PAUSE

    def wanted(self) -> int:
        """How many drafts pay for this sequence now."""
        if self.num_paused:
            return 0
        return sum(share >= LEAST_HELD for share in self.held)  # shares fall with the position

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """A step has returned; with no drafts it counts down the pause."""
        if num_drafts == 0:
            self.num_paused = max(0, self.num_paused - 1)
            return
        for index in range(num_drafts):
            self.held[index] += _WEIGHT * ((num_accepted > index) - self.held[index])
        if self.held[0] < LEAST_HELD:
            self.num_paused, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)
            self.held = [2 * LEAST_HELD] * len(self.held)  # the next try starts between hope and despair


@dataclass(slots=True)
class _Rates:
    """Tokens per microsecond of pure decoding steps; 0 while not measured."""

    drafting: float = 0.0
    plain: float = 0.0
    num_since_trial: int = 0


@dataclass(slots=True)
class DraftPolicy:
    """Decides, step by step, whether a gang verifies drafts."""

    _rates: dict[int, _Rates] = field(default_factory=lambda: defaultdict(_Rates))
    _num_trial_steps: int = 0  # left of the trial that runs
    _account_us: float = 0.0  # what trials may cost; negative while one has still to be earned
    _was_drafting: bool | None = None

    def chooses_drafts(self, num_decoding: int) -> bool:
        """Asked once for each step, with the number of sequences that decode in it."""
        rates = self._rates[num_decoding.bit_length()]
        if not rates.drafting:
            return True
        if not rates.plain:
            return False
        drafting_wins = rates.drafting >= rates.plain
        if self._num_trial_steps:
            self._num_trial_steps -= 1
            return not drafting_wins
        rates.num_since_trial += 1
        if rates.num_since_trial >= _TRIAL_EVERY and self._account_us >= 0:
            rates.num_since_trial = 0
            self._num_trial_steps = _TRIAL_STEPS
        return drafting_wins

    def observe(self, num_decoding: int, *, is_drafting: bool, num_gained: int, step_us: int) -> None:
        """A step in which every sequence decoded has returned."""
        rates = self._rates[num_decoding.bit_length()]
        best = max(rates.drafting, rates.plain)
        name = "drafting" if is_drafting else "plain"
        if best and getattr(rates, name) < best:
            self._account_us -= max(0.0, step_us - num_gained / best)
        else:
            self._account_us = min(self._account_us + _TRIAL_SHARE * step_us, 1e6)
        # The first step after a change catches up with what the MTP layers have not seen.
        is_first, self._was_drafting = is_drafting != self._was_drafting, is_drafting
        if not is_first and step_us > 0:
            rate, known = num_gained / step_us, getattr(rates, name)
            setattr(rates, name, rate if not known else known + _RATE_WEIGHT * (rate - known))
