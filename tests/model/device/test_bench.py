"""The bench runs without a GPU, prints a line of JSON for each row, and a row that fails loses no other."""

from __future__ import annotations

import json

import pytest
import torch

from model.device import bench_rows
from model.device.bench import main
from model.device.bench_options import BenchOptions, parse_options
from model.device.bench_report import bytes_per_step, distinct_experts, kinds_of_kernels
from model.device.graphs import bucket_of
from model.device.layout import KVLayout, longest_context
from model.device.random_weights import random_weights
from model.device.shapes import full_text_config, small_text_config
from model.device.weights import Formats, Share, num_bytes
from model.errors import CheckpointError
from tests.model.device.small_models import CPU

FLAGS = "--config small --batch 1,2 --prompt 20 --prefill 2x24 --steps 1 --json --no-check"


def test_every_row_is_a_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = bench_rows.decode_row

    def fails_at_two(bench: object, engine: object, batch: int, prompt: int) -> dict[str, object]:
        if batch == 2:
            raise RuntimeError("out of memory")
        return measure(bench, engine, batch, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_rows, "decode_row", fails_at_two)
    main([*FLAGS.split(), "--quant", "int4", "--rest", "int8"])
    lines = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    rows = [line for line in lines if line["row"] != "compile"]  # of a GPU only
    assert [row["row"] for row in rows] == ["start", "decode", "decode", "prefill", "end"]
    assert rows[1]["step_ms"] > 0 and rows[1]["distinct_experts"] == 4 and rows[1]["read_gb"] > 0
    assert rows[2]["error"] == "RuntimeError: out of memory"
    assert rows[3]["tok_s"] > 0


def test_options_are_those_of_the_issue() -> None:
    given = (
        "--config full --quant int4 --rest int8 --gpus 2 --routing uniform --batch 1,40 --prefill --mtp 1,4"
    )
    options = parse_options(given.split())
    assert options == BenchOptions(
        formats=Formats("int4", "int8"), num_gpus=2, is_uniform=True, batches=(1, 40),
        prefills=((1, 4096), (40, 2048)), mtp_batches=(1, 4),
    )  # fmt: skip


def test_bytes_count_what_was_hit_once() -> None:
    weights = random_weights(small_text_config(), Formats("fp8", "bf16"), Share(0, 1), 0, CPU)
    every = distinct_experts([torch.arange(16)[None]] * 4, 16)
    embedding = num_bytes(weights.embedding_VH)
    assert bytes_per_step(weights, every, 0) == num_bytes(weights) - embedding


def test_names_of_kernels_have_kinds() -> None:
    times = {"product_gemv": 5.0, "_decode_kernel": 2.0, "gemv_kernel": 7.0, "nccl_x": 1.0, "memset": 0.5}
    assert kinds_of_kernels(times) == {
        "linear": 7.0, "experts": 5.0, "attention": 2.0, "exchange": 1.0, "other": 0.5
    }  # fmt: skip


def test_the_full_shape_is_the_published_one() -> None:
    text = full_text_config()
    assert [layer.index for layer in text.layers if layer.attention == "full"] == list(range(0, 45, 4))
    assert [layer.index for layer in text.layers if not layer.is_moe] == [0, 1, 2]
    assert [layer.index for layer in text.layers if layer.swiglu_limit] == [43, 44]
    assert all(layer.attention == "sliding" and layer.num_heads == 96 for layer in text.mtp_layers)


def test_a_budget_gives_the_longest_context_that_fits() -> None:
    text, share = full_text_config(), Share(0, 2)
    length = longest_context(text, share, 12 << 30, 4, 16, torch.bfloat16)
    sizes = [
        KVLayout.for_lengths(text, 4, context, 16).num_bytes(text, share, torch.bfloat16)
        for context in (length, length + 16)
    ]
    assert sizes[0] <= 12 << 30 < sizes[1]


def test_buckets_and_shares() -> None:
    assert [bucket_of(count) for count in (1, 3, 33, 41)] == [1, 4, 40, 64]
    with pytest.raises(CheckpointError, match="shared evenly"):
        Share(0, 3).of(64)
