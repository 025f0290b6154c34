"""Sets of tokens as bits: W words of 32 tokens, 16 kB for 128,000."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]  # [W]: bit t % 32 of word t // 32 is token t


def unpack(mask_W: NDArray[np.uint32], vocab_size: int) -> NDArray[np.bool_]:
    """A mask, or rows of masks, as booleans [..., V]."""
    bits = np.unpackbits(np.ascontiguousarray(mask_W).view(np.uint8), axis=-1, bitorder="little")
    return bits[..., :vocab_size].astype(np.bool_)


def all_tokens(vocab_size: int) -> Mask:
    """Every token of a vocabulary."""
    mask_W = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, dtype=np.uint32)
    if vocab_size % 32:
        mask_W[-1] = (1 << vocab_size % 32) - 1
    return mask_W


def one_token(token_id: int, vocab_size: int) -> Mask:
    """A single token of a vocabulary."""
    mask_W = np.zeros((vocab_size + 31) // 32, dtype=np.uint32)
    set_bits(mask_W, [token_id])
    return mask_W


def set_bits(mask_W: Mask, token_ids: Iterable[int]) -> None:
    """Add tokens."""
    for token_id in token_ids:
        mask_W[token_id // 32] |= np.uint32(1 << token_id % 32)


def clear_bits(mask_W: Mask, token_ids: Iterable[int]) -> None:
    """Take tokens away; ids beyond the vocabulary are none of them."""
    for token_id in token_ids:
        if token_id // 32 < len(mask_W):
            mask_W[token_id // 32] &= ~np.uint32(1 << token_id % 32)


class FoundMasks:
    """Masks [M, W] that a parser finds all at once; then what is not inside is taken away.

    By who asks first, and not by the parser's thread: that would have to wait for the interpreter.
    """

    def __init__(self, inside_MW: NDArray[np.uint32]) -> None:
        self.found_MW = np.zeros_like(inside_MW)
        self._inside_MW = inside_MW
        self._has_any_M: list[bool] = []

    def take(self, index: int) -> tuple[Mask, bool]:
        """A row, and whether anything is in it."""
        if not self._has_any_M:
            self.found_MW &= self._inside_MW
            self._has_any_M = np.logical_or.reduce(self.found_MW != 0, axis=1).tolist()
        return self.found_MW[index], self._has_any_M[index]
