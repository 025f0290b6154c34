"""Block arithmetic and the pool."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sched.blocks import (
    BlockPool,
    first_window_block,
    min_sliding_blocks,
    num_blocks,
    size_sliding_group,
    sliding_bound,
)

SIZES = st.integers(1, 40)


@given(start=st.integers(0, 500), num_tokens=SIZES, window=SIZES, block=SIZES)
def test_a_chunk_and_its_window_never_touch_more_blocks_than_the_bound(start, num_tokens, window, block):
    oldest = max(0, start - window + 1)
    touched = {position // block for position in range(oldest, start + num_tokens)}
    assert min(touched) == first_window_block(start, window, block)
    assert len(touched) <= sliding_bound(window, num_tokens, block)


@given(window=SIZES, block=SIZES)
def test_the_least_number_of_sliding_blocks_is_the_worst_case_of_one_token_and_no_more(window, block):
    def touched(position):
        return {p // block for p in range(max(0, position - window + 1), position + 1)}

    assert max(len(touched(position)) for position in range(4 * window * block)) == min_sliding_blocks(
        window, block
    )


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_num_blocks_rounds_up(num_tokens, expected):
    assert num_blocks(num_tokens, 4) == expected


def test_the_sliding_group_is_no_larger_than_the_full_one_nor_than_the_windows_need():
    assert size_sliding_group(10, max_running=64, window=512, chunk_tokens=256, block_size=16) == 10
    assert size_sliding_group(10**6, max_running=2, window=32, chunk_tokens=16, block_size=16) == 2 * 4 + 2


def test_a_freed_block_is_usable_only_after_the_last_step_planned_before_the_free():
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    pool.free(blocks, last_planned=1)
    assert (pool.num_free, pool.num_coming) == (0, 2)
    pool.step_returned(0)
    assert pool.num_free == 0
    pool.step_returned(1)
    assert pool.num_free == 2


def test_a_block_freed_with_nothing_in_flight_is_usable_at_once():
    pool = BlockPool(1)
    pool.free(pool.allocate(1), last_planned=-1)
    assert pool.num_free == 1


def test_more_blocks_than_are_free_are_not_handed_out():
    pool = BlockPool(2)
    with pytest.raises(AssertionError, match=r"\(3, 2\)"):
        pool.allocate(3)


def test_a_block_freed_twice_is_noticed():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.free(blocks, -1)
    pool.free(blocks, -1)
    with pytest.raises(AssertionError, match="not owned exactly once"):
        pool.check([], is_idle=True)
