"""Things on screens that are tapped and read: how they look, and what is asked about them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Literal

from model.nano.data.canvas import Align, Box, Canvas, Colour, brightness
from model.nano.data.drills import place_lines
from model.nano.data.fonts import Face
from model.nano.data.scene import BOX_END, BOX_START, Exchange, Mark
from model.nano.tools import COORDINATES

Kind = Literal["row", "button", "tab", "menu", "field", "switch", "icon"]
Shape = Literal[
    "disc", "square", "diamond", "triangle", "ring", "plus sign", "back arrow", "menu icon", "cross"
]
ICONS: tuple[Shape, ...] = ("disc", "square", "diamond", "triangle", "ring")
SIGNS: tuple[Shape, ...] = ("plus sign", "menu icon", "cross")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_ASKED: dict[Kind, tuple[str, ...]] = {
    "row": ("Where do I tap to open {}?", "Click on {}.", "Tap {}.", "Where is {}?"),
    "button": ("Where is the {} button?", "Click {}.", "Press the {} button.", "Click on {}."),
    "tab": ("Where is the {} tab?", "Where do I tap to open {}?", "Go to {}.", "Click on {}."),
    "menu": ("Open the {} menu.", "Where is the {} menu?", "Click on {}."),
    "field": ("Where do I type the {}?", "Click into the {} field.", "Where is the {} field?"),
    "switch": ("Where is the switch for {}?", "Turn {} on or off.", "Tap the switch of {}."),
    "icon": ("Where is the {}?", "Click on the {}.", "Tap the {}."),
}


@dataclass(frozen=True)
class Theme:
    """Colours of a screen."""

    ground: Colour
    surface: Colour
    ink: Colour
    faint: Colour
    rule: Colour
    accent: Colour
    on_accent: Colour


@dataclass(frozen=True)
class Words:
    """Writing at (x, y), the top of its capitals. `tone` names a colour of the theme."""

    text: str
    x: float
    y: float
    cap: float
    align: Align = "left"
    tone: Literal["ink", "faint", "accent", "on_accent"] = "ink"


@dataclass(frozen=True)
class Target:
    """Something to tap; `place` ends the sentence that says where it is."""

    kind: Kind
    label: str
    box: Box
    place: str


@dataclass(frozen=True)
class Panel:
    """A plain area: a bar, a card, a dialog."""

    box: Box
    tone: Literal["ground", "surface", "rule", "accent"] = "surface"
    is_outlined: bool = False
    radius: float = 0.0


@dataclass(frozen=True)
class Icon:
    """A simple shape in a square box."""

    shape: Shape
    box: Box
    tone: Literal["ink", "faint", "accent", "on_accent"] = "ink"


@dataclass(frozen=True)
class Screen:
    """The plan of a screen. `entries` are titles of the list and what stands below them, or ""."""

    width: int
    height: int
    face: Face
    theme: Theme
    panels: tuple[Panel, ...]
    icons: tuple[Icon, ...]
    writing: tuple[Words, ...]
    targets: tuple[Target, ...]
    title: str
    entries: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, bool], ...]
    message: str


def make_theme(rng: random.Random) -> Theme:
    """Light or dark, with an accent colour that white or black writing stands out from."""
    accent, on_accent = rng.choice(
        (
            ((26, 95, 220), (255, 255, 255)),
            ((20, 120, 70), (255, 255, 255)),
            ((190, 30, 60), (255, 255, 255)),
            ((110, 50, 180), (255, 255, 255)),
            ((250, 176, 30), (20, 20, 20)),
            ((60, 200, 190), (10, 20, 20)),
            ((rng.randint(0, 110), rng.randint(0, 90), rng.randint(0, 150)), (255, 255, 255)),
        )
    )
    if rng.random() < 0.6:
        ground = (rng.randint(228, 250), rng.randint(228, 250), rng.randint(228, 250))
        rule = (ground[0] - 32, ground[1] - 32, ground[2] - 32)
        ink, faint = (rng.randint(0, 50),) * 3, (rng.randint(70, 110),) * 3
        return Theme(ground, (255, 255, 255), ink, faint, rule, accent, on_accent)
    if brightness(accent) < 55:
        accent = (accent[0] + 60, accent[1] + 40, accent[2] + 60)
    ground = (rng.randint(8, 34), rng.randint(8, 34), rng.randint(8, 40))
    surface = (ground[0] + 20, ground[1] + 20, ground[2] + 22)
    rule = (ground[0] + 48, ground[1] + 48, ground[2] + 50)
    ink, faint = (rng.randint(225, 255),) * 3, (rng.randint(165, 195),) * 3
    return Theme(ground, surface, ink, faint, rule, accent, on_accent)


def draw_screen(screen: Screen) -> Canvas:
    """All of it, in order; each target leaves the marks of its corners."""
    canvas = Canvas(screen.width, screen.height, screen.theme.ground)
    theme, draw = screen.theme, canvas.draw
    for panel in screen.panels:
        box = panel.box
        outline = theme.rule if panel.is_outlined else None
        fill = getattr(theme, panel.tone)
        draw.rounded_rectangle(box.edges, panel.radius, fill, outline, 2)
    for icon in screen.icons:
        _draw_icon(canvas, icon, getattr(theme, icon.tone))
    states = dict(screen.states)
    for target in screen.targets:
        if target.kind == "switch":
            _draw_switch(canvas, target.box, theme, is_on=states[target.label])
        canvas.mark(BOX_START, target.box.left, target.box.top)
        canvas.mark(BOX_END, target.box.right, target.box.bottom)
    for words in screen.writing:
        fill = getattr(theme, words.tone)
        canvas.text(words.x, words.y, words.text, screen.face, words.cap, fill, words.align)
    return canvas


def _draw_switch(canvas: Canvas, box: Box, theme: Theme, *, is_on: bool) -> None:
    radius = box.height / 2
    fill = theme.accent if is_on else theme.faint
    canvas.draw.rounded_rectangle(box.edges, radius, fill)
    x = box.right - radius if is_on else box.left + radius
    y, knob = box.centre[1], 0.8 * radius
    canvas.draw.ellipse((x - knob, y - knob, x + knob, y + knob), fill=theme.on_accent)


def _draw_icon(canvas: Canvas, icon: Icon, ink: Colour) -> None:
    (x, y), half = icon.box.centre, 0.36 * icon.box.height
    thick, draw = max(2, round(half / 4)), canvas.draw
    around = (x - half, y - half, x + half, y + half)
    if icon.shape == "disc":
        draw.ellipse(around, fill=ink)
    elif icon.shape == "ring":
        draw.ellipse(around, outline=ink, width=thick)
    elif icon.shape == "square":
        draw.rectangle(around, fill=ink)
    elif icon.shape == "diamond":
        draw.polygon(((x, y - half), (x + half, y), (x, y + half), (x - half, y)), fill=ink)
    elif icon.shape == "triangle":
        draw.polygon(((x, y - half), (x + half, y + half), (x - half, y + half)), fill=ink)
    elif icon.shape == "plus sign":
        draw.line((x - half, y, x + half, y), fill=ink, width=thick)
        draw.line((x, y - half, x, y + half), fill=ink, width=thick)
    elif icon.shape == "cross":
        draw.line(around, fill=ink, width=thick)
        draw.line((x - half, y + half, x + half, y - half), fill=ink, width=thick)
    elif icon.shape == "menu icon":
        for offset in (-0.7 * half, 0.0, 0.7 * half):
            draw.line((x - half, y + offset, x + half, y + offset), fill=ink, width=thick)
    else:
        draw.line((x + half / 2, y - half, x - half / 2, y, x + half / 2, y + half), fill=ink, width=thick)


def point_answer(box: Box, width: int, height: int) -> str:
    """The middle and the corners of a box in thousandths of the picture."""
    x, y = round(box.centre[0] / width * COORDINATES), round(box.centre[1] / height * COORDINATES)
    left, right = (round(edge / width * COORDINATES) for edge in (box.left, box.right))
    top, bottom = (round(edge / height * COORDINATES) for edge in (box.top, box.bottom))
    return json.dumps({"point": [x, y], "box": [left, top, right, bottom]})


def target_lines(screen: Screen) -> list[str]:
    """Where each target is."""
    named = [(target.label, Mark(BOX_START, *target.box.centre)) for target in screen.targets]
    return place_lines(named, (screen.width, screen.height))


def screen_exchanges(rng: random.Random, screen: Screen) -> tuple[Exchange, ...]:
    """Where to tap, and what stands where.

    The thought writes down what there is until the thing that is asked for: a model of this size reads on far
    better than it finds.
    """
    found, lines = [], target_lines(screen)
    for index in rng.sample(range(len(screen.targets)), min(6, len(screen.targets))):
        target, thought = screen.targets[index], "\n".join(lines[: index + 1])
        question = rng.choice(_ASKED[target.kind]).format(target.label)
        named = f"The {target.label}" if target.kind == "icon" else target.label
        answer = point_answer(target.box, screen.width, screen.height)
        found.append(Exchange(question, answer, thought, f"{named} is {target.place}.", target.box.edges))
    if screen.entries:
        found += _order_exchanges(rng, screen.entries)
    if screen.title:
        asked = rng.choice(
            ("What is the title of this screen?", "What is the name at the top of the window?")
        )
        found.append(Exchange(asked, screen.title, steps=f"The title bar says {screen.title}."))
    if screen.message:
        asked = rng.choice(("What does the dialog ask?", "What is the question in the dialog?"))
        found.append(Exchange(asked, screen.message, steps=f"The dialog says {screen.message}"))
    for label, is_on in rng.sample(screen.states, min(1, len(screen.states))):
        asked = rng.choice(("Is {} on?", "Is {} switched on?")).format(label)
        steps = f"The knob of {label} is on the {'right' if is_on else 'left'}."
        switches = [target.kind == "switch" and target.label == label for target in screen.targets]
        thought = "\n".join(lines[: switches.index(True) + 1])
        found.append(Exchange(asked, "Yes" if is_on else "No", thought, steps))
    return tuple({exchange.question: exchange for exchange in found}.values())


def _order_exchanges(rng: random.Random, entries: tuple[tuple[str, str], ...]) -> list[Exchange]:
    found = []
    for index in rng.sample(range(len(entries)), min(2, len(entries))):
        is_last = index == len(entries) - 1 and (index >= len(ORDINALS) or rng.random() < 0.5)
        place = "last" if is_last else ORDINALS[min(index, len(ORDINALS) - 1)]
        asked = rng.choice(
            ("What is the {} title?", "What is the {} title in the list?", "Read the {} title.")
        )
        begin = [title for title, _ in entries[: index + 1]]
        steps = f"The list ends with {begin[-1]}." if is_last else f"The list begins with {', '.join(begin)}."
        found.append(Exchange(asked.format(place), begin[-1], "\n".join(begin), steps))
    below = [entry for entry in entries if entry[1]]
    if below:
        title, subtitle = rng.choice(below)
        titles = [title for title, _ in entries]
        thought = "\n".join(titles[: titles.index(title) + 1])
        asked = rng.choice(("What does it say below {}?", "Read the line below {}."))
        found.append(Exchange(asked.format(title), subtitle, thought, f"Below {title} is {subtitle}."))
    return found
