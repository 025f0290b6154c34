"""Looking again: what is asked for is too small in the views the model has, so it asks for crops.

The picture is large and comes at low resolution (its global view alone). It holds cards of named
colours, each with a text: some large enough to read, most too small, a few not to be read at all.
With the tool `zoom` the model looks at each card it was asked about, then answers; without the tool
it says that it cannot read them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageFilter

from model.nano.data import drills, words
from model.nano.data.canvas import Box, Canvas, Style, brightness, paint_background, shaded, text_width
from model.nano.data.reading import NAMED_COLOURS, stands_out
from model.nano.data.scene import COLOUR_KINDS, MARKER, Mark
from model.nano.data.talk import (
    IMAGE,
    Effort,
    Lesson,
    Talk,
    View,
    conversation,
    draw_effort,
    question_turn,
    talk_of,
)
from model.nano.tools import COORDINATES, ZOOM, crop
from model.text.chat import ChatMessage, ToolCall
from model.text.tiles import GLOBAL_SIDE

TOO_SMALL = "It is too small to read."
UNREADABLE = "It cannot be read."
MAX_LOOKS = 3
PLACES_SHARE = 0.3  # of the lessons
# Heights of capitals in pixels of the global view: read at once, or not at all without a closer look.
LEGIBLE_PX = (14.0, 24.0)
SMALL_PX = (4.0, 7.0)


@dataclass(frozen=True)
class Card:
    """A coloured card. `is_small`: its text cannot be read in the global view. `is_blurred`: nowhere."""

    colour: str
    text: str
    box: Box
    is_small: bool
    is_blurred: bool


@dataclass(frozen=True)
class Desk:
    """The picture and what lies on it. `small_marks` show in a crop only."""

    picture: Image.Image
    marks: tuple[Mark, ...]
    small_marks: tuple[Mark, ...]
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class LookTask:
    """A question about some of the cards."""

    desk: Desk
    question: str
    cards: tuple[Card, ...]

    @property
    def answer(self) -> str:
        """With as many looks as it takes."""
        if any(card.is_blurred for card in self.cards):
            return UNREADABLE
        return ", ".join(card.text for card in self.cards)

    @property
    def needs_zoom(self) -> bool:
        """Whether the views at hand do not show it."""
        return any(card.is_small for card in self.cards)


def look_task(rng: random.Random, style: Style, *, needs_zoom: bool | None = None) -> LookTask:
    """A desk of cards and a question about one to three of them."""
    while True:
        desk = draw_desk(rng, style)
        wanted = [card for card in desk.cards if needs_zoom is None or card.is_small == needs_zoom]
        count = rng.choice((1, 1, 1, 2, 2, 3))
        if len(wanted) >= count:
            break
    cards = tuple(rng.sample(wanted, count))
    names = [card.colour for card in cards]
    if count == 1:
        question = rng.choice(("What is on the {} card?", "Read the {} card.")).format(names[0])
    else:
        question = f"Read the {', the '.join(names[:-1])} and the {names[-1]} card."
    return LookTask(desk, question, cards)


def look_lesson(rng: random.Random, style: Style) -> Lesson:
    """A question with or without the tool at hand, and what to do then."""
    if rng.random() < PLACES_SHARE:
        return _places_lesson(rng, draw_desk(rng, style))
    task = look_task(rng, style, needs_zoom=None if rng.random() < 0.35 else True)
    effort, has_tool = draw_effort(rng), rng.random() < 0.8
    first = View(task.desk.picture, task.desk.marks, max_tiles=0)
    asked = question_turn(task.question, 1)
    if not has_tool:
        answer = TOO_SMALL if task.needs_zoom else task.answer
        turn = ChatMessage("assistant", answer, reasoning_content="")
        return Lesson((first,), (Talk("look", conversation((asked, turn), effort), (0,)),))
    views, messages = [first], [asked]
    for card in task.cards:
        if card.is_small:
            box = look_box(card, task.desk.picture.size)
            call = ToolCall("zoom", {"box": list(box)})
            said = _thought(task.desk, card, effort)
            messages.append(ChatMessage("assistant", "", reasoning_content=said, tool_calls=(call,)))
            messages.append(ChatMessage("tool", (IMAGE,)))
            views.append(_cropped_view(task.desk, box))
    messages.append(ChatMessage("assistant", task.answer, reasoning_content=""))
    talk = Talk("look", conversation(tuple(messages), effort, (ZOOM,)), tuple(range(len(views))))
    return Lesson(tuple(views), (talk,))


def _places_lesson(rng: random.Random, desk: Desk) -> Lesson:
    """Where all cards are: who cannot say it zooms beside them."""
    exchange = drills.places("Where is each card?", card_lines(desk))
    view = View(desk.picture, desk.marks, max_tiles=0)
    return Lesson((view,), (talk_of("look", exchange, (0,), draw_effort(rng)),))


def card_lines(desk: Desk, last: Card | None = None) -> list[str]:
    """Where the cards are, from above, as far as the one that is wanted."""
    cards = sorted(desk.cards, key=lambda card: card.box.centre[1])
    kept = cards if last is None else cards[: cards.index(last) + 1]
    named = [(card.colour, Mark(MARKER, *card.box.centre)) for card in kept]
    return drills.place_lines(named, desk.picture.size)


def _thought(desk: Desk, card: Card, effort: Effort) -> str:
    """Before a look: the last line is where it goes."""
    if effort == "low":
        return ""
    why = [f"The {card.colour} card is too small to read"] if effort == "high" else []
    return "\n".join((*card_lines(desk, card), *why))


def look_box(card: Card, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The card with a margin, no longer than half again its other side, in thousandths."""
    width, height = size
    wide, high = card.box.width, card.box.height
    wide, high = 1.15 * max(wide, 0.75 * high), 1.15 * max(high, 0.75 * wide)
    x, y = card.box.centre
    edges = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    scales = (COORDINATES / width, COORDINATES / height) * 2
    left, top, right, bottom = (
        min(COORDINATES, max(0, round(edge * scale))) for edge, scale in zip(edges, scales, strict=True)
    )
    return left, top, right, bottom


def _cropped_view(desk: Desk, box: tuple[int, int, int, int]) -> View:
    part = crop(desk.picture, box)
    left = round(box[0] * desk.picture.width / COORDINATES)
    top = round(box[1] * desk.picture.height / COORDINATES)
    marks = tuple(
        Mark(mark.kind, mark.x - left, mark.y - top)
        for mark in (*desk.marks, *desk.small_marks)
        if 0 <= mark.x - left < part.width and 0 <= mark.y - top < part.height
    )
    return View(part, marks, max_tiles=0)


def draw_desk(rng: random.Random, style: Style) -> Desk:
    """Two to five cards that do not touch, on a background."""
    long = rng.randint(1100, 1800)
    short = rng.randint(round(long / 1.45), long)
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    unit = long / GLOBAL_SIDE
    canvas = Canvas(width, height, (200, 200, 200))
    background = paint_background(canvas, rng)
    named = [name for name in NAMED_COLOURS if name not in ("black", "white")]
    visible = [name for name in named if stands_out(NAMED_COLOURS[name], background)]
    colours = rng.sample(visible, min(len(visible), rng.randint(2, 5)))
    cards: list[Card] = []
    small_marks: list[Mark] = []
    for colour in colours:
        card = _draw_card(canvas, rng, style, unit, colour, [card.box for card in cards], small_marks)
        if card is not None:
            cards.append(card)
    if len(cards) < 2:
        return draw_desk(rng, style)
    return Desk(canvas.image, tuple(canvas.marks), tuple(small_marks), tuple(cards))


def _draw_card(
    canvas: Canvas,
    rng: random.Random,
    style: Style,
    unit: float,
    colour: str,
    taken: list[Box],
    small_marks: list[Mark],
) -> Card | None:
    is_small = rng.random() < 0.75
    is_blurred = is_small and rng.random() < 0.12
    face, text = rng.choice(style.faces), _card_text(rng)
    low, high = SMALL_PX if is_small else LEGIBLE_PX
    cap = unit * rng.uniform(low, high)
    wide = text_width(text, face, cap)
    # The card is so large that its crop shows the text at 14 px at least.
    card_wide = wide + cap * rng.uniform(2, 7)
    card_high = cap * rng.uniform(2.5, 6)
    card_high = max(card_high, 0.3 * card_wide)
    for _ in range(20):
        x = rng.uniform(8, canvas.width - card_wide - 8)
        y = rng.uniform(8, canvas.height - card_high - 8)
        box = Box(x, y, x + card_wide, y + card_high)
        if x < 8 or y < 8 or any(box.grown(0.04 * canvas.width).meets(other) for other in taken):
            continue
        paint = shaded(NAMED_COLOURS[colour], rng, 12)
        canvas.draw.rounded_rectangle((x, y, box.right, box.bottom), rng.uniform(0, cap), fill=paint)
        canvas.mark(MARKER, *box.centre)
        canvas.mark(COLOUR_KINDS[colour], x + 3 * unit, y + 3 * unit)
        ink = (14, 14, 16) if brightness(paint) > 110 else (250, 250, 248)
        left = rng.uniform(x + 0.5 * cap, box.right - wide - 0.5 * cap)
        top = rng.uniform(y + 0.5 * cap, box.bottom - 1.5 * cap)
        first = len(canvas.marks)
        written = canvas.text(left, top, text, face, cap, ink)
        if is_small:
            small_marks += [] if is_blurred else canvas.marks[first:]
            del canvas.marks[first:]
        if is_blurred:
            _blur(canvas, written.grown(0.4 * cap), cap)
        return Card(colour, text, box, is_small, is_blurred)
    return None


def _blur(canvas: Canvas, box: Box, cap: float) -> None:
    """Make a text unreadable at any resolution."""
    edges = (round(box.left), round(box.top), round(box.right), round(box.bottom))
    canvas.image.paste(canvas.image.crop(edges).filter(ImageFilter.GaussianBlur(0.45 * cap)), edges[:2])


def _card_text(rng: random.Random) -> str:
    return rng.choice((words.code(rng, 3, 6), words.code(rng, 3, 6), words.name(rng), words.whole(rng)))
