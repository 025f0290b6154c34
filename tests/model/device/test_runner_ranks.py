"""A gang of two that runs every plan on both ranks: the tokens of one rank, the same on both."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from model.device.exchange import Alone, Exchange, GlooExchange
from model.device.runner import device_runner
from model.device.weights import Formats
from model.masks import TokenMasks
from model.types import SamplingParams
from tests.model.device.pack_decoder import pack_decoder
from tests.model.device.runners import Answers, answer, request_of, sizes_of, token_ids
from tests.model.device.small_models import prompts_of, random_decoder, text_of
from tests.model.ranks import run_ranks

GREEDY = SamplingParams(max_tokens=6)
PLAIN = replace(GREEDY, temperature=0.9, seed=4)
SAMPLINGS = (
    GREEDY,
    PLAIN,
    replace(PLAIN, top_p=0.8, num_logprobs=2),
    replace(PLAIN, top_p=0.8),
    replace(GREEDY, num_prompt_logprobs=1),
    replace(PLAIN, presence_penalty=0.5, num_samples=2),
)


def answers(rank: int, exchange: Exchange) -> Answers:
    """Of this rank's scheduler, which plans what those of the others plan."""
    decoder = random_decoder(text_of(num_layers=4))
    weights = pack_decoder(decoder, Formats("bf16", "bf16"), rank, exchange.num_ranks)
    sizes = sizes_of(decoder.text, keeps_prefixes=True)
    runner = device_runner(weights, sizes, partial(TokenMasks.of, grammars=None), exchange)
    prompts = prompts_of(decoder.text, (31, 7, 22, 60, 18, 25))
    requests = [
        request_of(f"{index}", prompt, sampling)
        for index, (prompt, sampling) in enumerate(zip(prompts, SAMPLINGS, strict=True))
    ]
    return answer(runner, sizes, requests)[0]


def run_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{directory}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    group = dist.group.WORLD
    assert group is not None
    torch.save(answers(rank, GlooExchange(group)), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_answer_as_one() -> None:
    with tempfile.TemporaryDirectory() as directory:
        run_ranks(run_rank, directory)
        ranks = [torch.load(Path(directory) / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    alone = answers(0, Alone())
    assert ranks[0] == ranks[1]
    assert token_ids(ranks[0]) == token_ids(alone)
    assert len(alone) == 7
