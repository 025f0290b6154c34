"""Requests without a picture: arithmetic to three digits, copying, sorting short lists."""

from __future__ import annotations

import random

from model.nano.data import words
from model.nano.data.scene import Exchange


def text_exchange(rng: random.Random) -> Exchange:
    """One of them."""
    return rng.choice((arithmetic, arithmetic, copying, sorting))(rng)


def arithmetic(rng: random.Random) -> Exchange:
    """Sums and differences of numbers of up to three digits, products that stay below 1000."""
    kind = rng.random()
    if kind < 0.45:
        a, b = _number(rng), _number(rng)
        return _asked(rng, f"{a} + {b}", a + b, steps=_column_steps(a, b))
    if kind < 0.85:
        a, b = sorted((_number(rng), _number(rng)), reverse=True)
        return _asked(rng, f"{a} - {b}", a - b, steps=f"{b} + {a - b} = {a}")
    a = rng.randint(2, 99)
    b = rng.randint(2, min(9, 999 // a))
    parts = f"{a // 10 * 10} * {b} = {a // 10 * 10 * b}. {a % 10} * {b} = {a % 10 * b}"
    return _asked(rng, f"{a} * {b}", a * b, steps=parts)


def copying(rng: random.Random) -> Exchange:
    """Repeat a text as it is."""
    make = rng.choice((words.code, words.sentence, words.name, words.date))
    text = " ".join(make(rng) for _ in range(rng.randint(1, 2)))
    question = rng.choice(("Repeat: {}", "Copy this text: {}", "Write exactly this: {}")).format(text)
    return Exchange(question, text, steps="The text stays as it is")


def sorting(rng: random.Random) -> Exchange:
    """Put three to six numbers or words into order."""
    count = rng.randint(3, 6)
    if rng.random() < 0.5:
        numbers = rng.sample(range(1000), count)
        items, ordered = [str(n) for n in numbers], [str(n) for n in sorted(numbers)]
        question = rng.choice(("Sort these numbers: {}", "Put in ascending order: {}"))
    else:
        items = words.distinct(words.word, count, rng)
        ordered = sorted(items)
        question = rng.choice(("Sort these words: {}", "Put in alphabetical order: {}"))
    return Exchange(question.format(", ".join(items)), ", ".join(ordered), steps=f"The first is {ordered[0]}")


def _number(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.choice((1, 2, 3, 3)))


def _asked(rng: random.Random, term: str, result: int, steps: str) -> Exchange:
    question = rng.choice(("What is {}?", "Calculate {}.", "{} = ?")).format(term)
    return Exchange(question, str(result), steps=steps)


def _column_steps(a: int, b: int) -> str:
    """The addition digit by digit, as on paper."""
    steps, carry, place = [], 0, 0
    while 10**place <= max(a, b, 1):
        x, y = a // 10**place % 10, b // 10**place % 10
        steps.append(f"{x} + {y}" + (f" + {carry}" if carry else "") + f" = {x + y + carry}")
        carry = (x + y + carry) // 10
        place += 1
    return ". ".join(steps)
