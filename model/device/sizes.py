"""Sizes of what a rank allocates for the plans of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from model.device.graphs import BUCKETS
from model.device.layout import Kind
from model.sched.blocks import num_blocks
from model.sched.config import SchedulerConfig

LEAST_PREFILL_ROWS = 128  # a chunk's rows are padded: fewer take as long, for the weights are read anyway


@dataclass(frozen=True)
class PlanSizes:
    """`num_columns`: of block tables; the sliding ones are rings."""

    num_blocks: dict[Kind, int]
    num_columns: dict[Kind, int]
    block_size: int
    max_rows: int  # sequences of a step
    chunk_tokens: int
    num_drafts: int  # most of a sequence in a step

    @classmethod
    def of(cls, config: SchedulerConfig, num_mtp_layers: int) -> PlanSizes:
        """For any step that a scheduler of this config plans."""
        longest = num_blocks(min(config.context_len, config.capacity_tokens), config.block_size)
        return cls(
            num_blocks={"full": config.num_full_blocks, "sliding": config.num_sliding_blocks},
            num_columns={"full": longest, "sliding": min(longest, config.sliding_bound)},
            block_size=config.block_size,
            max_rows=config.num_running_limit,
            chunk_tokens=config.chunk_tokens,
            num_drafts=min(config.num_drafts, num_mtp_layers),
        )

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows that decode steps are padded to; the last one takes all that may run."""
        return (*(bucket for bucket in BUCKETS if bucket < self.max_rows), self.max_rows)

    @property
    def queries(self) -> tuple[int, ...]:
        """Rows that a sequence has in a decode step: its token, or that and all drafts."""
        return (1, 1 + self.num_drafts) if self.num_drafts else (1,)

    @property
    def chunk_buckets(self) -> tuple[int, ...]:
        """Numbers of tokens that chunks are padded to."""
        buckets, size = [], LEAST_PREFILL_ROWS
        while size < self.chunk_tokens:
            buckets.append(size)
            size *= 2
        return (*buckets, self.chunk_tokens)


def bucket_for(count: int, buckets: tuple[int, ...]) -> int:
    """The smallest with room for `count`."""
    assert 0 < count <= buckets[-1], (count, buckets)
    return next(bucket for bucket in buckets if bucket >= count)
