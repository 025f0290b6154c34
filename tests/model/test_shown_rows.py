"""Marks of what MTP layers have written: of this owner of a block, never of one before."""

from __future__ import annotations

import random

import pytest

from model.shown_rows import ShownRows

BLOCK_SIZE = 4


@pytest.fixture
def shown() -> ShownRows:
    return ShownRows(8, BLOCK_SIZE)


def own(*blocks: int) -> object:
    return blocks.__getitem__


def test_nothing_is_shown_of_new_blocks(shown: ShownRows) -> None:
    shown.take((5, 3), 0, 0)
    assert shown.missing(own(5, 3), 0, 8) == [(0, 8)]
    assert shown.begins(own(5, 3), 0, 8) == 8


def test_what_was_shown_is_found_by_another_behind_the_same_blocks(shown: ShownRows) -> None:
    shown.take((5, 3, 1), 0, 0)
    shown.show(own(5, 3, 1), 0, 0, 10)
    shown.take((5, 3, 2), 0, 8)
    assert shown.missing(own(5, 3, 2), 0, 11) == [(8, 11)]
    assert shown.begins(own(5, 3, 2), 0, 8) == 0


def test_a_block_that_is_given_to_another_is_new(shown: ShownRows) -> None:
    shown.take((5, 3), 0, 0)
    shown.show(own(5, 3), 0, 0, 8)
    shown.take((3,), 2, 0)
    assert shown.missing(own(0, 0, 3), 8, 12) == [(8, 12)]


def test_a_copied_block_holds_what_it_copies_up_to_where_the_copy_goes_on(shown: ShownRows) -> None:
    shown.take((5, 3), 0, 0)
    shown.show(own(5, 3), 0, 0, 7)
    shown.copy(3, 6)
    shown.take((5, 6), 0, 5)
    assert shown.missing(own(5, 6), 0, 8) == [(5, 8)]


def test_rows_behind_a_gap_are_shown_from_the_next_block_on(shown: ShownRows) -> None:
    shown.take((5, 3, 1), 0, 0)
    shown.show(own(5, 3, 1), 0, 0, 3)
    shown.show(own(5, 3, 1), 6, 6, 11)
    assert shown.missing(own(5, 3, 1), 0, 11) == [(3, 8)]
    assert shown.begins(own(5, 3, 1), 0, 11) == 8


def test_a_hole_between_two_pieces_is_all_that_is_missing(shown: ShownRows) -> None:
    blocks = own(0, 1, 2, 3)
    shown.show(blocks, 0, 0, 4)
    shown.show(blocks, 8, 8, 16)
    assert shown.missing(blocks, 2, 16) == [(4, 8)]
    assert shown.missing(blocks, 5, 7) == [(5, 7)]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_only_rows_of_the_block_as_it_is_count_as_shown(seed: int) -> None:
    """Against a model that remembers for every row whose token MTP layers wrote there."""
    rng, num_physical = random.Random(seed), 12
    shown = ShownRows(num_physical, BLOCK_SIZE)
    written: dict[int, int | None] = {}  # slot -> position's owner, if MTP layers wrote the row for it
    for owner in range(60):
        blocks = rng.sample(range(num_physical), 4)
        shown.take(blocks, 0, 0)
        slots = [block * BLOCK_SIZE + row for block in blocks for row in range(BLOCK_SIZE)]
        written |= dict.fromkeys(slots)
        position = 0
        while position < len(slots):
            end = min(len(slots), position + rng.randrange(1, 7))
            if rng.random() < 0.6:
                begins = position
                shown.show(blocks.__getitem__, begins, position, end)
                written |= dict.fromkeys(slots[position:end], owner)
            position = end
        missing = shown.missing(blocks.__getitem__, 0, len(slots))
        absent = {position for start, stop in missing for position in range(start, stop)}
        assert all(written[slots[position]] == owner for position in set(range(len(slots))) - absent)
