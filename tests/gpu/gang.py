"""`python -m tests.gpu.gang`: two ranks that split attention, in processes, against one rank and the CPU.

On GPUs ranks compute in bfloat16 and add over peer memory; with `--device cpu` in float32, over gloo. Prompts
are answered greedily by all three. The answers are compared as they are: in bfloat16 they may part at a near
tie, so the share of tokens before the first that differs is counted. Ends with status 1 if any differs
on a CPU, or on GPUs if that share is below `LEAST_AGREEMENT`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.errors import InvalidRequest
from model.gang import spawn_gang
from model.local import LocalServer, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, make_device_rank, make_network_rank, rank_maker
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.weights import Checkpoint, open_checkpoint

LEAST_AGREEMENT = 0.9  # of tokens before the first that differs: one near tie ends an answer's count
TEXTS = (
    "What is 12 + 30?",
    "Repeat: K7XQ2",
    "Say anything.",
    "Repeat: " + "the quick brown fox jumps over the lazy dog " * 8,
)


def main() -> None:
    """Compare and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_checkpoint())
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and torch.cuda.device_count() < arguments.ranks:
        raise InvalidRequest(
            "ranks", f"{arguments.ranks} need as many GPUs, {torch.cuda.device_count()} here"
        )
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # as many as a rank has: many small operations gain nothing from more
    report = compare(arguments.model, arguments.ranks, arguments.device, arguments.tokens)
    print(json.dumps(report))
    if min(report["agreement_alone"], report["agreement_cpu"]) < report["least_agreement"]:
        raise SystemExit(1)


def compare(directory: Path, num_ranks: int, device_type: str, num_tokens: int) -> dict[str, float]:
    """Shares of tokens that the gang has as one rank has them, and as the CPU does."""
    checkpoint, device = open_checkpoint(directory), torch.device(device_type)
    options = EngineOptions(kv_blocks=512, max_running=8)
    split = replace(options, attention="tensor", num_shards=num_ranks)
    began_s = time.perf_counter()
    gang = spawn_gang(
        num_ranks, rank_maker(directory, split, 1), device_type="cuda" if device_type == "cuda" else "cpu"
    )
    start_s = time.perf_counter() - began_s
    try:
        began_s = time.perf_counter()
        ours = answers(checkpoint, gang, split, num_tokens)
        gang_s = time.perf_counter() - began_s
    finally:
        gang.close()
    one = LocalRunner(make_device_rank(checkpoint, options, device))
    alone = answers(checkpoint, one, options, num_tokens)
    network = LocalRunner(make_network_rank(checkpoint, options, 0, torch.device("cpu"), None))
    exact = answers(checkpoint, network, options, num_tokens)
    return {
        "num_ranks": num_ranks,
        "is_gpu": device_type == "cuda",
        "start_s": round(start_s, 2),
        "gang_s": round(gang_s, 2),
        "num_tokens": sum(map(len, ours)),
        "agreement_alone": agreement(ours, alone),
        "agreement_cpu": agreement(ours, exact),
        "same_answers_alone": sum(a == b for a, b in zip(ours, alone, strict=True)),
        "same_answers_cpu": sum(a == b for a, b in zip(ours, exact, strict=True)),
        "least_agreement": LEAST_AGREEMENT if device_type == "cuda" else 1.0,
    }


def answers(
    checkpoint: Checkpoint, runner: object, options: EngineOptions, num_tokens: int
) -> list[list[int]]:
    """Token ids of all texts together."""
    sizes = scheduler_config(checkpoint.config.text, options, has_mtp=checkpoint.has_mtp)
    server, builder = LocalServer(checkpoint, runner, sizes), prompt_builder(checkpoint)  # type: ignore[arg-type]
    greedy = SamplingOptions(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    found = [server.submit(builder.from_chat(question(text)), greedy, None) for text in TEXTS]
    server.run()
    return [answer.token_ids for answer in found]


def agreement(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> float:
    """Tokens before the first that differs, as a share of all."""
    num_same = 0
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            if a != b:
                break
            num_same += 1
    return round(num_same / sum(map(len, theirs)), 4)


if __name__ == "__main__":
    main()
