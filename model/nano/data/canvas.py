"""A picture being drawn, and a record of where each character and thing in it stands."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from model.nano.data.fonts import Face, advance
from model.nano.data.scene import CHARACTERS, Mark

Colour = tuple[int, int, int]
Align = Literal["left", "centre", "right"]
_KNOWN = frozenset(CHARACTERS)


@dataclass(frozen=True)
class Style:
    """What a scene is drawn with: faces to choose from, and how many picture pixels make one view pixel.

    `unit`: a letter of `14 * unit` picture pixels is 14 pixels high in the best view the model has.
    """

    faces: tuple[Face, ...]
    unit: float = 1.0


@dataclass(frozen=True)
class Box:
    """left, top, right, bottom in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """As PIL wants them."""
        return self.left, self.top, self.right, self.bottom

    def grown(self, by: float) -> Box:
        """The box with a margin around it."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def meets(self, other: Box) -> bool:
        """Whether two boxes overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies inside."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom


class Canvas:
    """An RGB picture with `draw` (PIL's) for shapes and `text` for everything that can be read."""

    def __init__(self, width: int, height: int, background: Colour) -> None:
        self.width, self.height = width, height
        self.image = Image.new("RGB", (width, height), background)
        self.draw = ImageDraw.Draw(self.image)
        self.marks: list[Mark] = []

    def text(
        self, x: float, y: float, text: str, face: Face, cap_px: float, fill: Colour, align: Align = "left"
    ) -> Box:
        """Write one line. (x, y) is the left, middle or right end of the line at the top of a capital letter.

        Returns the box from the capitals' top to the baseline.
        """
        font = face.capped(cap_px)
        width = font.getlength(text)
        left = x - {"left": 0.0, "centre": width / 2, "right": width}[align]
        self.draw.text((left, y + cap_px), text, font=font, fill=fill, anchor="ls")
        pen = left
        for character in text:
            wide = advance(face.path, font.size, character)
            if character in _KNOWN:
                self.marks.append(Mark(character, pen + wide / 2, y + cap_px / 2))
            pen += wide
        return Box(left, y, left + width, y + cap_px)

    def mark(self, kind: str, x: float, y: float) -> None:
        """Record a place that is no character."""
        self.marks.append(Mark(kind, x, y))


def text_width(text: str, face: Face, cap_px: float) -> float:
    """Width of a line in pixels."""
    return face.capped(cap_px).getlength(text)


def fitting_cap(
    text: str, faces: tuple[Face, ...], rng: random.Random, low: float, high: float, room: float
) -> tuple[Face, float] | None:
    """A face and a height in [low, high] at which the text is at most `room` wide; None if `low` is too wide.

    Heights are drawn evenly in their logarithm: small letters are as likely as large ones.
    """
    face = rng.choice(faces)
    widest = min(high, room / max(text_width(text, face, 100.0) / 100.0, 1e-6))
    if widest < low:
        return None
    return face, log_uniform(rng, low, widest)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Small values are as likely as large ones."""
    return math.exp(rng.uniform(math.log(low), math.log(max(low, high))))


def random_colour(rng: random.Random) -> Colour:
    """Any colour."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def shaded(colour: Colour, rng: random.Random, by: int) -> Colour:
    """The colour, each of its parts up to `by` lighter or darker."""
    red, green, blue = (min(255, max(0, part + rng.randint(-by, by))) for part in colour)
    return red, green, blue


def ink_on(background: Colour, rng: random.Random, least: float = 90.0) -> Colour:
    """A colour whose brightness differs from the background's by at least `least` of 255."""
    base = brightness(background)
    for _ in range(20):
        colour = random_colour(rng) if rng.random() < 0.6 else (rng.randrange(60),) * 3
        if abs(brightness(colour) - base) >= least:
            return colour
    return (10, 10, 10) if base > 127 else (245, 245, 245)


def brightness(colour: Colour) -> float:
    """Luma of a colour, 0 to 255 (Rec. 601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def paint_background(canvas: Canvas, rng: random.Random) -> Colour:
    """Plain, graded, striped or blotched; returns the colour that writing has to stand out from."""
    base = random_colour(rng) if rng.random() < 0.5 else (rng.randrange(215, 256),) * 3
    canvas.image.paste(base, (0, 0, canvas.width, canvas.height))
    kind = rng.random()
    if kind < 0.25:
        end = shaded(base, rng, 45)
        ramp = Image.linear_gradient("L").resize((canvas.width, canvas.height)).rotate(rng.choice((0, 180)))
        canvas.image.paste(Image.new("RGB", canvas.image.size, end), (0, 0), ramp)
    elif kind < 0.45:
        for _ in range(rng.randint(3, 14)):
            shade = shaded(base, rng, 28)
            x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
            w, h = rng.uniform(20, canvas.width / 2), rng.uniform(20, canvas.height / 2)
            shape = canvas.draw.ellipse if rng.random() < 0.5 else canvas.draw.rectangle
            shape((x, y, x + w, y + h), fill=shade)
    elif kind < 0.55:
        shade = shaded(base, rng, 24)
        step = rng.randint(12, 60)
        for offset in range(0, canvas.width + canvas.height, step):
            canvas.draw.line(
                (offset, 0, offset - canvas.height, canvas.height), fill=shade, width=rng.randint(1, 6)
            )
    return base


def weather(
    canvas: Canvas, rng: random.Random, *, most_degrees: float = 5.0
) -> tuple[Image.Image, tuple[Mark, ...]]:
    """What happens to pictures on their way: a turn, noise, JPEG. Sizes stay; marks turn along."""
    picture, marks = canvas.image, tuple(canvas.marks)
    if most_degrees > 0 and rng.random() < 0.4:
        degrees = rng.uniform(-most_degrees, most_degrees)
        corner = picture.getpixel((1, 1))
        picture = picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=corner)
        marks = tuple(_turned(mark, degrees, canvas.width / 2, canvas.height / 2) for mark in marks)
    if rng.random() < 0.35:
        picture = _noisy(picture, rng)
    if rng.random() < 0.3:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=rng.randint(35, 92))
        picture = Image.open(stream)
        picture.load()
    return picture, marks


def turned_point(x: float, y: float, degrees: float, centre_x: float, centre_y: float) -> tuple[float, float]:
    """Where a point goes when the picture turns counter-clockwise about its middle."""
    radians = math.radians(degrees)
    dx, dy = x - centre_x, y - centre_y
    return (
        centre_x + dx * math.cos(radians) + dy * math.sin(radians),
        centre_y - dx * math.sin(radians) + dy * math.cos(radians),
    )


def _turned(mark: Mark, degrees: float, centre_x: float, centre_y: float) -> Mark:
    return Mark(mark.kind, *turned_point(mark.x, mark.y, degrees, centre_x, centre_y))


def _noisy(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Grain from a small random sheet, shifted and repeated: fresh noise for each pixel would cost 10 ms."""
    generator = np.random.default_rng(rng.getrandbits(32))
    strength = rng.uniform(2, 14)
    sheet = generator.normal(0, strength, (128, 128, 1 if rng.random() < 0.6 else 3))
    pixels = np.asarray(picture, dtype=np.int16)
    high, wide = pixels.shape[:2]
    grain = np.tile(sheet.astype(np.int16), (high // 128 + 1, wide // 128 + 1, 1))[:high, :wide]
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
