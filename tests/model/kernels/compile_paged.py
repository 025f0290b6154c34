"""Prints registers, stack and shared memory of the attention kernels at the model's shapes (`offline.py`)."""

from __future__ import annotations

import torch

from model.kernels.paged import FP8, PagedKV, PagedSequences, allocate_workspace
from model.kernels.paged_decode import paged_decode
from model.kernels.paged_prefill import paged_prefill
from model.kernels.qkv_prepare import qkv_prepare, token_tables
from tests.model.kernels.offline import Compiled, compile_calls

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 128, 16
CPU = torch.device("cpu")


def kv_of(dtype: torch.dtype) -> PagedKV:
    pool = torch.zeros(2, NUM_KV_HEADS, 2, BLOCK_SIZE, HEAD_DIM).to(dtype)
    return PagedKV(pool, 0.1, 0.2) if dtype == FP8 else PagedKV(pool)


def sequences_of(num_seqs: int, num_columns: int, *, begins: bool) -> PagedSequences:
    table = torch.zeros(num_seqs, num_columns, dtype=torch.int32)
    return PagedSequences(table, table[:, 0].contiguous(), table[:, 0].contiguous() if begins else None)


def decode(num_seqs: int, num_queries: int, num_q: int, window: int | None, dtype: torch.dtype) -> None:
    q_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    q, out = torch.zeros(2, num_seqs * num_queries, num_q, HEAD_DIM, dtype=q_dtype).unbind(0)
    workspace = allocate_workspace(264, num_seqs * NUM_KV_HEADS, 64, HEAD_DIM, CPU)
    sequences = sequences_of(num_seqs, 16384 if window is None else 64, begins=num_queries == 3)
    paged_decode(q, kv_of(dtype), sequences, q[..., 0].contiguous(), out, workspace, window)


def prefill(num_seqs: int, num_q: int, window: int | None, dtype: torch.dtype) -> None:
    q, out = torch.zeros(2, 64, num_q, HEAD_DIM, dtype=torch.bfloat16).unbind(0)
    sequences = sequences_of(num_seqs, 16384 if window is None else 1024, begins=False)
    starts = torch.zeros(num_seqs + 1, dtype=torch.int32)
    paged_prefill(q, kv_of(dtype), sequences, starts, q[..., 0].contiguous(), out, window)


def prepare(num_tokens: int, num_q: int, num_turned: int, dtype: torch.dtype) -> None:
    qkvg = torch.zeros(num_tokens, (num_q + 2 * NUM_KV_HEADS) * HEAD_DIM + num_q, dtype=torch.bfloat16)
    norm, cos_sin = torch.ones(HEAD_DIM), torch.zeros(num_tokens, 2, num_turned // 2)
    q_out = torch.zeros(num_tokens, num_q, HEAD_DIM, dtype=torch.bfloat16)
    slots = torch.zeros(num_tokens, dtype=torch.int32)
    token_tables(slots, slots, cos_sin[0, 0], slots.view(1, -1), BLOCK_SIZE, cos_sin, slots)
    qkv_prepare(qkvg, norm, norm, cos_sin, slots, kv_of(dtype), q_out, 1e-5)


def calls() -> None:
    for dtype in (torch.bfloat16, FP8):
        decode(1, 1, 64, None, dtype)
        decode(40, 1, 96, 512, dtype)
        decode(1, 4, 96, 512, dtype)
        prefill(40, 64, None, dtype)
        prefill(40, 96, 512, dtype)
    decode(4, 3, 64, 512, torch.bfloat16)  # with beginnings, as MTP layers
    decode(1, 1, 64, None, torch.float32)
    prepare(1, 64, 64, torch.bfloat16)
    prepare(1024, 96, 128, FP8)


def line(kernel: Compiled) -> str:
    operations = ("HGMMA", "HMMA", "LDGSTS.E.BYPASS.128", "LDG.E.128", "STG.E.128")
    counts = " ".join(f"{name}:{kernel.instructions.count(name)}" for name in operations)
    return (
        f"{kernel.name} registers {kernel.num_registers} stack {kernel.stack_bytes} "
        f"shared {kernel.shared_bytes} {counts}"
    )


if __name__ == "__main__":
    for kernel in compile_calls(calls):
        print(line(kernel))
