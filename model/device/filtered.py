"""Rows with top-k, top-p or min-p: sampled behind the graph, by launches that wait for no host.

Shapes: S rows, V vocabulary.

The tokens are those of `model.sampler`, which looks at the most probable tokens first and at all if these do
not hold the nucleus. That is a question to the device; here all are sorted at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.device.live_rows import Part
from model.device.sampled import seed_of_sample, upload
from model.kernels.sample_plain import SamplingRows, gumbel
from model.sampler import CHUNK_ELEMENTS, Limits, draw_among, most_probable


def draw_filtered(logits_SV: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    """A token for each part [S], int64; logits of all ranks, float32."""
    vocab_size, device = logits_SV.shape[1], logits_SV.device
    rows_per_chunk = max(1, CHUNK_ELEMENTS // vocab_size)
    settings = [part.seq.live.row.sampling for part in parts]
    limits = [(each.temperature, each.top_k or vocab_size, each.top_p, each.min_p) for each in settings]
    limits_S4 = upload(np.asarray(limits, np.float64), device)
    noise = [(seed_of_sample(part.seq.live.row.sampling), part.seq.num_outputs) for part in parts]
    noise_S2 = upload(np.asarray(noise, np.int64), device)
    chunks = zip(*(each.split(rows_per_chunk) for each in (logits_SV, limits_S4, noise_S2)), strict=True)
    return torch.cat([_draw(*chunk) for chunk in chunks])


def _draw(logits_SV: torch.Tensor, limits_S4: torch.Tensor, noise_S2: torch.Tensor) -> torch.Tensor:
    temperature_S1, *limits = limits_S4.split(1, dim=1)
    scaled_SV = logits_SV.double() / temperature_S1
    values_SV, ids_SV = most_probable(scaled_SV, logits_SV.shape[1])
    rows = SamplingRows(temperature_S1.squeeze(1), noise_S2[:, 0], noise_S2[:, 1])
    return draw_among(scaled_SV, values_SV, ids_SV, gumbel(rows, ids_SV), Limits(*limits))[0]
