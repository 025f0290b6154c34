"""Screens while they are laid out: bars, lists, forms and dialogs, as far as there is room."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from model.nano.data import words
from model.nano.data.canvas import Align, Box, Style, log_uniform, text_width
from model.nano.data.fonts import Face
from model.nano.data.widgets import (
    ICONS,
    ORDINALS,
    SIGNS,
    Icon,
    Kind,
    Panel,
    Screen,
    Shape,
    Target,
    Theme,
    Words,
    make_theme,
)

LOW_CAP, HIGH_CAP = 14.5, 22.0  # heights of capitals in pixels of the view; 0.5 for the rounding of sizes
LEAST_TARGET = 24.5  # height of what can be tapped
Tone = Literal["ink", "faint", "accent", "on_accent"]
_NOUNS = """
Settings Profile Wi-Fi Bluetooth Battery Display Sound Privacy Security Account Messages Photos Camera Music
Videos Maps Calendar Clock Notes Contacts Mail Files Downloads Home Favorites History Help About Language
Theme Storage Updates Location Notifications Payments Orders Basket Friends Groups Chat Calls News Weather
Health Wallet Inbox Drafts Archive Trash View Tools Window Format
"""
_VERBS = """
Search Send Cancel Save Share Edit Delete Copy Paste Undo Redo Logout Login Register Continue Back Next Done
Apply Reset Refresh Filter Sort Print Export Import Upload Insert Checkout
"""
NOUNS, VERBS = tuple(_NOUNS.split()), tuple(_VERBS.split())
SWITCHES = ("Wi-Fi", "Bluetooth", "Dark mode", "Location", "Sound", "Updates", "Sync", "Alarm", "Hotspot")
FIELDS = ("Name", "Email", "Phone", "Password", "Address", "City", "Country", "Title", "Company", "Code")
DIALOGS = ("Delete {}?", "Save {}?", "Open {}?", "Close {}?", "Send {}?", "Remove {}?", "Keep {}?")
ANSWERS = (("Cancel", "OK"), ("No", "Yes"), ("Cancel", "Delete"), ("Later", "Now"), ("Discard", "Keep"))


@dataclass
class Board:
    """A screen while it is laid out, and the labels that are not yet on it."""

    rng: random.Random
    face: Face
    cap: float
    low: float
    least: float
    theme: Theme
    rounding: float
    nouns: list[str]
    verbs: list[str]
    names: list[str]
    used: set[str] = field(default_factory=set)
    panels: list[Panel] = field(default_factory=list)
    icons: list[Icon] = field(default_factory=list)
    writing: list[Words] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    entries: list[tuple[str, str]] = field(default_factory=list)
    states: list[tuple[str, bool]] = field(default_factory=list)
    title: str = ""
    message: str = ""

    def wide(self, text: str) -> float:
        """Width in pixels at the usual size."""
        return text_width(text, self.face, self.cap)

    def take(self, room: float, usual: float, *, is_verb: bool = False) -> str | None:
        """A label that fits and is not used again; `usual` is the share of words that programs use."""
        deck = self.verbs if is_verb else self.nouns
        decks = [deck, self.names] if self.rng.random() < usual else [self.names, deck]
        for deck in decks:
            for label in deck:
                if self.wide(label) <= room:
                    self.drop(label)
                    return label
        return None

    def drop(self, label: str) -> None:
        """The label is used."""
        self.used.add(label)
        self.nouns = [other for other in self.nouns if other.lower() != label.lower()]
        self.verbs = [other for other in self.verbs if other.lower() != label.lower()]
        self.names = [other for other in self.names if other.lower() != label.lower()]

    def write(self, text: str, box: Box, align: Align = "centre", tone: Tone = "ink") -> None:
        """One line, half way down the box."""
        inset = 0.7 * self.cap
        x = {"left": box.left + inset, "centre": box.centre[0], "right": box.right - inset}[align]
        self.writing.append(Words(text, x, box.centre[1] - self.cap / 2, self.cap, align, tone))

    def target(self, kind: Kind, label: str, box: Box, place: str) -> None:
        """Something to tap."""
        self.targets.append(Target(kind, label, box, place))

    def button(self, label: str, box: Box, place: str, *, is_filled: bool) -> None:
        """A button with a label."""
        radius = self.rounding * box.height
        self.panels.append(Panel(box, "accent" if is_filled else "rule", radius=radius))
        self.write(label, box, tone="on_accent" if is_filled else "ink")
        self.target("button", label, box, place)

    def finished(self, width: int, height: int) -> Screen:
        """The plan."""
        return Screen(
            width,
            height,
            self.face,
            self.theme,
            tuple(self.panels),
            tuple(self.icons),
            tuple(self.writing),
            tuple(self.targets),
            self.title,
            tuple(self.entries),
            tuple(self.states),
            self.message,
        )


def make_board(rng: random.Random, style: Style, room_wide: float, room_high: float) -> Board:
    """An empty screen: colours, a face, a size, and labels to choose from."""
    low = LOW_CAP * style.unit
    most = max(low, min(HIGH_CAP * style.unit, room_wide / 18, room_high / 20))
    cap = log_uniform(rng, low, most)
    nouns, verbs = rng.sample(NOUNS, len(NOUNS)), rng.sample(VERBS, len(VERBS))
    known = {label.lower() for label in (*NOUNS, *VERBS, *SWITCHES, *FIELDS)}
    names = [name for name in words.distinct(words.name, 24, rng) if name.lower() not in known]
    for index in range(0, 8, 2):
        names[index] = f"{names[index]} {words.word(rng)}"
    face, rounding = rng.choice(style.faces), rng.choice((0.0, 0.25, 0.5))
    return Board(
        rng, face, cap, low, LEAST_TARGET * style.unit, make_theme(rng), rounding, nouns, verbs, names
    )


def title_bar(board: Board, bar: Box) -> None:
    """A title between what can be tapped left and right of it."""
    rng, high = board.rng, bar.height
    is_filled = rng.random() < 0.4
    tone: Tone = "on_accent" if is_filled else "ink"
    board.panels.append(Panel(bar, "accent" if is_filled else "surface"))
    left, right = bar.left, bar.right
    shape: Shape = rng.choice(("back arrow", "menu icon"))
    if rng.random() < 0.5:
        box = Box(left, bar.top, left + high, bar.bottom)
        board.icons.append(Icon(shape, box, tone))
        board.target("icon", shape, box, "at the left end of the title bar")
        left = box.right
    sign = rng.choice([sign for sign in SIGNS if sign != shape])
    if rng.random() < 0.4:
        box = Box(right - high, bar.top, right, bar.bottom)
        board.icons.append(Icon(sign, box, tone))
        board.target("icon", sign, box, "at the right end of the title bar")
        right = box.left
    title = board.take(right - left - 2 * board.cap, 0.3)
    if title is not None:
        board.title = title
        board.write(title, Box(left, bar.top, right, bar.bottom), rng.choice(("left", "centre")), tone)


def strip(
    board: Board,
    bar: Box,
    kind: Literal["tab", "menu", "button"],
    *,
    has_icons: bool = False,
    is_filled: bool = False,
) -> bool:
    """Labels side by side; False if there is no room for two."""
    rng, width = board.rng, bar.width
    for count in range(min(rng.randint(2, 6), int(width / (4 * board.cap))), 1, -1):
        room = width / count - 1.2 * board.cap
        if (
            sum(board.wide(label) <= room for label in (board.verbs if kind == "button" else board.nouns))
            >= count + 4
        ):
            break
    else:
        return False
    board.panels.append(Panel(bar, "surface", is_outlined=rng.random() < 0.5))
    is_spread = kind == "tab" or rng.random() < 0.3
    x, gap, chosen = bar.left, 0.25 * board.cap, rng.randrange(count)
    for index in range(count):
        label = board.take(room, 0.85, is_verb=kind == "button")
        if label is None:
            break
        wide = width / count if is_spread else min(width / count, board.wide(label) + 1.2 * board.cap)
        box = Box(x, bar.top, x + wide, bar.bottom)
        name = {"tab": "tab", "menu": "menu", "button": "button of the tool bar"}[kind]
        place = f"the {ORDINALS[index]} {name}"
        if is_filled:
            inset = min(gap, (bar.height - board.least) / 2)
            board.button(
                label,
                Box(x + gap / 2, bar.top + inset, x + wide - gap / 2, bar.bottom - inset),
                place,
                is_filled=False,
            )
        else:
            _labelled_icon(board, label, box, has_icons=has_icons, is_chosen=kind != "tab" or index == chosen)
            board.target(kind, label, box, place)
        x += wide
    return True


def _labelled_icon(board: Board, label: str, box: Box, *, has_icons: bool, is_chosen: bool) -> None:
    """A label, below an icon if there are icons."""
    tone: Tone = "ink" if is_chosen else "faint"
    if not has_icons:
        board.write(label, box, tone=tone)
        return
    middle = box.bottom - 1.9 * board.cap
    size = min(middle - box.top, 2.2 * board.cap)
    x = box.centre[0]
    icon = Box(x - size / 2, middle - size, x + size / 2, middle)
    board.icons.append(Icon(board.rng.choice(ICONS), icon, tone))
    board.write(label, Box(box.left, middle, box.right, box.bottom), tone=tone)


def search_field(board: Board, bar: Box) -> float:
    """A field to type into; returns where it ends."""
    box = Box(bar.left + board.cap, bar.top, bar.right - board.cap, bar.bottom)
    label = board.rng.choice([label for label in ("Search", "Find", "Filter") if label not in board.used])
    board.drop("Search")
    board.drop(label)
    board.panels.append(
        Panel(box, "surface", is_outlined=True, radius=board.rng.choice((0.0, 0.5 * board.cap)))
    )
    board.write(label, box, "left", "faint")
    board.target("field", label, box, "the field below the title bar")
    return box.bottom


def dialog(board: Board, free: Box, row: float) -> Box | None:
    """A question with two answers in the middle; None if there is no room."""
    rng = board.rng
    wide = min(free.width - 2 * board.cap, board.cap * rng.uniform(18, 26))
    high = row * 2.9
    message = rng.choice(DIALOGS).format(words.name(rng))
    answers = rng.choice([pair for pair in ANSWERS if board.used.isdisjoint(pair)])
    room = (wide - board.cap) / 2 - 1.6 * board.cap
    is_tight = (
        max(board.wide(answer) for answer in answers) > room or board.wide(message) > wide - 1.4 * board.cap
    )
    if is_tight or high > free.height:
        return None
    x, y = free.centre
    y += rng.uniform(-0.3, 0.3) * (free.height - high)
    box = Box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    board.panels += [Panel(box.grown(0.25 * board.cap), "rule"), Panel(box, "surface")]
    board.write(
        message,
        Box(box.left, box.top + 0.2 * row, box.right, box.top + 1.3 * row),
        rng.choice(("left", "centre")),
    )
    board.message = message
    for index, answer in enumerate(answers):
        board.drop(answer)
        left = box.left + board.cap / 2 + index * wide / 2
        edges = Box(left, box.bottom - 1.35 * row, left + wide / 2 - board.cap, box.bottom - 0.3 * row)
        place = f"the {('left', 'right')[index]} button of the dialog"
        board.button(answer, edges, place, is_filled=bool(index))
    return box


def rows(board: Board, free: Box, row: float, hole: Box | None) -> None:
    """A list of titles; rows that would lie below the dialog are left out."""
    rng, cap = board.rng, board.cap
    has_second, has_switches = rng.random() < 0.4, rng.random() < 0.25
    has_icons = rng.random() < 0.4
    if has_second and not has_switches:
        row = max(row, 2.1 * cap + cap + board.low)
    switch_high = max(board.least, 1.5 * cap)
    row = max(row, 1.15 * switch_high) if has_switches else row
    switches = [label for label in SWITCHES if label not in board.used]
    rng.shuffle(switches)
    count = min(rng.randint(2, 9), int(free.height / row))
    step = min(free.height / max(count, 1), row * rng.uniform(1.0, 1.3))
    for index in range(count):
        box = Box(free.left, free.top + index * step, free.right, free.top + (index + 1) * step - 2)
        if hole is not None and box.meets(hole.grown(0.3 * cap)):
            continue
        label = switches.pop() if has_switches and switches else None
        inner = Box(box.left + (2.4 * cap if has_icons else 0.0), box.top, box.right, box.bottom)
        room = inner.width - 1.4 * cap - (2.2 * switch_high if label else 0.0)
        if label is None or board.wide(label) > room:
            label = board.take(room, 0.3)
            switched = False
        else:
            board.drop(label)
            switched = True
        if label is None:
            continue
        board.panels.append(Panel(box, "surface"))
        if has_icons:
            (_, y), half = box.centre, 1.0 * cap
            square = Box(box.left + 0.6 * cap, y - half, box.left + 0.6 * cap + 2 * half, y + half)
            board.icons.append(Icon(rng.choice(ICONS), square, rng.choice(("accent", "faint"))))
        place = f"the {ORDINALS[len(board.entries)]} row of the list"
        second = words.sentence(rng) if has_second and not switched else ""
        _row(board, label, _second_line(board, second, room), inner)
        if switched:
            y = box.centre[1]
            right = box.right - 0.7 * cap
            knob = Box(right - 1.8 * switch_high, y - switch_high / 2, right, y + switch_high / 2)
            board.target("switch", label, knob, f"in {place}")
            board.states.append((label, rng.random() < 0.5))
        else:
            board.target("row", label, box, place)


def _second_line(board: Board, text: str, room: float) -> str:
    """As many words of the text as fit."""
    parts = text.rstrip(".").split()
    while parts and text_width(" ".join(parts), board.face, board.low) > room:
        parts.pop()
    return " ".join(parts)


def _row(board: Board, label: str, second: str, box: Box) -> None:
    """A title and perhaps a smaller line below it."""
    board.entries.append((label, second))
    if not second:
        board.write(label, box, "left")
        return
    gap = (box.height - board.cap - board.low) / 3
    x = box.left + 0.7 * board.cap
    board.writing.append(Words(label, x, box.top + gap, board.cap))
    board.writing.append(Words(second, x, box.bottom - gap - board.low, board.low, tone="faint"))


def side_bar(board: Board, side: Box, row: float) -> None:
    """Labels below each other at the left."""
    rng = board.rng
    board.panels.append(Panel(side, "surface"))
    count = min(rng.randint(2, 7), int(side.height / row))
    chosen = rng.randrange(max(count, 1))
    for index in range(count):
        label = board.take(side.width - 1.4 * board.cap, 0.7)
        if label is None:
            return
        box = Box(side.left, side.top + index * row, side.right, side.top + (index + 1) * row)
        if index == chosen:
            board.panels.append(Panel(box, "accent"))
        board.write(label, box, "left", "on_accent" if index == chosen else "ink")
        board.target("tab", label, box, f"the {ORDINALS[index]} entry of the side bar")


def form(board: Board, free: Box, row: float) -> None:
    """Fields with labels, and one or two buttons below them."""
    rng, cap = board.rng, board.cap
    board.panels.append(Panel(free, "surface"))
    labels = [label for label in rng.sample(FIELDS, len(FIELDS)) if label not in board.used]
    step, gap = 1.2 * row, 0.7 * cap
    split = free.left + max(board.wide(label) for label in FIELDS) + 2 * cap
    right = min(free.right - gap, split + cap * rng.uniform(10, 24))
    count = min(rng.randint(1, 5), int((free.height - 1.6 * row) / step))
    top = free.top + 0.3 * row
    for index in range(count if right - split > 5 * cap else 0):
        label = labels[index]
        board.drop(label)
        board.write(label, Box(free.left, top, split, top + row), "left")
        box = Box(split, top, right, top + row)
        board.panels.append(Panel(box, "ground", is_outlined=True))
        value = words.name(rng)
        if rng.random() < 0.4 and board.wide(value) < right - split - 1.4 * cap:
            board.write(value, box, "left")
        board.target("field", label, box, f"the {ORDINALS[index]} field of the form")
        top += step
    x = free.left + gap
    for index in range(rng.randint(1, 2)):
        caption = board.take(free.right - gap - x - 1.6 * cap, 0.9, is_verb=True)
        if caption is None or top + row > free.bottom - 0.1 * row:
            return
        box = Box(x, top, x + board.wide(caption) + 1.6 * cap, top + row)
        board.button(caption, box, f"the {ORDINALS[index]} button below the form", is_filled=index == 0)
        x = box.right + cap
