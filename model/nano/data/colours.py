"""Shades and brightness: which bar is the darker red, which spot of a 16-bit scan is the brightest."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.nano.data import words
from model.nano.data.canvas import (
    Box,
    Canvas,
    Colour,
    Style,
    brightness,
    ink_on,
    paint_background,
    random_colour,
    shaded,
    text_width,
    weather,
)
from model.nano.data.chart_plans import draw_labels, free_area, free_cap, least_cap, mixed, part
from model.nano.data.fonts import Face
from model.nano.data.scan_plans import Scan, Spot, plan_scan
from model.nano.data.scene import BAR_END, LEVEL_KINDS, MARKER, Exchange, Scene

Form = Literal["columns", "bars", "patches"]
LEAST_GAP = 35.0  # brightness between the darkest shade and the next, of 255
_FULL = 65535.0
# A hue: its purest colour, the brightest shade that still is called so, hues that nobody mistakes for it.
_HUES: dict[str, tuple[Colour, float, tuple[str, ...]]] = {
    "red": ((225, 20, 20), 135.0, ("blue", "green", "grey", "yellow", "teal")),
    "blue": ((25, 70, 235), 150.0, ("red", "green", "grey", "yellow")),
    "green": ((20, 165, 50), 175.0, ("red", "blue", "grey", "purple")),
    "purple": ((150, 40, 200), 155.0, ("green", "grey", "yellow", "teal")),
    "grey": ((128, 128, 128), 190.0, ("red", "blue", "green", "yellow", "purple")),
}
_OTHERS: dict[str, Colour] = {"yellow": (235, 205, 40), "teal": (20, 150, 150)}


@dataclass(frozen=True)
class Patch:
    """A label, a colour and the hue that it is a shade of, how long the bar is (0 to 1)."""

    label: str
    colour: Colour
    hue: str
    length: float

    @property
    def level(self) -> int:
        """Its brightness in tenths: shades that are compared differ by more than one."""
        return round(brightness(self.colour) / 25.5)

    @property
    def level_kind(self) -> str:
        """What the middle of it is labelled with."""
        return LEVEL_KINDS[self.level]


@dataclass(frozen=True)
class Palette:
    """The plan of a picture with shades; `columns` patches stand side by side in `area`."""

    form: Form
    hue: str
    patches: tuple[Patch, ...]
    columns: int
    face: Face
    cap: float
    size: tuple[int, int]
    degrees: float
    area: Box

    @property
    def shades(self) -> tuple[Patch, ...]:
        """The patches of the hue in question, the darkest first."""
        found = [patch for patch in self.patches if patch.hue == self.hue]
        return tuple(sorted(found, key=lambda patch: brightness(patch.colour)))

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height of the place for a patch with its label."""
        rows = -(-len(self.patches) // self.columns)
        area = self.area
        return area.width / self.columns, area.height / rows

    def fits(self) -> bool:
        """Whether labels stand clear of each other and patches are not too small."""
        label = max(text_width(patch.label, self.face, self.cap) for patch in self.patches)
        wide, high = self.cell
        if self.form == "bars":
            return high >= 1.8 * self.cap and wide >= label + 6 * self.cap
        return wide >= max(label + 0.6 * self.cap, 2 * self.cap) and high >= 3.6 * self.cap


def darker_red(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Two to four shades of a hue, mostly red, and up to three other colours."""
    return draw_palette(rng, plan_palette(rng, style, (width, height)))


def plan_palette(rng: random.Random, style: Style, size: tuple[int, int]) -> Palette:
    """Shades that fit the picture: the more attempts fail, the fewer and smaller."""
    form: Form = rng.choice(("columns", "columns", "bars", "patches", "patches"))
    hue = "red" if rng.random() < 0.6 else rng.choice(tuple(_HUES))
    low, easy = least_cap(style), 8
    for attempt in range(16):
        cap = free_cap(rng, style, size) if attempt < easy else low
        degrees = rng.choice((0.0, rng.uniform(0.5, 5.0))) if attempt < easy else 0.0
        num = rng.choice((2, 2, 3, 4)) if attempt < easy else 2
        patches = _patches(rng, hue, num, rng.randint(0, 3) if attempt < easy else 0)
        free = free_area(size, degrees)
        palette = Palette(
            form=form,
            hue=hue,
            patches=patches,
            columns={"columns": len(patches), "bars": 1}.get(
                form, rng.randint(2, max(2, min(4, len(patches))))
            ),
            face=rng.choice(style.faces),
            cap=cap,
            size=size,
            degrees=degrees,
            area=(part(rng, free) if attempt < easy else free).grown(-0.7 * cap),
        )
        if palette.fits():
            return palette
    raise ValueError(f"no patches fit {size} with letters {low:.1f} px high")


def _patches(rng: random.Random, hue: str, num: int, num_others: int) -> tuple[Patch, ...]:
    """Shades of a hue, the darkest well below the next, between distractors."""
    pure, most, others = _HUES[hue]
    lowest, gap = 22.0, rng.uniform(LEAST_GAP + 2, 55.0)
    room = most - lowest - gap - 20.0 * (num - 2)
    start = lowest + rng.uniform(0, max(0.0, room))
    levels, above = [start, start + gap], max(0.0, most - start - gap - 20.0 * (num - 2))
    for _ in range(num - 2):
        levels.append(levels[-1] + 20.0 + rng.uniform(0, above / (num - 1)))
    base = tuned(rng, pure)
    colours = [(shade(base, level), hue) for level in levels]
    for other in rng.sample(others, num_others):
        tone = tuned(rng, _OTHERS[other] if other in _OTHERS else _HUES[other][0])
        least = 170.0 if other == "yellow" else 30.0
        colours.append((shade(tone, rng.uniform(least, 190.0 if other == "yellow" else 140.0)), other))
    rng.shuffle(colours)
    labels = draw_labels(rng)
    if len(labels) < len(colours) or rng.random() < 0.15:
        labels = tuple(words.distinct(lambda rng: words.code(rng, 2, 3), len(colours), rng))
    return tuple(
        Patch(label, colour, named, rng.uniform(0.3, 1.0))
        for label, (colour, named) in zip(labels, colours, strict=False)
    )


def tuned(rng: random.Random, colour: Colour) -> Colour:
    """The colour a little off; greys stay grey."""
    if len(set(colour)) == 1:
        return colour
    return shaded(colour, rng, 18)


def shade(colour: Colour, level: float) -> Colour:
    """The colour darkened, or mixed with white, until its brightness is `level`."""
    base = brightness(colour)
    if level <= base:
        return mixed((0, 0, 0), colour, level / base)
    return mixed(colour, (255, 255, 255), (level - base) / (255.0 - base))


def draw_palette(rng: random.Random, palette: Palette) -> Scene:
    """The picture of a plan."""
    canvas = Canvas(*palette.size, (255, 255, 255))
    paper = _paint_paper(canvas, rng, palette)
    ink, outline = ink_on(paper, rng, 110.0), None
    if brightness(paper) < 128 or rng.random() < 0.25:
        outline = ink
    cap, (wide, high) = palette.cap, palette.cell
    share, is_round = rng.uniform(0.45, 0.85), rng.random() < 0.3
    label = max(text_width(patch.label, palette.face, cap) for patch in palette.patches)
    for index, patch in enumerate(palette.patches):
        left = palette.area.left + index % palette.columns * wide
        top = palette.area.top + index // palette.columns * high
        fill, middle = patch.colour, left + wide / 2
        if palette.form == "bars":
            x, y = left + label + 0.6 * cap, top + high / 2
            end, half = x + patch.length * (wide - label - 0.6 * cap), high * share / 2
            canvas.draw.rectangle((x, y - half, end, y + half), fill=fill, outline=outline)
            canvas.mark(BAR_END, end, y)
            canvas.mark(patch.level_kind, x + 4, y)
            canvas.text(x - 0.6 * cap, y - cap / 2, patch.label, palette.face, cap, ink, "right")
            continue
        bottom = top + high - (1.5 if palette.form == "columns" else 2.1) * cap
        if palette.form == "columns":
            end, half = bottom - patch.length * (bottom - top), wide * share / 2
            canvas.draw.rectangle((middle - half, end, middle + half, bottom), fill=fill, outline=outline)
            canvas.mark(BAR_END, middle, end)
            canvas.mark(patch.level_kind, middle, bottom - 4)
        else:
            half = min(wide * share / 2, 0.9 * (bottom - top))
            top = max(top, bottom - 2.8 * half)
            shape = canvas.draw.ellipse if is_round else canvas.draw.rectangle
            shape((middle - half, top, middle + half, bottom), fill=fill, outline=outline)
            canvas.mark(MARKER, middle, (top + bottom) / 2)
            canvas.mark(patch.level_kind, middle, bottom - 0.2 * (bottom - top))
        canvas.text(middle, bottom + 0.5 * cap, patch.label, palette.face, cap, ink, "centre")
    picture, marks = weather(canvas, rng, most_degrees=palette.degrees)
    return Scene(picture, marks, palette_exchanges(rng, palette))


def _paint_paper(canvas: Canvas, rng: random.Random, palette: Palette) -> Colour:
    """A light or dark ground that all patches stand out from."""
    lightest = max(brightness(patch.colour) for patch in palette.patches)
    tint = random_colour(rng)
    level = rng.uniform(min(250.0, max(205.0, lightest + 45.0)), 255.0)
    paper = shade(tint, level) if brightness(tint) < level else (255, 255, 255)
    if rng.random() < 0.12:
        paper = (rng.randrange(12),) * 3
    elif rng.random() < 0.4:
        paint_background(canvas, rng)
        area = palette.area.grown(0.6 * palette.cap)
        canvas.draw.rectangle(area.edges, fill=paper)
        return paper
    canvas.image.paste(paper, (0, 0, *palette.size))
    return paper


def palette_exchanges(rng: random.Random, palette: Palette) -> tuple[Exchange, ...]:
    """The darkest shade and, where it is clear, the lightest."""
    shades, hue = palette.shades, palette.hue
    noun = "patch" if palette.form == "patches" else "bar"
    named = [patch.label for patch in palette.patches if patch.hue == hue]
    listed = f"{', '.join(named[:-1])} and {named[-1]} are {hue}"
    levels = ", ".join(f"{patch.label} {patch.hue} {patch.level}" for patch in palette.patches)
    asked = [("darker" if len(shades) == 2 else "darkest", shades[0])]
    if brightness(shades[-1].colour) - brightness(shades[-2].colour) >= LEAST_GAP:
        asked.append(("lighter" if len(shades) == 2 else "lightest", shades[-1]))
    found = []
    for word, patch in asked:
        question = rng.choice(
            (
                f"Which {noun} is the {word} {hue}?",
                f"Which label has the {word} {hue}?",
                f"Which {noun} has the {word} shade of {hue}?",
                f"Name the {word} {hue} {noun}.",
            )
        )
        found.append(Exchange(question, patch.label, levels, f"{listed}; {patch.label} is the {word}."))
    return tuple(found)


def scan(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Three to five soft spots on a dark ground, in 16 bits."""
    return draw_scan(rng, plan_scan(rng, style, (width, height)))


def draw_scan(rng: random.Random, plan: Scan) -> Scene:
    """The picture of a plan."""
    width, height = plan.size
    pixels_HW = _ground(rng, plan)
    for spot in plan.spots:
        _add_spot(pixels_HW, spot)
    _add_grain(pixels_HW, rng, plan.noise)
    canvas = Canvas(width, height, (0, 0, 0))
    for spot in plan.spots:
        x, y = spot.label_at
        box = canvas.text(x, y, spot.label, plan.face, plan.cap, (255, 255, 255), "centre").grown(
            0.5 * plan.cap
        )
        left, top = max(0, int(box.left)), max(0, int(box.top))
        cut = canvas.image.crop((left, top, min(width, int(box.right)), min(height, int(box.bottom))))
        cover_HW = np.asarray(cut.convert("L"), dtype=np.float32) / 255.0
        part_HW = pixels_HW[top : top + cut.height, left : left + cut.width]
        part_HW += cover_HW * (plan.ink - part_HW)
        canvas.mark(MARKER, spot.x, spot.y)
    picture = Image.fromarray((np.clip(pixels_HW, 0.0, 1.0) * _FULL).astype(np.uint16))
    return Scene(picture, tuple(canvas.marks), scan_exchanges(rng, plan))


def _ground(rng: random.Random, plan: Scan) -> NDArray[np.float32]:
    """Soft clouds between half and one and a half times the ground's brightness."""
    generator = np.random.default_rng(rng.getrandbits(32))
    coarse_HW = (plan.ground * generator.uniform(0.5, 1.5, (6, 6))).astype(np.float32)
    smooth = Image.fromarray(coarse_HW).resize(plan.size, Image.Resampling.BILINEAR)
    return np.array(smooth, dtype=np.float32)


def _add_spot(pixels_HW: NDArray[np.float32], spot: Spot) -> None:
    """Mix a spot into the picture: at its middle the brightness is its peak."""
    high, wide = pixels_HW.shape
    left, right = max(0, int(spot.x - spot.reach)), min(wide, int(spot.x + spot.reach) + 1)
    top, bottom = max(0, int(spot.y - spot.reach)), min(high, int(spot.y + spot.reach) + 1)
    dx_W = np.arange(left, right, dtype=np.float32) - spot.x
    dy_H1 = (np.arange(top, bottom, dtype=np.float32) - spot.y)[:, None]
    cos, sin = math.cos(spot.turn), math.sin(spot.turn)
    squared_HW = ((dx_W * cos + dy_H1 * sin) / spot.radii[0]) ** 2 + (
        (dy_H1 * cos - dx_W * sin) / spot.radii[1]
    ) ** 2
    cover_HW = np.exp(-(squared_HW**spot.power))
    part_HW = pixels_HW[top:bottom, left:right]
    part_HW += cover_HW * (spot.peak - part_HW)


def _add_grain(pixels_HW: NDArray[np.float32], rng: random.Random, deviation: float) -> None:
    """Noise from a sheet that is repeated: fresh noise for each pixel would cost 10 ms."""
    sheet_HW = np.random.default_rng(rng.getrandbits(32)).normal(0, deviation, (128, 128)).astype(np.float32)
    high, wide = pixels_HW.shape
    pixels_HW += np.tile(sheet_HW, (high // 128 + 1, wide // 128 + 1))[:high, :wide]


def scan_exchanges(rng: random.Random, plan: Scan) -> tuple[Exchange, ...]:
    """The brightest and the darkest spot."""
    ranked = sorted(plan.spots, key=lambda spot: spot.peak)
    found = []
    for word, spot in (("brightest", ranked[-1]), ("darkest", ranked[0])):
        question = rng.choice(
            (
                f"Which spot is the {word}?",
                f"What is the {word} spot of the scan?",
                f"Which letter marks the {word} spot?",
                f"Name the {word} of the spots.",
            )
        )
        found.append(Exchange(question, spot.label, steps=f"Of the spots, {spot.label} is the {word}."))
    return tuple(found)
