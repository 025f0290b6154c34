"""What ranks tell each other in a step: sums of rows, and the best token of each part of the vocabulary.

Shapes: T tokens, H hidden, P parts of a sum, R ranks, C candidates.

Every rank gets the same bits: parts are added in the order of ranks, or by NCCL, which gives all the same.
Sums of up to `MOST_PEER_ROWS` rows go over peer memory, together with the residual and the norm that follow
(`model.kernels.peer`), never over NVLink multicast, which these machines lack. Of more rows each rank adds
and norms a share, and what all need of it, the norm in bfloat16, is gathered.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from model.device.ops import Ops
from model.kernels.linear_config import InputNorm
from model.kernels.norms_plain import RoutedRows
from model.kernels.sample_plain import Candidates

MOST_PEER_ROWS = 64
_MOST_CANDIDATES = 256  # sampled rows of a step
# Where hosts share GPUs, a program that uses multicast can put them out of service.
NO_MULTICAST = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Addends:
    """What is still to be added to the residual stream: parts [P, T, H], and rows of experts before them.

    On several ranks they are this one's part of a sum.
    """

    deltas_PTH: torch.Tensor
    routed: RoutedRows | None = None


class Exchange(Protocol):
    """One rank's end of a group."""

    @property
    def num_ranks(self) -> int:
        """R, that split everything."""

    @property
    def num_expert_ranks(self) -> int:
        """Those that share the experts, and maybe nothing else."""

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' parts; the part may be gone."""

    def add_norm(
        self,
        addends: Addends,
        ops: Ops,
        hidden_TH: torch.Tensor,
        norm: InputNorm,
        normed_TH: torch.Tensor,
    ) -> None:
        """Add all ranks' addends to the residual stream, and norm it; they may be gone then.

        `normed_TH` has all rows, `hidden_TH` maybe this rank's share only: see `complete`.
        """

    def complete(self, hidden_TH: torch.Tensor) -> None:
        """All rows of the residual stream, for who reads it itself."""

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """Candidates [R, T] of all ranks: in `out`, or `own` where there is one rank."""

    def dispatch(self, own_T: torch.Tensor) -> torch.Tensor:
        """The rows whose experts this rank computes: its own, or those of all ranks (`dispatch`)."""

    def combine(self, addends: Addends, ops: Ops) -> Addends:
        """What experts gave the own rows, of what this rank's gave the rows it computed."""


class _OwnRows:
    """Every rank has all rows."""

    def dispatch(self, own_T: torch.Tensor) -> torch.Tensor:
        """See `Exchange.dispatch`."""
        return own_T

    def combine(self, addends: Addends, ops: Ops) -> Addends:  # noqa: ARG002
        """See `Exchange.combine`."""
        return addends


class Alone(_OwnRows):
    """One rank: nothing to exchange."""

    num_ranks = 1
    num_expert_ranks = 1

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """The part is the sum."""
        return part_TH

    def add_norm(
        self,
        addends: Addends,
        ops: Ops,
        hidden_TH: torch.Tensor,
        norm: InputNorm,
        normed_TH: torch.Tensor,
    ) -> None:
        """See `Exchange.add_norm`: one launch, which adds parts and rows of experts, too."""
        ops.add_norm(
            hidden_TH, hidden_TH, deltas_PTH=addends.deltas_PTH, routed=addends.routed, norm=norm,
            normed_TH=normed_TH,
        )  # fmt: skip

    def complete(self, hidden_TH: torch.Tensor) -> None:
        """It is."""

    def gather(self, own: Candidates, out: Candidates) -> Candidates:  # noqa: ARG002
        """They are all there are."""
        return own


class GlooExchange(_OwnRows):
    """Over any torch.distributed group: every rank gathers all parts and adds them in the order of ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.num_ranks = self.num_expert_ranks = group.size()

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """See `Exchange.add`."""
        parts = [torch.empty_like(part_TH) for _ in range(self.num_ranks)]
        dist.all_gather(parts, part_TH.contiguous(), group=self._group)
        total_TH = parts[0].float()
        for part in parts[1:]:
            total_TH = total_TH + part.float()
        return total_TH.to(part_TH.dtype)

    def add_norm(
        self,
        addends: Addends,
        ops: Ops,
        hidden_TH: torch.Tensor,
        norm: InputNorm,
        normed_TH: torch.Tensor,
    ) -> None:
        """See `Exchange.add_norm`."""
        _add_norm(self.add(added(addends, ops)), ops, hidden_TH, norm, normed_TH)

    def complete(self, hidden_TH: torch.Tensor) -> None:
        """It is."""

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """See `Exchange.gather`."""
        for mine, theirs in ((own.token_ids, out.token_ids), (own.scores, out.scores)):
            dist.all_gather(list(theirs.unbind(0)), mine, group=self._group)
        return out


class PeerExchange(_OwnRows):
    """GPUs of one host: small messages over peer memory, large ones over NCCL; all capturable."""

    def __init__(self, group: dist.ProcessGroup, hidden: int, device: torch.device) -> None:
        from model.kernels.peer import WORDS_OF_CANDIDATE

        os.environ.update(NO_MULTICAST)  # read when memory is mapped
        self._group, self._rank = group, group.rank()
        self.num_ranks = self.num_expert_ranks = group.size()
        self._rows = _Mapped(group, MOST_PEER_ROWS, hidden // 2, device)  # words of two values
        self._candidates = _Mapped(group, WORDS_OF_CANDIDATE, _MOST_CANDIDATES, device)
        torch.cuda.synchronize(device)
        dist.barrier(group)  # nobody writes to an inbox that is yet to be emptied

    def add(self, part_TH: torch.Tensor) -> torch.Tensor:
        """See `Exchange.add`."""
        dist.all_reduce(part_TH, group=self._group)
        return part_TH

    def add_norm(
        self,
        addends: Addends,
        ops: Ops,
        hidden_TH: torch.Tensor,
        norm: InputNorm,
        normed_TH: torch.Tensor,
    ) -> None:
        """See `Exchange.add_norm`."""
        from model.kernels.peer import sum_add_norm

        if hidden_TH.shape[0] <= MOST_PEER_ROWS:
            sum_add_norm(addends.deltas_PTH, self._rows.inboxes, hidden_TH, norm, normed_TH, addends.routed)
            return
        part_TH = added(addends, ops)
        own = self._own_rows(part_TH.shape[0])
        if own is None:
            _add_norm(self.add(part_TH), ops, hidden_TH, norm, normed_TH)
            return
        sum_TH = torch.empty_like(part_TH[own])
        dist.reduce_scatter_tensor(sum_TH, part_TH, group=self._group)
        _add_norm(sum_TH, ops, hidden_TH[own], norm, normed_TH[own])
        dist.all_gather_into_tensor(normed_TH, normed_TH[own], group=self._group)

    def complete(self, hidden_TH: torch.Tensor) -> None:
        """See `Exchange.complete`."""
        own = self._own_rows(hidden_TH.shape[0])
        if own is not None:
            dist.all_gather_into_tensor(hidden_TH, hidden_TH[own], group=self._group)

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """See `Exchange.gather`."""
        from model.kernels.peer import gather_candidates

        if own.token_ids.shape[0] <= _MOST_CANDIDATES:
            gather_candidates(own, self._candidates.inboxes, out)
            return out
        for mine, theirs in ((own.token_ids, out.token_ids), (own.scores, out.scores)):
            dist.all_gather_into_tensor(theirs.view(-1), mine, group=self._group)
        return out

    def _own_rows(self, num_rows: int) -> slice | None:
        """This rank's share of many rows; None: every rank has all."""
        if num_rows <= MOST_PEER_ROWS or num_rows % self.num_ranks:
            return None
        num_own = num_rows // self.num_ranks
        return slice(self._rank * num_own, (self._rank + 1) * num_own)


class _Mapped:
    """Inboxes of all ranks, mapped as long as it lives."""

    def __init__(self, group: dist.ProcessGroup, num_rows: int, width: int, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric

        from model.kernels.peer import Inboxes

        num_words = Inboxes.num_words(group.size(), num_rows, width)
        own: torch.Tensor = symmetric.empty(num_words, dtype=torch.int64, device=device)
        self._handle: Any = symmetric.rendezvous(own, group)
        own.zero_()
        addresses_R = torch.tensor(list(self._handle.buffer_ptrs), dtype=torch.int64, device=device)
        turns_T = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.inboxes = Inboxes(group.rank(), addresses_R, own, turns_T, num_rows, width)


def added(addends: Addends, ops: Ops) -> torch.Tensor:
    """This rank's addends as one tensor [T, H]."""
    deltas_PTH = addends.deltas_PTH
    if len(deltas_PTH) == 1 and addends.routed is None:
        return deltas_PTH[0]
    part_TH = torch.empty(deltas_PTH.shape[1:], device=deltas_PTH.device)
    ops.add_norm(None, part_TH, deltas_PTH=deltas_PTH, routed=addends.routed)
    return part_TH


def _add_norm(
    sum_TH: torch.Tensor, ops: Ops, hidden_TH: torch.Tensor, norm: InputNorm, normed_TH: torch.Tensor
) -> None:
    ops.add_norm(hidden_TH, hidden_TH, deltas_PTH=sum_TH.unsqueeze(0), norm=norm, normed_TH=normed_TH)
