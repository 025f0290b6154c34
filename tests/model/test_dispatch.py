"""Tokens to experts and back: the same bits with any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.dispatch import MAX_GATHERED_TOKENS, LocalDispatcher, _add_gathered, sort_by_expert
from model.gang import spawn_gang
from model.placement import ExpertMap
from tests.model import gangs
from tests.model.gangs import Gang, Tokens

NUM_EXPERTS = 16
HIDDEN = 24


def random_tokens(num_tokens: int, num_choices: int, seed: int, dtype: torch.dtype = torch.float64) -> Tokens:
    random = torch.Generator().manual_seed(seed)
    scores_TE = torch.rand(num_tokens, NUM_EXPERTS, generator=random)
    ids_TK = scores_TE.argsort(1)[:, :num_choices].contiguous()
    x_TH = torch.randn(num_tokens, HIDDEN, generator=random, dtype=torch.float64).to(dtype)
    return Tokens(x_TH, ids_TK, torch.rand(num_tokens, num_choices, generator=random))


def local(tokens: Tokens) -> Tensor:
    dispatcher = LocalDispatcher(ExpertMap(NUM_EXPERTS, 1))
    dispatcher.begin_step((tokens.x_TH.shape[0],))
    return dispatcher.moe(tokens.x_TH, tokens.ids_TK, tokens.weights_TK, gangs.elementwise_experts(0))


def one_by_one(tokens: Tokens) -> Tensor:
    """The rule in its plainest form: each token, each of its experts in ascending id, one addition."""
    dtype = torch.float64 if tokens.x_TH.dtype == torch.float64 else torch.float32
    y_TH = torch.zeros(tokens.x_TH.shape, dtype=dtype)
    for token, x_H in enumerate(tokens.x_TH):
        choices = zip(tokens.ids_TK[token].tolist(), tokens.weights_TK[token], strict=True)
        for expert, weight in sorted(choices):
            scale = (torch.tensor(expert).to(x_H.dtype) + 2) / 7
            y_TH[token] += (x_H * scale + torch.tensor(expert).to(x_H.dtype)).to(dtype) * weight.to(dtype)
    return y_TH.to(tokens.x_TH.dtype)


FOUR = pytest.param(4, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[2, FOUR], ids=["2 ranks", "4 ranks"])
def gang(request: pytest.FixtureRequest) -> Iterator[Gang]:
    if request.param == 2:
        yield request.getfixturevalue("gang_of_two")
        return
    runner = spawn_gang(request.param, gangs.TaskWorker)
    yield Gang(runner)
    runner.close()


def assert_same_as_local(gang: Gang, tokens: Sequence[Tokens]) -> None:
    results = gang.run(gangs.exchange, NUM_EXPERTS, list(tokens))
    for rank, (y_TH, mine) in enumerate(zip(results, tokens, strict=True)):
        assert torch.equal(y_TH, local(mine)), f"rank {rank} of {len(tokens)}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_choices", [1, 4, 8])
@pytest.mark.parametrize("num_tokens", [0, 1, 33])
def test_a_token_is_the_sum_of_its_experts_in_ascending_id(
    num_tokens: int, num_choices: int, dtype: torch.dtype
) -> None:
    tokens = random_tokens(num_tokens, num_choices, seed=num_tokens + num_choices, dtype=dtype)
    assert torch.equal(local(tokens), one_by_one(tokens))


def test_experts_that_double_double_any_routing() -> None:
    tokens = random_tokens(50, 4, seed=3)
    quarters = torch.full((50, 4), 0.25)
    dispatcher = LocalDispatcher(ExpertMap(NUM_EXPERTS, 1))
    y_TH = dispatcher.moe(tokens.x_TH, tokens.ids_TK, quarters, gangs.doubling_experts)
    assert torch.equal(y_TH, 2 * tokens.x_TH)


def test_experts_get_a_count_each_and_their_rows_in_token_order() -> None:
    seen: list[tuple[list[list[float]], list[int]]] = []

    def experts(rows_RH: Tensor, counts: list[int]) -> Tensor:
        seen.append((rows_RH.tolist(), counts))
        return rows_RH

    x_TH = torch.tensor([[1.0], [2.0], [3.0]])
    ids_TK = torch.tensor([[3, 1], [1, 0], [3, 1]])
    LocalDispatcher(ExpertMap(4, 1)).moe(x_TH, ids_TK, torch.ones(3, 2), experts)
    assert seen == [([[2.0], [1.0], [2.0], [3.0], [1.0], [3.0]], [1, 3, 0, 2])]


def test_a_large_and_a_small_term_are_added_in_float32_for_bfloat16_tokens() -> None:
    x_TH = torch.ones(1, 1, dtype=torch.bfloat16)
    weights_TK = torch.tensor([[256.0, 0.6, 0.6, 0.6]])
    dispatcher = LocalDispatcher(ExpertMap(4, 1))
    y_TH = dispatcher.moe(x_TH, torch.tensor([[0, 1, 2, 3]]), weights_TK, lambda rows_RH, _: rows_RH)
    assert y_TH.dtype == torch.bfloat16
    assert y_TH.item() == 258.0  # 257.8 rounded once; bfloat16 additions would have stayed at 256


@pytest.mark.parametrize("num_choices", [1, 4, 8])
def test_the_way_of_adding_for_gpus_gives_the_same_bits(num_choices: int) -> None:
    tokens = random_tokens(40, num_choices, seed=11)
    route = sort_by_expert(tokens.ids_TK)
    rows_RH = torch.randn(40 * num_choices, HIDDEN, dtype=torch.float64)
    in_order = torch.zeros(40, HIDDEN, dtype=torch.float64).index_add_(0, route.token_R, rows_RH)
    assert torch.equal(_add_gathered(rows_RH, route, tokens.ids_TK.shape), in_order)


COUNTS = {
    "one token in the gang": (0, 1, 0, 0),
    "a rank without tokens": (5, 0, 3, 1),
    "few tokens": (1, 2, 3, 4),
    "at the threshold": (30, 34, 0, 0),
    "just above the threshold": (30, 35, 0, 0),
    "many tokens": (40, 57, 33, 64),
    "many tokens on one rank": (0, 100, 0, 0),
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_ranks_give_the_bits_of_one_process(gang: Gang, counts: tuple[int, ...], dtype: torch.dtype) -> None:
    counts = counts[: len(gang.runner.pids)]
    assert_same_as_local(gang, [random_tokens(count, 4, seed, dtype) for seed, count in enumerate(counts)])


@pytest.mark.parametrize("counts", [(3, 0, 2, 6), (20, 50, 0, 9)], ids=["gathered", "counted"])
@pytest.mark.parametrize("expert", [0, 7, 15])
def test_every_token_may_choose_the_same_expert(gang: Gang, counts: tuple[int, ...], expert: int) -> None:
    tokens = [random_tokens(count, 1, seed) for seed, count in enumerate(counts[: len(gang.runner.pids)])]
    one = [Tokens(each.x_TH, torch.full_like(each.ids_TK, expert), each.weights_TK) for each in tokens]
    assert_same_as_local(gang, one)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_routing_gives_the_bits_of_one_process(gang: Gang, data: st.DataObject) -> None:
    sizes = st.one_of(st.just(0), st.integers(1, 20), st.integers(1, 90))
    counts = [data.draw(sizes) for _ in gang.runner.pids]
    num_choices = data.draw(st.integers(1, 8))
    pool = data.draw(st.lists(st.integers(0, NUM_EXPERTS - 1), min_size=num_choices, unique=True))
    seed = data.draw(st.integers(0, 2**31))
    tokens = [random_tokens(count, num_choices, seed + rank) for rank, count in enumerate(counts)]
    routed = [_routed_within(each, pool, seed) for each in tokens]
    assert_same_as_local(gang, routed)


def _routed_within(tokens: Tokens, pool: list[int], seed: int) -> Tokens:
    """The same tokens choosing among `pool` alone: the other experts stay empty."""
    random = torch.Generator().manual_seed(seed)
    order_TP = torch.rand(tokens.x_TH.shape[0], len(pool), generator=random).argsort(1)
    return Tokens(tokens.x_TH, torch.tensor(pool)[order_TP[:, : tokens.ids_TK.shape[1]]], tokens.weights_TK)


THRESHOLD = [(MAX_GATHERED_TOKENS, 2), (MAX_GATHERED_TOKENS + 1, 3)]


@pytest.mark.parametrize(("num_tokens", "num_exchanges"), THRESHOLD)
def test_the_default_exchange_goes_through_deepspeed(gang: Gang, num_tokens: int, num_exchanges: int) -> None:
    world_size = len(gang.runner.pids)
    counts = [num_tokens - (world_size - 1)] + [1] * (world_size - 1)
    tokens = [random_tokens(count, 4, seed) for seed, count in enumerate(counts)]
    for operations in gang.run(gangs.operations_in_deepspeeds_log, NUM_EXPERTS, tokens):
        assert operations == ["all_to_all_single"] * num_exchanges
