"""A rank's model: a `Step` in, the tokens of its sequences out.

The rank owns what is true about its sequences (token ids, block tables, embeddings); the scheduler
plans without knowing token values. Everything here runs in the one thread that runs steps.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from pathlib import Path

import torch

from model import parallel
from model.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from model.kernels.memory import keep_freed_memory
from model.live import LiveSequence, build_batch
from model.net.decoder import Decoder
from model.net.kv import KVCache
from model.options import EngineOptions, scheduler_config
from model.placement import ExpertMap
from model.sampler import sample
from model.sched.step import RankResult, SequenceOutput, Step, StepResult
from model.weights import load_decoder, open_checkpoint


class RankRunner:
    """Runs the share of one rank. Memory: weights, KV pools, embeddings of open sequences."""

    def __init__(self, decoder: Decoder, cache: KVCache, dispatcher: Dispatcher, rank: int) -> None:
        self._decoder = decoder
        self._cache = cache
        self._dispatcher = dispatcher
        self._rank = rank
        self._live: dict[int, LiveSequence] = {}
        self._embeddings: dict[str, torch.Tensor] = {}

    def put_embedding(self, key: str, rows_NH: torch.Tensor) -> None:
        """Keep an image's rows until the sequence whose spans name `key` is dropped; keys are not shared."""
        self._embeddings[key] = rows_NH

    def drop_embedding(self, key: str) -> None:
        """Forget rows whose sequence ended before it was admitted; unknown keys are ignored."""
        self._embeddings.pop(key, None)

    def reset(self) -> None:
        """Forget every sequence: a new scheduler or a new generation starts from nothing."""
        self._live.clear()
        self._embeddings.clear()

    @torch.inference_mode()
    def run(self, step: Step) -> RankResult:
        """Compute this rank's share of `step`; takes part in every exchange even with no tokens."""
        share = step.ranks[self._rank]
        for copy in share.copies:
            layers = [layer.index for layer in self._decoder.text.layers if layer.attention == copy.group]
            self._cache.copy_block(tuple(layers), copy.source, copy.target)
        for admitted in share.admitted:
            self._live[admitted.seq_id] = LiveSequence.admit(admitted, self._cache.block_size)
        works = [(self._live[work.seq_id], work) for work in share.work]
        for seq, work in works:
            seq.extend_tables(work)
        batch = build_batch(works, self._decoder.text.window, self._embeddings).to(self._cache.device)
        self._dispatcher.begin_step(tuple(rank.num_tokens for rank in step.ranks))
        logits_SV = self._decoder(batch, self._cache, self._dispatcher)
        sampled = [(work.seq_id, seq) for seq, work in works if work.samples]
        outputs = self._sample(logits_SV, sampled)
        for seq_id in share.dropped:
            self._forget(seq_id)
        return RankResult(outputs)

    def _sample(
        self, logits_SV: torch.Tensor, sampled: list[tuple[int, LiveSequence]]
    ) -> tuple[SequenceOutput, ...]:
        outputs = []
        tokens = sample(logits_SV, [seq.row for _, seq in sampled])
        for (seq_id, seq), (token, logprob) in zip(sampled, tokens, strict=True):
            seq.append(token)
            outputs.append(SequenceOutput(seq_id, (token,), () if logprob is None else (logprob,)))
        return tuple(outputs)

    def _forget(self, seq_id: int) -> None:
        seq = self._live.pop(seq_id, None)
        for span in seq.images if seq is not None else ():
            self._embeddings.pop(span.key, None)


def make_rank(
    directory: Path, options: EngineOptions, num_threads: int | None, rank: int, group: parallel.Group | None
) -> RankRunner:
    """Load what `rank` holds and wire it up; `group` is None for a gang of one."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = default_device() if group is None else group.device
    checkpoint = open_checkpoint(directory)
    text = checkpoint.config.text
    experts = ExpertMap(text.num_experts, options.num_shards)
    sizes = scheduler_config(text, options)
    decoder = load_decoder(checkpoint, experts, rank, options.torch_dtype, device)
    keep_freed_memory()  # after loading: what that frees goes back
    return RankRunner(
        decoder,
        KVCache.allocate(text, sizes, options.torch_dtype, device),
        LocalDispatcher(experts) if group is None else AllToAllDispatcher(group, experts),
        rank,
    )


def default_device() -> torch.device:
    """The GPU this process sees, if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def rank_maker(directory: Path, options: EngineOptions, num_threads: int) -> partial[RankRunner]:
    """What `model.gang.spawn_gang` calls in each rank's process: picklable."""
    return partial(make_rank, directory, options, num_threads)


class LocalRunner:
    """One rank in this process: steps run when their result is asked for. See `model.engine.Runner`."""

    def __init__(self, rank: RankRunner) -> None:
        self._rank = rank
        self._pending: deque[Step] = deque()

    def submit(self, step: Step) -> None:
        """Queue a step."""
        self._pending.append(step)

    def put_embedding(self, key: str, rows_NH: torch.Tensor, rank: int | None = None) -> None:  # noqa: ARG002
        """There is one rank: it keeps the rows."""
        self._rank.put_embedding(key, rows_NH)

    def result(self) -> StepResult:
        """Run the oldest step."""
        step = self._pending.popleft()
        began_s = time.perf_counter()
        result = self._rank.run(step)
        step_us = round((time.perf_counter() - began_s) * 1e6)
        return StepResult(step.generation, step.step_id, (result,), step_us)

    def close(self) -> None:
        """Nothing runs outside of `result`."""
        self._pending.clear()
