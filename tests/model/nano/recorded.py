"""What makers write on their canvases, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest

from model.nano.data.canvas import Align, Box, Canvas, Colour
from model.nano.data.fonts import Face
from model.nano.data.scene import Scene

SIZES = (  # width, height, unit
    (380, 380, 1.0),
    (600, 600, 0.83),
    (1500, 1200, 2.06),
    (380, 900, 1.2),
    (1500, 380, 2.06),
    (1024, 768, 0.7),
)
MARGIN_PX = 6  # how near to the edge writing may come


@dataclass(frozen=True)
class Written:
    """A line: its box from the capitals' top to the baseline, the height asked for, the height it has."""

    text: str
    box: Box
    cap_px: float
    measured_px: float


@dataclass(frozen=True)
class Made:
    """A scene, and the box and the measured capital height of each text in it."""

    scene: Scene
    unit: float
    drawn: tuple[tuple[Box, float], ...]


def record_canvases(patch: pytest.MonkeyPatch, *modules: ModuleType) -> list[Written]:
    """From now on, what the modules write is appended to the result."""
    written: list[Written] = []

    class Recording(Canvas):
        def text(
            self,
            x: float,
            y: float,
            text: str,
            face: Face,
            cap_px: float,
            fill: Colour,
            align: Align = "left",
        ) -> Box:
            box = super().text(x, y, text, face, cap_px, fill, align)
            _, top, _, bottom = face.capped(cap_px).getbbox("H")
            written.append(Written(text, box, cap_px, bottom - top))
            return box

    for module in modules:
        patch.setattr(module, "Canvas", Recording)
    return written
