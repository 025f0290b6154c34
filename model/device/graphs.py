"""A step as something to replay: a CUDA graph for each bucket of rows, or the calls themselves on a CPU.

All graphs share one memory pool: they never run at the same time, and what one leaves there is not read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

BUCKETS = (1, 2, 4, 8, 16, 32, 40, 64)
_NUM_WARM_UPS = 2


def bucket_of(num_rows: int) -> int:
    """The smallest bucket that has room for so many rows."""
    assert 0 < num_rows <= BUCKETS[-1], (num_rows, BUCKETS)
    return BUCKETS[bisect_left(BUCKETS, num_rows)]


class GraphPool:
    """What the graphs of one process share. On a CPU it captures nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def capture(self, run: Callable[[], object], moving: tuple[torch.Tensor, ...]) -> Callable[[], object]:
        """`run` as one launch. It is run before, for compilers and libraries; `moving` is put back after.

        The tensors that `run` reads and writes must outlive the result, at the same addresses.
        """
        kept = [tensor.clone() for tensor in moving]

        def restore() -> None:
            for tensor, value in zip(moving, kept, strict=True):
                tensor.copy_(value)

        if self._pool is None:
            run()
            restore()
            return run
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (a store, a watchdog of NCCL) may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            run()
        restore()
        torch.cuda.synchronize(self._device)
        return graph.replay
