"""A rank of a gang whose ranks all run the whole plan, or a gang of one: a `Step` in, its tokens out.

    launch(step):  copies of blocks -> prefill of what is not one token of an answer -> decode rows
                   -> sampled ids, on their way to the host
    collect():     ids -> rows that `model.sampler` samples, log-probabilities of prompts -> `RankResult`

Ranks that own sequences of their own run passes of one size (`lockstep`), be they empty.

A step is launched before the one before it is collected: tokens that have not come are taken on the device.
A step with rows for `model.sampler` is collected first (`can_launch`): its tokens come from the host.

Shapes: N tokens sampled, S rows for the host, R rows of embeddings, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from model.config import TextConfig
from model.device.chunks import PrefillChunks, Prefilled
from model.device.compile_ahead import compile_ahead
from model.device.decode_rows import DecodeRows
from model.device.decoder import DeviceDecoder
from model.device.exchange import Exchange
from model.device.filtered import draw_filtered
from model.device.graphs import GraphPool
from model.device.layout import allocate_blocks
from model.device.live_rows import DeviceSequence, Part, ShownPart, take_work
from model.device.lockstep import Passes, passes_of
from model.device.ops import choose_ops
from model.device.sampled import (
    HostRows,
    SampledBy,
    SampledRows,
    TokensOnTheWay,
    sampled_by,
    upload,
    whole_logits,
)
from model.device.sizes import PlanSizes
from model.device.weights import DeviceWeights
from model.live import LiveSequence
from model.masks import MaskWorker, TokenMasks
from model.sched.config import SchedulerConfig
from model.sched.step import BlockCopy, RankResult, RankStep, ScoredPrompt, SequenceOutput, Step
from model.scoring import score_prompts
from model.shown_rows import ShownRows
from model.types import SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from model.net.decoder import Decoder

MakeMasks = Callable[[SamplingParams], TokenMasks | None]


@dataclass(frozen=True, eq=False)
class Launched:
    """A step that the device computes; `DeviceRunner.collect` makes its result."""

    step_id: int
    sampling: list[Part]  # those whose tokens come, in the order of `tokens`
    tokens: TokensOnTheWay
    shown: list[ShownPart]  # of rows that verify
    by_host: HostRows | None
    masked: Future[None] | None
    scored: list[Part]  # the chunk, if one of its prompts wants log-probabilities, and
    prefilled: Prefilled | None  # its rows

    @property
    def is_done(self) -> bool:
        """Whether the device has computed it; what is sampled on the host is not."""
        return self.tokens.have_come

    @property
    def needs_host(self) -> bool:
        """Whether the next step has to wait until this one is collected."""
        return self.by_host is not None or bool(self.scored)


class DeviceRunner:
    """It has the interface of `model.runner.RankRunner`, and `run` in two halves. One thread at a time.

    Memory: weights, KV pools, work memory, embeddings of open sequences. Without MTP layers drafts of a plan
    are not made, so they do not hold.
    """

    def __init__(
        self,
        decoder: DeviceDecoder,
        sizes: PlanSizes,
        make_masks: MakeMasks,
        dtype: torch.dtype,
        space: int = 0,
    ) -> None:
        """`decoder`: with pools of `sizes` (`layout.allocate_blocks`). `dtype`: of activations.

        `space`: which sequences of the plan are its own. Returns when every graph has run once.
        """
        self._space, self._num_prompt = space, dict[int, int]()  # of sequences of all spaces
        self._decoder, self._sizes, self._make_masks, self._dtype = decoder, sizes, make_masks, dtype
        self._device = decoder.weights.device
        self._masks = MaskWorker()
        self._live: dict[int, DeviceSequence] = {}
        self._embeddings: dict[str, torch.Tensor] = {}
        self._in_flight: list[Launched] = []
        with torch.inference_mode():
            self._shown = ShownRows(sizes.num_blocks["sliding"], sizes.block_size)
            self._chunks = PrefillChunks(decoder, sizes, dtype, self._shown)
            pool = GraphPool(self._device)
            if self._device.type == "cuda":
                compile_ahead(decoder, sizes, dtype)
            self._rows = [DecodeRows(decoder, sizes, dtype, queries, pool) for queries in sizes.queries]
            if self._device.type == "cuda":
                self._chunks.warm_up()
                torch.cuda.synchronize(self._device)

    def put_embedding(self, key: str, rows_RH: torch.Tensor) -> None:
        """Keep an image's rows until the sequence whose spans name `key` is dropped; keys are not shared."""
        if self._device.type == "cuda" and not rows_RH.is_cuda:
            rows_RH = rows_RH.pin_memory()  # else the copy would wait for the steps on their way
        self._embeddings[key] = rows_RH.to(self._device, non_blocking=True).to(self._dtype)

    def drop_embedding(self, key: str) -> None:
        """Forget rows whose sequence ended before it was admitted; unknown keys are ignored."""
        self._embeddings.pop(key, None)

    def reset(self) -> None:
        """Forget every sequence, and steps that nobody collects."""
        self._live.clear()
        self._num_prompt.clear()
        self._embeddings.clear()
        self._in_flight.clear()
        self._forget_rows()

    def run(self, step: Step) -> RankResult:
        """Launch and collect."""
        return self.collect(self.launch(step))

    @property
    def can_launch(self) -> bool:
        """Whether a step can be launched now: at most one is on its way, and it does not need the host."""
        return not self._in_flight or (len(self._in_flight) == 1 and not self._in_flight[0].needs_host)

    @torch.inference_mode()
    def launch(self, step: Step) -> Launched:
        """Start a step. Steps are launched in order; see `can_launch`."""
        assert self.can_launch, (step.step_id, [launched.step_id for launched in self._in_flight])
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # kernels take the thread's, which need not be the loader's
        share = step.ranks[self._space]
        for each in step.ranks:
            self._num_prompt |= {seq.seq_id: len(seq.prompt_ids) for seq in each.admitted}
        passes = passes_of(step.ranks, self._num_prompt)
        previous = self._in_flight[-1].tokens if self._in_flight else None
        for copy in share.copies:
            self._copy_block(copy)
        parts = self._take(share)
        chunk = [part for part in parts if not part.is_decode]
        decoding = [part for part in parts if part.is_decode]
        sampling = [part for part in chunk if part.work.samples] + decoding
        by = [sampled_by(part.seq.live.row, part.seq.num_outputs) for part in sampling]
        host = [index for index, who in enumerate(by) if who == "host"]
        masked = self._masks.begin([sampling[index].seq.live.row for index in host])
        prefilled = decoded = None
        if passes.num_chunk_tokens:
            prefilled = self._chunks.run(chunk, self._embeddings, previous, passes.num_chunk_tokens)
        if passes.num_decode_rows:
            decoded = self._decode(decoding, previous, passes)
        tokens = self._tokens(sampling, by, prefilled, decoded)
        by_host = None
        if host:
            rows = [sampling[index].seq.live.row for index in host]
            by_host = HostRows(host, rows, self._logits_of(host, prefilled, decoded))
        # MTP layers are shown a guess of what is sampled elsewhere: nothing for others.
        in_step = [part for part, who in zip(sampling, by, strict=True) if who == "step" and part.is_decode]
        shown = [ShownPart.of(part) for part in in_step if part.seq.is_mtp_current]
        for part in sampling:
            part.seq.num_on_the_way += 1
        scored = any(part.seq.live.row.sampling.num_prompt_logprobs is not None for part in chunk)
        launched = Launched(
            step.step_id, sampling, tokens, shown, by_host, masked, chunk if scored else [], prefilled
        )  # fmt: skip
        self._in_flight.append(launched)
        for seq_id in share.dropped:
            self._forget(seq_id)
        for each in step.ranks:
            for seq_id in each.dropped:
                self._num_prompt.pop(seq_id, None)
        return launched

    @torch.inference_mode()
    def collect(self, launched: Launched) -> RankResult:
        """The result of the oldest step that was launched and not collected."""
        assert self._in_flight and self._in_flight[0] is launched, launched.step_id
        gained = launched.tokens.wait()
        by_host: dict[int, tuple[int, TokenLogprob | None]] = {}
        if launched.masked is not None:
            launched.masked.result()
        if launched.by_host is not None:
            by_host = launched.by_host.sample()
            ids_S = upload(np.asarray([token_id for token_id, _ in by_host.values()]), self._device)
            self._correct([launched.sampling[index].seq for index in by_host], ids_S)
        prompts = self._score(launched)
        outputs = []
        for index, part in enumerate(launched.sampling):
            token_ids, logprobs = gained[index], tuple[TokenLogprob, ...]()
            if index in by_host:
                token_id, logprob = by_host[index]
                token_ids, logprobs = (token_id,), () if logprob is None else (logprob,)
            seq = part.seq.live
            failure = "" if seq.row.masks is None else seq.row.masks.failure
            outputs.append(SequenceOutput(part.work.seq_id, token_ids, logprobs, failure))
            seq.extend(token_ids)
            part.seq.num_on_the_way -= 1
        for row in launched.shown:
            row.note(self._shown)
        self._in_flight.pop(0)
        return RankResult(tuple(outputs), prompts)

    def _take(self, share: RankStep) -> list[Part]:
        """Sequences that come, and each one's part."""
        for admitted in share.admitted:
            masks = self._make_masks(admitted.sampling)
            live = LiveSequence.admit(admitted, self._sizes.block_size, masks)
            self._live[admitted.seq_id] = DeviceSequence.of(live, self._sizes.num_columns, admitted.borders)
        parts = []
        for work in share.work:
            seq = self._live[work.seq_id]
            if work.begins:
                self._forget_rows(seq)
            parts.append(take_work(seq, work))
            blocks = work.new_sliding_blocks
            first_logical = seq.tables["sliding"].num_appended - len(blocks)
            self._shown.take(blocks, first_logical, work.start if work.begins else 0)
        return parts

    def _copy_block(self, copy: BlockCopy) -> None:
        text: TextConfig = self._decoder.weights.text
        for layer, pool in zip((*text.layers, *text.mtp_layers), self._decoder.pools, strict=False):
            if layer.attention == copy.group:
                pool.pool_XK2SD[copy.target] = pool.pool_XK2SD[copy.source]
        if copy.group == "sliding":
            self._shown.copy(copy.source, copy.target)

    def _decode(
        self, parts: Sequence[Part], previous: TokensOnTheWay | None, passes: Passes
    ) -> tuple[SampledRows, torch.Tensor]:
        """A step without drafts, or one that verifies and makes them if the plan has any."""
        verifies = len(self._rows) > 1 and passes.has_drafts
        rows, others = self._rows[verifies], self._rows[not verifies] if len(self._rows) > 1 else None
        for part in parts:
            if verifies:
                part.seq.show_to_mtp(part.start, self._shown, self._decoder.weights.text.window)
            else:
                part.seq.is_mtp_current = False
        if others is not None:
            others.forget()
        return rows.run(parts, previous, passes.num_decode_rows)

    def _tokens(
        self,
        sampling: Sequence[Part],
        by: Sequence[SampledBy],
        prefilled: Prefilled | None,
        decoded: tuple[SampledRows, torch.Tensor] | None,
    ) -> TokensOnTheWay:
        """Of the whole step."""
        pieces = [] if prefilled is None or prefilled.sampled is None else [prefilled.sampled]
        pieces += [] if decoded is None else [decoded[0]]
        joined = SampledRows.joined(pieces, 1 + self._sizes.num_drafts) if pieces else None
        filtered = [index for index, who in enumerate(by) if who == "filters"]
        if filtered and joined is not None:
            parts = [sampling[index] for index in filtered]
            ids_S = self._agreed(draw_filtered(self._logits_of(filtered, prefilled, decoded), parts))
            joined.replace(filtered, ids_S)
            self._correct([part.seq for part in parts], ids_S)
        with_drafts = {
            part.seq
            for part in sampling
            if (part.seq.is_mtp_current if part.is_decode else prefilled is not None and prefilled.has_drafts)
        }
        return TokensOnTheWay(joined, sampling, with_drafts, self._device)

    def _logits_of(
        self,
        places: list[int],
        prefilled: Prefilled | None,
        decoded: tuple[SampledRows, torch.Tensor] | None,
    ) -> torch.Tensor:
        """[S, V] of some of the sampled sequences, in order, of all ranks."""
        num_prefilled = 0 if prefilled is None else prefilled.logits_SV.shape[0]
        pieces = []
        if prefilled is not None and (first := [index for index in places if index < num_prefilled]):
            pieces.append(prefilled.logits_SV[self._on_device(first)])
        if decoded is not None and (rest := [i - num_prefilled for i in places if i >= num_prefilled]):
            pieces.append(decoded[1][self._on_device(rest)])
        return whole_logits(self._decoder, torch.cat(pieces))

    def _agreed(self, ids_S: torch.Tensor) -> torch.Tensor:
        """Those of the first rank: sums over a vocabulary need not have the same last bit on every GPU."""
        if self._decoder.exchange.num_ranks == 1:
            return ids_S
        is_first = self._decoder.weights.share.rank == 0
        part_S1 = ids_S.float().unsqueeze(1)  # ids are below 2^24
        return self._decoder.exchange.add(part_S1 if is_first else part_S1.zero_()).squeeze(1).long()

    def _on_device(self, indices: list[int]) -> torch.Tensor:
        """A list as index would wait for the device."""
        return upload(np.asarray(indices, np.int64), self._device)

    def _correct(self, seqs: Sequence[DeviceSequence], ids_S: torch.Tensor) -> None:
        for rows in self._rows:
            rows.correct(seqs, ids_S)

    def _forget_rows(self, seq: DeviceSequence | None = None) -> None:
        for rows in self._rows:
            rows.forget(seq)

    def _score(self, launched: Launched) -> tuple[ScoredPrompt, ...]:
        if not launched.scored or launched.prefilled is None:
            return ()
        works = [(part.seq.live, part.work) for part in launched.scored]
        starts = [part.start for part in launched.scored]
        projection = _Projection(self._decoder, self._chunks)
        # It asks a decoder for its text config and the logits of rows, no more.
        return score_prompts(cast("Decoder", projection), launched.prefilled.normed_TH, works, starts)

    def _forget(self, seq_id: int) -> None:
        seq = self._live.pop(seq_id, None)
        for span in seq.live.images if seq is not None else ():
            self._embeddings.pop(span.key, None)


def device_runner(
    weights: DeviceWeights,
    config: SchedulerConfig,
    make_masks: MakeMasks,
    exchange: Exchange,
    space: int = 0,
) -> DeviceRunner:
    """A runner over `weights`, where they are, with a cache for the plans of a scheduler of this config.

    `space`: whose sequences it runs. Activations and cache are bfloat16 on a GPU, float32 on a CPU.
    """
    device, sizes = weights.device, PlanSizes.of(config, len(weights.mtp))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pools = allocate_blocks(
        weights.text, weights.share, sizes.num_blocks, sizes.block_size, dtype, device,
        with_mtp=sizes.num_drafts > 0,
    )  # fmt: skip
    decoder = DeviceDecoder(weights, pools, choose_ops(device), exchange)
    return DeviceRunner(decoder, sizes, make_masks, dtype, space)


@dataclass(frozen=True, eq=False)
class _Projection:
    """What `model.scoring` asks of a decoder."""

    decoder: DeviceDecoder
    chunks: PrefillChunks

    @property
    def text(self) -> TextConfig:
        return self.decoder.weights.text

    def project(self, normed_SH: torch.Tensor) -> torch.Tensor:
        """Rows [S, H] after the final norm -> logits [S, V]."""
        return whole_logits(self.decoder, self.chunks.logits(normed_SH))
