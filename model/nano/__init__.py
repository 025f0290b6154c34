"""The default model: small, random, and of the real architecture.

It shows that everything works and knows nothing: its answers are noise. `python -m model.nano DIR`
writes it; the copy in this package is what is served when no other model is named.
"""

from __future__ import annotations

from pathlib import Path


def default_checkpoint() -> Path:
    """Directory of the checkpoint in this package."""
    return Path(__file__).with_name("checkpoint")
