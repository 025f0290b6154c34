"""What a maker of examples gives: a picture, where things stand in it, and what can be asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

# Characters whose places are labels of the vision tower, then places that are no characters: the top
# end of a bar or a point of a line, a number's place on an axis, the corners of a thing one can tap, a
# coloured marker.
CHARACTERS = "".join(chr(code) for code in range(33, 127))
BAR_END, TICK, BOX_START, BOX_END, MARKER = "bar_end", "tick", "box_start", "box_end", "marker"
# Things that are called by a colour, and how bright a shade is (tenths).
COLOUR_KINDS = {
    name: f"colour {name}"
    for name in ("red", "green", "blue", "orange", "purple", "yellow", "black", "white")
}
LEVEL_KINDS = tuple(f"level {level}" for level in range(11))
KINDS = (*CHARACTERS, BAR_END, TICK, BOX_START, BOX_END, MARKER, *COLOUR_KINDS.values(), *LEVEL_KINDS)


@dataclass(frozen=True)
class Mark:
    """Something stands at (x, y), in pixels of the picture. `kind` is one of KINDS."""

    kind: str
    x: float
    y: float


@dataclass(frozen=True)
class Exchange:
    """A question and its exact answer.

    `thought` is the usual thinking, "" where the answer is plain to see; `steps` spells it out
    (`Reasoning: high`). `box` (left, top, right, bottom in pixels) is where a point has to lie.
    """

    question: str
    answer: str
    thought: str = ""
    steps: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """One picture and its exchanges. Mode RGB, or I;16 for scans.

    `drills` are long answers for training alone (`drills`): one wrong character would make them wrong.
    """

    picture: Image.Image
    marks: tuple[Mark, ...]
    exchanges: tuple[Exchange, ...]
    drills: tuple[Exchange, ...] = ()
