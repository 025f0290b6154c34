"""Lists in plain text: the answer follows from what stands in the question."""

import random
import re

import pytest

from model.nano.data import lists

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_highest_of_a_list_is_the_answer(seed: int) -> None:
    exchange = lists.extreme(random.Random(seed))
    pairs = {
        label: int(number)
        for label, number in re.findall(r"(\w+) (?:at )?(\d+)(?=[,.]| from)", exchange.question)
    }
    is_most = ("highest" in exchange.question or "largest" in exchange.question) != (
        "top" in exchange.question
    )
    assert pairs[exchange.answer] == (max if is_most else min)(pairs.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_place_on_an_axis_is_told_by_its_neighbours(seed: int) -> None:
    exchange = lists.position(random.Random(seed))
    axis, rest = exchange.question.split("; ")
    places = {int(tick): int(at) for tick, at in re.findall(r"(\d+) (\d+)", axis)}
    at = int(re.findall(r" at (\d+)", rest)[0])
    around = [int(tick) for tick in re.findall(r"(?:between|and|at) (\d+)", exchange.thought)]
    assert int(exchange.answer) in {around[0], sum(around) // 2}
    middle = sum(places[tick] for tick in around) / len(around)
    assert abs(at - middle) <= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_differences_and_values_are_those_of_the_list(seed: int) -> None:
    asked = lists.difference(random.Random(seed))
    pairs = {label: int(number) for label, number in re.findall(r"(\w+) (\d+)(?=[,.])", asked.question)}
    found = re.search(r"more is (\w+) than (\w+)", asked.question)
    assert found is not None
    assert int(asked.answer) == pairs[found[1]] - pairs[found[2]] > 0
    single = lists.value(random.Random(seed))
    label = re.findall(r"How much is (\w+)", single.question)[0]
    assert f"{label} {single.answer}" in single.question


@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_as_are_named_are_counted(seed: int) -> None:
    exchange = lists.count(random.Random(seed))
    assert int(exchange.answer) == exchange.question.split(".")[0].count(",") + 1
