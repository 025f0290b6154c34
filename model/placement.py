"""Which rank owns which expert: whole experts, contiguous, the same number on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import CheckpointError


@dataclass(frozen=True)
class ExpertMap:
    """Expert `e` lives on rank `e // num_local`. Raises CheckpointError if the ranks cannot share evenly.

    Whole experts, because FP8 blocks of 128 do not split 1280 columns by 4; evenly, because every
    rank steps with the slowest.
    """

    num_experts: int
    world_size: int

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.num_experts % self.world_size != 0:
            raise CheckpointError(
                f"{self.num_experts} routed experts cannot be shared evenly by {self.world_size} shards; "
                f"possible numbers of shards: {', '.join(map(str, self.legal_world_sizes(self.num_experts)))}"
            )

    @staticmethod
    def legal_world_sizes(num_experts: int) -> tuple[int, ...]:
        """Every number of ranks that divides `num_experts`."""
        return tuple(size for size in range(1, num_experts + 1) if num_experts % size == 0)

    @property
    def num_local(self) -> int:
        """Experts per rank."""
        return self.num_experts // self.world_size

    def first(self, rank: int) -> int:
        """Lowest expert id on `rank`."""
        assert 0 <= rank < self.world_size, (rank, self.world_size)
        return rank * self.num_local

    def local_range(self, rank: int) -> range:
        """Expert ids on `rank`, ascending."""
        first = self.first(rank)
        return range(first, first + self.num_local)

    def owner(self, expert: int) -> int:
        """Rank that holds `expert`."""
        assert 0 <= expert < self.num_experts, (expert, self.num_experts)
        return expert // self.num_local
