"""What ranks tell each other in a step: sums of rows, and the best token of each part of the vocabulary.

Shapes: T tokens, H hidden, R ranks.

Every rank gets the same bits: parts are added in the order of ranks, or by NCCL, which gives all the same.
Buffers for rows are preallocated; a sum of up to `MOST_PEER_ROWS` rows goes over peer memory (one-shot: each
rank reads all parts; 6.3 us for a row, NCCL 16.8), never over NVLink multicast, which these machines lack.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
import torch.distributed as dist

from model.kernels.sample_plain import Candidates

MOST_PEER_ROWS = 64
# Where hosts share GPUs, a program that uses multicast can put them out of service.
NO_MULTICAST = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}


class Exchange(Protocol):
    """One rank's end of a group."""

    @property
    def num_ranks(self) -> int:
        """R."""

    def part(self, num_rows: int) -> torch.Tensor | None:
        """Where this rank's part [T, H] is to be written for `add`; None: anywhere."""

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' parts; may be overwritten by the next one."""

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """Candidates [R, T] of all ranks: in `out`, or `own` where there is one rank."""


class Alone:
    """One rank: nothing to exchange."""

    num_ranks = 1

    def part(self, num_rows: int) -> torch.Tensor | None:  # noqa: ARG002
        """Anywhere."""
        return None

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """The part is the sum."""
        return part_TH

    def gather(self, own: Candidates, out: Candidates) -> Candidates:  # noqa: ARG002
        """They are all there are."""
        return own


class GlooExchange:
    """Over any torch.distributed group, all parts gathered and added in float32 in the order of ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self.num_ranks = group, group.size()

    def part(self, num_rows: int) -> torch.Tensor | None:  # noqa: ARG002
        """Anywhere."""
        return None

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """See `Exchange.add`."""
        parts = [torch.empty_like(part_TH) for _ in range(self.num_ranks)]
        dist.all_gather(parts, part_TH.contiguous(), group=self._group)
        total_TH = parts[0].float()
        for part in parts[1:]:
            total_TH = total_TH + part.float()
        return total_TH.to(part_TH.dtype)

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """See `Exchange.gather`."""
        for mine, theirs in ((own.token_ids, out.token_ids), (own.scores, out.scores)):
            dist.all_gather(list(theirs.unbind(0)), mine, group=self._group)
        return out


class PeerExchange:
    """GPUs of one host: small sums over peer memory, large ones and candidates over NCCL; all capturable."""

    def __init__(
        self, group: dist.ProcessGroup, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        os.environ.update(NO_MULTICAST)  # read when memory is mapped
        import torch.distributed._symmetric_memory as symmetric

        self._group, self.num_ranks, self._hidden = group, group.size(), hidden
        self._parts: torch.Tensor = symmetric.empty(MOST_PEER_ROWS * hidden, dtype=dtype, device=device)
        self._handle: Any = symmetric.rendezvous(self._parts, group)  # mapped as long as it lives
        self._sums = torch.empty(MOST_PEER_ROWS, hidden, dtype=dtype, device=device)

    def part(self, num_rows: int) -> torch.Tensor | None:
        """Peer memory for few rows."""
        if num_rows > MOST_PEER_ROWS:
            return None
        return self._parts[: num_rows * self._hidden].view(num_rows, self._hidden)

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """See `Exchange.add`."""
        if part_TH.data_ptr() != self._parts.data_ptr():
            dist.all_reduce(part_TH, group=self._group)
            return part_TH
        # It waits for the parts of all ranks, and at its end until all have read this one.
        result: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_out(
            part_TH, "sum", self._group.group_name, self._sums[: part_TH.shape[0]]
        )
        return result

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """See `Exchange.gather`."""
        for mine, theirs in ((own.token_ids, out.token_ids), (own.scores, out.scores)):
            dist.all_gather_into_tensor(theirs.view(-1), mine, group=self._group)
        return out
