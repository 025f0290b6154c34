"""`fluyt quantize`: a checkpoint in few bits, written layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from model.errors import InvalidRequest

if TYPE_CHECKING:
    from model.quant.convert import FileDone

# ruff: noqa: UP045 - typer reads the types at run time

FORMATS, REST_FORMATS, GROUP_SIZES = ("int4", "int8", "fp8"), ("fp8", "int8"), (32, 64, 128)
DEFAULT_GROUP_SIZE = 128
_MIB = 1 << 20


def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint in bfloat16.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty directory.")],
    weight_format: Annotated[str, typer.Option("--format", help="Of experts: int4, int8, fp8.")],
    rest: Annotated[
        Optional[str], typer.Option(help="Of attention, dense and shared MLPs: fp8, int8.")
    ] = None,
    group_size: Annotated[
        Optional[int], typer.Option(help="Columns that share a scale in int4, int8: 32, 64, 128.")
    ] = None,
) -> None:
    """Write a checkpoint in few bits: fp8 as the hub does, int4 and int8 as compressed-tensors."""
    _check("--format", weight_format, FORMATS)
    _check("--rest", rest, (None, *REST_FORMATS))
    _check("--group-size", group_size, (None, *GROUP_SIZES))
    if group_size is not None and weight_format == "fp8" and rest != "int8":
        raise InvalidRequest("--group-size", f"{group_size} with fp8, which has blocks of 128 x 128")
    from model.quant.convert import QuantizePlan, quantize_checkpoint

    plan = QuantizePlan(
        weight_format,  # type: ignore[arg-type]
        rest,  # type: ignore[arg-type]
        group_size or DEFAULT_GROUP_SIZE,
    )
    bytes_in, bytes_out = quantize_checkpoint(source, target, plan, _report)
    print(f"{target}: {_size(bytes_in)} in, {_size(bytes_out)} out, {bytes_out / bytes_in:.2f} of it")


def _report(done: FileDone) -> None:
    sizes = f"{_size(done.bytes_in)} -> {_size(done.bytes_out)}"
    print(f"{done.number}/{done.num_files} {done.what}: {sizes}", flush=True)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.1f} MiB"


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        choices = ", ".join(str(each) for each in known if each is not None)
        raise InvalidRequest(name, f"{value!r} is not one of {choices}")
