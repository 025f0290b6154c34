"""Texts, labels and cards: writing is inside, as large as it is meant to be, and what is asked for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from model.nano.data import looking, reading, searching
from model.nano.data.canvas import Box, Style
from model.nano.data.fonts import held_out_faces
from model.nano.data.looking import UNREADABLE, LookTask, look_box, look_task
from model.nano.data.scene import Scene
from model.nano.data.searching import SearchTask, search_task
from model.nano.data.tasks import unit_of
from model.nano.tools import COORDINATES, crop
from model.text.tiles import GLOBAL_SIDE
from tests.model.nano.recorded import Written, record_canvases

Maker = Callable[[random.Random, Style, int, int], Scene]
MAKERS: tuple[Maker, ...] = (reading.single_text, reading.coloured_texts, reading.lines, reading.page)
SIZES = ((420, 380), (727, 640), (600, 1100), (1500, 1300))
FACES = held_out_faces()
ROUNDING_PX = 1.0  # font sizes are whole pixels


pytestmark = pytest.mark.slow  # hundreds of pictures


@dataclass(frozen=True)
class Made:
    """A scene, what was written in it, and picture pixels per pixel of the best view."""

    scene: Scene
    written: tuple[Written, ...]
    unit: float


@dataclass(frozen=True)
class Looked:
    """A look task and what was written on its cards."""

    task: LookTask
    written: dict[str, Written]

    @property
    def unit(self) -> float:
        """Picture pixels per pixel of the global view."""
        return max(self.task.desk.picture.size) / GLOBAL_SIDE


@pytest.fixture(scope="module")
def made() -> list[Made]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        written = record_canvases(patch, reading)
        for maker, size, seed in itertools.product(MAKERS, SIZES, range(3)):
            written.clear()
            unit = unit_of(*size)
            scene = maker(random.Random(seed), Style(FACES, unit), *size)
            found.append(Made(scene, tuple(written), unit))
    return found


@pytest.fixture(scope="module")
def labels() -> list[tuple[SearchTask, tuple[Written, ...]]]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        written = record_canvases(patch, searching)
        for seed in range(12):
            written.clear()
            task = search_task(random.Random(seed), Style(FACES, unit_of(500, 600)), 500, 600)
            found.append((task, tuple(written)))
    return found


@pytest.fixture(scope="module")
def looked() -> list[Looked]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        written = record_canvases(patch, looking)
        for seed in range(30):
            written.clear()
            task = look_task(random.Random(seed), Style(FACES))
            # A desk that was thrown away wrote too: the last line of a text is this desk's.
            on_card = {
                card.colour: next(
                    one
                    for one in reversed(written)
                    if one.text == card.text and card.box.holds(*one.box.centre)
                )
                for card in task.desk.cards
            }
            found.append(Looked(task, on_card))
    return found


def is_inside(box: Box, width: int, height: int) -> bool:
    picture = Box(0, 0, width, height)
    return picture.holds(box.left, box.top) and picture.holds(box.right, box.bottom)


def test_texts_stay_in_the_picture(made: list[Made]) -> None:
    for one in made:
        for text in one.written:
            assert is_inside(text.box, *one.scene.picture.size), text


def test_letters_stay_in_the_picture_when_it_turns(made: list[Made]) -> None:
    for one in made:
        width, height = one.scene.picture.size
        for mark in one.scene.marks:
            assert 0 <= mark.x < width and 0 <= mark.y < height, mark


def test_texts_are_14_pixels_high_in_the_best_view(made: list[Made]) -> None:
    for one in made:
        for text in one.written:
            assert text.cap_px >= 14 * one.unit, (text, one.unit)
            assert text.measured_px >= 14 * one.unit - ROUNDING_PX, (text, one.unit)


def test_answers_are_among_the_texts(made: list[Made]) -> None:
    for one in made:
        assert one.scene.exchanges
        everything = "\n".join(text.text for text in one.written)
        for exchange in one.scene.exchanges:
            assert " ".join(everything.split()).count(" ".join(exchange.answer.split())), exchange


@pytest.mark.parametrize("maker", MAKERS)
def test_the_same_seed_gives_the_same_scene(maker: Maker) -> None:
    one, other = (maker(random.Random(5), Style(FACES), 500, 450) for _ in range(2))
    assert one.picture.tobytes() == other.picture.tobytes()
    assert one.marks == other.marks and one.exchanges == other.exchanges


def test_a_label_stays_in_the_picture(labels: list[tuple[SearchTask, tuple[Written, ...]]]) -> None:
    for task, written in labels:
        for text in written:
            assert is_inside(text.box, *task.picture.size) and text.cap_px >= 14 * unit_of(500, 600), text


def test_a_search_is_needed_where_the_label_does_not_say_it(
    labels: list[tuple[SearchTask, tuple[Written, ...]]],
) -> None:
    assert {task.needs_search for task, _ in labels} == {True, False}
    for task, written in labels:
        field = task.query.rsplit(" ", 1)[1]
        shown = [text.text for text in written]
        assert (f"{field}: {task.answer}" in shown) == (not task.needs_search), (task, shown)
        assert f"{field} {task.answer}" in task.found


def test_a_crop_holds_the_whole_card(looked: list[Looked]) -> None:
    for one in looked:
        width, height = one.task.desk.picture.size
        for card in one.task.desk.cards:
            left, top, right, bottom = (edge / COORDINATES for edge in look_box(card, (width, height)))
            box = Box(left * width, top * height, right * width, bottom * height)
            assert box.holds(card.box.left, card.box.top) and box.holds(card.box.right, card.box.bottom), card


def test_a_crop_shows_the_text_14_pixels_high(looked: list[Looked]) -> None:
    for one in looked:
        for card in one.task.desk.cards:
            part = crop(one.task.desk.picture, look_box(card, one.task.desk.picture.size))
            shown_px = one.written[card.colour].measured_px * GLOBAL_SIDE / max(part.size)
            assert shown_px >= 14, (card, shown_px)


def test_small_text_is_below_8_pixels_without_a_crop(looked: list[Looked]) -> None:
    heights = [
        one.written[card.colour].measured_px / one.unit
        for one in looked
        for card in one.task.desk.cards
        if card.is_small
    ]
    assert heights and max(heights) < 8


def test_large_text_is_14_pixels_high_without_a_crop(looked: list[Looked]) -> None:
    for one in looked:
        for card in one.task.desk.cards:
            if not card.is_small:
                text = one.written[card.colour]
                assert text.cap_px >= 14 * one.unit and text.measured_px >= 14 * one.unit - ROUNDING_PX, text


def test_a_blurred_card_cannot_be_read(looked: list[Looked]) -> None:
    blurred = [one.task for one in looked if any(card.is_blurred for card in one.task.cards)]
    assert blurred and {task.answer for task in blurred} == {UNREADABLE}


def test_cards_that_are_not_blurred_are_read_in_order(looked: list[Looked]) -> None:
    for one in looked:
        if not any(card.is_blurred for card in one.task.cards):
            assert one.task.answer == ", ".join(one.written[card.colour].text for card in one.task.cards)


def test_cards_do_not_touch(looked: list[Looked]) -> None:
    for one in looked:
        boxes = [card.box for card in one.task.desk.cards]
        assert not any(a.meets(b) for a, b in itertools.combinations(boxes, 2))


def test_the_same_seed_gives_the_same_desk() -> None:
    one, other = (look_task(random.Random(4), Style(FACES)) for _ in range(2))
    assert one.desk.picture.tobytes() == other.desk.picture.tobytes()
    assert (one.question, one.cards, one.desk.marks) == (other.question, other.cards, other.desk.marks)
