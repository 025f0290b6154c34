"""Plans of the scheduler on the device engine: the tokens of the CPU's runner, whatever the plan.

Float32 in plain torch on both sides, weights that bfloat16 has: what differs is the order of sums.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from model.config import TextConfig
from model.device.runner import DeviceRunner
from model.engine import Engine
from model.net.decoder import Decoder
from model.runner import RankRunner
from model.sched import drafting
from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.sched.step import AdmittedSequence, RankStep, SequenceWork, Step
from model.types import FinishReason, ImageSpan, Request, RequestKey, SamplingParams
from tests.model.device.runners import (
    Answers,
    answer,
    device_rank,
    network_rank,
    request_of,
    sizes_of,
    token_ids,
)
from tests.model.device.small_models import prompts_of, random_decoder, text_of

NUM_TOKENS = 10
GREEDY = SamplingParams(max_tokens=NUM_TOKENS)
PLAIN = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.8, seed=2**63 - 5)
# Below, across and beyond the window of 24, blocks of 16 and chunks of 48.
LENGTHS = (1, 3, 15, 16, 17, 24, 25, 31, 48, 49, 70, 110)


@cache
def model() -> Decoder:
    return random_decoder(text_of(num_layers=4))


def text() -> TextConfig:
    return model().text


@cache
def ranks(sizes: SchedulerConfig) -> tuple[RankRunner, DeviceRunner]:
    return network_rank(model(), sizes), device_rank(model(), sizes)


def both(
    sizes: SchedulerConfig, requests: list[Request], **more: object
) -> tuple[Answers, Answers, tuple[int, int]]:
    """Answers of the network's runner and of the device engine, and how often each plan preempted."""
    network, device = ranks(sizes)
    expected, first = answer(network, sizes, requests, **more)
    found, second = answer(device, sizes, requests, **more)
    return expected, found, (first.load().num_preemptions, second.load().num_preemptions)


def twelve(sampling: SamplingParams = GREEDY) -> list[Request]:
    return [
        request_of(f"{index}", prompt, replace(sampling, seed=sampling.seed - index))
        for index, prompt in enumerate(prompts_of(text(), LENGTHS))
    ]


@pytest.mark.parametrize("chunk_tokens", [16, 48, 256])
def test_prompts_of_mixed_lengths_in_any_chunks(chunk_tokens: int) -> None:
    expected, found, _ = both(sizes_of(text(), chunk_tokens=chunk_tokens), twelve())
    assert token_ids(found) == token_ids(expected)
    assert len({tuple(tokens) for tokens in token_ids(found).values()}) > 6, "the prompts are not told apart"


@pytest.mark.parametrize(
    "sampling", [pytest.param(GREEDY, marks=pytest.mark.slow), PLAIN], ids=["greedy", "sampled"]
)
def test_sequences_that_are_preempted_go_on_as_if_they_had_not_been(sampling: SamplingParams) -> None:
    # The longest request alone needs 8 blocks.
    sizes = sizes_of(text(), num_full_blocks=12, num_sliding_blocks=12)
    expected, found, preempted = both(sizes, twelve(replace(sampling, max_tokens=20)))
    assert token_ids(found) == token_ids(expected)
    assert min(preempted) > 0, "nothing was preempted: the test shows nothing"


def test_a_step_begins_again_with_a_token_that_has_not_come_to_the_host() -> None:
    """Preempted and taken up again by the next plan: its last token is still on its way."""
    sizes = sizes_of(text())
    (prompt,) = prompts_of(text(), (20,), seed=9)
    expected, _, _ = both(sizes, [request_of("", prompt, GREEDY)])
    rank = device_rank(model(), sizes)
    admitted = AdmittedSequence(0, tuple(prompt), GREEDY)
    blocks = {"new_full_blocks": (3, 1), "new_sliding_blocks": (0, 5)}
    first = SequenceWork(0, 0, 20, samples=True, begins=True, **blocks)
    again = SequenceWork(
        0, 0, 21, samples=True, begins=True, new_full_blocks=(7, 2), new_sliding_blocks=(4, 6)
    )
    launched = rank.launch(Step(0, 0, (RankStep((admitted,), (first,)),)))
    behind = rank.launch(Step(0, 1, (RankStep(work=(again,)),)))
    tokens = [rank.collect(each).outputs[0].token_ids[0] for each in (launched, behind)]
    assert tokens == expected["", 0].token_ids[:2]


@pytest.mark.parametrize("keeps_prefixes", [False, True])
def test_prompts_that_begin_alike_may_share_what_was_computed(keeps_prefixes: bool) -> None:
    sizes = sizes_of(text(), keeps_prefixes=keeps_prefixes)
    head, *tails = prompts_of(text(), (64, 7, 20, 1, 33), seed=11)
    requests = [
        replace(request_of(f"{index}", head + tail, GREEDY), prefix_ends=(64,))
        for index, tail in enumerate(tails)
    ]
    network, device = ranks(sizes)
    expected, _ = answer(network, sizes, requests)
    found, scheduler = answer(device, sizes, requests)
    assert token_ids(found) == token_ids(expected)
    assert (scheduler.load().num_prefixes > 0) == keeps_prefixes


def test_what_is_aborted_while_its_step_is_on_its_way_disturbs_nobody() -> None:
    sizes = sizes_of(text())

    def meddle(engine: Engine, scheduler: Scheduler, turn: int) -> None:
        if turn in {2, 5, 6}:
            engine.abort(RequestKey("local", f"{turn}"))
            engine.add(request_of(f"late {turn}", list(range(5, 40 + turn)), GREEDY))

    expected, _ = answer(ranks(sizes)[0], sizes, twelve(), meddle=meddle)
    found, _ = answer(ranks(sizes)[1], sizes, twelve(), meddle=meddle)
    aborted = {key for key, one in found.items() if one.finish_reason is FinishReason.ABORTED}
    assert {name for name, _ in aborted} == {"2", "5", "6"}
    for key in found.keys() - aborted:
        assert found[key].token_ids == expected[key].token_ids


@pytest.mark.parametrize("length", [3, 33, 48])
def test_samples_share_a_prompt_and_go_on_in_copies_of_its_last_block(length: int) -> None:
    (prompt,) = prompts_of(text(), (length,), seed=3)
    sizes = sizes_of(text())
    requests = [
        request_of("plain", prompt, replace(PLAIN, num_samples=4)),
        request_of("filtered", prompt, replace(PLAIN, num_samples=3, top_p=0.9, seed=1)),
    ]
    expected, found, _ = both(sizes, requests)
    assert token_ids(found) == token_ids(expected)
    assert len({tuple(tokens) for tokens in token_ids(found).values()}) == 7, "samples are not told apart"


KINDS_OF_SAMPLING = {
    "greedy": GREEDY,
    "temperature": PLAIN,
    "top_k": replace(PLAIN, top_k=5),
    "top_p": replace(PLAIN, top_p=0.7),
    "min_p": replace(PLAIN, min_p=0.05),
    "greedy with filters": replace(GREEDY, top_p=0.5, top_k=3),
    "repetition": replace(PLAIN, repetition_penalty=1.3),
    "greedy with penalties": replace(GREEDY, presence_penalty=0.5, frequency_penalty=0.5),
    "bias": replace(GREEDY, logit_bias=((7, 30.0), (9, 29.0))),
    "not yet": replace(GREEDY, logit_bias=((7, 30.0),), eos_token_ids=(7,), min_tokens=4),
    "ends later": replace(PLAIN, stop_token_ids=tuple(range(0, 512, 8)), min_tokens=3),
    "logprobs": replace(PLAIN, num_logprobs=3),
}


def test_every_kind_of_sampling_has_its_tokens_beside_all_others() -> None:
    sizes = sizes_of(text())
    prompts = prompts_of(text(), LENGTHS, seed=13)
    requests = [
        request_of(name, prompt, sampling)
        for (name, sampling), prompt in zip(KINDS_OF_SAMPLING.items(), prompts, strict=True)
    ]
    expected, found, _ = both(sizes, requests)
    assert token_ids(found) == token_ids(expected)
    assert {key: one.finish_reason for key, one in found.items()} == {
        key: one.finish_reason for key, one in expected.items()
    }
    for ours, theirs in zip(found["logprobs", 0].logprobs, expected["logprobs", 0].logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


@pytest.mark.parametrize("sampling", KINDS_OF_SAMPLING.values(), ids=KINDS_OF_SAMPLING)
def test_a_kind_of_sampling_alone(sampling: SamplingParams) -> None:
    """Steps with penalties, bias, masks or log-probabilities are collected one by one."""
    expected, found, _ = both(sizes_of(text()), [request_of("", prompts_of(text(), (30,))[0], sampling)])
    assert token_ids(found) == token_ids(expected)


@pytest.mark.parametrize("chunk_tokens", [16, 48])
def test_prompts_are_scored(chunk_tokens: int) -> None:
    sizes = sizes_of(text(), chunk_tokens=chunk_tokens)
    prompts = prompts_of(text(), (1, 40, 65), seed=17)
    sampling = replace(GREEDY, num_prompt_logprobs=2)
    requests = [request_of(f"{index}", prompt, sampling) for index, prompt in enumerate(prompts)]
    expected, found, _ = both(sizes, [*requests, request_of("beside", prompts[1], GREEDY)])
    assert token_ids(found) == token_ids(expected)
    for key, answered in expected.items():
        theirs = [(one.first_token_index, one.logprobs) for one in answered.prompts]
        ours = [(one.first_token_index, one.logprobs) for one in found[key].prompts]
        assert [(first, len(scores)) for first, scores in ours] == [(f, len(s)) for f, s in theirs]
        for (_, our_scores), (_, their_scores) in zip(ours, theirs, strict=True):
            for one, other in zip(our_scores, their_scores, strict=True):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.mark.parametrize("chunk_tokens", [16, 64])
def test_pictures_stand_where_their_slots_are(chunk_tokens: int) -> None:
    """A chunk may cut a picture anywhere; the last token of a prompt may be a slot."""
    sizes = sizes_of(text(), chunk_tokens=chunk_tokens)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(30, text().hidden_size, generator=generator).bfloat16().float()
    prompts = prompts_of(text(), (50, 37, 50), seed=19)
    spans = (ImageSpan(7, 30, "a/one"),), (ImageSpan(5, 10, "b/one", 20), ImageSpan(27, 10, "b/one"))
    requests = [
        request_of("a", prompts[0], GREEDY, spans[0]),
        request_of("b", prompts[1], PLAIN, spans[1]),
        request_of("blind", prompts[0], GREEDY),
    ]
    expected, found, _ = both(sizes, requests, embeddings={"a/one": rows, "b/one": rows})
    assert token_ids(found) == token_ids(expected)
    assert token_ids(found)["a", 0] != token_ids(found)["blind", 0]


def test_drafts_of_a_plan_are_not_made_and_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)
    expected, _ = answer(ranks(sizes_of(text()))[0], sizes_of(text()), twelve(PLAIN))
    sizes = sizes_of(text(), num_drafts=3)
    found, scheduler = answer(device_rank(model(), sizes), sizes, twelve(PLAIN))
    assert token_ids(found) == token_ids(expected)
    load = scheduler.load()
    assert max(load.num_verified) > 0 and max(load.num_held) == 0


def test_a_rank_that_forgets_everything_begins_again() -> None:
    sizes = sizes_of(text())
    rank = device_rank(model(), sizes)
    (prompt,) = prompts_of(text(), (20,), seed=9)
    work = SequenceWork(
        0, 0, 20, samples=True, begins=True, new_full_blocks=(1, 2), new_sliding_blocks=(1, 2)
    )
    step = Step(0, 0, (RankStep((AdmittedSequence(0, tuple(prompt), GREEDY),), (work,)),))
    first = rank.collect(rank.launch(step))
    rank.launch(Step(0, 1, (RankStep(work=(SequenceWork(0, 20, 1, samples=True),)),)))  # nobody collects it
    rank.reset()
    assert rank.run(step) == first


def test_a_sequence_that_begins_anew_is_read_from_its_new_blocks() -> None:
    """Its last token alone is a row like the one it had before, at the position that would follow."""
    sizes = sizes_of(text())
    one, other = prompts_of(text(), (20, 24), seed=9)
    expected, _, _ = both(sizes, [request_of("", one, GREEDY)])
    rank = device_rank(model(), sizes)
    admitted = (AdmittedSequence(0, tuple(one), GREEDY), AdmittedSequence(1, tuple(other), GREEDY))

    def begin(seq_id: int, num_tokens: int, blocks: tuple[int, ...], *, samples: bool) -> SequenceWork:
        return SequenceWork(seq_id, 0, num_tokens, samples, 0, True, blocks, blocks)

    shares = [
        RankStep(admitted[:1], (begin(0, 20, (1, 2), samples=True),)),
        RankStep(work=(SequenceWork(0, 20, 1, samples=True),)),
        RankStep(admitted[1:], (begin(1, 24, (1, 2), samples=False), begin(0, 21, (5, 6), samples=False))),
        RankStep(work=(SequenceWork(0, 21, 1, samples=True),)),
    ]
    results = [rank.run(Step(0, index, (share,))) for index, share in enumerate(shares)]
    tokens = [output.token_ids[0] for result in results for output in result.outputs]
    assert tokens == expected["", 0].token_ids[:3]
