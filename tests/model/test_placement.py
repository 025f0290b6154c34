"""Which rank owns which expert."""

from __future__ import annotations

import pytest

from model.errors import CheckpointError
from model.placement import ExpertMap


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 9, 12, 16])
def test_every_expert_of_the_real_model_has_exactly_one_owner_that_lists_it(world_size: int) -> None:
    experts = ExpertMap(288, world_size)
    owned = [expert for rank in range(world_size) for expert in experts.local_range(rank)]
    assert owned == list(range(288))
    assert all(expert in experts.local_range(experts.owner(expert)) for expert in range(288))


def test_every_rank_owns_the_same_number_of_experts() -> None:
    experts = ExpertMap(288, 9)
    assert {len(experts.local_range(rank)) for rank in range(9)} == {experts.num_local} == {32}


def test_first_is_the_lowest_expert_of_a_rank() -> None:
    assert [ExpertMap(16, 4).first(rank) for rank in range(4)] == [0, 4, 8, 12]


@pytest.mark.parametrize("world_size", [0, -1, 5, 7, 289])
def test_shards_that_do_not_divide_are_refused_and_the_legal_numbers_named(world_size: int) -> None:
    with pytest.raises(CheckpointError) as refused:
        ExpertMap(288, world_size)
    assert f"by {world_size} shards" in refused.value.message
    assert "1, 2, 3, 4, 6, 8, 9, 12, 16" in refused.value.message
