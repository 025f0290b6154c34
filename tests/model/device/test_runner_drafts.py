"""Drafts on the device: they change no token, whatever holds, and hold as often as the network's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import count

import pytest
import torch

from model.device.decoder import DeviceDecoder
from model.device.exchange import Alone
from model.device.layout import allocate_blocks
from model.device.live_rows import DeviceSequence, ShownPart, take_work
from model.device.ops import choose_ops
from model.device.random_weights import random_weights
from model.device.runner import DeviceRunner, device_runner
from model.device.sizes import PlanSizes
from model.device.weights import Formats, Share
from model.engine import Engine
from model.live import LiveSequence
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.masks import TokenMasks
from model.nano import default_checkpoint
from model.net.decoder import Decoder
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, make_device_rank
from model.sampling import SamplingOptions
from model.sched import drafting
from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.sched.step import AdmittedSequence, BlockCopy, RankStep, SequenceWork, Step
from model.shown_rows import ShownRows
from model.text.chat_json import question
from model.types import FinishReason, Request, RequestKey, SamplingParams
from model.weights import open_checkpoint
from tests.model.device.pack_decoder import pack_decoder
from tests.model.device.runners import Answers, answer, network_rank, request_of, sizes_of, token_ids
from tests.model.device.small_models import CPU, prompts_of, random_decoder, text_of

NUM_DRAFTS = 3
GREEDY = SamplingParams(max_tokens=14)
PLAIN = replace(GREEDY, temperature=0.8, seed=3)
FILTERED = replace(PLAIN, top_p=0.8)
PENALISED = replace(GREEDY, repetition_penalty=1.2)
UNDRAFTED = replace(PLAIN, mtp=False)
LENGTHS = (1, 15, 16, 17, 25, 48, 70, 110)  # of those of test_runner


@cache
def model() -> Decoder:
    """One layer that sees little: with drafts of the same kind, some hold by chance."""
    return random_decoder(replace(text_of(num_layers=3), vocab_size=16))


def sizes(**changed: object) -> SchedulerConfig:
    return sizes_of(model().text, **{"num_drafts": NUM_DRAFTS, **changed})


def device_rank(config: SchedulerConfig) -> DeviceRunner:
    formats = Formats("bf16", "bf16")
    text = replace(model().text, mtp_layers=text_of().mtp_layers)
    mtp = random_weights(text, formats, Share(0, 1), 1, CPU, with_mtp=True).mtp
    weights = replace(pack_decoder(model(), formats, 0, 1), text=text, mtp=mtp)
    return device_runner(weights, config, partial(TokenMasks.of, grammars=None), Alone())


@cache
def shared_rank() -> DeviceRunner:
    return device_rank(sizes())


def requests(*samplings: SamplingParams) -> list[Request]:
    return [
        request_of(f"{index}", prompt, replace(samplings[index % len(samplings)], seed=index))
        for index, prompt in enumerate(prompts_of(model().text, LENGTHS))
    ]


@cache
def expected(*samplings: SamplingParams) -> Answers:
    """The network's, without drafts."""
    config = sizes(num_drafts=0)
    return answer(network_rank(model(), config), config, requests(*samplings))[0]


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


@pytest.mark.parametrize(
    "samplings",
    [(GREEDY,), (PLAIN,), (GREEDY, PLAIN, UNDRAFTED), (PLAIN, FILTERED, PENALISED, UNDRAFTED)],
    ids=["greedy", "sampled", "some without", "some for the host"],
)
def test_drafts_change_no_token(samplings: tuple[SamplingParams, ...]) -> None:
    found, scheduler = answer(shared_rank(), sizes(), requests(*samplings))
    assert token_ids(found) == token_ids(expected(*samplings))
    load = scheduler.load()
    assert 0 < load.num_held[0] < load.num_verified[0], "all or nothing held: the test shows little"


@pytest.mark.parametrize("chunk_tokens", [16, 24])
def test_small_chunks_leave_room_for_some_drafts_only(chunk_tokens: int) -> None:
    found, _ = answer(shared_rank(), sizes(chunk_tokens=chunk_tokens), requests(PLAIN))
    assert token_ids(found) == token_ids(expected(PLAIN))


def test_steps_with_and_without_drafts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = count()
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: next(turn) // 3 % 2 == 0)
    found, scheduler = answer(shared_rank(), sizes(), requests(GREEDY, PLAIN))
    assert token_ids(found) == token_ids(expected(GREEDY, PLAIN))
    assert scheduler.load().num_held[0] > 0


def test_preempted_while_drafts_are_on_their_way() -> None:
    config = sizes(num_full_blocks=14, num_sliding_blocks=14)
    long = replace(GREEDY, max_tokens=40), replace(PLAIN, max_tokens=40)
    found, scheduler = answer(device_rank(config), config, requests(*long))
    assert token_ids(found) == token_ids(expected(*long))
    assert scheduler.load().num_preemptions > 0


def test_what_is_aborted_leaves_the_others_their_tokens() -> None:
    def meddle(engine: Engine, scheduler: Scheduler, turn: int) -> None:
        if turn in {3, 4, 6}:
            engine.abort(RequestKey("local", f"{turn}"))

    found, _ = answer(shared_rank(), sizes(), requests(PLAIN), meddle=meddle)
    alone = expected(PLAIN)
    aborted = {key for key, one in found.items() if one.finish_reason is FinishReason.ABORTED}
    assert {name for name, _ in aborted} <= {"3", "4", "6"}
    assert all(found[key].token_ids == alone[key].token_ids for key in found.keys() - aborted)


@pytest.mark.parametrize("keeps_prefixes", [False, True])
def test_samples_and_prefixes_with_drafts(keeps_prefixes: bool) -> None:
    config = sizes(keeps_prefixes=keeps_prefixes)
    (prompt,) = prompts_of(model().text, (45,), seed=3)
    asked = [
        replace(request_of("a", prompt, replace(PLAIN, num_samples=4)), prefix_ends=(32,)),
        replace(request_of("b", [*prompt[:40], 1, 2], GREEDY), prefix_ends=(32,)),
    ]
    plain = replace(config, num_drafts=0)
    theirs, _ = answer(network_rank(model(), plain), plain, asked)
    ours, _ = answer(device_rank(config), config, asked)
    assert token_ids(ours) == token_ids(theirs)


def test_a_copied_block_has_what_mtp_layers_were_shown() -> None:
    formats, config = Formats("bf16", "bf16"), sizes()
    weights = random_weights(text_of(num_layers=3), formats, Share(0, 1), 1, CPU, with_mtp=True)
    pools = allocate_blocks(
        weights.text, weights.share, {"full": 8, "sliding": 8}, config.block_size, torch.float32, CPU,
        with_mtp=True,
    )  # fmt: skip
    decoder = DeviceDecoder(weights, pools, choose_ops(CPU), Alone())
    plan_sizes = replace(PlanSizes.of(config, len(weights.mtp)), max_rows=1)
    runner = DeviceRunner(decoder, plan_sizes, partial(TokenMasks.of, grammars=None), torch.float32)
    for pool in pools:
        pool.pool_XK2SD.normal_()
    runner.run(Step(0, 0, (RankStep(copies=(BlockCopy("sliding", 1, 5),)),)))
    layers = (*weights.text.layers, *weights.text.mtp_layers)
    has_copy = [torch.equal(pool.pool_XK2SD[5], pool.pool_XK2SD[1]) for pool in pools]
    assert has_copy == [layer.attention == "sliding" for layer in layers]


def test_mtp_layers_attend_behind_a_border_to_what_they_were_shown_before_it() -> None:
    window, shown = 24, ShownRows(8, 16)
    blocks = (3, 5, 6, 7)
    seq = a_sequence(blocks, num_prompt=60)
    seq.show_to_mtp(48, shown, window)
    assert seq.mtp_begins == 48, "nobody was shown the prefix"
    shown.show(blocks.__getitem__, 16, 16, 48)
    seq = a_sequence(blocks, num_prompt=60)
    seq.show_to_mtp(48, shown, window)
    assert seq.mtp_begins <= 48 - window


def test_where_it_stood_when_a_step_was_launched_is_noted_when_it_returns() -> None:
    """Taken up again in between, the sequence has other blocks: nothing of them is shown."""
    shown, before, after = ShownRows(8, 16), (3, 5), (6, 7)
    seq = a_sequence(before, num_prompt=17)
    seq.show_to_mtp(0, shown, 24)
    row = ShownPart.of(take_work(seq, SequenceWork(0, 16, 1, samples=True)))
    seq.extend_tables(SequenceWork(0, 0, 17, samples=True, begins=True, new_sliding_blocks=after))
    seq.live.extend((1, 2))
    row.note(shown)
    assert shown.missing(before.__getitem__, 16, 18) == []
    assert shown.missing(after.__getitem__, 0, 18) == [(0, 18)]


def a_sequence(sliding_blocks: tuple[int, ...], num_prompt: int) -> DeviceSequence:
    """Its blocks are known, its first work is not."""
    admitted = AdmittedSequence(0, tuple(range(num_prompt)), GREEDY)
    seq = DeviceSequence.of(LiveSequence.admit(admitted, 16), {"full": 8, "sliding": 8})
    seq.extend_tables(SequenceWork(0, 0, 0, samples=False, begins=True, new_sliding_blocks=sliding_blocks))
    return seq


OPTIONS = EngineOptions(kv_blocks=256, max_running=2, chunk_tokens=256, mtp=True)


@pytest.fixture(scope="module")
def network() -> Iterator[LocalServer]:
    with open_server(default_checkpoint(), OPTIONS, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def device() -> Iterator[LocalServer]:
    checkpoint = open_checkpoint(default_checkpoint())
    config = scheduler_config(checkpoint.config.text, OPTIONS, has_mtp=True)
    server = LocalServer(checkpoint, LocalRunner(make_device_rank(checkpoint, OPTIONS, CPU)), config)
    yield server
    server.close()


def told(server: LocalServer, temperature: float) -> Answer:
    builder = prompt_builder(server.checkpoint)
    prompt = builder.from_chat(question("Repeat: " + "the quick brown fox jumps over the lazy dog " * 3))
    options = SamplingOptions(temperature=temperature, max_tokens=80, seed=5, ignore_eos=True)
    answer = server.submit(prompt, options, builder)
    server.run()
    return answer


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.9), (0.7, 0.7)])
def test_the_default_models_drafts_hold_as_they_do_in_the_network(
    network: LocalServer, device: LocalServer, temperature: float, share: float
) -> None:
    ours, theirs = told(device, temperature), told(network, temperature)
    assert ours.token_ids == theirs.token_ids
    assert ours.usage is not None and theirs.usage is not None
    assert theirs.usage.num_accepted_tokens > 20, "the model's own drafts do not hold"
    # What a layer has seen of a draft that failed is not shown to it again.
    assert ours.usage.num_accepted_tokens >= share * theirs.usage.num_accepted_tokens
