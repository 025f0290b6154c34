"""Random bytes and tokens through the parser of tool calls: no exception, no lost text."""

from __future__ import annotations

import json
import random
import re

import pytest

from model.text.output import OutputStream
from model.text.tools import CallEnd, join
from tests.model.text.calls import FRAGMENTS, TOOLS, read
from tests.model.text.streams import MARKERS, calls_of, deltas, ids_of, run


def check_calls(calls):
    """Calls are numbered, named, and JSON exactly if they are complete."""
    assert [piece.index for piece in calls] == list(range(len(calls)))
    for piece in calls:
        assert piece.name
        assert piece.end is not None
        if piece.is_complete:
            assert isinstance(json.loads(piece.arguments), dict)
        else:
            with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
                json.loads(piece.arguments)


def check_bytes(rng):
    """Random bytes, tags among them, cut anywhere."""
    parts = [
        rng.choice(FRAGMENTS)
        if rng.random() < 0.7
        else rng.randbytes(rng.randint(0, 6)).decode(errors="replace")
        for _ in range(rng.randint(0, 16))
    ]
    text = "".join(parts)
    cuts = [rng.randint(0, len(text)) for _ in range(rng.randint(0, 5))]
    end = rng.choice(list(CallEnd))
    stretches = read(text, cuts, end)
    assert stretches == read(text, end=end), text
    assert "".join(stretch.text for stretch in stretches) == text
    check_calls(join(piece for stretch in stretches for piece in stretch.pieces))


def check_tokens(rng, tokenizer, palette):
    """Random tokens, cut anywhere: every character once, but for the newlines around `</think>`."""
    ids = [token for _ in range(rng.randint(0, 12)) for token in rng.choice(palette)]
    stream = OutputStream(tokenizer, starts_in_thinking=rng.random() < 0.5, tools=TOOLS)
    cuts = [rng.randint(0, len(ids)) for _ in range(rng.randint(0, 3))]
    events = run(stream, deltas(ids, cuts))
    assert sum((event.token_ids for event in events), ()) == tuple(ids)
    check_calls(calls_of(events))
    markers = {tokenizer.control_id(marker): marker for marker in MARKERS[:4]}
    pattern, plain = "", []
    for token in [*ids, None]:
        if token is not None and token not in markers:
            plain.append(token)
            continue
        pattern += re.escape(tokenizer.decode(plain).replace("\n", ""))
        pattern += "" if token is None else f"(?:{re.escape(markers[token])})?"
        plain = []
    shown = "".join(event.text for event in events).replace("\n", "")
    assert re.fullmatch(pattern, shown), (pattern, shown)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_thousand_random_strings_lose_nothing_and_raise_nothing(tokenizer, seed):
    rng = random.Random(seed)
    palette = [ids_of(tokenizer, [piece]) for piece in [*FRAGMENTS, *MARKERS * 3]]
    palette += [[rng.randrange(tokenizer.vocab_size + 3)] for _ in range(40)]
    for _ in range(25_000):
        check_bytes(rng)
        check_tokens(rng, tokenizer, palette)
