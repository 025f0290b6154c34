"""Plans of charts: which values there are, and where bars and points stand so that all of it fits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model.nano.data import words
from model.nano.data.canvas import Box, Colour, Style, log_uniform, text_width
from model.nano.data.fonts import Face

Form = Literal["columns", "bars", "line", "points"]
STEPS = (1, 2, 5, 10, 20, 25, 50, 100)
MARGIN = 6.0
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TITLES = (
    "Sales",
    "Visitors",
    "Rain",
    "Score",
    "Points",
    "Cost",
    "Orders",
    "Stock",
    "Guests",
    "Users",
    "Votes",
)
_EASY, _ATTEMPTS = 6, 12  # attempts with free sizes, then with the smallest ones, at last as small as can be


@dataclass(frozen=True)
class Chart:
    """The plan of a chart. In `plot`, the near side is 0 and the far side is `num_steps * step`."""

    form: Form
    labels: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    num_steps: int
    is_written: bool
    has_ticks: bool
    title: str
    face: Face
    cap: float
    title_cap: float
    size: tuple[int, int]
    degrees: float
    area: Box
    plot: Box

    @property
    def ticks(self) -> tuple[int, ...]:
        """The numbers of the axis."""
        return tuple(index * self.step for index in range(self.num_steps + 1))

    @property
    def slot(self) -> float:
        """Pixels for each category."""
        plot = self.plot
        across = plot.height if self.form == "bars" else plot.width
        return across / len(self.labels)

    def tip(self, index: int) -> tuple[float, float]:
        """Where the bar ends or the point lies."""
        middle, end = (index + 0.5) * self.slot, self.along(self.values[index])
        return (end, self.plot.top + middle) if self.form == "bars" else (self.plot.left + middle, end)

    def along(self, value: float) -> float:
        """The x or y of a value."""
        share = value / (self.num_steps * self.step)
        if self.form == "bars":
            return self.plot.left + share * self.plot.width
        return self.plot.bottom - share * self.plot.height


def least_cap(style: Style) -> float:
    """A little more than 14 pixels of the view: font sizes are rounded."""
    return 14.5 * style.unit + 0.5


def free_cap(rng: random.Random, style: Style, size: tuple[int, int]) -> float:
    """A height of capitals for a picture of that size."""
    return log_uniform(rng, least_cap(style), min(28 * style.unit, min(size) / 15))


def free_area(size: tuple[int, int], degrees: float) -> Box:
    """The part of a picture that stays inside when it turns."""
    width, height = size
    lean = math.sin(math.radians(degrees)) / 2
    x, y = MARGIN + lean * height, MARGIN + lean * width
    return Box(x, y, width - x, height - y)


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def plan_chart(rng: random.Random, style: Style, size: tuple[int, int], forms: Sequence[Form]) -> Chart:
    """A chart that fits the picture: the more attempts fail, the less is asked for."""
    form, is_written = rng.choice(forms), rng.random() < 0.5
    has_ticks = not is_written or rng.random() < 0.6
    low = least_cap(style)
    for attempt in range(_ATTEMPTS):
        cap = free_cap(rng, style, size) if attempt < _EASY else low
        degrees = rng.choice((0.0, rng.uniform(0.5, 3.0))) if attempt < _EASY else 0.0
        is_last = attempt == _ATTEMPTS - 1
        num_steps = 4 if is_last else rng.randint(4, 6)
        step, face = rng.choice(STEPS[:3] if attempt >= _ATTEMPTS - 3 else STEPS), rng.choice(style.faces)
        labels = draw_labels(rng, "letters") if is_last else draw_labels(rng)
        title = rng.choice((rng.choice(_TITLES), f"{rng.choice(_TITLES)} of {words.name(rng)}"))
        area = part(rng, free_area(size, degrees)) if attempt < _EASY // 2 else free_area(size, degrees)
        for num in range(3 if is_last else rng.randint(3, len(labels)), 2, -1):
            values = _values(rng, num, step, num_steps, is_written=is_written)
            chart = Chart(
                form=form,
                labels=labels[:num],
                values=values,
                step=step,
                num_steps=num_steps,
                is_written=is_written,
                has_ticks=has_ticks and not (is_last and is_written),
                title=title if not is_last and rng.random() < 0.6 else "",
                face=face,
                cap=cap,
                title_cap=min(28 * style.unit, cap * rng.uniform(1.0, 1.5)),
                size=size,
                degrees=degrees,
                area=area,
                plot=area,
            )
            if (laid := lay_out(chart)) is not None:
                return laid
    raise ValueError(f"no chart fits {size} with letters {low:.1f} px high")


def part(rng: random.Random, area: Box) -> Box:
    """The whole area or most of it."""
    if rng.random() < 0.5:
        return area
    wide, high = area.width, area.height
    w, h = wide * rng.uniform(0.7, 1.0), high * rng.uniform(0.7, 1.0)
    left, top = area.left + rng.uniform(0, wide - w), area.top + rng.uniform(0, high - h)
    return Box(left, top, left + w, top + h)


def draw_labels(rng: random.Random, kind: str = "") -> tuple[str, ...]:
    """Seven names for categories (four for quarters), none twice."""
    kind = kind or rng.choice(
        ("names",) * 6 + ("months", "months", "years", "letters", "weekdays", "quarters")
    )
    if kind == "names":
        short = [name for name in words.distinct(words.name, 60, rng) if len(name) <= 6]
        return tuple(short[:7])
    if kind == "years":
        first = rng.randint(1950, 2030)
        return tuple(str(first + index) for index in range(7))
    if kind == "letters":
        first = rng.choice((0, 0, rng.randint(0, 19)))
        return tuple(chr(65 + first + index) for index in range(7))
    if kind == "quarters":
        return "Q1", "Q2", "Q3", "Q4"
    pool = words.MONTHS if kind == "months" else _WEEKDAYS
    first = rng.randrange(len(pool))
    ring = [pool[(first + index) % len(pool)] for index in range(7)]
    return tuple(label.upper() for label in ring) if rng.random() < 0.2 else tuple(ring)


def _values(rng: random.Random, num: int, step: int, num_steps: int, *, is_written: bool) -> tuple[int, ...]:
    """Whole numbers; half ticks where there is no number at the bar. One is the highest, one the lowest."""
    grain = 1 if is_written else step // 2 if step % 2 == 0 else step
    count = num_steps * step // grain
    while True:
        values = sorted(grain * rng.randint(1, count) for _ in range(num))
        if values[0] < values[1] and values[-2] < values[-1]:
            rng.shuffle(values)
            return tuple(values)


def lay_out(chart: Chart) -> Chart | None:
    """The chart with its plot in place; None if something does not fit."""

    def widest(texts: Sequence[object]) -> float:
        return max(text_width(str(text), chart.face, chart.cap) for text in texts)

    cap, area = chart.cap, chart.area.grown(-0.7 * chart.cap)
    label, value, tick = widest(chart.labels), widest(chart.values), widest(chart.ticks)
    top = area.top + (1.9 * chart.title_cap if chart.title else 0)
    if chart.title and text_width(chart.title, chart.face, chart.title_cap) > area.width:
        return None
    if chart.form == "bars":
        end = area.right - max(
            tick / 2 if chart.has_ticks else 0, value + 0.6 * cap if chart.is_written else 0
        )
        plot = Box(
            area.left + label + 0.6 * cap, top, end, area.bottom - (1.7 * cap if chart.has_ticks else 0)
        )
        laid = replace(chart, plot=plot)
        fits = laid.slot >= 1.7 * cap
        room, needed = plot.width, tick + 0.8 * cap
    else:
        left = area.left + (tick + 0.7 * cap if chart.has_ticks else 0)
        plot = Box(
            left, top + (2.0 * cap if chart.is_written else 0.5 * cap), area.right, area.bottom - 1.6 * cap
        )
        laid = replace(chart, plot=plot)
        fits = label <= laid.slot - 0.5 * cap and (not chart.is_written or value <= laid.slot - 0.4 * cap)
        room, needed = plot.height, 1.7 * cap
    spacing = room / chart.num_steps
    return laid if fits and spacing >= (needed if chart.has_ticks else cap) else None
