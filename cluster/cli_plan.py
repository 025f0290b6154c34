"""`fluyt plan`: what a model takes of each GPU, and how long its contexts may be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from model.errors import InvalidRequest

# ruff: noqa: PLR0913, PLR0917, UP045 - a parameter is a flag; typer reads the types at run time

EXPERT_FORMATS, REST_FORMATS = ("fp8", "int8", "int4", "bf16"), ("bf16", "fp8", "int8")
KV_FORMATS = ("bf16", "fp8")
H200_GIB = 139.0  # what a program can have of one
_GIB = 1 << 30


def plan(
    model: Annotated[
        Optional[Path], typer.Option(help="Shapes of this checkpoint; without, Step-3.7-Flash's.")
    ] = None,
    quant: Annotated[str, typer.Option(help="Routed experts: fp8, int8, int4, bf16.")] = "fp8",
    rest: Annotated[str, typer.Option(help="All other products: bf16, fp8, int8.")] = "bf16",
    kv: Annotated[str, typer.Option(help="Cached keys and values: bf16, fp8.")] = "bf16",
    gpus: Annotated[int, typer.Option(min=1, help="That share the model.")] = 1,
    memory_gib: Annotated[float, typer.Option(min=1, help="Of each GPU.")] = H200_GIB,
    streams: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 4096,
    mtp: Annotated[bool, typer.Option(help="With the layers that draft.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Say what a model takes of each GPU; exit code 1 where it does not fit."""
    _check("--quant", quant, EXPERT_FORMATS)
    _check("--rest", rest, REST_FORMATS)
    _check("--kv", kv, KV_FORMATS)
    import torch

    from model.config import read_config
    from model.device.plan import RESERVED_BYTES, plan_memory
    from model.device.shapes import full_text_config
    from model.device.weights import Formats

    text = full_text_config() if model is None else read_config(model).text
    if context > text.context_len:
        raise InvalidRequest("--context", f"{context} is over the model's {text.context_len}")
    planned = plan_memory(
        text, Formats(quant, rest), gpus, num_streams=streams, context_len=context,  # type: ignore[arg-type]
        kv_dtype=torch.bfloat16 if kv == "bf16" else torch.float8_e4m3fn,
        memory_bytes=round(memory_gib * _GIB), with_mtp=mtp,
    )  # fmt: skip
    needed = planned.num_bytes + RESERVED_BYTES
    fits = needed <= memory_gib * _GIB
    if as_json:
        print(json.dumps(asdict(planned) | {"reserved_bytes": RESERVED_BYTES, "fits": fits}))
    else:
        print(
            f"weights  {planned.weight_bytes / _GIB:8.2f} GiB of each GPU: experts {quant}, the rest {rest}"
        )
        print(f"cache    {planned.cache_bytes / _GIB:8.2f} GiB: {streams} x {context:,} tokens in {kv}")
        print(f"work     {planned.work_bytes / _GIB:8.2f} GiB, and {RESERVED_BYTES / _GIB:.2f} for CUDA")
        print(f"together {needed / _GIB:8.2f} GiB of {memory_gib:g}: {'fits' if fits else 'does not fit'}")
        print(f"{streams} streams could have {planned.longest_context:,} tokens each")
    if not fits:
        raise typer.Exit(1)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidRequest(name, f"{value!r} is not one of {', '.join(known)}")
