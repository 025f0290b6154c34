"""Ranks of tests that need no gang: processes, each of which runs a function."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], *args: Any, num_ranks: int = 2) -> None:
    """Call function(rank, *args) in as many processes, and wait for them. Raises what one of them raised.

    They are forked from a process that has imported torch and done nothing else, once for all tests.
    """
    multiprocessing.set_forkserver_preload(["torch", "triton"])  # what is missing is passed over
    mp.start_processes(function, args, nprocs=num_ranks, start_method="forkserver")
