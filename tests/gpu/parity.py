"""`python -m tests.gpu.parity`: the default model on the device engine, and in float32 on the CPU.

Texts are scored by both (prefill, all positions) and continued greedily by both (decode). On a GPU the device
engine computes in bfloat16, on a CPU in plain torch. Ends with status 1 below 99 % of equal best tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.local import Answer, LocalServer, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, default_device, make_device_rank, make_network_rank
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.weights import open_checkpoint

LEAST_AGREEMENT = 0.99
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
    arguments = parser.parse_args()
    report = compare(arguments.model, arguments.tokens)
    print(json.dumps(report))
    if float(report["agreement"]) < LEAST_AGREEMENT:
        raise SystemExit(1)


def compare(directory: Path, num_tokens: int) -> dict[str, str | float | int]:
    """Shares of positions whose best token is the same, and of answers that are the same to the end."""
    options = EngineOptions(kv_blocks=512, max_running=8, mtp=False)
    checkpoint = open_checkpoint(directory)
    sizes = scheduler_config(checkpoint.config.text, options)
    device = default_device()
    network = make_network_rank(checkpoint, options, 0, torch.device("cpu"), None)
    engine = make_device_rank(checkpoint, options, device)
    servers = [LocalServer(checkpoint, LocalRunner(rank), sizes) for rank in (network, engine)]
    greedy = SamplingOptions(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    theirs, ours = (answers(server, greedy) for server in servers)
    forced = [answer.token_ids for answer in theirs]
    scoring = replace(greedy, max_tokens=1, num_prompt_logprobs=1)
    their_best, our_best = (best_tokens(answers(server, scoring, forced)) for server in servers)
    same = sum(one == other for one, other in zip(their_best, our_best, strict=True))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "positions": len(their_best),
        "agreement": round(same / len(their_best), 4),
        "answers": len(theirs),
        "same_answers": sum(a.token_ids == b.token_ids for a, b in zip(theirs, ours, strict=True)),
    }


def answers(
    server: LocalServer, options: SamplingOptions, forced: Sequence[list[int]] | None = None
) -> list[Answer]:
    """Of all texts together; `forced` tokens stand behind each prompt."""
    builder = prompt_builder(server.checkpoint)
    found = []
    for index, text in enumerate(TEXTS):
        prompt = builder.from_chat(question(text))
        if forced is not None:
            prompt = replace(prompt, prompt_ids=(*prompt.prompt_ids, *forced[index]))
        found.append(server.submit(prompt, options, None))
    server.run()
    return found


def best_tokens(scored: Sequence[Answer]) -> list[int]:
    """The most probable token of every position of all prompts."""
    return [logprob.top[0][0] for answer in scored for logprob in answer.prompt_logprobs if logprob]


if __name__ == "__main__":
    main()
