"""One step of one rank as tensors: what the runner builds and the network reads.

Shapes: T tokens of the step, S tokens whose logits are wanted, B sequences of Q query tokens each,
L cached positions gathered (padded), R rows of image embeddings, N tiles of Q query tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class DecodeRows:
    """Sequences that compute one token each, or equally few (drafts to verify), attended together."""

    token_rows_BQ: torch.Tensor  # their rows among the step's tokens
    slots_BL: torch.Tensor  # cache slot of every position attended to, padded with slot 0
    mask_BQL: torch.Tensor | None  # True where the token may see the slot; None: it sees all


@dataclass(frozen=True)
class PrefillRows:
    """One sequence that computes several tokens: rows [first_row, first_row + num_tokens)."""

    first_row: int
    num_tokens: int
    slots_L: torch.Tensor
    mask_TL: torch.Tensor | None  # True where the token may see the slot; None: causal from position 0


@dataclass(frozen=True)
class WindowTiles:
    """Long prefills of a sliding group: tiles of `window` queries, each with two windows of keys.

    Tiles of all sequences are attended together. A tile is filled up by repeating its last token.
    """

    token_rows_NQ: torch.Tensor
    slots_NL: torch.Tensor
    mask_NQL: torch.Tensor


@dataclass(frozen=True)
class GroupBatch:
    """What attention layers of one group (full or sliding) need."""

    write_slots_T: torch.Tensor
    decodes: tuple[DecodeRows, ...]  # one for each number of tokens
    prefills: tuple[PrefillRows, ...]
    tiles: WindowTiles | None = None


@dataclass(frozen=True)
class Batch:
    """A rank's share of a step. `num_tokens` may be 0: the rank still takes part in exchanges."""

    num_tokens: int
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    full: GroupBatch
    sliding: GroupBatch
    sample_rows_S: torch.Tensor
    image_rows_R: torch.Tensor | None  # rows of the step that hold image slots
    image_embeddings_RH: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device`; itself where they are there already."""
        return self if self.token_ids_T.device == device else on_device(self, device)


def on_device(value: T, device: torch.device) -> T:
    """A tensor, or dataclasses and tuples of tensors, moved."""
    moved: T = _moved(value, device)
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        moved = {field.name: _moved(getattr(value, field.name), device) for field in fields(value)}
        return replace(value, **moved)
    return value
