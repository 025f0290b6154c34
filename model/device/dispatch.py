"""All-to-all of fixed capacity between ranks that own sequences of their own and share the experts.

Shapes: R ranks, T rows of a pass, the same on every rank (`lockstep`), C = R * T rows of all, H hidden.

    dispatch: every rank's rows to every other one             [T, ...] -> [C, ...]
              router and this rank's experts, of all rows
    combine:  each rank's rows back, a part from every rank    [C, H] -> [R, T, H]

A token chooses 8 of 288 experts: with two ranks 127 of 128 tokens have some on both. So every row goes
everywhere: nothing is dropped whatever the router says, sizes do not depend on data, and a graph can hold it.
The parts are added in the order of ranks, by the launch that adds to the residual stream anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.device.exchange import Addends, Alone, added
from model.device.ops import Ops

# x [R, ...] -> [R, ...]: part r goes to rank r, and part r came from there.
AllToAll = Callable[[torch.Tensor], torch.Tensor]


class ExpertExchange(Alone):
    """Everything but the experts is alone."""

    def __init__(self, all_to_all: AllToAll, num_ranks: int) -> None:
        self._all_to_all, self.num_expert_ranks = all_to_all, num_ranks

    def dispatch(self, own_T: torch.Tensor) -> torch.Tensor:
        """See `Exchange.dispatch`."""
        copies_RT = own_T.expand(self.num_expert_ranks, *own_T.shape).contiguous()
        return self._all_to_all(copies_RT).flatten(0, 1)

    def combine(self, addends: Addends, ops: Ops) -> Addends:
        """See `Exchange.combine`."""
        part_CH = added(addends, ops)
        return Addends(self._all_to_all(part_CH.unflatten(0, (self.num_expert_ranks, -1))))
