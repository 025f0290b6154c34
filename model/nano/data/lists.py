"""Lists in plain text and questions about them: what a thought does once a picture is written down.

Learned and never examined. The thoughts of charts, tables and bills write down what there is and then choose
from it; the second half is learned here by itself, a hundred of them in the time of one picture.
"""

from __future__ import annotations

import random

from model.nano.data.chart_plans import STEPS, draw_labels
from model.nano.data.scene import Exchange

_SHAKE = 3  # thousandths by which a place is off: places that are written down are


def list_exchange(rng: random.Random) -> Exchange:
    """One of them."""
    return rng.choice((extreme, extreme, value, difference, position, count))(rng)


def extreme(rng: random.Random) -> Exchange:
    """The highest or lowest of a list; of places from the top, the highest is the smallest number."""
    pairs, word = _pairs(rng), rng.choice(("highest", "lowest", "largest", "smallest"))
    is_most, unit = word in {"highest", "largest"}, ""
    if rng.random() < 0.4:
        unit, is_most = " from the top", not is_most
        word = "highest" if not is_most else "lowest"
    listed = ", ".join(f"{label} at {number}" if unit else f"{label} {number}" for label, number in pairs)
    label = (max if is_most else min)(pairs, key=lambda pair: pair[1])[0]
    return Exchange(f"{listed}{unit}. Which is the {word}?", label, steps=f"{label} is the {word}")


def value(rng: random.Random) -> Exchange:
    """The number that stands with a label."""
    pairs = _pairs(rng)
    label, number = rng.choice(pairs)
    return Exchange(f"{_listed(pairs)}. How much is {label}?", str(number), steps=f"{label} is {number}")


def difference(rng: random.Random) -> Exchange:
    """How much one is more than another."""
    pairs = _pairs(rng)
    (less, low), (more, high) = sorted(rng.sample(pairs, 2), key=lambda pair: pair[1])
    sum_up = f"{high} - {low} = {high - low}"
    thought = f"{more} is {high}, {less} is {low}. {sum_up}"
    return Exchange(
        f"{_listed(pairs)}. How much more is {more} than {less}?", str(high - low), thought, sum_up
    )


def position(rng: random.Random) -> Exchange:
    """The number of an axis at a place on it: at a tick, or half way between two."""
    step, num_steps = rng.choice(STEPS), rng.randint(4, 7)
    first, last = rng.randint(100, 330), rng.randint(600, 920)
    if rng.random() < 0.6:
        first, last = last, first  # upright: the numbers grow towards the top
    places = [round(first + index * (last - first) / num_steps) for index in range(num_steps + 1)]
    ticks = [index * step for index in range(num_steps + 1)]
    is_half = step % 2 == 0 and rng.random() < 0.5
    index = rng.randrange(num_steps) if is_half else rng.randrange(num_steps + 1)
    place, number = places[index], ticks[index]
    thought = f"at {number}"
    if is_half:
        place, number = (place + places[index + 1]) // 2, number + step // 2
        thought = f"between {ticks[index]} and {ticks[index + 1]}"
    place += rng.randint(-_SHAKE, _SHAKE)
    label = draw_labels(rng)[0]
    axis = ", ".join(f"{tick} {at}" for tick, at in zip(ticks, places, strict=True))
    return Exchange(f"{axis}; {label} at {place}. What is {label}?", str(number), f"{label} {thought}")


def count(rng: random.Random) -> Exchange:
    """How many there are."""
    labels = [label for label, _ in _pairs(rng)]
    return Exchange(f"{', '.join(labels)}. How many are these?", str(len(labels)))


def _pairs(rng: random.Random) -> list[tuple[str, int]]:
    """Two to seven labels, each with a number of its own."""
    labels = draw_labels(rng)
    labels = labels[: rng.randint(2, len(labels))]
    most = rng.choice((20, 100, 300, 1000))
    return list(zip(labels, rng.sample(range(1, most), len(labels)), strict=True))


def _listed(pairs: list[tuple[str, int]]) -> str:
    return ", ".join(f"{label} {number}" for label, number in pairs)
