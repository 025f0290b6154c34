"""A rank's model: a `Step` in, the tokens of its sequences out.

The rank owns what is true about its sequences (token ids, block tables, embeddings); the scheduler
plans without knowing token values. Everything here runs in the one thread that runs steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

import torch

from model import parallel
from model.ahead import StepsAhead
from model.batching import build_batch
from model.device.exchange import Alone, Exchange
from model.device.load import load_device_weights
from model.device.runner import DeviceRunner, device_runner
from model.device.weights import Share
from model.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from model.drafts import Drafter
from model.kernels.memory import keep_freed_memory
from model.live import LiveSequence
from model.masks import MaskWorker, TokenMasks
from model.net.decoder import Decoder
from model.net.kv import KVCache
from model.options import EngineOptions, scheduler_config
from model.placement import ExpertMap
from model.sampler import SampleRow, sample
from model.sched.step import BlockCopy, RankResult, SequenceOutput, SequenceWork, Step, StepResult
from model.scoring import score_prompts
from model.text.grammars import Grammars
from model.types import TokenLogprob
from model.weights import Checkpoint, load_decoder, load_mtp, open_checkpoint


class RankRunner:
    """Runs the share of one rank. Memory: weights, KV pools, embeddings of open sequences."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        dispatcher: Dispatcher,
        rank: int,
        drafter: Drafter | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self._decoder = decoder
        self._drafter = drafter
        self._cache = cache
        self._dispatcher = dispatcher
        self._rank = rank
        self._grammars = grammars
        self._masks = MaskWorker()
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
            self._copy_block(copy)
        for admitted in share.admitted:
            masks = TokenMasks.of(admitted.sampling, self._grammars)
            self._live[admitted.seq_id] = LiveSequence.admit(admitted, self._cache.block_size, masks)
        works = [(self._live[work.seq_id], work) for work in share.work]
        for seq, work in works:
            seq.extend_tables(work)
            if self._drafter is not None:
                self._drafter.take(seq, work)
        drafting = [seq for seq, work in works if work.num_drafts]
        if drafting:
            assert self._drafter is not None, "the plan has drafts, this rank has no MTP layers"
            self._drafter.draft(drafting, self._embeddings)
        batch = build_batch(works, self._decoder.text.window, self._embeddings).to(self._cache.device)
        self._dispatcher.begin_step(tuple(rank.num_tokens for rank in step.ranks))
        sampling = [(seq, work) for seq, work in works if work.samples]
        rows = _rows(sampling)
        masked = self._masks.begin(rows)
        logits_SV, x_TH = self._decoder(batch, self._cache, self._dispatcher)
        starts = [seq.start_of(work) for seq, work in works]
        if masked is not None:
            masked.result()
        prompts = score_prompts(self._decoder, x_TH, works, starts)
        outputs = _outputs(sampling, rows, sample(logits_SV, rows))
        if self._drafter is not None:
            self._drafter.keep(x_TH, batch.sliding.write_slots_T)
        for seq_id in share.dropped:
            self._forget(seq_id)
        return RankResult(outputs, prompts)

    def _copy_block(self, copy: BlockCopy) -> None:
        self._cache.copy_block(self._decoder.text, copy.group, copy.source, copy.target)
        if self._drafter is not None and copy.group == "sliding":
            self._drafter.copied(copy.source, copy.target)

    def _forget(self, seq_id: int) -> None:
        seq = self._live.pop(seq_id, None)
        for span in seq.images if seq is not None else ():
            self._embeddings.pop(span.key, None)


def _rows(works: Sequence[tuple[LiveSequence, SequenceWork]]) -> list[SampleRow]:
    """A row for the next token of each sequence, and one behind every draft."""
    return [seq.row.ahead(seq.drafts[:index]) for seq, work in works for index in range(work.num_drafts + 1)]


def _outputs(
    works: Sequence[tuple[LiveSequence, SequenceWork]],
    rows: Sequence[SampleRow],
    tokens: Sequence[tuple[int, TokenLogprob | None]],
) -> tuple[SequenceOutput, ...]:
    """A token for each sequence, and one more for every draft that turns out to be that token."""
    sampled = zip(rows, tokens, strict=True)
    outputs = []
    for seq, work in works:
        own = list(islice(sampled, work.num_drafts + 1))
        num_gained = 1 + _num_held(seq.drafts[: work.num_drafts], [token for _, (token, _) in own])
        gained = [token for _, token in takewhile(lambda pair: pair[0].is_judged, own[:num_gained])]
        token_ids = tuple(token for token, _ in gained)
        logprobs = tuple(logprob for _, logprob in gained if logprob is not None)
        failure = "" if seq.row.masks is None else seq.row.masks.failure
        seq.extend(token_ids)
        outputs.append(SequenceOutput(work.seq_id, token_ids, logprobs, failure))
    return tuple(outputs)


def _num_held(drafts: list[int], token_ids: list[int]) -> int:
    """How many drafts, from the first, are what was sampled in their places."""
    for index, draft in enumerate(drafts):
        if token_ids[index] != draft:
            return index
    return len(drafts)


Rank = RankRunner | DeviceRunner


def make_rank(
    directory: Path, options: EngineOptions, num_threads: int | None, rank: int, group: parallel.Group | None
) -> Rank:
    """Load what `rank` holds and wire it up; `group` is None for a gang of one.

    A GPU alone and ranks that split attention (attention=tensor) compute by the device engine, bfloat16 on
    GPUs and float32 on CPUs; "float64", which its kernels do not know, and ranks that own sequences of their
    own (attention=data) by the network of `model.net`.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = default_device() if group is None else group.device
    checkpoint = open_checkpoint(directory)
    if group is not None and options.attention == "tensor":
        return make_device_rank(checkpoint, options, device, group)
    if device.type == "cuda" and group is None and options.dtype != "float64":
        return make_device_rank(checkpoint, options, device)
    return make_network_rank(checkpoint, options, rank, device, group)


def make_network_rank(
    checkpoint: Checkpoint,
    options: EngineOptions,
    rank: int,
    device: torch.device,
    group: parallel.Group | None,
) -> RankRunner:
    """One of `options.num_shards` ranks that own sequences and share experts, computed by `model.net`."""
    text = checkpoint.config.text
    experts = ExpertMap(text.num_experts, options.num_shards)
    sizes = scheduler_config(text, options, has_mtp=checkpoint.has_mtp)
    decoder = load_decoder(checkpoint, experts, rank, options.torch_dtype, device)
    cache = KVCache.allocate(text, sizes, options.torch_dtype, device)
    drafter = None
    if sizes.num_drafts:
        mtp = load_mtp(checkpoint, options.torch_dtype, device)
        drafter = Drafter(mtp, decoder, cache)
    keep_freed_memory()  # after loading: what that frees goes back
    dispatcher = LocalDispatcher(experts) if group is None else AllToAllDispatcher(group, experts)
    grammars = Grammars(checkpoint.directory, text.vocab_size)
    return RankRunner(decoder, cache, dispatcher, rank, drafter, grammars)


def make_device_rank(
    checkpoint: Checkpoint,
    options: EngineOptions,
    device: torch.device,
    group: parallel.Group | None = None,
) -> DeviceRunner:
    """The device engine, alone or as a rank of `group`; on a CPU it computes in plain torch."""
    text = checkpoint.config.text
    sizes = scheduler_config(text, options, has_mtp=checkpoint.has_mtp)
    of_group = Share(0, 1) if group is None else Share(group.rank, group.world_size)
    share = of_group if options.attention == "tensor" else Share(0, 1)
    weights = load_device_weights(
        checkpoint, share, device=device, with_mtp=sizes.num_drafts > 0, own_experts=of_group
    )
    exchange: Exchange = Alone()
    if group is not None:
        group.await_loaded()  # the engine's first steps, which it takes when it is made, are exchanges
        splits = options.attention == "tensor"
        exchange = group.exchange(text.hidden_size) if splits else group.expert_exchange()
    masks = partial(TokenMasks.of, grammars=Grammars(checkpoint.directory, text.vocab_size))
    space = 0 if options.attention == "tensor" else of_group.rank
    return device_runner(weights, sizes, masks, exchange, space)


def default_device() -> torch.device:
    """The GPU this thread works on (the first, unless it chose another), if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def rank_maker(directory: Path, options: EngineOptions, num_threads: int) -> partial[Rank]:
    """What `model.gang.spawn_gang` calls in each rank's process: picklable."""
    return partial(make_rank, directory, options, num_threads)


class LocalRunner:
    """One rank in this process. See `model.engine.Runner`.

    Where the rank can compute a step while the one before it is looked at, steps are launched as they come;
    else they run when their result is asked for.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._steps = StepsAhead(rank)

    def submit(self, step: Step) -> None:
        """Queue a step."""
        self._steps.submit(step)

    def put_embedding(self, key: str, rows_NH: torch.Tensor, rank: int | None = None) -> None:  # noqa: ARG002
        """There is one rank: it keeps the rows."""
        self._rank.put_embedding(key, rows_NH)

    def result(self) -> StepResult:
        """The oldest step's; one that has not begun is run."""
        taken = self._steps.take()
        return StepResult(taken.step.generation, taken.step.step_id, (taken.result,), taken.step_us)

    def close(self) -> None:
        """Nothing that was launched is waited for."""
        self._steps.clear()
