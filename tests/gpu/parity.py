"""`python -m tests.gpu.parity`: the default model on the device engine, and in float32 on the CPU.

Both answer the same questions greedily (decode), and score the conversations of the float32 model, questions
and answers to their ends (prefill). On a GPU the device engine computes in bfloat16, on a CPU in plain torch.
`--ranks 2`: as a gang of processes that split attention, or with `--attention data` own their sequences, on
as many GPUs or, with `--device cpu`, over gloo. Ends with status 1 below 99 % of equal best tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from model.device.runner import DeviceRunner
from model.engine import Runner
from model.errors import InvalidRequest
from model.gang import spawn_gang
from model.local import Answer, LocalServer, prompt_builder
from model.nano import default_checkpoint
from model.nano.data.texts import text_exchange
from model.options import EngineOptions, scheduler_config
from model.parallel import Group
from model.runner import LocalRunner, make_device_rank, make_network_rank
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.weights import Checkpoint, open_checkpoint

LEAST_AGREEMENT = 0.99
NUM_QUESTIONS = 200
OPTIONS = EngineOptions(kv_blocks=512, max_running=8, mtp=False)


def main() -> None:
    """Compare and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_checkpoint())
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--attention", choices=("tensor", "data"), default="tensor", help="of several ranks")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and torch.cuda.device_count() < arguments.ranks:
        raise InvalidRequest(
            "ranks", f"{arguments.ranks} need as many GPUs: {torch.cuda.device_count()} here"
        )
    torch.set_num_threads(1)  # many small operations, on the CPU, gain nothing from more
    gang = replace(OPTIONS, attention=arguments.attention, num_shards=arguments.ranks)
    report = compare(arguments.model, arguments.tokens, gang, arguments.device)
    print(json.dumps(report), flush=True)
    if float(report["agreement"]) < LEAST_AGREEMENT:
        raise SystemExit(1)


def compare(
    directory: Path, num_tokens: int, gang: EngineOptions, device_type: Literal["cpu", "cuda"]
) -> dict[str, str | float | int]:
    """Shares of positions whose best token is the same, and of answers that are the same to the end."""
    ours_are = gang if gang.num_shards > 1 else OPTIONS
    checkpoint = open_checkpoint(directory)
    network = LocalRunner(make_network_rank(checkpoint, OPTIONS, 0, torch.device("cpu"), None))
    began_s = time.perf_counter()
    with runner_of(checkpoint, ours_are, device_type) as runner:
        start_s = time.perf_counter() - began_s
        servers = [
            LocalServer(checkpoint, each, scheduler_config(checkpoint.config.text, options))
            for each, options in ((network, OPTIONS), (runner, ours_are))
        ]
        greedy = SamplingOptions(temperature=0.0, max_tokens=num_tokens)
        theirs, ours = (answers(server, greedy) for server in servers)
        forced = [answer.token_ids for answer in theirs]
        scoring = replace(greedy, max_tokens=1, num_prompt_logprobs=1)
        their_best, our_best = (best_tokens(answers(server, scoring, forced)) for server in servers)
    positions = [
        pair for pairs in zip(their_best, our_best, strict=True) for pair in zip(*pairs, strict=True)
    ]
    of_answers = [
        pair
        for answer, *pairs in zip(forced, their_best, our_best, strict=True)
        for pair in list(zip(*pairs, strict=True))[len(pairs[0]) - len(answer) :]
    ]
    return {
        "device": torch.cuda.get_device_name() if device_type == "cuda" else "cpu",
        "ranks": gang.num_shards,
        **({"attention": gang.attention} if gang.num_shards > 1 else {}),
        "start_s": round(start_s, 1),
        "positions": len(positions),
        "agreement": _share_of_equals(positions),
        "positions_of_answers": len(of_answers),
        "agreement_in_answers": _share_of_equals(of_answers),
        "answers": len(theirs),
        "same_answers": sum(a.token_ids == b.token_ids for a, b in zip(theirs, ours, strict=True)),
    }


@contextmanager
def runner_of(
    checkpoint: Checkpoint, options: EngineOptions, device_type: Literal["cpu", "cuda"]
) -> Iterator[Runner]:
    """The device engine, in this process or as a gang."""
    if options.num_shards == 1:
        yield LocalRunner(make_device_rank(checkpoint, options, torch.device(device_type)))
        return
    make_worker = partial(device_rank, checkpoint.directory, options)
    with closing(spawn_gang(options.num_shards, make_worker, device_type=device_type)) as gang:
        yield gang


def device_rank(directory: Path, options: EngineOptions, rank: int, group: Group | None) -> DeviceRunner:
    """What a rank's process makes, whatever `make_rank` would take."""
    assert group is not None and group.rank == rank
    torch.set_num_threads(1)
    return make_device_rank(open_checkpoint(directory), options, group.device, group)


def answers(
    server: LocalServer, options: SamplingOptions, forced: Sequence[list[int]] | None = None
) -> list[Answer]:
    """To all questions together; `forced` tokens stand behind each prompt."""
    builder = prompt_builder(server.checkpoint)
    rng = random.Random("parity")
    found = []
    for index in range(NUM_QUESTIONS):
        text = text_exchange(rng).question
        prompt = builder.from_chat(question(text))
        if forced is not None:
            prompt = replace(prompt, prompt_ids=(*prompt.prompt_ids, *forced[index]))
        found.append(server.submit(prompt, options, None))
    server.run()
    return found


def best_tokens(scored: Sequence[Answer]) -> list[list[int]]:
    """The most probable token of every position of each prompt."""
    return [[logprob.top[0][0] for logprob in answer.prompt_logprobs if logprob] for answer in scored]


def _share_of_equals(pairs: Sequence[tuple[int, int]]) -> float:
    return round(sum(one == other for one, other in pairs) / len(pairs), 4)


if __name__ == "__main__":
    main()
