"""The measurements of a bench on one rank: decode, prefill, verify with drafts, errors of single layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from model.device import ops_plain
from model.device.bench_options import BenchOptions
from model.device.bench_report import bytes_per_step, distinct_experts, kinds_of_kernels, kv_bytes
from model.device.decoder import DeviceDecoder, TokenRows
from model.device.few_layers import few_layers, with_layers
from model.device.graphs import GraphPool, bucket_of
from model.device.prefill import prefill
from model.device.rank import Engine, RankContext
from model.device.state import StepRows, allocate_scratch
from model.device.verify import VerifyRows, verify_step
from model.device.weights import DeviceWeights, num_bytes

VERIFY_ROWS = 4  # the last token and three drafts
ACCEPT_LENGTH = 2.85  # of this family's heads (../shared/baselines.md)
_NUM_WARM_UPS, _NUM_PROFILED, _SPARE_POSITIONS = 3, 3, 16
_READ_BYTES, _NUM_READS = 8 << 30, 8
_CHECKED_ROWS = 4


@dataclass(eq=False)
class Bench:
    """What rows share."""

    context: RankContext
    weights: DeviceWeights
    options: BenchOptions
    started: float  # time.time() of the process that began it all
    read_tb_s: float
    first_token_s: float | None = field(default=None)

    @property
    def context_len(self) -> int:
        """The same for all rows: kernels are compiled for the width of block tables."""
        longest = max(self.options.prompts, default=0)
        return longest + VERIFY_ROWS * (self.options.num_steps + _SPARE_POSITIONS)

    def engine(self, num_seqs: int, num_queries: int, weights: DeviceWeights | None = None) -> Engine:
        """For decode or verify rows."""
        return self.context.engine(
            weights or self.weights, num_seqs, num_queries, self.context_len, num_queries,
            self.context.kv_dtype(self.options.kv), self.options.seed if self.options.is_uniform else None,
        )  # fmt: skip


def measured_read_rate(device: torch.device) -> float:
    """TB/s of one large sum, the best of several; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    values = torch.zeros(_READ_BYTES // 4, dtype=torch.float32, device=device)
    times_ms = timed(values.sum, _NUM_READS, device)
    return _READ_BYTES / min(times_ms) / 1e9


def timed(run: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Milliseconds of each of `count` runs, which follow one another without a wait."""
    if device.type != "cuda":
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e3)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(second) for first, second in pairwise(events)]


def fill_rows(rows: StepRows, num_real: int, prompt_len: int, vocab_size: int) -> None:
    """`num_real` sequences with random tokens behind `prompt_len` positions; the others are padding."""
    generator = torch.Generator(rows.token_ids_T.device).manual_seed(1)
    rows.token_ids_T.random_(0, vocab_size, generator=generator)
    offsets_T = torch.arange(rows.token_ids_T.shape[0], device=rows.token_ids_T.device) % rows.num_queries
    is_real_T = rows.seqs_T < num_real
    rows.positions_T.copy_(torch.where(is_real_T, prompt_len + offsets_T, -1))
    rows.context_lens_B.zero_()
    rows.context_lens_B[:num_real] = prompt_len + rows.num_queries


def decode_row(bench: Bench, engine: Engine, batch: int, prompt: int) -> dict[str, Any]:
    """Steps of `batch` sequences behind `prompt` positions of noise."""
    weights, options, device = bench.weights, bench.options, bench.context.device
    rows, scratch = engine.rows, engine.scratch
    fill_rows(rows, batch, prompt, weights.text.vocab_size)
    begin = time.perf_counter()
    replay = GraphPool(device).capture(lambda: engine.decoder.decode_step(rows, scratch), rows.moving)
    capture_s = time.perf_counter() - begin
    timed(replay, _NUM_WARM_UPS, device)
    if bench.first_token_s is None:
        bench.first_token_s = time.time() - bench.started
    step_ms = statistics.median(timed(replay, options.num_steps, device))
    num_local = len(weights.share.of(weights.text.num_experts))
    distinct = distinct_experts((chosen.expert_ids_TK for chosen in scratch.chosen), num_local)
    cache_bytes = kv_bytes(weights, batch, prompt, bench.context.kv_dtype(options.kv))
    read_bytes = bytes_per_step(weights, distinct, cache_bytes)
    rate = read_bytes / step_ms / 1e9
    return {
        "batch": batch, "prompt": prompt, "rows": rows.num_seqs, "step_ms": round(step_ms, 4),
        "tok_s": round(batch * 1e3 / step_ms, 1), "distinct_experts": round(distinct.mean, 1),
        "distinct_experts_busiest_rank": round(distinct.mean_of_busiest_rank, 1),
        "read_gb": round(read_bytes / 1e9, 3), "read_tb_s": round(rate, 3),
        "of_bandwidth": round(rate / bench.read_tb_s, 3) if bench.read_tb_s else None,
        "capture_s": round(capture_s, 2), "memory_gib": round(bench.context.memory_gib(), 2),
        "kernels_us": profiled(replay, device) if options.profile else {},
    }  # fmt: skip


def mtp_row(bench: Bench, engine: Engine, batch: int, prompt: int) -> dict[str, Any]:
    """Verify steps of `VERIFY_ROWS` tokens, alone and with the drafts of the next step."""
    device, rows, scratch, decoder = bench.context.device, engine.rows, engine.scratch, engine.decoder
    verified = VerifyRows.around(rows)
    result: dict[str, Any] = {"batch": batch, "prompt": prompt, "queries": VERIFY_ROWS}
    for name, run in (
        ("verify_ms", lambda: decoder.decode_step(rows, scratch)),
        ("step_ms", lambda: verify_step(decoder, verified, scratch)),
    ):  # fmt: skip
        fill_rows(rows, batch, prompt, bench.weights.text.vocab_size)
        fill_verify_rows(verified, batch, prompt)
        replay = GraphPool(device).capture(run, verified.moving)
        timed(replay, _NUM_WARM_UPS, device)
        result[name] = round(statistics.median(timed(replay, bench.options.num_steps, device)), 4)
        kernels = profiled(replay, device) if bench.options.profile else {}
    num_local = len(bench.weights.share.of(bench.weights.text.num_experts))
    distinct = distinct_experts((chosen.expert_ids_TK for chosen in scratch.chosen), num_local)
    return result | {
        "tok_s_at_accept_length": round(batch * ACCEPT_LENGTH * 1e3 / result["step_ms"], 1),
        "accept_length": ACCEPT_LENGTH, "distinct_experts": round(distinct.mean, 1),
        "memory_gib": round(bench.context.memory_gib(), 2), "kernels_us": kernels,
    }  # fmt: skip


def fill_verify_rows(rows: VerifyRows, num_real: int, prompt_len: int) -> None:
    """The same sequences as `fill_rows`, with all drafts to be verified."""
    rows.base_B.fill_(-1)
    rows.base_B[:num_real] = prompt_len
    rows.prompts_B.fill_(prompt_len)
    rows.limits_B.fill_(VERIFY_ROWS - 1)


def prefill_row(bench: Bench, num_seqs: int, length: int) -> dict[str, Any]:
    """Whole prompts to first tokens, the second time; the first one compiles."""
    context, weights, options = bench.context, bench.weights, bench.options
    piece = min(length, options.chunk_tokens)
    chunk = min(options.chunk_tokens, num_seqs * length)
    kv_dtype = context.kv_dtype(options.kv)
    seed = options.seed if options.is_uniform else None
    engine = context.engine(weights, num_seqs, 1, length + _SPARE_POSITIONS, piece, kv_dtype, seed)
    scratch = allocate_scratch(weights, context.ops, chunk, 1, context.dtype, is_prefill=True)
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(0, weights.text.vocab_size, (num_seqs, length), generator=generator).tolist()
    times_s = []
    for _ in range(2):
        context.synchronize()
        begin = time.perf_counter()
        prefill(engine.decoder, engine.rows, scratch, prompts, chunk, piece)
        context.synchronize()
        times_s.append(time.perf_counter() - begin)
    return {
        "prompts": num_seqs, "length": length, "chunk": chunk, "first_s": round(times_s[0], 3),
        "seconds": round(times_s[1], 4), "tok_s": round(num_seqs * length / times_s[1]),
        "memory_gib": round(context.memory_gib(), 2),
    }  # fmt: skip


def profiled(replay: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Microseconds of a step's kernels by kind; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(_NUM_PROFILED):
                replay()
            torch.cuda.synchronize(device)
    except RuntimeError:  # no counters for us on this machine: the row is worth more than its parts
        return {}
    times: dict[str, float] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] = times.get(event.name, 0.0) + event.self_device_time_total / _NUM_PROFILED
    return kinds_of_kernels(times)


def layer_errors(bench: Bench) -> dict[str, Any]:
    """Of one layer of each kind: distance from plain torch in float32, relative to what the layer adds.

    Experts are the same on both sides, by uniform routing: a choice that rounding turns is no error.
    """
    errors = {}
    weights = few_layers(bench.weights)
    for index, layer in enumerate(weights.text.layers):
        single = with_layers(weights, [index])
        ours, truth = (_layer_output(bench, single, is_plain=is_plain) for is_plain in (False, True))
        kind = f"{layer.index} {layer.attention} {'sparse' if layer.is_moe else 'dense'}"
        errors[kind] = round(float((ours - truth).norm() / truth.norm()), 6)
    return errors


def _layer_output(bench: Bench, single: DeviceWeights, *, is_plain: bool) -> torch.Tensor:
    """What the layer adds to random rows, float32."""
    context = bench.context
    torch.manual_seed(3)  # the noise in both caches
    ops, dtype = (ops_plain, torch.float32) if is_plain else (context.ops, context.dtype)
    engine = context.engine(single, _CHECKED_ROWS, 1, 640, 1, context.dtype, bench.options.seed)
    pools = tuple(
        type(pool)(pool.pool_XK2SD.to(dtype), pool.k_scale, pool.v_scale) for pool in engine.decoder.pools
    )
    decoder = DeviceDecoder(single, pools, ops, context.exchange, bench.options.seed)
    scratch = allocate_scratch(single, ops, _CHECKED_ROWS, 1, dtype, is_prefill=False)
    fill_rows(engine.rows, _CHECKED_ROWS, 600, single.text.vocab_size)
    decoder.run_layers(TokenRows.of_step(engine.rows), scratch, engine.rows.step_1)
    embedded = single.embedding_VH[engine.rows.token_ids_T.long()].float()
    context.synchronize()
    return scratch.hidden_TH - embedded


def sizes(bench: Bench) -> dict[str, Any]:
    """Memory of this rank's weights."""
    return {"weights_gb": round(num_bytes(bench.weights) / 1e9, 2), "layers": len(bench.weights.layers)}


def buckets(batches: tuple[int, ...]) -> list[int]:
    """Those that batches need."""
    return sorted({bucket_of(batch) for batch in batches})
