"""Whose turn it is among those that wait: fair between tenants by tokens, and by priority with ageing.

Start-time fair queueing (Goyal, Vin, Cheng 1997): a request is told its place when it comes. A tenant's
requests stand one behind the other, each as far on as the one before has tokens; who was away begins at the
place that was served last. A priority moves a request forward or back by a number of tokens, so one that was
moved back is passed by so many tokens of others and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.types import Request

# A step of priority is worth so many prompt tokens of others: two agents with a tool list of 2,000.
TOKENS_PER_PRIORITY = 4000
_MANY_TENANTS = 1000  # whoever has no more than what was served last is forgotten then


@dataclass(slots=True)
class Turns:
    """Gives places out, in tokens; the lowest goes first. With one tenant and no priorities: first come."""

    _served: float = 0.0  # place, without priority, of the request that was taken last
    _next_by_tenant: dict[str, float] = field(default_factory=dict)

    def place(self, request: Request) -> float:
        """Where a new request stands in its tenant's line."""
        tenant = request.key.tenant
        place = max(self._served, self._next_by_tenant.get(tenant, 0.0))
        if len(self._next_by_tenant) >= _MANY_TENANTS:
            self._next_by_tenant = {t: p for t, p in self._next_by_tenant.items() if p > self._served}
        self._next_by_tenant[tenant] = place + len(request.prompt_ids)
        return place

    def took(self, place: float) -> None:
        """The request at this place was admitted."""
        self._served = max(self._served, place)


def turn_of(place: float, priority: int, seq_id: int) -> tuple[float, int]:
    """What those that wait are sorted by."""
    return place - TOKENS_PER_PRIORITY * priority, seq_id
