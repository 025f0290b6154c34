"""`fluyt bench engine`: our engine against transformers' generate, alternating in one run.

Same checkpoint (random, made for the run), same prompts, same number of greedy tokens, same threads and
dtype; prefill counts. Times on shared machines drift, so the two take turns and the ratio of each pair
counts. The peer has a process of its own: what our rank changes in its own (model/kernels/memory.py)
does not reach it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from model.local import LocalServer, open_server
from model.nano.shape import Shape, TokenIds
from model.nano.write import write_model
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.prompt import PreparedPrompt

# 12 M parameters: large enough that the network, not the interpreter, is most of a step. The vocabulary
# is not that of the default model: numbers of before and after a change of its tokenizer compare.
PEER_SHAPE = Shape(
    hidden=256,
    dense_width=512,
    expert_width=128,
    shared_width=128,
    vocab_size=1216,
    tokens=TokenIds(image=1187, eos=(1, 2, 1193), num_text_ids=1186),
)

# (prompts [streams, tokens], new tokens of each) -> seconds, token ids of each stream.
Run = Callable[[torch.Tensor, int], tuple[float, list[list[int]]]]


@dataclass(frozen=True)
class Load:
    """Streams that start together: prompt and answer length of each."""

    num_streams: int
    num_prompt_tokens: int
    num_tokens: int


SINGLE = Load(num_streams=1, num_prompt_tokens=32, num_tokens=64)
BATCH40 = Load(num_streams=40, num_prompt_tokens=256, num_tokens=64)


def bench_engine(num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Tokens per second of both, and the ratio ours / theirs as the median of alternating pairs."""
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory(prefix="fluyt-bench-") as name:
        directory = Path(name)
        write_model(directory, PEER_SHAPE, dtype="float32", num_files=1, seed=0)
        # Token ids only: no text stage on either side. The peer computes every prompt and token, so do we.
        options = EngineOptions(chunk_tokens=2048, prefix_cache=False, mtp=False)
        with (
            open_server(directory, options, num_threads) as server,
            ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as peer_process,
        ):
            ours = partial(_timed, partial(_run_ours, server))
            theirs = partial(_run_apart, peer_process, directory, num_threads)
            single = _compare(ours, theirs, SINGLE, num_rounds)
            batch = _compare(ours, theirs, BATCH40, num_rounds)
    return {
        "single_stream_ratio": single["ratio"],
        "batch40_ratio": batch["ratio"],
        "single_stream": single,
        "batch40": batch,
        "num_threads": num_threads,
        "dtype": "float32",
        "peer": "transformers",
    }


def _compare(run_ours: Run, run_theirs: Run, load: Load, num_rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(load.num_streams)
    shape = (load.num_streams, load.num_prompt_tokens)
    prompts = torch.randint(3, PEER_SHAPE.tokens.num_text_ids, shape, generator=generator)
    num_tokens = load.num_streams * load.num_tokens
    ours, theirs = [], []
    for round_index in range(num_rounds + 1):
        ours_s, our_ids = run_ours(prompts, load.num_tokens)
        theirs_s, their_ids = run_theirs(prompts, load.num_tokens)
        if round_index:  # the first round warms up
            ours.append(num_tokens / ours_s)
            theirs.append(num_tokens / theirs_s)
    same = sum(ours == theirs for ours, theirs in zip(our_ids, their_ids, strict=True))
    return {
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "tokens_per_s": round(statistics.median(ours), 1),
        "peer_tokens_per_s": round(statistics.median(theirs), 1),
        "ratios": [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)],
        "same_answers": f"{same} of {load.num_streams}",
        **asdict(load),
    }


def _timed(
    work: Callable[[torch.Tensor, int], list[list[int]]], prompts: torch.Tensor, num_tokens: int
) -> tuple[float, list[list[int]]]:
    began_s = time.perf_counter()
    ids = work(prompts, num_tokens)
    return time.perf_counter() - began_s, ids


def _run_ours(server: LocalServer, prompts: torch.Tensor, num_tokens: int) -> list[list[int]]:
    greedy = SamplingOptions(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    answers = [server.submit(PreparedPrompt(tuple(ids)), greedy, None) for ids in prompts.tolist()]
    server.run()
    return [answer.token_ids for answer in answers]


def _run_apart(
    process: ProcessPoolExecutor, directory: Path, num_threads: int, prompts: torch.Tensor, num_tokens: int
) -> tuple[float, list[list[int]]]:
    # Plain lists: sharing tensors between processes needs file descriptors and says nothing here.
    return process.submit(_run_peer, directory, num_threads, prompts.tolist(), num_tokens).result()


@cache
def _load_peer(directory: Path, num_threads: int) -> Any:
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(num_threads)
    peer: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    return peer.eval()


def _run_peer(
    directory: Path, num_threads: int, prompts: list[list[int]], num_tokens: int
) -> tuple[float, list[list[int]]]:
    """In the peer's process. Loading is not timed."""
    peer = _load_peer(directory, num_threads)
    return _timed(partial(_generate, peer), torch.tensor(prompts), num_tokens)


@torch.inference_mode()
def _generate(peer: Any, prompts: torch.Tensor, num_tokens: int) -> list[list[int]]:
    output = peer.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        pad_token_id=2,
    )
    ids: list[list[int]] = output[:, prompts.shape[1] :].tolist()
    return ids
