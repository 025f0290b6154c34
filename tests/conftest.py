"""Paths that tests share. Nothing here starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
