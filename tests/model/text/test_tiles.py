"""How an image is cut, against goldens and by properties of the plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model.text.tiles import LONGEST_SIDE, plan_tiles

SIDES = st.integers(1, 8000)


def test_every_golden_size_has_its_tiles_and_tokens(shared_json):
    goldens = shared_json("image-tiles.json")
    assert len(goldens) >= 25
    for golden in goldens:
        plan = plan_tiles(golden["width"], golden["height"])
        assert (plan.tiles, plan.newlines, plan.tokens) == (
            golden["tiles"],
            golden["newlines"],
            golden["tokens"],
        ), golden


@given(width=SIDES, height=SIDES)
def test_windows_cover_the_picture(width, height):
    plan = plan_tiles(width, height)
    assert max(plan.capped_size) <= LONGEST_SIDE
    assert plan.tokens == 83 * plan.cols * plan.rows + max(plan.rows - 1, 0) + 171
    if plan.tiles:
        assert plan.cols * plan.window >= plan.crop_size[0]
        assert plan.rows * plan.window >= plan.crop_size[1]


@given(width=SIDES, height=SIDES)
def test_a_turned_picture_has_the_turned_plan(width, height):
    plan, turned = plan_tiles(width, height), plan_tiles(height, width)
    assert (plan.cols, plan.rows) == (turned.rows, turned.cols)
    assert plan.crop_size == turned.crop_size[::-1]


@given(width=SIDES, height=SIDES, max_tiles=st.integers(0, 40))
def test_max_tiles_is_kept_and_costs_nothing_where_it_is_kept_anyway(width, height, max_tiles):
    free, limited = plan_tiles(width, height), plan_tiles(width, height, max_tiles)
    assert limited.tiles <= max_tiles
    assert (limited == free) == (free.tiles <= max_tiles)


def test_fewer_tiles_come_from_a_smaller_picture():
    assert plan_tiles(4000, 3000).tiles == 30
    limited = plan_tiles(4000, 3000, max_tiles=12)
    assert (limited.capped_size, limited.tiles) == ((2016, 1512), 12)
    assert plan_tiles(4000, 3000, max_tiles=0).tokens == 171


def test_a_remainder_of_a_fifth_is_rounded_as_the_models_processor_does():
    # In floating point 2.2 - 2 lies above 0.2 and 8.2 - 8 below.
    assert plan_tiles(220, 100).crop_size == (300, 100)
    assert plan_tiles(656, 80).crop_size == (640, 80)
