"""Ctrl-C at moments at which Ray cannot bear it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_later() -> Iterator[None]:
    """A first Ctrl-C inside the block is raised at its end; a second one at once.

    An exception inside `ray.init`, or while Ray is imported, ends in a crash at shutdown (seen).
    """
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # somebody ends everything and will not be stopped
        yield
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
