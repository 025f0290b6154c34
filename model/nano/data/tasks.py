"""The mixture: which lessons there are, in which sizes, and how often each is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from model.nano.data import charts, colours, documents, reading, screens
from model.nano.data.canvas import Style
from model.nano.data.lists import list_exchange
from model.nano.data.scene import Scene
from model.nano.data.searching import search_lesson
from model.nano.data.talk import Lesson, draw_effort, lesson_of, talk_of
from model.nano.data.texts import text_exchange
from model.text.tiles import GLOBAL_SIDE, plan_tiles

Maker = Callable[[random.Random, Style, int, int], Scene]


@dataclass(frozen=True)
class Task:
    """A maker, the row of the examination that it belongs to, and how often its scenes are drawn.

    An examination draws all entries of its row equally often: who stands twice is asked twice as often.
    """

    name: str
    maker: Maker
    share: float


MOST_TILES = 6  # of a large picture
LISTS_SHARE = 0.5  # of the requests without a picture
READING = (
    Task("read", reading.single_text, 2.0),
    Task("read", reading.coloured_texts, 1.0),
    Task("read", reading.lines, 1.5),
    Task("read", reading.page, 2.5),
)
SCENES = (
    *READING,
    Task("charts", charts.bar_chart, 1.75),
    Task("charts", charts.bar_chart, 1.75),
    Task("charts", charts.point_chart, 1.5),
    Task("documents", documents.receipt, 1.5),
    Task("documents", documents.invoice, 1.5),
    Task("documents", documents.table, 2.0),
    Task("screens", screens.phone, 2.25),
    Task("screens", screens.desktop, 2.25),
    Task("colours", colours.darker_red, 0.8),
    Task("colours", colours.scan, 0.8),
)
SCENE_NAMES = tuple(dict.fromkeys(task.name for task in SCENES))
NAMES = (*SCENE_NAMES, "look", "search", "text")


def unit_of(width: int, height: int) -> float:
    """Picture pixels for one pixel of the best view: the tiles where there are some, else the global view."""
    plan = plan_tiles(width, height)
    across, down = plan.crop_size if plan.tiles else (GLOBAL_SIDE, GLOBAL_SIDE)
    return max(width / across, height / down)


def small_size(rng: random.Random) -> tuple[int, int]:
    """A picture that the global view shows whole: no tiles."""
    long = rng.randint(420, GLOBAL_SIDE - 1)
    short = rng.randint(max(380, round(long / 1.5) + 1), long)
    return (long, short) if rng.random() < 0.5 else (short, long)


def large_size(rng: random.Random) -> tuple[int, int]:
    """A picture of two to MOST_TILES tiles."""
    while True:
        size = rng.randint(600, 1500), rng.randint(600, 1300)
        if 2 <= plan_tiles(*size).tiles <= MOST_TILES:
            return size


def scene_lesson(
    rng: random.Random, style: Style, size: tuple[int, int], num_talks: int, tasks: tuple[Task, ...] = SCENES
) -> Lesson:
    """A picture of that size from one of the tasks, with some of its questions."""
    task = rng.choices(tasks, [task.share for task in tasks])[0]
    scene = task.maker(rng, replace(style, unit=unit_of(*size)), *size)
    return lesson_of(task.name, scene, rng, num_talks)


def text_lesson(rng: random.Random) -> Lesson:
    """A request without a picture; a good part of them about lists."""
    exchange = list_exchange(rng) if rng.random() < LISTS_SHARE else text_exchange(rng)
    return Lesson((), (talk_of("text", exchange, (), draw_effort(rng)),))


def tool_lesson(rng: random.Random, style: Style) -> Lesson:
    """A request with the search tool at hand."""
    size = small_size(rng)
    return search_lesson(rng, replace(style, unit=unit_of(*size)), *size)
