"""Long answers for training: they say what the picture holds, and where."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from model.nano.data import charts, drills, looking, reading, screens
from model.nano.data.canvas import Style
from model.nano.data.fonts import held_out_faces
from model.nano.data.scene import Mark, Scene
from model.nano.data.tasks import Maker, small_size, unit_of

STYLE = Style(held_out_faces())
SEEDS = range(12)


def scene_of(maker: Maker, seed: int) -> Scene:
    rng = random.Random(seed)
    size = small_size(rng)
    return maker(rng, replace(STYLE, unit=unit_of(*size)), *size)


def places_of(answer: str) -> list[tuple[str, int, int]]:
    lines = [line.rsplit(" ", 2) for line in answer.splitlines()]
    return [(name, int(x), int(y)) for name, x, y in lines]


@pytest.mark.parametrize("maker", [reading.single_text, reading.coloured_texts, reading.lines, reading.page])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_text_begins_where_its_first_character_stands(maker: Maker, seed: int) -> None:
    scene = scene_of(maker, seed)
    width, height = scene.picture.size
    stand = {(round(mark.x * 1000 / width), round(mark.y * 1000 / height)) for mark in scene.marks}
    for _, x, y in places_of(scene.drills[-1].answer):
        assert (x, y) in stand


@pytest.mark.parametrize("maker", [screens.phone, screens.desktop])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_tapped_is_where_the_question_for_it_says(maker: Maker, seed: int) -> None:
    scene = scene_of(maker, seed)
    points = [(x, y) for _, x, y in places_of(scene.drills[0].answer)]
    assert points
    for exchange in scene.exchanges:
        if exchange.box is not None:
            left, top, right, bottom = exchange.box
            width, height = scene.picture.size
            inside = [
                left <= x * width / 1000 <= right and top <= y * height / 1000 <= bottom for x, y in points
            ]
            is_cut = len(scene.drills[0].answer) > drills.MOST_CHARACTERS - 40
            assert any(inside) or is_cut


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chart_is_written_down_with_the_values_that_its_steps_name(seed: int) -> None:
    scene = scene_of(charts.bar_chart, seed)
    every = next(exchange.steps for exchange in scene.exchanges if exchange.steps.count(",") > 1)
    assert ", ".join(scene.drills[0].answer.splitlines()) + "." == every


@pytest.mark.parametrize("seed", SEEDS)
def test_cards_are_where_the_desk_has_them(seed: int) -> None:
    desk = looking.draw_desk(random.Random(seed), STYLE)
    lesson = looking._places_lesson(random.Random(seed), desk)
    answer = lesson.talks[0].conversation.messages[-1].content
    assert isinstance(answer, str)
    boxes = {card.colour: card.box for card in desk.cards}
    width, height = desk.picture.size
    for colour, x, y in places_of(answer):
        assert boxes[colour].holds(x * width / 1000, y * height / 1000)


def test_a_drill_is_no_longer_than_a_row_of_training_takes() -> None:
    many = [(f"name {index}", Mark("x", 500.0, 500.0)) for index in range(50)]
    answer = drills.places("Where?", drills.place_lines(many, (1000, 1000))).answer
    assert 80 < len(answer) <= drills.MOST_CHARACTERS + len(answer.splitlines())
    assert drills.written(["x" * 300]).answer == "x" * 300
