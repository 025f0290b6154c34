"""Where the ranks of a gang meet: everyone calls, and hears where rank 0 listens when all are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from protos.fluyt.v1 import steps_pb2 as steps

# Ranks import and load before they call, and not at the same speed. After this Serve starts them again.
MEETING_TIMEOUT_S = 120.0


@dataclass
class _Meeting:
    ranks: set[int] = field(default_factory=set)
    reply: steps.JoinReply | None = None
    is_complete: asyncio.Event = field(default_factory=asyncio.Event)


class Meetings:
    """Open meetings by gang id. A rank may call twice: its first call broke."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._open: dict[str, _Meeting] = {}

    async def join(self, request: steps.JoinRequest) -> steps.JoinReply:
        """Waits for the other ranks. Raises TimeoutError."""
        meeting = self._open.setdefault(request.gang_id, _Meeting())
        meeting.ranks.add(request.rank)
        if request.rank == 0:
            meeting.reply = steps.JoinReply(
                leader_host=request.leader_host,
                store_port=request.store_port,
                rank_port=request.rank_port,
                gang_secret=request.gang_secret,
            )
        if len(meeting.ranks) == self._world_size:
            meeting.is_complete.set()
        async with asyncio.timeout(MEETING_TIMEOUT_S):
            await meeting.is_complete.wait()
        # A gang id is never used again: the meeting is over for those who come later.
        self._open.pop(request.gang_id, None)
        assert meeting.reply is not None, request
        return meeting.reply
