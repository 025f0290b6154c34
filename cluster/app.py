"""The whole graph on one screen: four deployments, who holds whose handle, and how Serve treats them.

                  clients
                     | gRPC
    VisionEncoder <- FrontDoor -> DecodeScheduler <- MoEShard x (gangs of W)

Handles carry control and images; tokens go over gRPC streams of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import GangPlacementStrategy, GangSchedulingConfig

from cluster.config import ClusterConfig, parse, to_dict
from cluster.frontdoor import FrontDoor
from cluster.scheduler import DecodeScheduler
from cluster.shard import MoEShard
from cluster.vision import VisionEncoder

APP_NAME = "fluyt"
# A dead process is replaced at the next check. One that hangs is given three times period + time-out:
# a process that imports torch on a busy core may be silent for seconds.
HEALTH: dict[str, Any] = {"health_check_period_s": 1.0, "health_check_timeout_s": 10.0}
# Nothing but the front door has anything to finish: its streams.
QUICK_END: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 2.0}
DRAIN_MARGIN_S = 5.0


def build(args: Mapping[str, Any]) -> Application:
    """The application of a config (the keys of ClusterConfig); what a RayService imports."""
    config = parse(args)
    data = to_dict(config)
    scheduler = _scheduler().bind(data)
    vision = _vision(config).bind(data) if config.vision.count else None
    shards = _shards(config).bind(data, scheduler)
    application: Application = _front_door(config).bind(data, scheduler, vision, shards)
    return application


def _actor(resource: str) -> dict[str, Any]:
    """One unit of our own resource places a replica, and `ray status` shows it; no CPU is booked."""
    return {"num_cpus": 0, "resources": {resource: 1}}


def _rank_actor(config: ClusterConfig) -> dict[str, Any]:
    """A rank, with its own GPU if it has one."""
    if not config.gang.on_gpus:
        return _actor("moe_shard")
    # Ranks see every GPU and take theirs: peer memory is refused where each calls its only one number 0.
    unmasked = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    return _actor("moe_shard") | {"num_gpus": 1, "runtime_env": unmasked}


def _front_door(config: ClusterConfig) -> Any:
    options: dict[str, Any] = {
        **HEALTH,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": config.frontdoor.drain_s + DRAIN_MARGIN_S,
    }
    return serve.deployment(
        FrontDoor,
        num_replicas=config.frontdoor.count,
        max_replicas_per_node=1,  # each opens the same two ports
        ray_actor_options=_actor("frontdoor"),
        **options,
    )


def _scheduler() -> Any:
    return serve.deployment(
        DecodeScheduler,
        num_replicas=1,
        max_ongoing_requests=1000,  # after a restart every rank and front door asks for the endpoint at once
        ray_actor_options=_actor("scheduler"),
        **HEALTH,
        **QUICK_END,
    )


def _vision(config: ClusterConfig) -> Any:
    return serve.deployment(
        VisionEncoder,
        num_replicas=config.vision.count,
        max_ongoing_requests=16,  # a few images wait at the encoder, so that it never does
        max_queued_requests=1024,  # as many as requests may wait at the scheduler
        ray_actor_options=_actor("vision"),
        **HEALTH,
        **QUICK_END,
    )


def _shards(config: ClusterConfig) -> Any:
    return serve.deployment(
        MoEShard,
        num_replicas=config.gang.count * config.gang.size,
        # Together or not at all, close to each other; one that dies takes its gang along.
        gang_scheduling_config=GangSchedulingConfig(
            gang_size=config.gang.size, gang_placement_strategy=GangPlacementStrategy.PACK
        ),
        ray_actor_options=_rank_actor(config),
        **HEALTH,
        **QUICK_END,
    )
