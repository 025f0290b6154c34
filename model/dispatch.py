"""Bring every token to its experts and its expert rows back: on one rank, or by all-to-all.

T tokens of this rank, K experts per token, H hidden size, R = T * K rows, E experts, W ranks.

Rows are always sorted by expert, then by token. Experts are contiguous per rank, so what comes back
from ranks 0, 1, ... one after the other is again in ascending expert id: the owner of a token adds
its rows in the same order with any number of ranks, and the sums are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.parallel import Group
from model.placement import ExpertMap

# Up to this many tokens in the whole gang every rank gets every token: one exchange less each way.
MAX_GATHERED_TOKENS = 64

# Expert ids travel in the same message as the rows, as bits of an integer of the same width.
_INT_OF_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# (rows_RH sorted by local expert, number of rows per local expert) -> rows_RH in the same order.
Experts = Callable[[Tensor, list[int]], Tensor]


class Dispatcher(Protocol):
    """The seam between the network and whoever holds the experts."""

    def begin_step(self, num_tokens_per_rank: tuple[int, ...]) -> None:
        """Tokens every rank brings to each `moe` of the coming step."""

    def moe(self, x_TH: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: Experts) -> Tensor:
        """y_TH in x's dtype: sum over a token's experts of weight * row, in ascending expert id."""


@dataclass(frozen=True)
class LocalDispatcher:
    """Every expert is here: sort, compute, add."""

    expert_map: ExpertMap

    def begin_step(self, num_tokens_per_rank: tuple[int, ...]) -> None:
        """Nothing to prepare: only the own tokens count."""
        assert len(num_tokens_per_rank) == self.expert_map.world_size == 1, num_tokens_per_rank

    def moe(self, x_TH: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: Experts) -> Tensor:
        """See `Dispatcher.moe`."""
        route = sort_by_expert(expert_ids_TK)
        counts = torch.bincount(expert_ids_TK.view(-1), minlength=self.expert_map.num_experts).tolist()
        rows_RH = experts(x_TH.index_select(0, route.token_R), counts)
        return add_rows(x_TH, rows_RH, route, weights_TK)


@dataclass(frozen=True)
class Route:
    """Row r holds choice `choice_R[r]` (an index into the flattened [T, K]), made by `token_R[r]`."""

    choice_R: Tensor
    token_R: Tensor


def sort_by_expert(expert_ids_TK: Tensor) -> Route:
    """The order of a rank's rows: ascending expert, then token. A token's experts are distinct."""
    choice_R = torch.argsort(expert_ids_TK.reshape(-1), stable=True)
    return Route(choice_R, choice_R // expert_ids_TK.shape[1])


def add_rows(x_TH: Tensor, rows_RH: Tensor, route: Route, weights_TK: Tensor) -> Tensor:
    """y_TH in x's dtype, added in float32 (float64 if x is), row after row as `route` lists them."""
    dtype = torch.float64 if x_TH.dtype == torch.float64 else torch.float32
    weights_R = weights_TK.reshape(-1).index_select(0, route.choice_R).to(dtype)
    rows_RH = rows_RH.to(dtype) * weights_R.unsqueeze(1)
    if rows_RH.is_cuda:
        y_TH = _add_gathered(rows_RH, route, weights_TK.shape)
    else:
        y_TH = torch.zeros(x_TH.shape, dtype=dtype).index_add_(0, route.token_R, rows_RH)
    return y_TH.to(x_TH.dtype)


def _add_gathered(rows_RH: Tensor, route: Route, shape: torch.Size) -> Tensor:
    """Same sums as `index_add_`, which uses atomics on a GPU: there the order would be chance."""
    num_tokens, num_choices = shape
    # Rows of one token, ascending: a stable sort by token keeps the order by expert.
    row_TK = torch.argsort(route.token_R, stable=True).view(num_tokens, num_choices)
    y_TH = rows_RH.new_zeros(num_tokens, rows_RH.shape[1])
    for k in range(num_choices):
        y_TH += rows_RH.index_select(0, row_TK[:, k])
    return y_TH


class AllToAllDispatcher:
    """Experts shared by the ranks of `group`; every rank, also one without tokens, calls `moe` alike."""

    def __init__(self, group: Group, expert_map: ExpertMap) -> None:
        assert group.world_size == expert_map.world_size, (group, expert_map)
        self._group = group
        self._map = expert_map
        self._num_tokens_per_rank: tuple[int, ...] = ()
        self._owner_T = torch.empty(0, dtype=torch.int64)  # rank of every token of the gang, in rank order

    def begin_step(self, num_tokens_per_rank: tuple[int, ...]) -> None:
        """Tokens every rank brings: known from the plan, so that no exchange has to ask for them."""
        assert len(num_tokens_per_rank) == self._group.world_size, (num_tokens_per_rank, self._group)
        self._num_tokens_per_rank = num_tokens_per_rank
        if sum(num_tokens_per_rank) <= MAX_GATHERED_TOKENS:
            owners = [rank for rank, num_tokens in enumerate(num_tokens_per_rank) for _ in range(num_tokens)]
            self._owner_T = torch.tensor(owners, dtype=torch.int64, device=self._group.device)

    def moe(self, x_TH: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: Experts) -> Tensor:
        """See `Dispatcher.moe`."""
        expected = self._num_tokens_per_rank[self._group.rank]
        assert x_TH.shape[0] == expected, (x_TH.shape, self._num_tokens_per_rank, self._group.rank)
        route = sort_by_expert(expert_ids_TK)
        if sum(self._num_tokens_per_rank) <= MAX_GATHERED_TOKENS:
            rows_RH = self._exchange_by_gather(x_TH, expert_ids_TK, experts)
        else:
            rows_RH = self._exchange_by_counts(x_TH, expert_ids_TK, route, experts)
        return add_rows(x_TH, rows_RH, route, weights_TK)

    def _exchange_by_gather(self, x_TH: Tensor, expert_ids_TK: Tensor, experts: Experts) -> Tensor:
        """Everyone gets every token and its ids, and so knows all counts of the way back."""
        tokens_TH, ids_TK = self._gather(x_TH, expert_ids_TK)
        world_size, num_experts, home = self._group.world_size, self._map.num_experts, self._group.rank
        key_TK = self._owner_T.unsqueeze(1) * num_experts + ids_TK
        counts_WE = torch.bincount(key_TK.view(-1), minlength=world_size * num_experts)
        counts_WWL = counts_WE.view(world_size, world_size, -1)  # [token's rank, expert's rank, local expert]
        rows_WW: list[list[int]] = counts_WWL.sum(2).tolist()

        route = sort_by_expert(ids_TK)
        first = sum(sum(rows_W[:home]) for rows_W in rows_WW)
        mine = slice(first, first + sum(rows_W[home] for rows_W in rows_WW))
        token_R = route.token_R[mine]
        rows_RH = experts(tokens_TH.index_select(0, token_R), counts_WWL[:, home].sum(0).tolist())
        by_owner_R = torch.argsort(self._owner_T.index_select(0, token_R), stable=True)
        send_counts = [rows_W[home] for rows_W in rows_WW]
        return self._group.all_to_all(rows_RH.index_select(0, by_owner_R), send_counts, rows_WW[home])

    def _gather(self, x_TH: Tensor, expert_ids_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Every rank's tokens and expert ids, in one exchange."""
        ids_TK = expert_ids_TK.to(_INT_OF_WIDTH[x_TH.element_size()]).view(x_TH.dtype)
        gathered = self._group.all_gather(torch.cat((x_TH, ids_TK), 1), self._num_tokens_per_rank)
        hidden = x_TH.shape[1]
        tokens_TH, ids_TK = gathered[:, :hidden], gathered[:, hidden:]
        ids_TK = ids_TK.contiguous().view(_INT_OF_WIDTH[x_TH.element_size()]).to(torch.int64)
        return tokens_TH, ids_TK

    def _exchange_by_counts(
        self, x_TH: Tensor, expert_ids_TK: Tensor, route: Route, experts: Experts
    ) -> Tensor:
        """Rows go to their expert's rank and come back; counts per expert go ahead."""
        world_size, num_local = self._group.world_size, self._map.num_local
        counts_E = torch.bincount(expert_ids_TK.reshape(-1), minlength=self._map.num_experts)
        ones = [1] * world_size
        send_WL = counts_E.view(world_size, num_local)
        recv_WL = self._group.all_to_all(send_WL, ones, ones)  # row r: what rank r sends, per local expert
        send_counts: list[int] = send_WL.sum(1).tolist()
        recv_counts: list[int] = recv_WL.sum(1).tolist()
        sent_RH = x_TH.index_select(0, route.token_R)
        received_RH = self._group.all_to_all(sent_RH, send_counts, recv_counts)

        # Came sorted by (rank, expert); computed sorted by (expert, rank).
        local_expert_R = (
            torch.arange(num_local, device=x_TH.device).repeat(world_size).repeat_interleave(recv_WL.view(-1))
        )
        by_expert_R = torch.argsort(local_expert_R, stable=True)
        rows_RH = experts(received_RH.index_select(0, by_expert_R), recv_WL.sum(0).tolist())
        back_RH = torch.empty_like(rows_RH)
        back_RH[by_expert_R] = rows_RH
        return self._group.all_to_all(back_RH, recv_counts, send_counts)
