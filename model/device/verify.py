"""A decode step of Q rows a sequence: its token and drafts, verified, and the next drafts made of what held.

Where a sequence is and what it is sampled by lies on the device, so that steps need no host between them even
if nobody knows how many drafts hold. Q = 1 is a step without drafts.

Shapes: B sequences, Q rows of each, T = B * Q rows, N of the sequences, M columns of a block table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from model.device.decoder import DeviceDecoder, TokenRows
from model.device.layout import KINDS, Kind
from model.device.mtp import draft
from model.device.sampled import SampledRows
from model.device.state import Scratch, StepRows
from model.kernels.draft_rows_plain import DraftRows, Verified
from model.kernels.paged import PagedSequences


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class VerifyRows:
    """The rows of a step, and for each sequence what they are made of. int32."""

    step: StepRows
    base_B: torch.Tensor  # position of its token; -1: padding. With Q = 1 the step's own
    prompts_B: torch.Tensor  # tokens of its prompt
    limits_B: torch.Tensor  # drafts that are real: rows behind them are padding
    begins_B: torch.Tensor  # first position that MTP layers have seen
    verified: Verified  # results; with Q = 1 what follows are the step's own tokens

    @classmethod
    def allocate(
        cls, num_seqs: int, num_queries: int, num_columns: dict[Kind, int], device: torch.device
    ) -> VerifyRows:
        """All padding."""
        return cls.around(StepRows.allocate(num_seqs, num_queries, num_columns, device))

    @classmethod
    def around(cls, step: StepRows) -> VerifyRows:
        """All padding, in the memory of a step's rows."""
        num_seqs, num_queries, device = step.num_seqs, step.num_queries, step.token_ids_T.device
        alone = num_queries == 1

        def int32(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return cls(
            step,
            base_B=step.positions_T if alone else int32(num_seqs) - 1,
            prompts_B=int32(num_seqs), limits_B=int32(num_seqs), begins_B=int32(num_seqs),
            verified=Verified.around(
                step.token_ids_T.view(-1, 1) if alone else int32(num_seqs, num_queries)
            ),
        )  # fmt: skip

    @property
    def tokens_BQ(self) -> torch.Tensor:  # noqa: N802
        """Its tokens and drafts."""
        return self.step.token_ids_T.view(-1, self.step.num_queries)

    @property
    def moving(self) -> tuple[torch.Tensor, ...]:
        """What a step changes."""
        return (*self.step.moving, self.base_B)

    @property
    def draft_rows(self) -> DraftRows:
        """The same as kernels take it."""
        step = self.step
        return DraftRows(
            self.tokens_BQ, self.base_B, self.prompts_B, self.limits_B, step.positions_T, step.context_lens_B,
            step.sampling, step.step_1,
        )  # fmt: skip

    def sampled(self, num_seqs: int) -> SampledRows:
        """Copies of what the step of the first N sequences has left."""
        return SampledRows(
            self.verified.following_BQ[:num_seqs].clone(), self.verified.counts_B[:num_seqs].clone(),
            self.tokens_BQ[:num_seqs].clone(), self.base_B[:num_seqs].clone(),
        )  # fmt: skip


def first_rows(rows: VerifyRows, num_seqs: int) -> VerifyRows:
    """The first sequences, in the same memory."""
    step, num_rows = rows.step, num_seqs * rows.step.num_queries
    context_lens_B = step.context_lens_B[:num_seqs]
    first = StepRows(
        step.num_queries, step.token_ids_T[:num_rows], step.positions_T[:num_rows], step.seqs_T[:num_rows],
        context_lens_B, step.num_outputs_T[:num_rows], step.temperatures_T[:num_rows],
        step.seeds_T[:num_rows], step.step_1,
        {
            kind: PagedSequences(step.sequences[kind].blocks_BM[:num_seqs], context_lens_B)
            for kind in KINDS
        },
    )  # fmt: skip
    return VerifyRows(
        first, rows.base_B[:num_seqs], rows.prompts_B[:num_seqs], rows.limits_B[:num_seqs],
        rows.begins_B[:num_seqs], rows.verified.first(num_seqs),
    )  # fmt: skip


def verify_step(decoder: DeviceDecoder, rows: VerifyRows, scratch: Scratch) -> None:
    """Compute and sample all rows, take the drafts that hold, draft again, and move on."""
    step = rows.step
    if step.num_queries == 1:
        decoder.decode_step(step, scratch)
        return
    draft_rows = rows.draft_rows
    decoder.ops.spread_rows(draft_rows)
    sampled = decoder.decode_step(step, scratch)
    decoder.ops.accept_rows(sampled, draft_rows, rows.verified)
    # The step's logits stay where they are: the host may want them.
    scratch = replace(scratch, flat={name: flat for name, flat in scratch.flat.items() if name != "logits"})
    shown = shown_from(TokenRows.of_step(step), rows.begins_B)
    draft(decoder, shown, scratch, draft_rows, rows.verified)


def shown_from(tokens: TokenRows, begins_B: torch.Tensor) -> TokenRows:
    """The same rows for layers that have seen nothing before some position of each sequence."""
    return replace(
        tokens,
        sequences={
            kind: replace(sequences, begins_B=begins_B) for kind, sequences in tokens.sequences.items()
        },
    )
