"""Random tensors: a pure function of seed, name and position."""

from __future__ import annotations

import hashlib

import torch

from model.nano import weights
from model.nano.tensors import TensorSpec
from model.nano.weights import make_tensor

MASK = (1 << 64) - 1


def splitmix_uniform(seed: int, name: str, position: int) -> float:
    """The same hash with Python's integers."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    x = (int.from_bytes(key, "little") + position) * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return ((x ^ x >> 31) >> 41) / 2**22 + 0.5 / 2**22 - 1


def test_values_are_the_hash_of_seed_name_and_position() -> None:
    tensor = make_tensor("some.weight", TensorSpec((50, 4), 1.0), torch.float32, seed=3)
    assert tensor.flatten().tolist() == [splitmix_uniform(3, "some.weight", i) for i in range(200)]


def test_values_do_not_depend_on_the_chunk_they_are_made_in() -> None:
    spec = TensorSpec((weights._CHUNK + 7,), 1.0)
    tensor = make_tensor("long", spec, torch.float32, seed=0)
    assert tensor[-7:].tolist() == [splitmix_uniform(0, "long", weights._CHUNK + i) for i in range(7)]


def test_values_fill_the_interval_evenly() -> None:
    tensor = make_tensor("w", TensorSpec((100_000,), 0.5, mean=2.0), torch.float32, seed=0)
    counts = torch.histc(tensor, bins=10, min=1.5, max=2.5)
    assert counts.sum() == 100_000
    assert (counts - 10_000).abs().max() < 500


def test_another_seed_or_name_gives_other_values() -> None:
    spec = TensorSpec((8,), 1.0)
    one = make_tensor("a", spec, torch.float32, seed=0)
    assert not torch.equal(one, make_tensor("a", spec, torch.float32, seed=1))
    assert not torch.equal(one, make_tensor("b", spec, torch.float32, seed=0))


def test_bfloat16_is_the_rounded_float32() -> None:
    spec = TensorSpec((64, 3), 0.7, mean=0.1)
    exact = make_tensor("w", spec, torch.float32, seed=0)
    assert torch.equal(make_tensor("w", spec, torch.bfloat16, seed=0), exact.bfloat16())


def test_damped_rows_are_smaller() -> None:
    spec = TensorSpec((8, 100), 1.0, damped_from=6)
    tensor = make_tensor("w", spec, torch.float32, seed=0)
    assert tensor[6:].abs().max() <= weights.DAMPING < tensor[:6].abs().amax(1).min()
