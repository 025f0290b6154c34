"""Prints registers, stack and the main loop of the products with experts at 40 tokens (`offline.py`).

A line for each kernel and loop: its name, what `offline.Compiled` says, and the loop's instructions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.kernels.experts import experts_rows
from model.kernels.experts_config import (
    ExpertsShape,
    SharedExpert,
    choose_config,
    make_workspace,
)
from model.kernels.packed import PackedFormat, PackedWeight
from tests.model.kernels.offline import Compiled, compile_calls

NUM_TOKENS = 40
SHAPE = ExpertsShape(num_experts=288, experts_per_token=8, hidden_size=4096, width=1280)


@dataclass(frozen=True)
class Loop:
    """The instructions between a branch back and its target."""

    instructions: Counter[str]

    @property
    def num_instructions(self) -> int:
        """All of them."""
        return self.instructions.total()


def weight_of(
    shape: tuple[int, ...], weight_format: PackedFormat, *, with_zeros: bool = False
) -> PackedWeight:
    """Nobody reads its values."""
    *lead, num_rows, num_columns = shape
    if weight_format == "bf16":
        return PackedWeight("bf16", torch.empty(shape, dtype=torch.bfloat16), None, None, 0, shape)
    if weight_format == "fp8":
        scales = torch.empty(*lead, -(-num_rows // 128), -(-num_columns // 128))
        return PackedWeight("fp8", torch.empty(shape, dtype=torch.float8_e4m3fn), scales, None, 128, shape)
    groups = (*lead, num_columns // 128, num_rows)  # as memory has them
    data = torch.empty(*lead, num_rows, num_columns // 2, dtype=torch.uint8)
    zeros = torch.empty(groups, dtype=torch.uint8).mT if with_zeros else None
    scales = torch.empty(groups, dtype=torch.bfloat16).mT
    return PackedWeight("int4", data, scales, zeros, 128, shape, is_tiled=True)


def products(weight_format: PackedFormat, *, with_zeros: bool = False) -> list[Compiled]:
    """The kernels of one call with the chosen config."""
    hidden, width, lead = SHAPE.hidden_size, SHAPE.width, SHAPE.num_experts
    shared = SharedExpert(weight_of((2 * width, hidden), "fp8"), weight_of((hidden, width), "fp8"), None)
    gate_up = weight_of((lead, 2 * width, hidden), weight_format, with_zeros=with_zeros)
    down = weight_of((lead, hidden, width), weight_format, with_zeros=with_zeros)
    x_TH = torch.empty(NUM_TOKENS, hidden, dtype=torch.bfloat16)
    ids_TK = torch.zeros(NUM_TOKENS, SHAPE.experts_per_token, dtype=torch.int32)
    workspace = make_workspace(NUM_TOKENS, SHAPE, "cpu", shared_width=width)
    config = choose_config(NUM_TOKENS, SHAPE, weight_format)

    def call() -> None:
        experts_rows(
            x_TH, ids_TK, gate_up, down, limit=7.0, first_expert=0, workspace=workspace, shared=shared,
            config=config,
        )  # fmt: skip

    return compile_calls(call)


def loops(sass: str) -> Iterator[Loop]:
    """What is between a branch and an earlier instruction to which it goes."""
    found = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9_.]+)\s*(.*?);", sass, re.MULTILINE
    )
    lines = [(int(at, 16), name, operands) for at, name, operands in found]
    for end, name, operands in lines:
        target = re.search(r"0x([0-9a-f]+)", operands) if name == "BRA" else None
        if target and int(target[1], 16) < end:
            start = int(target[1], 16)
            yield Loop(Counter(name.split(".")[0] for at, name, _ in lines if start <= at <= end))


def main() -> None:
    cases: list[tuple[PackedFormat, bool]] = [("int4", False), ("int4", True), ("fp8", False)]
    for weight_format, with_zeros in cases:
        for kernel in products(weight_format, with_zeros=with_zeros)[1:]:
            for loop in loops(kernel.instructions):
                counts = " ".join(f"{name}:{count}" for name, count in sorted(loop.instructions.items()))
                print(
                    f"{weight_format} {kernel.name} registers {kernel.num_registers} "
                    f"stack {kernel.stack_bytes} shared {kernel.shared_bytes} "
                    f"loop {loop.num_instructions} {counts}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
