"""How acceptance of drafts is counted from a finished answer."""

from __future__ import annotations

from model.nano.inspect import count_accepted

IDS = [9, 9, 1, 2, 3, 4, 5, 6, 7]  # two prompt tokens, an answer of seven


def perfect(layer: int) -> list[int]:
    """Guesses of a layer that is always right: position t drafts token t + 2 + layer."""
    return [*IDS[2 + layer :], *[0] * (2 + layer)]


def test_perfect_drafts_take_four_tokens_a_step() -> None:
    counts = count_accepted([perfect(0), perfect(1), perfect(2)], IDS, 2)
    # Token 2 is known; steps know 2, then 6: the second has two tokens left.
    assert counts.tolist() == [[2, 2, 1], [2, 2, 1]]


def test_a_draft_behind_a_wrong_one_does_not_count() -> None:
    counts = count_accepted([[0] * len(IDS), perfect(1), perfect(2)], IDS, 2)
    assert counts[0].tolist() == [0, 0, 0]
    assert counts[1].tolist() == [6, 5, 4]


def test_a_step_goes_on_behind_the_last_accepted_draft() -> None:
    counts = count_accepted([perfect(0), [0] * len(IDS), perfect(2)], IDS, 2)
    assert counts[0].tolist() == [3, 0, 0]
    assert counts[1].tolist() == [3, 3, 2]
