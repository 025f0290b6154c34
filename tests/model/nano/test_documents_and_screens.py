import itertools
import json
import math
import random
import re
from collections.abc import Callable

import jsonschema
import pytest

from model.nano.data import documents, paper, screens, tables, widgets, words
from model.nano.data.canvas import Box, Style, turned_point
from model.nano.data.fonts import Face, held_out_faces
from model.nano.data.scene import BOX_END, BOX_START, KINDS, Scene
from tests.model.nano.recorded import MARGIN_PX, SIZES, Made, record_canvases

pytestmark = pytest.mark.slow  # hundreds of pictures

Maker = Callable[[random.Random, Style, int, int], Scene]
DOCUMENTS: tuple[Maker, ...] = (documents.receipt, documents.invoice, documents.table)
SCREENS: tuple[Maker, ...] = (screens.phone, screens.desktop)


@pytest.fixture(scope="module")
def faces() -> tuple[Face, ...]:
    return held_out_faces()


@pytest.fixture(scope="module")
def made(faces: tuple[Face, ...]) -> dict[Maker, list[Made]]:
    found: dict[Maker, list[Made]] = {maker: [] for maker in DOCUMENTS + SCREENS}
    with pytest.MonkeyPatch.context() as patch:
        written = record_canvases(patch, paper, widgets)
        for maker, scenes in found.items():
            for (width, height, unit), seed in itertools.product(SIZES, range(3)):
                written.clear()
                scene = maker(random.Random(seed), Style(faces, unit), width, height)
                scenes.append(Made(scene, unit, tuple((line.box, line.measured_px) for line in written)))
    return found


def test_a_json_answer_follows_the_schema_in_its_question(made: dict[Maker, list[Made]]) -> None:
    asked = 0
    for one in itertools.chain(*(made[maker] for maker in DOCUMENTS)):
        for exchange in one.scene.exchanges:
            if (found := re.search(r"\{.*\}$", exchange.question)) is not None:
                jsonschema.validate(json.loads(exchange.answer), json.loads(found.group()))
                asked += 1
    assert asked > 100


def test_numbers_in_json_are_written_as_on_paper() -> None:
    field = paper.Field("total", "12.50", ("number",))
    assert paper.json_exchange(random.Random(0), "", [field], "", "").answer == '{"total": 12.50}'


def test_about_half_of_a_documents_questions_want_json(made: dict[Maker, list[Made]]) -> None:
    questions = [e.question for maker in DOCUMENTS for one in made[maker] for e in one.scene.exchanges]
    share = sum(question.endswith("}") for question in questions) / len(questions)
    assert 0.35 < share < 0.6


@pytest.mark.parametrize("plan", [documents.plan_receipt, documents.plan_invoice])
def test_the_total_is_the_sum_of_the_items(
    faces: tuple[Face, ...], plan: Callable[[random.Random, Style, int, int], documents.Bill]
) -> None:
    for seed in range(300):
        width, height, unit = SIZES[seed % len(SIZES)]
        bill = plan(random.Random(seed), Style(faces, unit), width, height)
        (total,) = (fact.value for fact in bill.facts if fact.what == "total")
        assert total == words.money(sum(item.cents for item in bill.items)), (seed, bill)
        assert bill.items


def test_what_is_asked_of_a_bill_stands_on_it(faces: tuple[Face, ...]) -> None:
    for seed in range(20):
        bill = documents.plan_invoice(random.Random(seed), Style(faces), 600, 600)
        written = " ".join(cell.text for line in bill.lines for cell in line.cells)
        assert all(fact.value in written and fact.label in written for fact in bill.facts)


def test_the_answer_for_a_cell_is_the_cell(faces: tuple[Face, ...]) -> None:
    for seed in range(30):
        grid = tables.plan_table(random.Random(seed), Style(faces), 600, 600)
        cells = {(c.header, n): v for c in grid.columns[1:] for n, v in zip(grid.names, c.cells, strict=True)}
        for exchange in tables.table_exchanges(random.Random(seed), grid):
            named = re.fullmatch(r"What is the (\S+) (?:of|for) (\S+)\?", exchange.question)
            if named is not None and named.groups() in cells:
                assert exchange.answer == cells[named[1], named[2]]


def test_a_table_has_two_to_six_columns_and_two_to_eight_rows(faces: tuple[Face, ...]) -> None:
    for seed in range(60):
        width, height, unit = SIZES[seed % len(SIZES)]
        grid = tables.plan_table(random.Random(seed), Style(faces, unit), width, height)
        assert 2 <= len(grid.columns) <= 6 and 2 <= len(grid.names) <= 8, (seed, grid)


def test_a_point_lies_inside_its_box(made: dict[Maker, list[Made]]) -> None:
    asked = 0
    for one in itertools.chain(*(made[maker] for maker in SCREENS)):
        width, height = one.scene.picture.size
        for exchange in one.scene.exchanges:
            if exchange.box is None:
                continue
            answer = json.loads(exchange.answer)
            assert exchange.answer == json.dumps(answer) and list(answer) == ["point", "box"]
            (x, y), (left, top, right, bottom) = answer["point"], answer["box"]
            assert 0 <= left < x < right <= 1000 and 0 <= top < y < bottom <= 1000
            assert Box(*exchange.box).holds(x * width / 1000, y * height / 1000)
            assert exchange.box[3] - exchange.box[1] >= 24 * one.unit, exchange
            asked += 1
    assert asked > 100


def test_each_target_leaves_the_marks_of_its_corners(faces: tuple[Face, ...]) -> None:
    for seed in range(10):
        screen = screens.plan_phone(random.Random(seed), Style(faces), 500, 700)
        marks = {(mark.kind, mark.x, mark.y) for mark in widgets.draw_screen(screen).marks}
        for target in screen.targets:
            assert (BOX_START, target.box.left, target.box.top) in marks
            assert (BOX_END, target.box.right, target.box.bottom) in marks


def test_targets_do_not_overlap(faces: tuple[Face, ...]) -> None:
    for seed in range(40):
        width, height, unit = SIZES[seed % len(SIZES)]
        for plan in (screens.plan_phone, screens.plan_desktop):
            boxes = [
                target.box for target in plan(random.Random(seed), Style(faces, unit), width, height).targets
            ]
            for index, box in enumerate(boxes):
                assert not any(box.grown(-0.01).meets(other) for other in boxes[:index]), (seed, box)


def test_no_label_can_be_tapped_in_two_places(faces: tuple[Face, ...]) -> None:
    for seed in range(40):
        for plan in (screens.plan_phone, screens.plan_desktop):
            labels = [
                target.label.lower() for target in plan(random.Random(seed), Style(faces), 600, 600).targets
            ]
            assert len(labels) == len(set(labels)), (seed, labels)


def test_the_order_of_titles_is_that_of_the_list(faces: tuple[Face, ...]) -> None:
    for seed in range(20):
        screen = screens.plan_phone(random.Random(seed), Style(faces), 500, 700)
        titles = [title for title, _ in screen.entries]
        for exchange in widgets.screen_exchanges(random.Random(seed), screen):
            if (found := re.search(r"the (\w+) title(\.| in|\?)", exchange.question)) is not None:
                index = -1 if found[1] == "last" else widgets.ORDINALS.index(found[1])
                assert exchange.answer == titles[index]


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_letters_are_high_enough_to_be_read(maker: Maker, made: dict[Maker, list[Made]]) -> None:
    for one in made[maker]:
        assert one.drawn and min(cap for _, cap in one.drawn) >= math.floor(14 * one.unit)


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_no_text_lies_on_another(maker: Maker, made: dict[Maker, list[Made]]) -> None:
    for one in made[maker]:
        for index, (box, cap) in enumerate(one.drawn):
            taller = Box(box.left, box.top - 0.1 * cap, box.right, box.bottom + 0.3 * cap)
            assert not any(taller.meets(other) for other, _ in one.drawn[:index])


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_text_stays_inside_the_picture_when_turned(maker: Maker, made: dict[Maker, list[Made]]) -> None:
    for one in made[maker]:
        width, height = one.scene.picture.size
        most = 0.0 if maker in SCREENS else 5.0 if max(width, height) < 1.6 * min(width, height) else 2.0
        inside = Box(0, 0, width, height).grown(-MARGIN_PX + 0.5)
        for box, _ in one.drawn:
            for x in (box.left, box.right):
                for y in (box.top, box.bottom):
                    for degrees in (-most, 0.0, most):
                        assert inside.holds(*turned_point(x, y, degrees, width / 2, height / 2)), (
                            box,
                            degrees,
                        )


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_marks_are_known_and_inside_the_picture(maker: Maker, made: dict[Maker, list[Made]]) -> None:
    for scene in (one.scene for one in made[maker]):
        inside = Box(0, 0, scene.picture.width - 1, scene.picture.height - 1)
        assert all(inside.holds(mark.x, mark.y) and mark.kind in KINDS for mark in scene.marks)


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_something_is_asked_and_no_question_twice(maker: Maker, made: dict[Maker, list[Made]]) -> None:
    for scene in (one.scene for one in made[maker]):
        questions = [exchange.question for exchange in scene.exchanges]
        assert len(questions) == len(set(questions)) >= 3


@pytest.mark.parametrize("maker", DOCUMENTS + SCREENS)
def test_the_same_seed_gives_the_same_scene(maker: Maker, faces: tuple[Face, ...]) -> None:
    first, second = (maker(random.Random(7), Style(faces), 500, 600) for _ in range(2))
    assert first.picture.tobytes() == second.picture.tobytes()
    assert (first.marks, first.exchanges) == (second.marks, second.exchanges)
