"""Charts: bars and points whose values are read, compared and subtracted."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from dataclasses import dataclass

from model.nano.data import drills
from model.nano.data.canvas import (
    Canvas,
    Colour,
    Style,
    brightness,
    ink_on,
    paint_background,
    random_colour,
    text_width,
    weather,
)
from model.nano.data.chart_plans import Chart, mixed, plan_chart
from model.nano.data.chart_thoughts import Axis, Told, listed, ranking
from model.nano.data.scene import BAR_END, TICK, Exchange, Mark, Scene
from model.nano.tools import COORDINATES


def bar_chart(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Three to seven bars, upright or lying."""
    return draw_chart(rng, plan_chart(rng, style, (width, height), ("columns", "columns", "bars")))


def point_chart(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Three to seven points, joined by a line or alone."""
    return draw_chart(rng, plan_chart(rng, style, (width, height), ("line", "line", "points")))


@dataclass(frozen=True)
class Paint:
    """The colours of a chart."""

    paper: Colour
    ink: Colour
    grid: Colour
    fills: tuple[Colour, ...]
    has_grid: bool


def draw_chart(rng: random.Random, chart: Chart) -> Scene:
    """The picture of a plan."""
    canvas = Canvas(*chart.size, (255, 255, 255))
    paint = _paint(canvas, rng, chart)
    if chart.title:
        x = rng.choice((chart.plot.left, chart.area.centre[0]))
        wide = text_width(chart.title, chart.face, chart.title_cap)
        pad = 0.7 * chart.cap
        x = min(max(x, chart.area.left + pad + wide / 2), chart.area.right - pad - wide / 2)
        y = chart.area.top + pad
        canvas.text(x, y, chart.title, chart.face, chart.title_cap, paint.ink, "centre")
    _draw_axes(canvas, rng, chart, paint)
    if chart.form in {"columns", "bars"}:
        _draw_bars(canvas, rng, chart, paint)
    else:
        _draw_points(canvas, rng, chart, paint)
    picture, marks = weather(canvas, rng, most_degrees=chart.degrees)
    tips, ticks = ([mark for mark in marks if mark.kind == kind] for kind in (BAR_END, TICK))
    pairs = zip(chart.labels, chart.values, strict=True)
    values = Exchange("Write down the chart.", "\n".join(f"{label} {value}" for label, value in pairs))
    named = zip(chart.labels, tips, strict=True)
    asked = [values, drills.places("Where does each value end?", drills.place_lines(named, picture.size))]
    if ticks:
        numbers = zip(map(str, chart.ticks), ticks, strict=True)
        where = drills.place_lines(numbers, picture.size)
        asked.append(drills.places("Where are the numbers of the axis?", where))
    axis = Axis(along(chart, ticks), along(chart, tips))
    return Scene(picture, marks, exchanges_of(rng, chart, axis), tuple(asked))


def along(chart: Chart, marks: Sequence[Mark]) -> tuple[int, ...]:
    """How far along the axis of the values each mark is, in thousandths of the picture."""
    if chart.form == "bars":
        return tuple(round(mark.x * COORDINATES / chart.size[0]) for mark in marks)
    return tuple(round(mark.y * COORDINATES / chart.size[1]) for mark in marks)


def _paint(canvas: Canvas, rng: random.Random, chart: Chart) -> Paint:
    paper: Colour = (rng.randrange(225, 256),) * 3
    if rng.random() < 0.65:
        base = paint_background(canvas, rng)
        if rng.random() < 0.6:
            tint = random_colour(rng)
            paper = tint if rng.random() < 0.25 else mixed(tint, (255, 255, 255), rng.uniform(0.75, 1.0))
            radius = rng.choice((0.0, 0.6 * chart.cap))
            area = chart.area
            canvas.draw.rounded_rectangle(area.edges, radius, fill=paper)
        else:
            paper = base
    else:
        canvas.image.paste(paper, (0, 0, *chart.size))
    ink = ink_on(paper, rng, 110.0)
    num = len(chart.labels) if chart.form != "line" and rng.random() < 0.4 else 1
    least = 75.0 if chart.form in {"line", "points"} else 45.0
    fills = [fill_on(paper, rng, least) for _ in range(num)]
    return Paint(
        paper=paper,
        ink=ink,
        grid=mixed(ink, paper, rng.uniform(0.55, 0.8)),
        fills=tuple(fills[index % num] for index in range(len(chart.labels))),
        has_grid=not chart.is_written or (chart.has_ticks and rng.random() < 0.6),
    )


def fill_on(paper: Colour, rng: random.Random, least: float) -> Colour:
    """A colour for a shape that stands out from the paper."""
    for _ in range(30):
        red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 1.0), rng.uniform(0.2, 1.0))
        colour = round(255 * red), round(255 * green), round(255 * blue)
        if abs(brightness(colour) - brightness(paper)) >= least:
            return colour
    return ink_on(paper, rng)


def _draw_axes(canvas: Canvas, rng: random.Random, chart: Chart, paint: Paint) -> None:
    plot, cap, draw = chart.plot, chart.cap, canvas.draw
    is_flat, thin = chart.form == "bars", max(1, round(cap / 14))
    has_halves = chart.step % 2 == 0 and not chart.is_written and rng.random() < 0.3
    for index in range(2 * chart.num_steps + 1) if paint.has_grid else ():
        place = chart.along(index * chart.step / 2)
        ends = (place, plot.top, place, plot.bottom) if is_flat else (plot.left, place, plot.right, place)
        if index % 2 == 0 or has_halves:
            colour = mixed(paint.grid, paint.paper, 0.5) if index % 2 else paint.grid
            draw.line(ends, fill=colour, width=thin)
    for tick in chart.ticks if chart.has_ticks else ():
        place = chart.along(tick)
        canvas.mark(TICK, *((place, plot.bottom) if is_flat else (plot.left, place)))
        if is_flat:
            canvas.text(place, plot.bottom + 0.7 * cap, str(tick), chart.face, cap, paint.ink, "centre")
        else:
            canvas.text(
                plot.left - 0.6 * cap, place - cap / 2, str(tick), chart.face, cap, paint.ink, "right"
            )
    draw.line((plot.left, plot.bottom, plot.right, plot.bottom), fill=paint.ink, width=thin + 1)
    if is_flat or rng.random() < 0.6:
        draw.line((plot.left, plot.top, plot.left, plot.bottom), fill=paint.ink, width=thin + 1)
    for index, label in enumerate(chart.labels):
        middle = (index + 0.5) * chart.slot
        if is_flat:
            y = plot.top + middle - cap / 2
            canvas.text(plot.left - 0.6 * cap, y, label, chart.face, cap, paint.ink, "right")
        else:
            x = plot.left + middle
            canvas.text(x, plot.bottom + 0.6 * cap, label, chart.face, cap, paint.ink, "centre")


def _draw_bars(canvas: Canvas, rng: random.Random, chart: Chart, paint: Paint) -> None:
    half = chart.slot * rng.uniform(0.22, 0.45)
    outline = paint.ink if rng.random() < 0.25 else None
    for index, fill in enumerate(paint.fills):
        x, y = chart.tip(index)
        if chart.form == "bars":
            canvas.draw.rectangle((chart.plot.left, y - half, x, y + half), fill=fill, outline=outline)
        else:
            canvas.draw.rectangle((x - half, y, x + half, chart.plot.bottom), fill=fill, outline=outline)
        canvas.mark(BAR_END, x, y)
        if chart.is_written:
            _write_value(canvas, chart, paint, index, 0.5 * chart.cap)


def _draw_points(canvas: Canvas, rng: random.Random, chart: Chart, paint: Paint) -> None:
    radius = chart.cap * rng.uniform(0.22, 0.4)
    tips = [chart.tip(index) for index in range(len(chart.values))]
    if chart.form == "line":
        width = max(2, round(chart.cap * rng.uniform(0.12, 0.3)))
        canvas.draw.line(tips, fill=paint.fills[0], width=width, joint="curve")
    is_square, is_ring = rng.random() < 0.3, rng.random() < 0.25
    for index, (x, y) in enumerate(tips):
        shape = canvas.draw.rectangle if is_square else canvas.draw.ellipse
        edge, fill = paint.fills[index], paint.paper if is_ring else paint.fills[index]
        box = (x - radius, y - radius, x + radius, y + radius)
        shape(box, fill=fill, outline=edge, width=max(2, round(radius / 3)))
        canvas.mark(BAR_END, x, y)
        if chart.is_written:
            _write_value(canvas, chart, paint, index, radius + 0.4 * chart.cap)


def _write_value(canvas: Canvas, chart: Chart, paint: Paint, index: int, gap: float) -> None:
    """The number at the tip, on a plate where lines pass below it."""
    (x, y), cap, text = chart.tip(index), chart.cap, str(chart.values[index])
    wide = text_width(text, chart.face, cap)
    is_flat = chart.form == "bars"
    is_below = chart.form == "line" and _is_valley(chart, index) and y + gap + 1.3 * cap < chart.plot.bottom
    above = y + gap if is_below else y - gap - cap
    left, top = (x + gap, y - cap / 2) if is_flat else (x - wide / 2, above)
    if paint.has_grid or chart.form == "line":
        edge = 0.15 * cap
        canvas.draw.rectangle(
            (left - edge, top - edge, left + wide + edge, top + cap + edge), fill=paint.paper
        )
    canvas.text(left, top, text, chart.face, cap, paint.ink)


def _is_valley(chart: Chart, index: int) -> bool:
    values = chart.values
    return values[index] < min(values[max(0, index - 1) : index] + values[index + 1 : index + 2])


def exchanges_of(rng: random.Random, chart: Chart, axis: Axis) -> tuple[Exchange, ...]:
    """Two or three values, the highest, the lowest, one difference."""
    told = [Told(chart, index, end) for index, end in enumerate(axis.ends)]
    asked = [_value_exchange(rng, told, one, axis) for one in rng.sample(told, rng.randint(2, 3))]
    every = ", ".join(f"{one.label} {one.value}" for one in told) + "."
    noun = "bar" if chart.form in {"columns", "bars"} else "point"
    for word, long, large, end, pick in (
        ("highest", "longest", "largest", "maximum", max),
        ("lowest", "shortest", "smallest", "minimum", min),
    ):
        first = f"Which {noun} is the {long if chart.form == 'bars' else word}?"
        other = f"Which label has the {word} value?", f"What has the {large} value?", f"Where is the {end}?"
        question = rng.choice((first, *other))
        answer = pick(told, key=lambda one: one.value).label
        asked.append(Exchange(question, answer, ranking(told), every))
    return (*asked, _difference(rng, told, axis))


def _value_exchange(rng: random.Random, told: Sequence[Told], one: Told, axis: Axis) -> Exchange:
    question = rng.choice(
        (
            f"What is the value of {one.label}?",
            f"How much is {one.label}?",
            f"What value does {one.label} have?",
            f"Read the value of {one.label} from the chart.",
        )
    )
    thought = listed(told[: one.index + 1], axis)
    if one.beside:
        thought += f", {one.beside}"
    return Exchange(question, str(one.value), thought, f"{one.sentence}.")


def _difference(rng: random.Random, told: Sequence[Told], axis: Axis) -> Exchange:
    while True:
        high, low = sorted(rng.sample(told, 2), key=lambda one: -one.value)
        if high.value != low.value:
            break
    one, other = high, low
    question = rng.choice(
        (
            f"How much higher is {high.label} than {low.label}?",
            f"How much more is {high.label} than {low.label}?",
            f"By how much does {high.label} exceed {low.label}?",
        )
    )
    if rng.random() < 0.25:
        one, other = rng.sample((high, low), 2)
        question = f"What is the difference between {one.label} and {other.label}?"
    begin = listed(told[: max(one.index, other.index) + 1], axis)
    sum_up = f"{high.value} - {low.value} = {high.value - low.value}"
    thought = f"{begin}. {one.read}, {other.read}. {sum_up}"
    steps = f"{one.sentence}. {other.sentence}. {sum_up}"
    return Exchange(question, str(high.value - low.value), thought, steps)
