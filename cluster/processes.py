"""Exactly our processes: found by their session, told apart from later ones by when they started.

`fluyt up` starts Ray as the leader of a session of its own; everything Ray starts stays in it.
Read from /proc, so Linux alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.05


@dataclass(frozen=True)
class ProcessId:
    """A process: `started` in clock ticks since boot, because pids are used again."""

    pid: int
    started: int


@dataclass(frozen=True)
class _Stat:
    session: int
    state: str
    started: int


def _read_stat(pid: int) -> _Stat | None:
    """proc(5): after the name in parentheses come state, parent, group, session; start time is field 22."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(session=int(fields[3]), state=fields[0], started=int(fields[19]))


def identify(pid: int) -> ProcessId | None:
    """The living process of that pid."""
    stat = _read_stat(pid)
    return None if stat is None or stat.state == "Z" else ProcessId(pid, stat.started)


def is_alive(process: ProcessId) -> bool:
    """Whether that very process lives."""
    return identify(process.pid) == process


def session_members(session: int) -> list[ProcessId]:
    """Everything alive in a session, zombies left out."""
    members = []
    for entry in PROC.iterdir():
        stat = _read_stat(int(entry.name)) if entry.name.isdigit() else None
        if stat is not None and stat.session == session and stat.state != "Z":
            members.append(ProcessId(int(entry.name), stat.started))
    return members


def our_members(root: ProcessId, recorded: Sequence[ProcessId]) -> list[ProcessId]:
    """What is left of root's session. A session id is not used again while a member lives."""
    if any(is_alive(process) for process in (root, *recorded)):
        return session_members(root.pid)
    return []


def end_session(root: ProcessId, recorded: Sequence[ProcessId], grace_s: float) -> int:
    """Ends everything in root's session; returns, when all are gone, how many had to be killed.

    All are asked at once: `ray start --block` itself ends without ending what it started.
    """
    left = our_members(root, recorded)
    for process in left:
        _send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := [process for process in left if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    # What started after the first look is in the session, too.
    left = list({*left, *our_members(root, [*recorded, *left])})
    for process in left:
        _send(process, signal.SIGKILL)
    while any(is_alive(process) for process in left):
        time.sleep(POLL_S)
    return len(left)


def _send(process: ProcessId, number: signal.Signals) -> None:
    if is_alive(process):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return
