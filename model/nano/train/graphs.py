"""Forward and backward of one chunk, on a GPU as one CUDA graph per shape.

The network is so small that a step of several thousand kernels waits for the host to launch them
(README, Decisions); replayed as a graph it does not. Graphs of all shapes share one memory pool: they run one
after another, and what is wanted of a result is copied before the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from model.nano.train.chunks import Chunk, ChunkShape
from model.nano.train.losses import Measured, Weights, measure
from model.nano.train.network import Network

WARM_UP_RUNS = 2  # libraries choose their kernels and take their workspaces before the capture


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    chunk: Chunk
    weights: Weights
    measured: Measured


class ChunkRunner:
    """Adds the gradients of a chunk to `parameters`, whose `grad` tensors are always the same."""

    def __init__(
        self, network: Network, parameters: Iterable[torch.nn.Parameter], device: torch.device
    ) -> None:
        self._network, self._device = network, device
        self._grads = []
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            self._grads.append(parameter.grad)
        self._captured: dict[tuple[ChunkShape, bool], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def zero(self) -> None:
        """Forget the gradients."""
        torch._foreach_zero_(self._grads)

    def prepare(self, shape: ChunkShape, chunk: Chunk, *, has_drafts: bool) -> None:
        """Capture what `run` will need; the gradients are nonsense afterwards."""
        if self._pool is None or (shape, has_drafts) in self._captured:
            return
        static = chunk.cloned()
        weights = self._weights(0.0, 0.0, 0.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._pass(shape, static, weights, has_drafts)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL watches its events) may call the driver meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            measured = self._pass(shape, static, weights, has_drafts)
        self._captured[shape, has_drafts] = _Captured(graph, static, weights, measured)

    def run(
        self, shape: ChunkShape, chunk: Chunk, *, token: float, place: float, draft: float, has_drafts: bool
    ) -> Measured:
        """Forward and backward with these weights of the sums."""
        if self._pool is None:
            return self._pass(shape, chunk, self._weights(token, place, draft), has_drafts).copied()
        captured = self._captured[shape, has_drafts]
        captured.chunk.copy_from(chunk)
        for tensor, value in zip(_parts(captured.weights), (token, place, draft), strict=True):
            tensor.fill_(value)
        captured.graph.replay()
        return captured.measured.copied()

    def _pass(self, shape: ChunkShape, chunk: Chunk, weights: Weights, has_drafts: bool) -> Measured:
        measured = measure(self._network, chunk, shape, weights, has_drafts=has_drafts)
        measured.loss.backward()
        return measured

    def _weights(self, *values: float) -> Weights:
        return Weights(*(torch.tensor(value, device=self._device) for value in values))


def _parts(weights: Weights) -> tuple[torch.Tensor, ...]:
    return weights.token, weights.place, weights.draft
