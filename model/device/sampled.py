"""Who samples a row, and the tokens of a step on their way to the host.

Greedy rows and rows of plain temperature are sampled within the step, with the noise of `model.sampler`; rows
with top-k, top-p or min-p behind it (`filtered`). All others take their logits to `model.sampler`: penalties,
bias, masks, log-probabilities.

Shapes: N sampled sequences of a step, Q rows of each (the token, and drafts), S rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from model.device.decoder import DeviceDecoder
from model.device.live_rows import DeviceSequence, Part
from model.kernels.noise_plain import GAMMA, MIX_1, MIX_2, signed
from model.sampler import SampleRow, sample
from model.types import SamplingParams, TokenLogprob

_MASK_64 = 2**64 - 1


SampledBy = Literal["step", "filters", "host"]


def sampled_by(row: SampleRow, num_outputs: int) -> SampledBy:
    """The first that gives the token that `model.sampler` would give."""
    params = row.sampling
    may_not_end = num_outputs < params.min_tokens and (params.eos_token_ids or params.stop_token_ids)
    changes = row.has_penalties or params.logit_bias or row.masks is not None
    if may_not_end or changes or params.num_logprobs is not None:
        return "host"
    filters = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return "filters" if filters and params.temperature > 0 else "step"


def is_sampled_in_step(row: SampleRow, num_outputs: int) -> bool:
    """Whether `ops.sample_tokens` gives its token."""
    return sampled_by(row, num_outputs) == "step"


def seed_of_sample(params: SamplingParams) -> int:
    """The seed (bits of an int64) whose first sample has the noise of this sample.

    `sampler.stream_key` mixes the seed, adds the sample and mixes again. Mixing can be undone, so the sample
    may as well be added to what is mixed first.
    """
    if params.sample == 0:
        return signed(params.seed & _MASK_64)
    wanted = (_mix((params.seed + GAMMA) & _MASK_64) + params.sample) & _MASK_64
    return signed((_unmix(wanted) - GAMMA) & _MASK_64)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * MIX_1) & _MASK_64
    x = ((x ^ (x >> 27)) * MIX_2) & _MASK_64
    return x ^ (x >> 31)


def _unmix(x: int) -> int:
    """The inverse of SplitMix64's finaliser: odd factors have inverses, and so have shifts."""
    x = _unshifted(x, 31) * pow(MIX_2, -1, 2**64) & _MASK_64
    x = _unshifted(x, 27) * pow(MIX_1, -1, 2**64) & _MASK_64
    return _unshifted(x, 30)


def _unshifted(x: int, num_bits: int) -> int:
    """y with y ^ (y >> num_bits) = x."""
    y = x
    for _ in range(64 // num_bits):
        y = x ^ (y >> num_bits)
    return y


def whole_logits(decoder: DeviceDecoder, logits_SV: torch.Tensor) -> torch.Tensor:
    """[S, V] of all ranks from each one's columns."""
    if decoder.exchange.num_ranks == 1:
        return logits_SV
    whole_SV = logits_SV.new_zeros(logits_SV.shape[0], decoder.weights.text.vocab_size)
    first = decoder.weights.first_token
    whole_SV[:, first : first + logits_SV.shape[1]] = logits_SV
    return decoder.exchange.add(whole_SV)


def upload(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """To the device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Of each sampled sequence: what a step gained, and the rows of its next step. All int32.

    following_NQ: what was sampled behind each of its rows; counts_N: how many drafts held, so that the tokens
    gained are the first 1 + count. next_NQ: the last of these and drafts behind it; positions_N: where it is.
    """

    following_NQ: torch.Tensor
    counts_N: torch.Tensor
    next_NQ: torch.Tensor
    positions_N: torch.Tensor

    def replace(self, places: Sequence[int], ids_S: torch.Tensor) -> None:
        """Sequences in these places have gained other tokens, one each."""
        places_S = upload(np.asarray(places, np.int64), ids_S.device)
        for rows_NQ in (self.following_NQ, self.next_NQ):
            rows_NQ[places_S, 0] = ids_S.to(rows_NQ.dtype)

    @classmethod
    def joined(cls, pieces: Sequence[SampledRows], width: int) -> SampledRows:
        """One behind the other, all `width` rows wide."""

        def wide(tensor_NQ: torch.Tensor) -> torch.Tensor:
            return pad(tensor_NQ, (0, width - tensor_NQ.shape[1]))

        return cls(
            torch.cat([wide(piece.following_NQ) for piece in pieces]),
            torch.cat([piece.counts_N for piece in pieces]),
            torch.cat([wide(piece.next_NQ) for piece in pieces]),
            torch.cat([piece.positions_N for piece in pieces]),
        )


class TokensOnTheWay:
    """Sampled rows on the device, and their tokens on the way to the host.

    `with_drafts`: the sequences whose next rows have drafts.
    """

    def __init__(
        self,
        sampled: SampledRows | None,
        parts: Sequence[Part],
        with_drafts: set[DeviceSequence],
        device: torch.device,
    ) -> None:
        self.sampled = sampled
        self.with_drafts = with_drafts
        self._index = {part.seq: index for index, part in enumerate(parts)}
        self._event: torch.cuda.Event | None = None
        if sampled is not None:
            self._packed = torch.cat((sampled.counts_N[:, None], sampled.following_NQ), dim=1)
        if device.type != "cuda":
            return
        if sampled is not None:
            packed = self._packed
            self._packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
        self._event = torch.cuda.Event()  # of a step that samples nothing, too: it has to be computed
        self._event.record(torch.cuda.current_stream(device))

    def find(self, seq: DeviceSequence) -> int | None:
        """Where a sequence is among the rows; None: the host knows all its tokens."""
        return self._index.get(seq)

    @property
    def have_come(self) -> bool:
        """Whether `wait` would not wait."""
        return self._event is None or self._event.query()

    def wait(self) -> list[tuple[int, ...]]:
        """The tokens that each sequence gained, once the device has them."""
        if self._event is not None:
            self._event.synchronize()
        if self.sampled is None:
            return []
        return [tuple(following[: 1 + count]) for count, *following in self._packed.tolist()]


@dataclass(frozen=True, eq=False)
class HostRows:
    """Rows that `model.sampler` samples: their places among the N, and their logits [S, V]."""

    indices: list[int]
    rows: list[SampleRow]
    logits_SV: torch.Tensor

    def sample(self) -> dict[int, tuple[int, TokenLogprob | None]]:
        """Token and log-probability by place."""
        return dict(zip(self.indices, sample(self.logits_SV, self.rows), strict=True))
