"""`fluyt bench cluster`: what the cluster costs, against the same engine with as many shards and no Ray.

Both sides generate the same token prompts with the same shards, threads and text stage on the same
cores, the client of the cluster included; they take turns, and the ratio of each pair counts.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.checkpoint import checkpoint_dir
from cluster.client import Client
from cluster.config import ClusterConfig
from model.local import LocalServer, open_server, prompt_builder
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.prompt import PreparedPrompt, PromptBuilder
from protos.fluyt.v1 import inference_pb2 as pb

NUM_PROMPT_TOKENS = 64
NUM_TOKENS = 64


@dataclass
class Round:
    """Times of one round: when each stream's tokens came, in seconds since the round began."""

    arrivals_s: list[list[float]] = field(default_factory=list)
    total_s: float = 0.0

    @property
    def first_token_ms(self) -> float:
        """Median over the streams."""
        return statistics.median(times[0] for times in self.arrivals_s) * 1e3

    @property
    def gaps_ms(self) -> list[float]:
        """Time between neighbouring tokens, of all streams."""
        return [(b - a) * 1e3 for times in self.arrivals_s for a, b in itertools.pairwise(times)]

    @property
    def tokens_per_s(self) -> float:
        """All streams together, from the first request to the last token."""
        return sum(map(len, self.arrivals_s)) / self.total_s


async def bench_cluster(
    address: str, config: ClusterConfig, num_streams: int, num_rounds: int
) -> dict[str, Any]:
    """Measure the running application at `address` and the same engine without Ray."""
    directory = checkpoint_dir(config.model.directory)
    gang = config.gang
    options = EngineOptions(
        num_shards=gang.size,
        dtype=config.model.dtype,
        chunk_tokens=gang.chunk_tokens,
        kv_blocks=gang.kv_blocks,
        max_running=gang.max_running,
        prefix_cache=gang.prefix_cache,
        mtp=gang.mtp,
    )
    ours, bare = [], []
    async with Client(address) as client:
        vocab_size = (await client.model_info()).vocab_size
        prompts = _prompts(num_streams, vocab_size)
        with open_server(directory, options, gang.threads_per_rank) as server:
            builder = prompt_builder(server.checkpoint)
            for index in range(num_rounds + 1):
                through_ray = await _run_cluster(client, prompts)
                without_ray = _run_bare(server, builder, prompts)
                if index:  # the first round warms up
                    ours.append(through_ray)
                    bare.append(without_ray)
    return _report(num_streams, ours, bare)


def _prompts(num_streams: int, vocab_size: int) -> list[list[int]]:
    draw = random.Random(num_streams)  # noqa: S311 - a seed, not a secret
    high = vocab_size * 3 // 4  # control tokens lie at the end of a vocabulary
    return [[draw.randrange(3, high) for _ in range(NUM_PROMPT_TOKENS)] for _ in range(num_streams)]


async def _run_cluster(client: Client, prompts: Sequence[list[int]]) -> Round:
    began_s = time.perf_counter()
    arrivals = await asyncio.gather(*(_stream(client, prompt, began_s) for prompt in prompts))
    return Round(list(arrivals), time.perf_counter() - began_s)


async def _stream(client: Client, prompt: list[int], began_s: float) -> list[float]:
    request = pb.GenerateRequest(
        token_ids=pb.TokenPrompt(ids=prompt),
        sampling=pb.SamplingOptions(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True),
    )
    times: list[float] = []
    async for event in client.generate(request):
        now_s = time.perf_counter() - began_s
        times += [now_s] * len(event.delta.token_ids)
    return times


def _run_bare(server: LocalServer, builder: PromptBuilder, prompts: Sequence[list[int]]) -> Round:
    greedy = SamplingOptions(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    measured = Round()
    began_s = time.perf_counter()
    for prompt in prompts:
        times: list[float] = []
        measured.arrivals_s.append(times)

        def note(event: Any, times: list[float] = times) -> None:
            times.extend([time.perf_counter() - began_s] * len(event.token_ids))

        server.submit(PreparedPrompt(tuple(prompt)), greedy, builder, note)
    server.run()
    measured.total_s = time.perf_counter() - began_s
    return measured


def _report(num_streams: int, ours: Sequence[Round], bare: Sequence[Round]) -> dict[str, Any]:
    costs_ms = [
        statistics.median(a.gaps_ms) - statistics.median(b.gaps_ms) for a, b in zip(ours, bare, strict=True)
    ]
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, bare, strict=True)]
    return {
        "num_streams": num_streams,
        "num_prompt_tokens": NUM_PROMPT_TOKENS,
        "num_tokens": NUM_TOKENS,
        "cost_ms_per_token": round(statistics.median(costs_ms), 3),
        "throughput_ratio": round(statistics.median(ratios), 3),
        "cluster": _summary(ours),
        "without_ray": _summary(bare),
    }


def _summary(rounds: Sequence[Round]) -> dict[str, float]:
    gaps_ms = sorted(gap for each in rounds for gap in each.gaps_ms)
    return {
        "time_to_first_token_ms": round(statistics.median(each.first_token_ms for each in rounds), 2),
        "time_per_token_p50_ms": round(statistics.median(gaps_ms), 3),
        "time_per_token_p99_ms": round(gaps_ms[int(0.99 * (len(gaps_ms) - 1))], 3),
        "tokens_per_s": round(statistics.median(each.tokens_per_s for each in rounds), 1),
    }
