"""Long answers that are learned and never examined: they teach a hundred tokens where an answer teaches six.

Two kinds: what stands in a picture, written down; and where things stand, a line for each with thousandths of
the picture's width and height. The second came when reading was learned and finding was not: zoom boxes and
points were wrong although every word was read (README, Decisions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.nano.data.scene import Exchange, Mark
from model.nano.tools import COORDINATES

MOST_CHARACTERS = 120  # of a drill: a row of training is not longer


def written(lines_of_text: Sequence[str]) -> Exchange:
    """Write down as many lines from the top as fit into an answer."""
    return _written("first", fitting(lines_of_text))


def written_from_below(lines_of_text: Sequence[str]) -> Exchange:
    """Write down as many of the last lines as fit into an answer, in their order."""
    return _written("last", fitting(lines_of_text[::-1])[::-1])


def _written(which: str, kept: Sequence[str]) -> Exchange:
    question = (
        f"Write down the {which} {len(kept)} lines." if len(kept) > 1 else f"Write down the {which} line."
    )
    return Exchange(question, "\n".join(kept), steps=f"These are {len(kept)} lines")


def places(question: str, lines: Sequence[str]) -> Exchange:
    """Where things are, a line of `place_lines` for each."""
    kept = fitting(lines)
    return Exchange(question, "\n".join(kept), steps=f"There are {len(kept)} places")


def place_lines(named: Iterable[tuple[str, Mark]], size: tuple[int, int]) -> list[str]:
    """A line for each: name, across, down, in thousandths of the picture."""
    across, down = COORDINATES / size[0], COORDINATES / size[1]
    return [f"{name} {round(mark.x * across)} {round(mark.y * down)}" for name, mark in named]


def fitting(lines: Sequence[str]) -> list[str]:
    """The first lines, at least one, that together are no longer than a drill may be."""
    kept, length = list[str](), 0
    for line in lines:
        length += len(line)
        if kept and length > MOST_CHARACTERS:
            break
        kept.append(line)
    return kept
