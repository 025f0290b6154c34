"""Paths that tests share, and a checkpoint. Nothing here starts anything."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """What torch, Ray and the tests are made of stays: the collector need not walk through it each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared facts and data beside the checkout; skips where it is missing."""
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        pytest.skip("the folder `shared` with facts and data is not beside this checkout")
    return shared


@pytest.fixture(scope="session")
def shared_data(shared_dir: Path) -> Path:
    """Goldens and the published config."""
    return shared_dir / "data"


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint with tokenizer and template: its answers vary, and end by chance."""
    from model.nano.write import write_random_checkpoint

    directory = tmp_path_factory.mktemp("random")
    write_random_checkpoint(directory)
    return directory


@pytest.fixture
def interrupts() -> Iterator[None]:
    """As at a terminal: a shell starts what runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
