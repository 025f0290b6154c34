"""The default model: small, trained from scratch on pictures made by code, and of the real architecture.

`python -m model.nano` makes and examines it; the copy in this package is what is served when no other
model is named.
"""

from __future__ import annotations

from pathlib import Path

# Printed above its answers, so that nobody takes them for those of the real model.
ABOUT = (
    "The default model has 10 million parameters: it reads what is written in a picture, mostly; a third of "
    "the charts it gets wrong, and more often than not it zooms in beside what is asked for."
)


def default_checkpoint() -> Path:
    """Directory of the checkpoint in this package."""
    return Path(__file__).with_name("checkpoint")
