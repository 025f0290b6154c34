"""Masks of a sequence are a function of its tokens, and drafts cost nothing but time."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import CheckpointError
from model.grammar import Grammar
from model.masks import MaskWorker, TokenMasks
from model.sampler import SampleRow, sample
from model.text.grammar_masks import unpack
from model.text.grammars import Grammars
from model.types import SamplingParams
from tests.model.text.grammars import ENDS, NANO, VOCAB_SIZE, ids

GRAMMARS = Grammars(NANO, VOCAB_SIZE)


def params(grammar: Grammar, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=200, eos_token_ids=ENDS, grammar=grammar, **fields)


def row(grammar: Grammar, output: list[int] | None = None, **fields: Any) -> SampleRow:
    sampling = params(grammar, **fields)
    return SampleRow(sampling, [1], [] if output is None else output, masks=TokenMasks(sampling, GRAMMARS))


def allowed(of: SampleRow) -> set[int]:
    mask_W = of.allowed_W()
    assert mask_W is not None
    return set(np.flatnonzero(unpack(mask_W, VOCAB_SIZE)).tolist())


def test_a_row_made_anew_at_any_token_allows_the_same() -> None:
    grammar, rng = Grammar("regex", "([a-z]+ [0-9]{2},)*"), random.Random(3)
    grown = row(grammar)
    for _ in range(60):
        choices = sorted(allowed(grown) - set(ENDS))
        drafts = [rng.choice(choices), rng.randrange(VOCAB_SIZE)]
        ahead = grown.ahead(drafts).allowed_W(), grown.ahead(drafts[:1]).allowed_W()
        again = row(grammar, list(grown.output_ids))
        assert allowed(again) == allowed(grown)
        for found, expected in zip(ahead, (again.ahead(drafts), again.ahead(drafts[:1])), strict=True):
            np.testing.assert_array_equal(found, expected.allowed_W())
        grown.output_ids.append(rng.choice([drafts[0], rng.choice(choices)]))


def test_behind_a_draft_that_may_not_come_nobody_asks() -> None:
    ahead = row(Grammar.choice(["yes"])).ahead(ids("no"))
    assert ahead.allowed_W() is None
    assert not ahead.is_judged


def test_a_token_that_may_not_come_is_never_sampled_whatever_the_filters() -> None:
    (five,) = ids("5")
    logits_BV = torch.zeros(1, VOCAB_SIZE, dtype=torch.float64)
    logits_BV[0, five] = -50.0
    for fields in (
        {},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.5},
        {"min_p": 0.9},
        {"top_k": 9, "top_p": 0.1},
    ):
        for temperature in (0.0, 1.0, 5.0):
            only = row(Grammar("regex", "5"), temperature=temperature, **fields)
            assert sample(logits_BV, [only])[0][0] == five


def test_the_grammar_comes_before_top_k() -> None:
    a, b = ids("a")[0], ids("b")[0]
    logits_BV = torch.linspace(5, 6, VOCAB_SIZE, dtype=torch.float64).unsqueeze(0).clone()
    logits_BV[0, [a, b]] = torch.tensor([1.0, 1.0], dtype=torch.float64)
    grammar = Grammar("regex", "a|b")
    drawn = {
        sample(logits_BV, [row(grammar, temperature=1.0, top_k=2, seed=seed)])[0][0] for seed in range(20)
    }
    assert drawn == {a, b}


def test_logprobs_are_of_the_distribution_without_a_grammar() -> None:
    (five,) = ids("5")
    logits_BV = torch.zeros(1, VOCAB_SIZE, dtype=torch.float64)
    token_id, logprob = sample(logits_BV, [row(Grammar("regex", "5"), num_logprobs=0)])[0]
    assert logprob is not None
    assert (token_id, round(logprob.logprob, 6)) == (five, round(float(-np.log(VOCAB_SIZE)), 6))


def test_min_tokens_yield_where_only_an_end_may_come() -> None:
    open_, complete = (
        row(Grammar("regex", "5*"), min_tokens=9),
        row(Grammar("regex", "5"), ids("5"), min_tokens=9),
    )
    assert open_.masked_ids == ENDS
    assert complete.masked_ids == ()


@pytest.mark.slow
def test_what_may_never_be_written_ends_no_request() -> None:
    """Drafts that run into a limit: the masks of real tokens stay."""
    grammar = Grammar("ebnf", 'root ::= s\ns ::= "a" s s | s s | "a" s "b" | "a" | "b" s s s | ""')
    output: list[int] = []
    grown = row(grammar, output)
    masks = grown.masks
    assert masks is not None
    (a,) = ids("a")
    for _ in range(400):
        ahead = grown.ahead([a] * 3).allowed_W()
        mask_W = grown.allowed_W()
        if ahead is None:
            break
        output.append(a)
    else:
        pytest.fail("no limit was met")
    assert masks.failure == ""
    assert mask_W is not None
    assert grown.is_judged
    assert not grown.ahead([a] * 3).is_judged


@pytest.mark.parametrize("grammar", [None, Grammar.choice(["a"])])
def test_thinking_ends_where_its_budget_does_also_behind_drafts(grammar: Grammar | None) -> None:
    (end,) = ids("</think>")
    sampling = SamplingParams(
        max_tokens=99,
        eos_token_ids=ENDS,
        min_tokens=50,
        grammar=grammar,
        starts_in_thinking=True,
        max_think_tokens=3,
        think_end_id=end,
    )
    thinking = SampleRow(sampling, [1], [40, 41], masks=TokenMasks(sampling, GRAMMARS))
    assert allowed(thinking.ahead([42])) == {end}
    for other in (thinking, thinking.ahead([end]), thinking.ahead([42, end])):
        mask_W = other.allowed_W()
        assert mask_W is None or allowed(other) != {end}
    thinking.output_ids.append(42)
    assert (allowed(thinking), thinking.masked_ids) == ({end}, ENDS)
    thinking.output_ids[-1:] = [end]
    assert TokenMasks(sampling, GRAMMARS).after(thinking.output_ids, ()) is None or grammar is not None


def test_a_checkpoint_without_a_tokenizer_fails_with_words(tmp_path: Any) -> None:
    sampling = params(Grammar.choice(["a"]))
    masks = TokenMasks(sampling, Grammars(tmp_path, VOCAB_SIZE))
    assert masks.after([], ()) is None
    assert "tokenizer.json" in masks.failure
    with pytest.raises(CheckpointError, match="tokenizer"):
        Grammars(tmp_path, VOCAB_SIZE).compile(Grammar.choice(["a"]))


@pytest.mark.parametrize("drafts", [(), ("b",), ("b", " ")])
def test_masks_made_together_are_those_made_one_by_one(drafts: tuple[str, ...]) -> None:
    """Of rows whose matchers are there already, with drafts ahead or none, and of one that may end."""
    grammars = [
        Grammar("regex", "[a-z]+( [a-z]+)*"),
        Grammar("regex", "[ab]{2,9}( c)?"),
        Grammar.choice(["abc"]),
    ]
    rows, worker = [row(grammar) for grammar in grammars], MaskWorker()
    for each in rows:
        each.allowed_W()
        each.output_ids += ids("a")
    ahead = [each.ahead([ids(draft)[0] for draft in drafts]) for each in rows]
    started = worker.begin(ahead)
    assert started is not None
    started.result(timeout=10)
    for each, grammar in zip(ahead, grammars, strict=True):
        alone = row(grammar, list(each.output_ids)).ahead(each.drafts)
        np.testing.assert_array_equal(each.allowed_W(), alone.allowed_W())
    assert worker.begin(ahead) is None, "they are known"


def test_several_rows_of_a_sequence_are_made_in_their_order() -> None:
    grown, worker = row(Grammar("regex", "[a-z]+")), MaskWorker()
    grown.allowed_W()
    grown.output_ids += ids("a")
    drafts = [ids("b")[0], ids("c")[0]]
    rows = [grown, grown.ahead(drafts[:1]), grown.ahead(drafts)]
    started = worker.begin(rows)
    assert started is not None
    started.result(timeout=10)
    for each in rows:
        alone = row(Grammar("regex", "[a-z]+"), list(grown.output_ids)).ahead(each.drafts)
        np.testing.assert_array_equal(each.allowed_W(), alone.allowed_W())


def test_masks_that_nobody_asked_for_are_not_taken_for_those_of_the_next_token() -> None:
    grown, worker = row(Grammar("regex", "a[0-9]b")), MaskWorker()
    grown.allowed_W()
    for text in "a5":
        grown.output_ids += ids(text)
        started = worker.begin([grown])
        assert started is not None
        started.result(timeout=10)
    assert allowed(grown) == allowed(row(Grammar("regex", "a[0-9]b"), ids("a") + ids("5")))


def test_the_worker_has_the_masks_ready() -> None:
    rows = [row(Grammar("regex", "[a-z]+")), SampleRow(SamplingParams(max_tokens=3), [1], [])]
    started = MaskWorker().begin(rows)
    assert started is not None
    started.result(timeout=10)
    assert allowed(rows[0])
    assert MaskWorker().begin(rows[1:]) is None
