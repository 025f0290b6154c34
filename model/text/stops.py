"""Stop strings in a growing text."""

from __future__ import annotations


class StopScanner:
    """Releases text that can no longer belong to a stop string.

    The match is the one that is complete first when the text is read character by character (of
    two complete at the same character, the longer), so it does not depend on how the text came.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take text; return what is safe. On a match: all before the string, and `matched` is set."""
        assert self.matched is None, self.matched
        if not self._stops:
            return text
        buffer = self._held + text
        end, start = self._first_match(buffer)
        if end:
            self.matched, self._held = buffer[start:end], ""
            return buffer[:start]
        num_kept = self._num_kept(buffer)
        self._held = buffer[len(buffer) - num_kept :]
        return buffer[: len(buffer) - num_kept]

    def flush(self) -> str:
        """What is kept back, when no more text follows."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, buffer: str) -> tuple[int, int]:
        """(end, start) of the match complete first, the longest of those; (0, 0) without one."""
        starts = ((buffer.find(stop), len(stop)) for stop in self._stops)
        return min(((start + size, start) for start, size in starts if start >= 0), default=(0, 0))

    def _num_kept(self, buffer: str) -> int:
        """Length of the longest end of the buffer that begins some stop string."""
        for size in range(min(len(buffer), self._longest - 1), 0, -1):
            tail = buffer[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
