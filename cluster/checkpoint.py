"""Which directory a config means."""

from __future__ import annotations

from pathlib import Path

from model.nano import default_checkpoint


def checkpoint_dir(directory: str) -> Path:
    """`directory`, or that of the default model if it is empty."""
    return Path(directory) if directory else default_checkpoint()
