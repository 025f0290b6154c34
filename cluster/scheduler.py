"""The deployment DecodeScheduler: a desk, and a server on a free port that everyone dials."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cluster.checkpoint import checkpoint_dir
from cluster.config import parse
from cluster.desk import Desk
from cluster.discovery import Endpoint, new_epoch, new_secret, start_internal_server
from cluster.node import node_host
from cluster.process_setup import give_way_to_ranks, set_up_logging
from cluster.steps_service import StepsService
from model.config import read_config
from protos.fluyt.v1 import steps_pb2_grpc


class DecodeScheduler:
    """Plans the steps of all gangs. Holds no weights and imports no torch."""

    async def __init__(self, data: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logging()
        give_way_to_ranks()
        config = parse(data)
        model = read_config(checkpoint_dir(config.model.directory))
        self._desk = Desk(new_epoch())
        secret = new_secret()
        service = StepsService(config, model, self._desk, secret)
        self._server, address = await start_internal_server(
            node_host(),
            lambda server: steps_pb2_grpc.add_StepsServicer_to_server(service, server),
        )
        self._endpoint = Endpoint(address, self._desk.epoch, secret)

    async def endpoint(self) -> Endpoint:
        """Where we listen, who we are, and the secret that callers must present."""
        return self._endpoint

    async def drain(self, grace_s: float) -> int:
        """Front doors take nothing new from now on; waits for open requests, returns how many are left."""
        self._desk.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._desk.wait_until_idle()
        return self._desk.num_open

    async def status(self) -> dict[str, int | str]:
        """For people: epoch, gangs, open requests."""
        return {
            "epoch": self._desk.epoch,
            "gangs": self._desk.num_gangs,
            "front_doors": self._desk.num_doors,
            "open_requests": self._desk.num_open,
        }

    async def check_health(self) -> None:
        """Called by Serve once a second: gangs whose engine failed are sent away, to dial again."""
        self._desk.send_away_failed()
