"""What every replica does first: where its log lines go, and who yields to whom on shared cores."""

from __future__ import annotations

import logging
import os
import sys

# Of 19; measured: cluster/README.md. Without effect where a process has cores of its own, as in a pod.
_NICENESS = 4


def set_up_logging() -> None:
    """Our own loggers write to stderr from INFO up. Prompts and images are never logged."""
    logger = logging.getLogger("fluyt")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def give_way_to_ranks() -> None:
    """Where ranks share the cores, they go first: a step waits for its slowest rank, and nobody for us.

    A step is planned ahead, so what the scheduler and the front door do has a whole step's time.
    """
    # Never less than it is: where Ray's workers start at 15, only root may go back.
    os.nice(max(0, _NICENESS - os.nice(0)))
