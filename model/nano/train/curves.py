"""Draws how training went: loss, and shares of right answers, from the log of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE = (1200, 420)
MARGIN, GAP, PLOT = 60, 40, (460, 300)
INK, GRID = (40, 40, 44), (224, 224, 228)
COLOURS = (
    (214, 60, 50), (40, 110, 200), (40, 150, 80), (240, 150, 20), (130, 70, 170), (20, 160, 170),
    (120, 120, 130), (200, 80, 150), (90, 70, 50),
)  # fmt: skip
TICKS = 5


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    points: tuple[tuple[float, float], ...]


def draw_curves(log: Path, out: Path) -> None:
    """`log` is a log.jsonl, runs one after the other; steps are counted through. Writes a PNG."""
    lines = counted_through([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    loss = [Curve("loss per answered token", _points(lines, lambda line: line["loss"]))]
    names = dict.fromkeys(name for line in lines for name in line["exact"])
    shares = [Curve("labels of places", _points(lines, lambda line: line["places"]))]
    shares += [Curve(name, _exact(lines, name)) for name in names]
    last_step = lines[-1]["step"]
    _plot(draw, MARGIN, "Loss", loss, last_step, top=max(y for _, y in loss[0].points))
    _plot(
        draw,
        MARGIN + PLOT[0] + GAP + 20,
        "Whole answers that are right, training fonts",
        shares,
        last_step,
        top=1.0,
    )
    image.save(out, optimize=True)


def counted_through(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of a later run, which counts from zero again, go on where the earlier one ended."""
    counted, before, last = [], 0, 0
    for line in lines:
        if line["step"] <= last:
            before += last
        last = line["step"]
        counted.append({**line, "step": before + last})
    return counted


def _points(
    lines: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> tuple[tuple[float, float], ...]:
    pairs = ((line["step"], value(line)) for line in lines)
    return tuple((float(step), y) for step, y in pairs if y is not None)


def _exact(lines: Sequence[dict[str, Any]], task: str) -> tuple[tuple[float, float], ...]:
    return _points(lines, lambda line: line["exact"].get(task))


def _plot(
    draw: ImageDraw.ImageDraw, left: int, title: str, curves: Sequence[Curve], last_step: int, top: float
) -> None:
    font = ImageFont.load_default(13)
    upper, lower = MARGIN, MARGIN + PLOT[1]
    draw.text((left, upper - 30), title, font=ImageFont.load_default(16), fill=INK)
    for tick in range(TICKS + 1):
        y = lower - PLOT[1] * tick / TICKS
        draw.line((left, y, left + PLOT[0], y), fill=GRID)
        draw.text((left - 6, y), f"{top * tick / TICKS:.1f}", font=font, fill=INK, anchor="rm")
        x = left + PLOT[0] * tick / TICKS
        draw.text((x, lower + 6), str(round(last_step * tick / TICKS)), font=font, fill=INK, anchor="ma")
    draw.text((left + PLOT[0], lower + 24), "steps", font=font, fill=INK, anchor="ra")
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        places = [(left + PLOT[0] * x / last_step, lower - PLOT[1] * y / top) for x, y in curve.points]
        draw.line(places, fill=colour, width=2)
        if len(curves) > 1:
            draw.text((left + PLOT[0] + 12, upper + 4 + 18 * index), curve.name, font=font, fill=colour)
