"""Random writing: codes, words, names, numbers, dates, amounts, sentences."""

from __future__ import annotations

import random
from collections.abc import Callable

# Letters and digits that no typeface makes alike: no O and 0, no I, l and 1.
CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ONSET_LIST = "b bl br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl sp st t th tr v w y z"
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "ou")
_CODA_LIST = "b ck d ft g l ll lt m mp n nd ng nt p r rd rk rn s sk st t x z"
_WORD_LIST = """
apple river table window garden paper silver yellow bridge market winter summer orange purple island forest
mountain valley castle dragon rocket planet engine bottle button candle carpet copper cotton corner danger
dinner doctor farmer finger flower guitar hammer harbor honey hunter jacket kettle kitchen ladder lemon
letter lion magnet marble meadow mirror monkey needle number ocean office onion oyster panda parrot pencil
pepper piano pillow pirate pocket potato prince puzzle rabbit ribbon ring road rubber saddle sailor salad
school season shadow shelf ship shirt soap spider spoon square stone storm street sugar sunset temple
thunder ticket tiger timber tomato tower train travel tree trophy tunnel turtle uncle velvet violin wagon
wallet water whale wheel whistle wind wolf wood world writer zebra zipper open closed fresh quick happy
quiet strong small large bright dark early late north south east west left right first last free sale
exit entry push pull stop start station platform ticket price offer today tomorrow morning evening night
coffee tea milk bread butter cheese cake soup juice water fish rice pasta pizza burger salad sandwich
"""
_ONSETS, _CODAS, WORDS = tuple(_ONSET_LIST.split()), tuple(_CODA_LIST.split()), tuple(_WORD_LIST.split())


def code(rng: random.Random, low: int = 3, high: int = 8) -> str:
    """Such as K7XQ2."""
    return "".join(rng.choice(CODE_CHARACTERS) for _ in range(rng.randint(low, high)))


def word(rng: random.Random) -> str:
    """A real word or one that could be, in lower case."""
    return rng.choice(WORDS) if rng.random() < 0.4 else invented(rng)


def invented(rng: random.Random) -> str:
    """A word that could be: it can be read but not guessed."""
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 2))]
    return "".join(parts) + rng.choice(_CODAS)


def name(rng: random.Random) -> str:
    """A word with a capital letter."""
    return word(rng).capitalize()


def cased(text: str, rng: random.Random) -> str:
    """In lower, title or upper case."""
    return rng.choice((str.lower, str.title, str.upper))(text)


def whole(rng: random.Random) -> str:
    """A whole number of one to five digits."""
    return str(rng.randrange(10 ** rng.randint(1, 5)))


def amount(rng: random.Random, most: int = 400) -> int:
    """Cents."""
    return rng.randint(50, most * 100) if rng.random() < 0.7 else rng.randint(1, most) * 50


def money(cents: int) -> str:
    """1234 -> 12.34."""
    return f"{cents // 100}.{cents % 100:02d}"


def date(rng: random.Random) -> str:
    """A date in one of three ways of writing."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2039)
    return rng.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{day} {MONTHS[month - 1]} {year}",
        )
    )


def distinct(make: Callable[[random.Random], str], count: int, rng: random.Random) -> list[str]:
    """`count` different results of make(rng)."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def sentence(rng: random.Random) -> str:
    """Three to six words, a capital letter, a full stop."""
    words = [word(rng) for _ in range(rng.randint(3, 6))]
    return " ".join(words).capitalize() + "."
