"""Whose turn it is among those that wait: fair between tenants by tokens, and by priority with ageing.

Start-time fair queueing (Goyal, Vin, Cheng 1997): a request is told its place when it comes. A tenant's
requests stand one behind the other, each as far on as the one before has tokens; who was away begins at the
place that was served last. How long an answer will be nobody knows, so its tokens are charged as they come:
each moves the tenant's whole line, those that wait in it included, back by one. A priority moves a request
forward or back by a number of tokens, so one that was moved back is passed by so many tokens of others and
no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.types import Request

# A step of priority is worth so many tokens of others: two agents with a tool list of 2,000.
TOKENS_PER_PRIORITY = 4000
_MANY_TENANTS = 1000  # whoever has no more than what was served last is forgotten then


@dataclass(slots=True, eq=False)
class Line:
    """A tenant's requests, one behind the other. Places are in tokens."""

    end: float = 0.0  # where its next request stands
    moved: float = 0.0  # tokens of answers so far; all that wait in it have moved by as many

    def charge(self, num_tokens: int) -> None:
        """Tokens of an answer came."""
        self.end += num_tokens
        self.moved += num_tokens


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: it goes back with its line, never forward."""

    line: Line
    offset: float

    @property
    def position(self) -> float:
        """In tokens, now."""
        return self.offset + self.line.moved


@dataclass(slots=True)
class Turns:
    """Gives places out; the lowest goes first. With one tenant and no priorities: first come."""

    _served: float = 0.0  # position, without priority, of the request that was taken last
    _lines: dict[str, Line] = field(default_factory=dict)

    def place(self, request: Request) -> Place:
        """A new request's, at the end of its tenant's line."""
        if len(self._lines) >= _MANY_TENANTS:
            self._lines = {tenant: line for tenant, line in self._lines.items() if line.end > self._served}
        line = self._lines.setdefault(request.key.tenant, Line())
        start = max(self._served, line.end)
        line.end = start + len(request.prompt_ids)
        return Place(line, start - line.moved)

    def took(self, place: Place) -> None:
        """The request at this place was admitted."""
        self._served = max(self._served, place.position)


def turn_of(place: Place, priority: int, seq_id: int) -> tuple[float, int]:
    """What those that wait are sorted by; it may grow while they do, never shrink."""
    return place.position - TOKENS_PER_PRIORITY * priority, seq_id
