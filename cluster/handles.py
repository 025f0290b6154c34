"""What we ask other deployments through their Serve handles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.discovery import Endpoint, EndpointSource
from model.text.images import TiledImage

# A handle waits while no replica lives, and may wait for one that hangs: better to ask again.
ENDPOINT_TIMEOUT_S = 5.0


def endpoint_source(scheduler: DeploymentHandle[Any]) -> EndpointSource:
    """Asks the scheduler's deployment where its replica listens now."""

    async def ask() -> Endpoint:
        async with asyncio.timeout(ENDPOINT_TIMEOUT_S):
            endpoint = await scheduler.endpoint.remote()
        assert isinstance(endpoint, Endpoint), endpoint
        return endpoint

    return ask


class HandleEncoder:
    """The vision encoder behind its handle."""

    def __init__(self, vision: DeploymentHandle[Any]) -> None:
        self._vision = vision

    async def encode(self, images: Sequence[TiledImage]) -> Sequence[Any]:
        """One array [num_rows, hidden] for each image. Cancelling withdraws what is queued."""
        response = self._vision.encode.remote(list(images))
        try:
            rows: Sequence[Any] = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return rows
