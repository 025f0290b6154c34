"""Where the deployments' log lines go: with those of Ray, one file a process."""

from __future__ import annotations

import logging
import sys


def set_up_logging() -> None:
    """Our own loggers write to stderr from INFO up. Prompts and images are never logged."""
    logger = logging.getLogger("fluyt")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
