"""Sheets of paper: where writing fits on them, and questions that want JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from model.nano.data.canvas import (
    Align,
    Box,
    Canvas,
    Colour,
    Style,
    ink_on,
    log_uniform,
    random_colour,
    text_width,
)
from model.nano.data.fonts import Face
from model.nano.data.scene import Exchange

LOW_CAP, HIGH_CAP = 14.5, 24.0  # heights of capitals in pixels of the view; 0.5 for the rounding of sizes
LEAST_STEP = 1.8  # from line to line, in capital heights
_MARGIN = 6
_AS_JSON = (
    "Answer as JSON: ",
    "Fill in this schema: ",
    "Reply with JSON that follows this schema: ",
    "Extract the data as JSON. Schema: ",
)


@dataclass(frozen=True)
class Sheet:
    """The paper: where on it there may be writing, in which face and size, and how far it may be turned."""

    width: int
    height: int
    face: Face
    cap: float
    step: float
    area: Box
    rows: int
    ink: Colour
    paper: Colour
    desk: Colour | None
    rule: Literal["none", "solid", "dashed", "double"]
    degrees: float


@dataclass(frozen=True)
class Cell:
    """A piece of a line: `x` is its left, middle or right end."""

    text: str
    x: float
    align: Align = "left"


@dataclass(frozen=True)
class Line:
    """What stands side by side, and whether a rule stands above."""

    cells: tuple[Cell, ...]
    has_rule: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Field:
    """A key of a JSON answer, what stands on the paper, and the types it can have."""

    key: str
    text: str
    kinds: tuple[str, ...] = ("string",)


def make_sheet(
    rng: random.Random, style: Style, size: tuple[int, int], rows: int, caps: tuple[float, float]
) -> Sheet:
    """A sheet for up to `rows` lines, `caps` capital heights wide; fewer rows where those would be small."""
    width, height = size
    degrees = 5.0 if max(size) < 1.6 * min(size) else 2.0
    lean = math.sin(math.radians(degrees))
    wide, high = width - 2 * _MARGIN - lean * height, height - 2 * _MARGIN - lean * width
    low = LOW_CAP * style.unit
    rows = max(1, min(rows, int(high / (LEAST_STEP * low))))
    most = max(low, min(HIGH_CAP * style.unit, high / (LEAST_STEP * rows), wide / 24))
    cap = log_uniform(rng, low, most)
    step = max(LEAST_STEP * cap, min(cap * rng.uniform(1.8, 2.6), high / rows))
    wide_used, high_used = min(wide, cap * rng.uniform(*caps)), min(high, rows * step)
    left = (width - wide) / 2 + rng.uniform(0, wide - wide_used)
    top = (height - high) / 2 + rng.uniform(0, high - high_used)
    paper = random_colour(rng) if rng.random() < 0.2 else (rng.randint(222, 255),) * 3
    return Sheet(
        width=width,
        height=height,
        face=rng.choice(style.faces),
        cap=cap,
        step=step,
        area=Box(left, top, left + wide_used, top + high_used),
        rows=rows,
        ink=ink_on(paper, rng, 110.0),
        paper=paper,
        desk=random_colour(rng) if rng.random() < 0.6 else None,
        rule=rng.choice(("none", "solid", "dashed", "double")),
        degrees=degrees,
    )


@dataclass
class Page:
    """Lines so far; a line that is too long, or for which there is no room, is refused."""

    sheet: Sheet
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line, keep: int = 0) -> bool:
        """Whether the line was taken: it must fit and leave `keep` rows free."""
        used = sum(other.scale for other in self.lines)
        if used + line.scale + keep > self.sheet.rows + 1e-6 or not self._fits(line):
            return False
        self.lines.append(line)
        return True

    def _fits(self, line: Line) -> bool:
        area, cap = self.sheet.area, self.sheet.cap * line.scale
        end = area.left - 0.8 * cap
        for cell in line.cells:
            wide = text_width(cell.text, self.sheet.face, cap)
            left = cell.x - {"left": 0.0, "centre": wide / 2, "right": wide}[cell.align]
            if left < end + 0.8 * cap - 0.01 or left + wide > area.right + 0.01:
                return False
            end = left + wide
        return True

    def single(self, text: str, align: Align, scale: float = 1.0) -> Line:
        """A line of one text."""
        area = self.sheet.area
        x = {"left": area.left, "centre": area.centre[0], "right": area.right}[align]
        return Line((Cell(text, x, align),), scale=scale)

    def spread(self, left: str, right: str, scale: float = 1.0, *, has_rule: bool = False) -> Line:
        """A text at the left end and one at the right end."""
        area = self.sheet.area
        return Line((Cell(left, area.left), Cell(right, area.right, "right")), has_rule, scale)

    def add_labelled(self, label: str, value: str, form: str, keep: int) -> bool:
        """`Label: value` in one piece, or the value at the right end."""
        pair = self.spread(label, value) if form == "spread" else self.single(labelled(label, value), "left")
        return self.add(pair, keep)


def labelled(label: str, value: str) -> str:
    """`Label: value`."""
    return f"{label} {value}" if label.endswith(".") else f"{label}: {value}"


def json_exchange(
    rng: random.Random, intro: str, fields: Sequence[Field], thought: str, steps: str
) -> Exchange:
    """A question with a schema; numbers in the answer stay as they are written, 12.50 and not 12.5."""
    kinds = [rng.choice(field.kinds) for field in fields]
    schema = {
        "type": "object",
        "properties": {field.key: {"type": kind} for field, kind in zip(fields, kinds, strict=True)},
        "required": [field.key for field in fields],
    }
    parts = [
        f"{json.dumps(field.key)}: {json.dumps(field.text) if kind == 'string' else field.text}"
        for field, kind in zip(fields, kinds, strict=True)
    ]
    question = intro + rng.choice(_AS_JSON[:3] if intro else _AS_JSON) + json.dumps(schema)
    return Exchange(question, "{" + ", ".join(parts) + "}", thought, steps)


def start_canvas(sheet: Sheet, used: Box) -> Canvas:
    """The desk, if it is seen, and the paper."""
    canvas = Canvas(sheet.width, sheet.height, sheet.desk or sheet.paper)
    if sheet.desk is not None:
        around = used.grown(1.2 * sheet.cap)
        canvas.draw.rectangle(around.edges, fill=sheet.paper)
    return canvas


def draw_rule(canvas: Canvas, sheet: Sheet, y: float) -> None:
    """A line across the sheet."""
    left, right = sheet.area.left, sheet.area.right
    thick = max(1, round(sheet.cap / 14))
    if sheet.rule == "dashed":
        for x in range(round(left), round(right), max(4, round(0.8 * sheet.cap))):
            canvas.draw.line((x, y, min(x + 0.4 * sheet.cap, right), y), fill=sheet.ink, width=thick)
    elif sheet.rule != "none":
        for offset in (0,) if sheet.rule == "solid" else (-thick, thick):
            canvas.draw.line((left, y + offset, right, y + offset), fill=sheet.ink, width=thick)
