"""Search: the picture names a thing; what is asked is either written there or has to be looked up."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from model.nano.data import words
from model.nano.data.canvas import Canvas, Style, fitting_cap, ink_on, paint_background, weather
from model.nano.data.scene import Mark
from model.nano.data.talk import Lesson, Talk, View, conversation, draw_effort, question_turn
from model.nano.tools import SEARCH
from model.text.chat import ChatMessage, ToolCall

FIELDS = ("price", "weight", "colour", "owner", "year", "size")
_COLOURS = ("red", "green", "blue", "black", "white", "grey")


@dataclass(frozen=True)
class SearchTask:
    """A label with a name and some facts; the question is for one fact, on the label or not."""

    picture: Image.Image
    marks: tuple[Mark, ...]
    question: str
    query: str
    found: str
    answer: str
    needs_search: bool


def search_task(rng: random.Random, style: Style, width: int, height: int) -> SearchTask:
    """Draw the label and ask."""
    thing = f"{words.name(rng)} {rng.randint(2, 99)}"
    facts = {field: _fact(field, rng) for field in rng.sample(FIELDS, 4)}
    shown = dict(list(facts.items())[: rng.randint(1, 2)])
    picture, marks = _draw_label(rng, style, width, height, thing, shown)
    needs_search = rng.random() < 0.5
    hidden = [field for field in facts if field not in shown]
    field = rng.choice(hidden if needs_search else list(shown))
    order = rng.sample(list(facts), len(facts))
    found = f"{thing}: " + ", ".join(f"{name} {facts[name]}" for name in order)
    question = rng.choice(("What is the {}?", "Tell me the {}.", "Which {} does it have?")).format(field)
    return SearchTask(picture, marks, question, f"{thing} {field}", found, facts[field], needs_search)


def search_lesson(rng: random.Random, style: Style, width: int, height: int) -> Lesson:
    """The task with the tool at hand."""
    task, effort = search_task(rng, style, width, height), draw_effort(rng)
    messages = [question_turn(task.question, 1)]
    field = task.query.rsplit(" ", 1)[1]
    if task.needs_search:
        thought = f"The picture does not say the {field}" if effort == "high" else ""
        call = ToolCall("search", {"query": task.query})
        messages.append(ChatMessage("assistant", "", reasoning_content=thought, tool_calls=(call,)))
        messages.append(ChatMessage("tool", task.found))
    thought = f"The {field} is {task.answer}" if effort == "high" else ""
    messages.append(ChatMessage("assistant", task.answer, reasoning_content=thought))
    talk = Talk("search", conversation(tuple(messages), effort, (SEARCH,)), (0,))
    return Lesson((View(task.picture, task.marks),), (talk,))


def _draw_label(
    rng: random.Random, style: Style, width: int, height: int, thing: str, shown: dict[str, str]
) -> tuple[Image.Image, tuple[Mark, ...]]:
    canvas = Canvas(width, height, (255, 255, 255))
    background = paint_background(canvas, rng)
    ink = ink_on(background, rng)
    rows = [thing, *(f"{field}: {value}" for field, value in shown.items())]
    low = 14 * style.unit
    room = 0.8 * width
    fitting = fitting_cap(max(rows, key=len), style.faces, rng, low, 2.4 * low, room)
    face, cap = fitting if fitting is not None else (rng.choice(style.faces), low)
    step = cap * rng.uniform(2.0, 3.0)
    top = rng.uniform(0.08 * height, max(0.09 * height, 0.9 * height - len(rows) * step))
    left = rng.uniform(0.06 * width, 0.1 * width)
    for index, row in enumerate(rows):
        canvas.text(left, top + index * step, row, face, cap, ink)
    return weather(canvas, rng)


def _fact(field: str, rng: random.Random) -> str:
    if field == "price":
        return f"{rng.randint(2, 999)} EUR"
    if field == "weight":
        return f"{rng.randint(1, 99)} kg"
    if field == "colour":
        return rng.choice(_COLOURS)
    if field == "owner":
        return words.name(rng)
    return str(rng.randint(1950, 2029)) if field == "year" else f"{rng.randint(10, 400)} cm"
