"""Reading: codes, words, numbers and short sentences anywhere in a picture."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from model.nano.data import drills, words
from model.nano.data.canvas import (
    Box,
    Canvas,
    Colour,
    Style,
    fitting_cap,
    ink_on,
    paint_background,
    shaded,
    text_width,
    weather,
)
from model.nano.data.scene import COLOUR_KINDS, Exchange, Mark, Scene

LEAST_CAP, MOST_CAP = 14.0, 64.0  # heights of capitals, in pixels of the view
_MARGIN = 12
NAMED_COLOURS: dict[str, Colour] = {
    "red": (214, 32, 38),
    "green": (24, 140, 60),
    "blue": (28, 72, 214),
    "orange": (244, 132, 16),
    "purple": (130, 40, 170),
    "yellow": (250, 214, 30),
    "black": (12, 12, 14),
    "white": (248, 248, 246),
}
_ONE = ("What does it say?", "Read the text.", "What is written here?", "What is the text in the picture?")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Placed:
    """A text and where it ended up."""

    text: str
    box: Box


def single_text(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """One text somewhere in the picture."""
    canvas = Canvas(width, height, (255, 255, 255))
    background = paint_background(canvas, rng)
    placed = _place(canvas, style, rng, _any_text(rng), ink_on(background, rng), [])
    while placed is None:
        placed = _place(canvas, style, rng, words.code(rng, 3, 5), ink_on(background, rng), [])
    answer = placed.text
    exchange = Exchange(rng.choice(_ONE), answer, steps=f"The only text is {answer}")
    picture, marks = weather(canvas, rng)
    drill = drills.places(
        "Where does the text begin?", drills.place_lines([(answer, marks[0])], picture.size)
    )
    return Scene(picture, marks, (exchange,), (drill,))


def coloured_texts(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Several texts in colours that have names."""
    tone = rng.choice(((236, 236, 232), (110, 112, 118), (36, 38, 44)))
    canvas = Canvas(width, height, tone)
    free = [name for name, colour in NAMED_COLOURS.items() if stands_out(colour, tone)]
    rng.shuffle(free)
    taken: list[Box] = []
    texts = list[tuple[str, str, int]]()  # colour, text, its first mark
    for name in free[: rng.randint(2, 4)]:
        first = len(canvas.marks)
        placed = _place(canvas, style, rng, _short_text(rng), shaded(NAMED_COLOURS[name], rng, 14), taken)
        if placed is not None:
            texts.append((name, placed.text, first))
            taken.append(placed.box.grown(10))
            canvas.mark(COLOUR_KINDS[name], placed.box.left - 8 * style.unit, placed.box.centre[1])
    if not texts:
        return single_text(rng, style, width, height)
    picture, marks = weather(canvas, rng)
    texts.sort(key=lambda text: marks[text[2]].y)
    where = drills.place_lines([(name, marks[first]) for name, _, first in texts], picture.size)
    exchanges = []
    for index, (name, text, _) in enumerate(texts):
        question = rng.choice((f"What is the {name} text?", f"Read the {name} text."))
        steps = f"The {name} text is {text}"
        exchanges.append(Exchange(question, text, "\n".join(where[: index + 1]), steps))
    return Scene(picture, marks, tuple(exchanges), (drills.places("Where does each text begin?", where),))


def lines(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """Lines of text one below the other; asked for by number, by their label, by what stands above."""
    canvas = Canvas(width, height, (255, 255, 255))
    background = paint_background(canvas, rng)
    ink = ink_on(background, rng)
    low = LEAST_CAP * style.unit
    labels = words.distinct(words.name, 8, rng)
    is_labelled = rng.random() < 0.6
    values = [_short_text(rng) for _ in labels]
    texts = [
        f"{label}: {value}" if is_labelled else value for label, value in zip(labels, values, strict=True)
    ]
    longest = max(texts, key=len)
    fitting = fitting_cap(longest, style.faces, rng, low, 2.2 * low, width - 4 * _MARGIN - 0.12 * width)
    if fitting is None:
        return single_text(rng, style, width, height)
    face, cap = fitting
    step = cap * rng.uniform(1.9, 2.8)
    count = min(rng.randint(2, 6), int((height - 0.2 * height) // step))
    if count < 2:
        return single_text(rng, style, width, height)
    top = rng.uniform(0.1 * height, 0.9 * height - count * step)
    left = rng.uniform(2 * _MARGIN + 0.06 * width, 2 * _MARGIN + 0.1 * width)
    firsts = list[int]()
    for index in range(count):
        firsts.append(len(canvas.marks))
        canvas.text(left, top + index * step, texts[index], face, cap, ink)
    exchanges = _line_exchanges(rng, labels[:count], values[:count], texts[:count], is_labelled=is_labelled)
    picture, marks = weather(canvas, rng)
    where = _where_lines_begin(texts[:count], [marks[first] for first in firsts], picture.size)
    drill = drills.places("Where does each line begin?", where)
    return Scene(picture, marks, tuple(exchanges), (drills.written(texts[:count]), drill))


def page(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """A picture full of lines of words; asked for by line, or for the word that follows another."""
    canvas = Canvas(width, height, (255, 255, 255))
    background = paint_background(canvas, rng)
    margin = _MARGIN + 0.05 * max(width, height)
    y, rows, firsts = margin, list[list[str]](), list[int]()
    ink = ink_on(background, rng)
    while True:
        face = rng.choice(style.faces)
        cap = LEAST_CAP * style.unit * rng.uniform(1.0, 1.7)
        if y + 1.5 * cap > height - margin or len(rows) == 12:
            break
        row: list[str] = []
        for _ in range(rng.randint(1, 6)):
            wider = [*row, _short_text(rng)]
            if text_width("  ".join(wider), face, cap) > width - 2 * margin:
                break
            row = wider
        if row:
            firsts.append(len(canvas.marks))
            canvas.text(margin, y, "  ".join(row), face, cap, ink)
            rows.append(row)
        y += cap * rng.uniform(1.8, 2.6)
    picture, marks = weather(canvas, rng)
    texts = [" ".join(row) for row in rows]
    where = _where_lines_begin(texts, [marks[first] for first in firsts], picture.size)
    exchanges = _page_exchanges(rows, where)
    if not exchanges:
        return single_text(rng, style, width, height)
    drill = drills.places("Where does each line begin?", where)
    return Scene(picture, marks, tuple(exchanges), (drills.written(texts), drill))


def _where_lines_begin(texts: list[str], marks: list[Mark], size: tuple[int, int]) -> list[str]:
    named = [(text.split()[0], mark) for text, mark in zip(texts, marks, strict=True)]
    return drills.place_lines(named, size)


def _page_exchanges(rows: list[list[str]], where: list[str]) -> list[Exchange]:
    everything = [text for row in rows for text in row]
    exchanges = [
        Exchange(
            f"What does the {_ORDINALS[index]} line say?",
            " ".join(row),
            "\n".join(where[: index + 1]),
            f"Line {index + 1} has {len(row)} words",
        )
        for index, row in enumerate(rows[: len(_ORDINALS)])
        if len(row) <= 3
    ]
    for row in rows:
        for before, after in pairwise(row):
            if everything.count(before) == 1:
                exchanges.append(
                    Exchange(f"What comes after {before}?", after, steps=f"After {before} comes {after}")
                )
    return exchanges


def _line_exchanges(
    rng: random.Random, labels: list[str], values: list[str], texts: list[str], *, is_labelled: bool
) -> list[Exchange]:
    begins = ["\n".join(texts[: index + 1]) for index in range(len(texts))]
    if is_labelled:
        return [
            Exchange(
                rng.choice((f"What is {label}?", f"What is the value of {label}?")),
                value,
                begin,
                f"The line {label} says {value}",
            )
            for label, value, begin in zip(labels, values, begins, strict=True)
        ]
    exchanges = [
        Exchange(
            f"What does the {_ORDINALS[index]} line say?", value, begins[index], f"Line {index + 1} says it"
        )
        for index, value in enumerate(values)
    ]
    exchanges.append(
        Exchange("What does the last line say?", values[-1], begins[-1], f"There are {len(values)} lines")
    )
    return exchanges


def _any_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.35:
        return words.code(rng)
    if kind < 0.55:
        return words.cased(words.word(rng), rng)
    if kind < 0.7:
        return words.whole(rng)
    if kind < 0.9:
        return words.sentence(rng)
    return rng.choice((words.date(rng), words.money(words.amount(rng))))


def _short_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return words.code(rng)
    if kind < 0.7:
        return words.cased(words.word(rng), rng)
    return words.whole(rng) if kind < 0.85 else words.money(words.amount(rng))


def _place(
    canvas: Canvas, style: Style, rng: random.Random, text: str, ink: Colour, taken: list[Box]
) -> Placed | None:
    """Write the text where nothing is yet; None if it fits nowhere."""
    margin = _MARGIN + 0.045 * max(canvas.width, canvas.height)  # a turn by 5 degrees keeps it inside
    low, high = LEAST_CAP * style.unit, MOST_CAP * style.unit
    fitting = fitting_cap(text, style.faces, rng, low, high, canvas.width - 2 * margin)
    if fitting is None:
        return None
    face, cap = fitting
    wide = face.capped(cap).getlength(text)
    for _ in range(12):
        x = rng.uniform(margin, max(margin, canvas.width - margin - wide))
        y = rng.uniform(margin, max(margin, canvas.height - margin - 1.4 * cap))
        if not any(Box(x, y - 0.3 * cap, x + wide, y + 1.3 * cap).meets(box) for box in taken):
            return Placed(text, canvas.text(x, y, text, face, cap, ink))
    return None


def stands_out(colour: Colour, background: Colour) -> bool:
    """Whether one colour can be told from the other."""
    return sum(abs(a - b) for a, b in zip(colour, background, strict=True)) > 180
