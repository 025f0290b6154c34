"""The deployment FrontDoor: the public server in a replica, with its link, encoder and text stage."""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle

from cluster.checkpoint import checkpoint_dir
from cluster.config import ClusterConfig, parse
from cluster.discovery import start_internal_server
from cluster.embeddings import EmbeddingsService
from cluster.embeddings_store import EmbeddingStore
from cluster.frontdoor_server import ServerOptions, start_server
from cluster.handles import HandleEncoder, endpoint_source
from cluster.link import SchedulerLink
from cluster.node import node_host
from cluster.preprocess import TextStage
from cluster.process_setup import give_way_to_ranks, set_up_logging
from cluster.servicer import InferenceServicer, ServiceOptions

if TYPE_CHECKING:
    from model.weights import Checkpoint


class FrontDoor:
    """One per node that has the resource: each opens the same two ports."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        data: Mapping[str, Any],
        scheduler: DeploymentHandle[Any],
        vision: DeploymentHandle[Any] | None,
        shards: DeploymentHandle[Any],
    ) -> None:
        # Nobody here calls the shards: the handle makes them part of the application.
        del shards
        set_up_logging()
        give_way_to_ranks()
        self._config = parse(data)
        text, checkpoint = await asyncio.to_thread(load, self._config)
        instance = secrets.token_hex(4)
        self._link = SchedulerLink(endpoint_source(scheduler), instance, checkpoint.fingerprint())
        store = EmbeddingStore()
        self._internal, address = await start_internal_server(
            node_host(), EmbeddingsService(store.get, lambda: self._link.secret).mount
        )
        encoder = HandleEncoder(vision) if vision is not None and checkpoint.has_vision else None
        options = service_options(self._config, instance, address)
        self._server = await start_server(
            server_options(self._config), InferenceServicer(text, self._link, encoder, store, options)
        )
        self._link.start()

    async def check_health(self) -> None:
        """Alive as long as it answers; whether requests can be served is the health port's to say."""

    async def __del__(self) -> None:
        """Serve calls it when the replica shall go: open streams may end first."""
        if not hasattr(self, "_server"):
            return  # it never came up
        await self._server.stop(self._config.frontdoor.drain_s)
        await self._link.close()
        await self._internal.stop(None)


def load(config: ClusterConfig) -> tuple[TextStage, Checkpoint]:
    """Text stage and what the checkpoint holds. Runs in a thread; what images need is imported here, too."""
    from model.weights import open_checkpoint

    importlib.import_module("model.text.pixels")
    directory = checkpoint_dir(config.model.directory)
    # Without prefixes nobody meets what an answer left, and every text is spelled as the tokenizer does.
    kept_answers_mib = config.frontdoor.kept_answers_mib if config.gang.prefix_cache else 0
    return TextStage.load(directory, config.images, kept_answers_mib), open_checkpoint(directory)


def service_options(config: ClusterConfig, instance: str, embeddings_address: str) -> ServiceOptions:
    """How the front door answers."""
    return ServiceOptions(
        model_name=Path(config.model.directory).name or "nano",
        instance=instance,
        embeddings_address=embeddings_address,
        limits=config.admission,
    )


def server_options(config: ClusterConfig) -> ServerOptions:
    """Where it listens."""
    return ServerOptions(
        host=config.frontdoor.host,
        port=config.frontdoor.port,
        health_port=config.frontdoor.health_port,
        identity=config.identity,
    )
