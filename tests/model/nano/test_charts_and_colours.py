import itertools
import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from model.nano.data import chart_plans, chart_thoughts, charts, colours, scan_plans
from model.nano.data.canvas import Box, Style, brightness
from model.nano.data.fonts import Face, held_out_faces
from model.nano.data.scene import BAR_END, KINDS, MARKER, TICK, Mark, Scene
from tests.model.nano.recorded import MARGIN_PX, SIZES, Made, record_canvases

pytestmark = pytest.mark.slow  # hundreds of pictures

Maker = Callable[[random.Random, Style, int, int], Scene]
MAKERS: tuple[Maker, ...] = (charts.bar_chart, charts.point_chart, colours.darker_red, colours.scan)
FORMS: tuple[chart_plans.Form, ...] = ("columns", "bars", "line", "points")


@pytest.fixture(scope="module")
def faces() -> tuple[Face, ...]:
    return held_out_faces()


@pytest.fixture(scope="module")
def made(faces: tuple[Face, ...]) -> list[Made]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        written = record_canvases(patch, charts, colours)
        for maker, (width, height, unit), seed in itertools.product(MAKERS, SIZES, range(4)):
            written.clear()
            scene = maker(random.Random(seed), Style(faces, unit), width, height)
            found.append(Made(scene, unit, tuple((line.box, line.measured_px) for line in written)))
    return found


@pytest.fixture(scope="module")
def planned(faces: tuple[Face, ...]) -> list[chart_plans.Chart]:
    return [
        chart_plans.plan_chart(random.Random(seed), Style(faces, unit), (width, height), (form,))
        for form, (width, height, unit), seed in itertools.product(FORMS, SIZES, range(15))
    ]


def test_writing_stays_inside_and_is_legible(made: list[Made]) -> None:
    for one in made:
        width, height = one.scene.picture.size
        inside = Box(0, 0, width, height).grown(0.01 - MARGIN_PX)
        for box, cap_px in one.drawn:
            assert inside.holds(box.left, box.top) and inside.holds(box.right, box.bottom), box
            assert cap_px >= 14 * one.unit, (cap_px, one.unit)


def test_texts_do_not_overlap(made: list[Made]) -> None:
    for one in made:
        boxes = [box for box, _ in one.drawn]
        for index, box in enumerate(boxes):
            assert not any(box.grown(1).meets(other) for other in boxes[:index]), (box, boxes)


def test_marks_lie_in_the_picture(made: list[Made]) -> None:
    for one in made:
        width, height = one.scene.picture.size
        for mark in one.scene.marks:
            assert mark.kind in KINDS and 0 <= mark.x < width and 0 <= mark.y < height, mark


@pytest.mark.parametrize("maker", MAKERS)
def test_the_same_seed_gives_the_same_scene(faces: tuple[Face, ...], maker: Maker) -> None:
    one, other = (maker(random.Random(5), Style(faces), 500, 450) for _ in range(2))
    assert one.picture.tobytes() == other.picture.tobytes()
    assert one.marks == other.marks and one.exchanges == other.exchanges


def test_one_value_is_the_highest_and_one_the_lowest(planned: list[chart_plans.Chart]) -> None:
    for chart in planned:
        ordered = sorted(chart.values)
        assert 3 <= len(ordered) == len(set(chart.labels)) <= 7
        assert 0 < ordered[0] < ordered[1] and ordered[-2] < ordered[-1] <= chart.ticks[-1], chart


def test_a_value_that_is_not_written_is_a_multiple_of_half_a_step(planned: list[chart_plans.Chart]) -> None:
    unwritten = [chart for chart in planned if not chart.is_written]
    assert 0.35 < len(unwritten) / len(planned) < 0.65
    for chart in unwritten:
        assert chart.has_ticks and all(2 * value % chart.step == 0 for value in chart.values), chart


def test_answers_follow_from_the_values_of_a_chart(planned: list[chart_plans.Chart]) -> None:
    for chart in planned:
        values = dict(zip(chart.labels, chart.values, strict=True))
        *asked, highest, lowest, difference = charts.exchanges_of(random.Random(0), chart, axis_of(chart))
        assert 2 <= len(asked) <= 3
        for exchange in asked:
            (label,) = (label for label in values if re.search(rf"\b{label}\b", exchange.question))
            assert exchange.answer == str(values[label])
        assert values[highest.answer] == max(values.values()) and values[lowest.answer] == min(
            values.values()
        )
        said = re.findall(r"(\S+) is (\d+)", difference.thought)
        assert [(label, str(values[label])) for label, _ in said] == said and len(said) == 2, difference
        assert all(label in difference.question for label, _ in said)
        sum_up = re.search(r"(\d+) - (\d+) = (\d+)$", difference.thought)
        assert sum_up is not None, difference
        high, low, answer = sum_up.groups()
        assert {high, low} == {value for _, value in said} and int(high) > int(low)
        assert difference.answer == answer == str(int(high) - int(low))


def test_a_value_that_is_not_written_lies_between_the_numbers_that_are_thought_of(
    planned: list[chart_plans.Chart],
) -> None:
    for chart in planned:
        for told in told_of(chart):
            found = re.fullmatch(r"between (\d+) and (\d+)|at (\d+)", told.beside)
            assert (found is None) == chart.is_written
            if found is not None:
                low, high, exact = found.groups()
                assert str(told.value) == exact or int(low) < told.value < int(high)


def test_the_numbers_of_the_axis_that_are_thought_of_enclose_the_end(
    planned: list[chart_plans.Chart],
) -> None:
    for chart in planned:
        if chart.is_written:
            continue
        listed = chart_thoughts.listed(told_of(chart), axis_of(chart))
        numbers, ends = listed.split("; ")
        places = {int(tick): int(place) for tick, place in re.findall(r"(\d+) (\d+)(?:, |$)", numbers)}
        assert tuple(places) == chart.ticks
        for told, (label, end) in zip(told_of(chart), re.findall(r"(\w+) at (\d+)", ends), strict=True):
            assert label == told.label
            around = [places[int(tick)] for tick in re.findall(r"\d+", told.beside)]
            assert min(around) - 1 <= int(end) <= max(around) + 1


def test_ranked_ends_say_which_is_the_highest(planned: list[chart_plans.Chart]) -> None:
    for chart in planned:
        told = told_of(chart)
        pairs = re.findall(r"(\w+) (at )?(\d+)(?:, |$)", chart_thoughts.ranking(told))
        assert tuple(label for label, _, _ in pairs) == chart.labels
        is_turned = bool(pairs[0][1]) and chart.form != "bars"
        best = (min if is_turned else max)(pairs, key=lambda pair: int(pair[2]))[0]
        assert chart.values[chart.labels.index(best)] == max(chart.values)


def axis_of(chart: chart_plans.Chart) -> chart_thoughts.Axis:
    """As it is when the picture is not turned."""
    tips = [Mark(BAR_END, *chart.tip(index)) for index in range(len(chart.values))]
    ticks = [Mark(TICK, chart.along(tick), chart.along(tick)) for tick in chart.ticks]
    return chart_thoughts.Axis(charts.along(chart, ticks), charts.along(chart, tips))


def told_of(chart: chart_plans.Chart) -> list[chart_thoughts.Told]:
    return [chart_thoughts.Told(chart, index, end) for index, end in enumerate(axis_of(chart).ends)]


def test_each_bar_leaves_a_mark_at_its_value(planned: list[chart_plans.Chart]) -> None:
    upright = (chart for chart in planned if chart.degrees == 0)
    for chart in itertools.islice(upright, 0, None, 8):
        scene = charts.draw_chart(random.Random(1), chart)
        ends = [(mark.x, mark.y) for mark in scene.marks if mark.kind == BAR_END]
        assert ends == [chart.tip(index) for index in range(len(chart.values))]
        assert all(chart.plot.grown(0.01).holds(*end) for end in ends)


def test_the_darkest_shade_is_clear_and_is_the_answer(faces: tuple[Face, ...]) -> None:
    hues = []
    for seed, (width, height, unit) in itertools.product(range(60), SIZES):
        rng = random.Random(seed)
        palette = colours.plan_palette(rng, Style(faces, unit), (width, height))
        levels = [brightness(patch.colour) for patch in palette.shades]
        assert 2 <= len(levels) <= 4 and levels[1] - levels[0] >= colours.LEAST_GAP, (seed, palette)
        first, *others = colours.palette_exchanges(rng, palette)
        assert (
            first.answer == palette.shades[0].label
            and f"darke{'r' if len(levels) == 2 else 'st'}" in first.question
        )
        assert palette.hue in first.question
        assert all(other.answer == palette.shades[-1].label for other in others)
        hues.append(palette.hue)
    assert hues.count("red") > len(hues) / 2


def test_the_brightest_spot_is_clear_and_is_the_answer(faces: tuple[Face, ...]) -> None:
    for seed, (width, height, unit) in itertools.product(range(20), SIZES):
        plan = scan_plans.plan_scan(random.Random(seed), Style(faces, unit), (width, height))
        ranked = sorted(plan.spots, key=lambda spot: -spot.peak)
        assert 3 <= len(ranked) <= 5 and ranked[0].peak - ranked[1].peak >= scan_plans.LEAST_LEAD
        brightest, darkest = colours.scan_exchanges(random.Random(seed), plan)
        assert (brightest.answer, darkest.answer) == (ranked[0].label, ranked[-1].label)


def test_a_scan_has_sixteen_bits_and_its_marks_are_as_bright_as_planned(faces: tuple[Face, ...]) -> None:
    for seed in range(8):
        style = Style(faces)
        plan = scan_plans.plan_scan(random.Random(seed), style, (500, 420))
        scene = colours.draw_scan(random.Random(seed), plan)
        assert scene.picture.mode == "I;16"
        pixels = np.asarray(scene.picture) / 65535
        spots = [mark for mark in scene.marks if mark.kind == MARKER]
        for mark, spot in zip(spots, plan.spots, strict=True):
            x, y = round(mark.x), round(mark.y)
            assert abs(pixels[y - 2 : y + 3, x - 2 : x + 3].mean() - spot.peak) < 0.05
