"""What `python -m model.device.bench` is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.device.shapes import ConfigName
from model.device.weights import Formats

# vLLM's rows of ../shared/baselines.md.
BATCHES, PROMPTS = (1, 4, 16, 40, 64), (128, 2048)
PREFILLS = ((1, 4096), (40, 2048))


@dataclass(frozen=True)
class BenchOptions:
    """One run. Rows are decode batches x prompts, then prefills, then verify steps."""

    config: ConfigName = "full"
    formats: Formats = field(default_factory=Formats)
    num_gpus: int = 1
    num_layers: int | None = None
    is_uniform: bool = False
    batches: tuple[int, ...] = BATCHES
    prompts: tuple[int, ...] = PROMPTS
    prefills: tuple[tuple[int, int], ...] = ()
    mtp_batches: tuple[int, ...] = ()
    kv: str = "bf16"
    num_steps: int = 50
    chunk_tokens: int = 8192
    seed: int = 0
    check: bool = True
    profile: bool = True
    as_json: bool = False


def parse_options(arguments: Sequence[str] | None = None) -> BenchOptions:
    """From a command line."""
    parser = argparse.ArgumentParser("model.device.bench", description=__doc__)
    parser.add_argument("--config", choices=("full", "small"), default="full")
    parser.add_argument("--quant", choices=("fp8", "int8", "int4", "bf16"), default="fp8", help="experts")
    parser.add_argument("--rest", choices=("bf16", "fp8", "int8"), default="bf16", help="all other products")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--layers", type=int, help="only the first so many, for a smaller GPU")
    parser.add_argument("--routing", choices=("router", "uniform"), default="router")
    parser.add_argument("--batch", type=_counts, default=BATCHES, help="for example 1,4,16,40,64")
    parser.add_argument("--prompt", type=_counts, default=PROMPTS, help="for example 128,2048")
    parser.add_argument(
        "--prefill", nargs="?", const=PREFILLS, default=(), type=_prefills, help="1x4096,40x2048"
    )
    parser.add_argument("--mtp", nargs="?", const=(1,), default=(), type=_counts, help="batches to verify")
    parser.add_argument("--kv", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(arguments)
    return BenchOptions(
        given.config, Formats(given.quant, given.rest), given.gpus, given.layers,
        given.routing == "uniform", given.batch, given.prompt, given.prefill, given.mtp, given.kv,
        given.steps, given.chunk, given.seed, not given.no_check, not given.no_profile, given.json,
    )  # fmt: skip


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _prefills(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [part.split("x") for part in text.split(",") if part]
    return tuple((int(count), int(length)) for count, length in pairs)
