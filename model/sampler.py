"""Logits to tokens: the same token alone or in any batch, and after any rebuild of the sequence.

B rows, S of them sampled, V vocabulary, W words of 32 tokens. Order: penalties, bias, grammar, end tokens
masked until min_tokens, temperature, top-k, top-p, min-p; then token n of sample s is the argmax of
logits / T + Gumbel(seed, s, n, id) over what is left, which follows the softmax (Gumbel-max). Of equals the
lowest id wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.masks import TokenMasks
from model.text.grammar_masks import Mask, clear_bits
from model.types import SamplingParams, TokenLogprob

# Elements of a [S, V] float64 tensor worked on at once (16 MiB): a dozen such are alive together.
CHUNK_ELEMENTS = 2**21
# How many of the most probable tokens are looked at before all are sorted: few nuclei are wider.
NUCLEUS_WIDTHS = (64, 1024)
_BITS = tuple(1 << bit for bit in range(8))

# SplitMix64 (Steele, Lea, Flood 2014): the increment and the two multipliers of its finaliser.
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK_64 = 2**64 - 1


@dataclass
class SampleRow:
    """One sequence before a sampler. Make it once and let `output_ids` grow, or make it anew: same tokens.

    Only the cache of token counts is state, and it is rebuilt from the ids when they do not continue it.
    """

    sampling: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: list[int]
    drafts: tuple[int, ...] = ()  # taken for output, too: the row as it is if they all hold
    masks: TokenMasks | None = field(default=None, repr=False)
    _before: SampleRow | None = field(default=None, repr=False)  # the row without drafts
    _seen_V: Tensor | None = field(default=None, repr=False)  # bool: in prompt or output
    _counts_V: Tensor | None = field(default=None, repr=False)  # float64: times in output
    _num_counted: int = field(default=0, repr=False)

    @property
    def num_output(self) -> int:
        """Tokens before the one that is sampled, drafts included."""
        return len(self.output_ids) + len(self.drafts)

    def ahead(self, drafts: Sequence[int]) -> SampleRow:
        """The row after these drafts; sees what `output_ids` are when it is used."""
        if not drafts:
            return self
        return SampleRow(self.sampling, self.prompt_ids, self.output_ids, tuple(drafts), self.masks, self)

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        params = self.sampling
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def allowed_W(self) -> Mask | None:  # noqa: N802
        """Tokens that may come, as bits; None: any."""
        return None if self.masks is None else self.masks.after(self.output_ids, self.drafts)

    @property
    def is_judged(self) -> bool:
        """Whether the token of this row may be taken, if its drafts hold."""
        return self.masks is None or self.masks.judges(self.output_ids, self.drafts)

    @property
    def masked_ids(self) -> tuple[int, ...]:
        """Tokens that may not come yet because they would end the sequence; none where only they may come."""
        params = self.sampling
        if self.num_output >= params.min_tokens:
            return ()
        ends = params.eos_token_ids + params.stop_token_ids
        allowed_W = self.allowed_W()
        if allowed_W is not None:
            left_W = allowed_W.copy()
            clear_bits(left_W, ends)
            return ends if left_W.any() else ()
        return ends

    def token_counts(self, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(seen_V, counts_V), brought up to date by the tokens that came since the last call."""
        if self._before is not None:
            return self._counts_ahead(*self._before.token_counts(vocab_size, device))
        if self._seen_V is None or self._counts_V is None or self._num_counted > len(self.output_ids):
            self._seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._counts_V = torch.zeros(vocab_size, dtype=torch.float64, device=device)
            self._num_counted = 0
            self._seen_V[torch.tensor(self.prompt_ids, dtype=torch.int64, device=device)] = True
        if self._num_counted < len(self.output_ids):
            new = torch.tensor(self.output_ids[self._num_counted :], dtype=torch.int64, device=device)
            self._seen_V[new] = True
            self._counts_V += torch.bincount(new, minlength=vocab_size)
            self._num_counted = len(self.output_ids)
        return self._seen_V, self._counts_V

    def _counts_ahead(self, seen_V: Tensor, counts_V: Tensor) -> tuple[Tensor, Tensor]:
        drafts = torch.tensor(self.drafts, dtype=torch.int64, device=seen_V.device)
        seen_V = seen_V.index_fill(0, drafts, value=True)
        return seen_V, counts_V + torch.bincount(drafts, minlength=counts_V.shape[0])


def sample(logits_BV: Tensor, rows: Sequence[SampleRow]) -> list[tuple[int, TokenLogprob | None]]:
    """The next token of every row, with its log-probability where asked for.

    logits_BV: float32 or float64, left as it is.
    """
    assert logits_BV.shape[0] == len(rows), (logits_BV.shape, len(rows))
    if not rows:
        return []
    changed_BV = _apply_penalties(logits_BV, rows)
    token_ids = changed_BV.argmax(1).tolist()
    sampled = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    rows_per_chunk = max(1, CHUNK_ELEMENTS // logits_BV.shape[1])
    for begin in range(0, len(sampled), rows_per_chunk):
        chunk = sampled[begin : begin + rows_per_chunk]
        for i, token_id in zip(chunk, _draw(changed_BV[chunk], [rows[i] for i in chunk]), strict=True):
            token_ids[i] = token_id
    return [
        (token_id, _logprob_of(row, logits_BV[i], token_id))
        for i, (token_id, row) in enumerate(zip(token_ids, rows, strict=True))
    ]


def _apply_penalties(logits_BV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Logits with penalties and masks; the same tensor where no row has any."""
    vocab_size = logits_BV.shape[1]
    penalised = [i for i, row in enumerate(rows) if row.has_penalties]
    masked = [(i, token) for i, row in enumerate(rows) for token in row.masked_ids if token < vocab_size]
    biased = [(i, pair) for i, row in enumerate(rows) for pair in row.sampling.logit_bias]
    allowed = {i: mask_W for i, row in enumerate(rows) if (mask_W := row.allowed_W()) is not None}
    if not penalised and not biased and not masked and not allowed:
        return logits_BV
    changed_BV = logits_BV.clone()
    if penalised:
        changed_BV[penalised] = _penalised(logits_BV[penalised], [rows[i] for i in penalised]).to(logits_BV)
    if biased:
        bias_N = torch.tensor([bias for _, (_, bias) in biased]).to(logits_BV)
        changed_BV[[i for i, _ in biased], [token for _, (token, _) in biased]] += bias_N
    if allowed:
        barred_MV = ~_unpacked(list(allowed.values()), vocab_size, logits_BV.device)
        if len(allowed) == len(rows):
            changed_BV.masked_fill_(barred_MV, -torch.inf)
        else:
            rows_M = torch.tensor(list(allowed), device=logits_BV.device)
            changed_BV[rows_M] = changed_BV[rows_M].masked_fill_(barred_MV, -torch.inf)
    if masked:
        changed_BV[[i for i, _ in masked], [token for _, token in masked]] = -torch.inf
    return changed_BV


def _unpacked(masks: Sequence[Mask], vocab_size: int, device: torch.device) -> Tensor:
    """[M, V] bool: bits cross to the device, a thirty-second of the logits."""
    bytes_MN = torch.from_numpy(np.stack(masks).view(np.uint8)).to(device)
    bits_MN8 = bytes_MN.unsqueeze(2).bitwise_and(torch.tensor(_BITS, dtype=torch.uint8, device=device))
    return bits_MN8.bool().flatten(1)[:, :vocab_size]


def _penalised(logits_SV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Repetition (Keskar et al. 2019: prompt and output), then frequency and presence (output alone)."""
    counted = [row.token_counts(logits_SV.shape[1], logits_SV.device) for row in rows]
    seen_SV = torch.stack([seen_V for seen_V, _ in counted])
    counts_SV = torch.stack([counts_V for _, counts_V in counted])
    repetition_S1, frequency_S1, presence_S1 = (
        _column([getattr(row.sampling, name) for row in rows], logits_SV.device)
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
    )
    logits_SV = logits_SV.double()
    repeated_SV = torch.where(logits_SV > 0, logits_SV / repetition_S1, logits_SV * repetition_S1)
    logits_SV = torch.where(seen_SV, repeated_SV, logits_SV)
    return logits_SV - frequency_S1 * counts_SV - presence_S1 * (counts_SV > 0)


def _draw(logits_SV: Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """A token per row, in float64: candidates are compared after the division by small temperatures."""
    vocab_size = logits_SV.shape[1]
    scaled_SV = logits_SV.double() / _column([row.sampling.temperature for row in rows], logits_SV.device)
    drawn: dict[int, int] = {}
    limits = [row.sampling.top_p < 1 or 0 < row.sampling.top_k < vocab_size for row in rows]
    whole = [i for i, is_limited in enumerate(limits) if not is_limited]
    if whole:
        drawn |= zip(whole, _draw_of_all(scaled_SV[whole], [rows[i] for i in whole]), strict=True)
    for width in (*(width for width in NUCLEUS_WIDTHS if width < vocab_size), vocab_size):
        left = [i for i in range(len(rows)) if i not in drawn]
        if left:
            tokens = _draw_of_first(scaled_SV[left], [rows[i] for i in left], width)
            drawn |= {i: token_id for i, token_id in zip(left, tokens, strict=True) if token_id is not None}
    return [drawn[i] for i in range(len(rows))]


def _draw_of_all(scaled_SV: Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """Rows without top-k and top-p: the whole vocabulary, less what min-p takes."""
    ids_1V = torch.arange(scaled_SV.shape[1], device=scaled_SV.device).unsqueeze(0)
    score_SV = scaled_SV + gumbel(_keys(rows), ids_1V)
    if any(row.sampling.min_p > 0 for row in rows):
        score_SV = score_SV.where(
            _reaches_min_p(scaled_SV, scaled_SV.amax(1, keepdim=True), _min_p(rows, scaled_SV.device)),
            -torch.inf,
        )
    token_ids: list[int] = score_SV.argmax(1).tolist()
    return token_ids


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Limits:
    """Filters of S rows, float64 [S, 1]: a top-k of V, a top-p of 1 and a min-p of 0 take nothing."""

    top_k_S1: Tensor
    top_p_S1: Tensor
    min_p_S1: Tensor

    @classmethod
    def of(cls, rows: Sequence[SampleRow], vocab_size: int, device: torch.device) -> Limits:
        """Of rows with or without filters."""
        return cls(
            _column([row.sampling.top_k or vocab_size for row in rows], device),
            _column([row.sampling.top_p for row in rows], device),
            _min_p(rows, device),
        )


def draw_among(
    scaled_SV: Tensor, top_SW: Tensor, ids_SW: Tensor, noise_SW: Tensor, limits: Limits
) -> tuple[Tensor, Tensor]:
    """A token for each row [S] of its W most probable ones, and how many top-k and top-p keep of them [S]."""
    num_kept_S = _num_kept(scaled_SV, top_SW, limits.top_k_S1, limits.top_p_S1)
    kept_SW = torch.arange(top_SW.shape[1], device=top_SW.device) < num_kept_S.unsqueeze(1)
    kept_SW &= _reaches_min_p(top_SW, top_SW[:, :1], limits.min_p_S1)
    score_SW = (top_SW + noise_SW).where(kept_SW, -torch.inf)
    return ids_SW.gather(1, score_SW.argmax(1, keepdim=True)).squeeze(1), num_kept_S


def _draw_of_first(scaled_SV: Tensor, rows: Sequence[SampleRow], width: int) -> list[int | None]:
    """Rows with top-k or top-p, among the `width` most probable; None where the filters may keep more."""
    vocab_size = scaled_SV.shape[1]
    top_SW, ids_SW = most_probable(scaled_SV, width)
    limits = Limits.of(rows, vocab_size, scaled_SV.device)
    ids_S, num_kept_S = draw_among(scaled_SV, top_SW, ids_SW, gumbel(_keys(rows), ids_SW), limits)
    token_ids: list[int] = ids_S.tolist()
    if width == vocab_size:
        return list(token_ids)
    # The last token kept must be above the border, where equals may lie on either side; and what top-k
    # leaves must be in sight, for top-p counts it. Behind a masked token there are only others.
    last_S = top_SW.gather(1, num_kept_S.unsqueeze(1) - 1).squeeze(1)
    above: list[bool] = (last_S > top_SW[:, -1]).tolist()
    whole: list[bool] = top_SW[:, -1].isneginf().tolist()
    in_sight = [not width < row.sampling.top_k < vocab_size for row in rows]
    return [
        token_id if is_whole or (is_above and is_in_sight) else None
        for token_id, is_whole, is_above, is_in_sight in zip(token_ids, whole, above, in_sight, strict=True)
    ]


def most_probable(scaled_SV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(values, ids), most probable first, among equals the lowest id first."""
    if width == scaled_SV.shape[1]:
        values_SV, ids_SV = scaled_SV.sort(dim=1, descending=True, stable=True)
        return values_SV, ids_SV
    ids_SW = scaled_SV.topk(width, dim=1).indices.sort(dim=1).values
    values_SW, order_SW = scaled_SV.gather(1, ids_SW).sort(dim=1, descending=True, stable=True)
    return values_SW, ids_SW.gather(1, order_SW)


def _num_kept(scaled_SV: Tensor, top_SW: Tensor, top_k_S1: Tensor, top_p_S1: Tensor) -> Tensor:
    """How many of the sorted values top_SW stay [S]: a token stays if those before it hold less than top_p.

    Sums are running sums in float64, the same whatever the width, so a row's answer is its own.
    """
    device, vocab_size = scaled_SV.device, scaled_SV.shape[1]
    top_p_S1 = torch.where(top_p_S1 < 1, top_p_S1, torch.inf)
    inside_SW = torch.arange(top_SW.shape[1], device=device) < top_k_S1
    sums_SW = ((top_SW - top_SW[:, :1]).exp_() * inside_SW).cumsum(1)
    all_S1 = (scaled_SV - top_SW[:, :1]).exp_().cumsum(1)[:, -1:]
    total_S1 = torch.where(top_k_S1 < vocab_size, sums_SW[:, -1:], all_S1)
    before_SW = torch.cat((torch.zeros_like(total_S1), sums_SW[:, :-1]), 1)
    return (inside_SW & (before_SW < top_p_S1 * total_S1)).sum(1)


def _min_p(rows: Sequence[SampleRow], device: torch.device) -> Tensor:
    return _column([row.sampling.min_p for row in rows], device)


def _reaches_min_p(values_SN: Tensor, largest_S1: Tensor, min_p_S1: Tensor) -> Tensor:
    """Mask of the values at least min_p times as probable as the most probable one."""
    return (values_SN - largest_S1).exp_() >= min_p_S1


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """[S, 1] float64: one setting of every row."""
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)


def _keys(rows: Sequence[SampleRow]) -> list[int]:
    return [stream_key(row.sampling.seed, row.num_output, row.sampling.sample) for row in rows]


def stream_key(seed: int, token_index: int, sample: int = 0) -> int:
    """Start of the noise of token `token_index` of a sample of the request: 64 bits."""
    key = 0
    for part in (seed, sample, token_index):
        key = _mix((key + part + _GAMMA) & _MASK_64)
    return key


def _mix(x: int) -> int:
    """SplitMix64's finaliser on Python integers."""
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK_64
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK_64
    return x ^ (x >> 31)


def gumbel(keys: Sequence[int], ids_SN: Tensor) -> Tensor:
    """[S, N] float64: standard Gumbel noise of token ids under keys, a pure function of the two.

    ids_SN: int64, [1, N] if all rows have the same. Integers only up to the last line: CPU and GPU get
    the same uniform numbers.
    """
    key_S1 = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=ids_SN.device).unsqueeze(
        1
    )
    x_SN = key_S1 + (ids_SN + 1) * _signed(_GAMMA)
    x_SN = _xor_shifted(x_SN, 30).mul_(_signed(_MIX_1))
    x_SN = _xor_shifted(x_SN, 27).mul_(_signed(_MIX_2))
    x_SN = _xor_shifted(x_SN, 31)
    return _gumbel_of_bits(_shift_right(x_SN, 12))


def _gumbel_of_bits(bits: Tensor) -> Tensor:
    """Uniform 52-bit integers to Gumbel noise; the half keeps 0 and 1 out and is exact in float64."""
    uniform = bits.double().add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_().log_().neg_()


def _xor_shifted(x: Tensor, num_bits: int) -> Tensor:
    return _shift_right(x, num_bits).bitwise_xor_(x)


def _shift_right(x: Tensor, num_bits: int) -> Tensor:
    """Logical shift of int64, whose own shift keeps the sign."""
    return (x >> num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return x - 2**64 if x >= 2**63 else x


def _logprob_of(row: SampleRow, logits_V: Tensor, token_id: int) -> TokenLogprob | None:
    num_top = row.sampling.num_logprobs
    return None if num_top is None else token_logprob(logits_V, token_id, num_top)


def token_logprob(logits_V: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Of the unmodified distribution, natural logarithm, in float64; and of the most probable tokens."""
    logits_V = logits_V.double()
    normaliser = logits_V.logsumexp(0)
    top_ids = _top_ids(logits_V, min(num_top, logits_V.shape[0]))
    values = (logits_V[[token_id, *top_ids]] - normaliser).tolist()
    return TokenLogprob(values[0], tuple(zip(top_ids, values[1:], strict=True)))


def _top_ids(logits_V: Tensor, num_top: int) -> list[int]:
    """Ids of the largest logits, largest first, among equals the lowest id (topk promises no order there)."""
    if num_top == 0:
        return []
    last = logits_V.topk(num_top).values[-1]
    candidates = (logits_V >= last).nonzero().squeeze(1)
    order = logits_V[candidates].sort(descending=True, stable=True).indices[:num_top]
    ids: list[int] = candidates[order].tolist()
    return ids
