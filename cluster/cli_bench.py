"""`fluyt bench`: runs a measurement and prints it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from model.errors import InvalidRequest

if TYPE_CHECKING:
    from cluster.config import ClusterConfig

CLUSTER_ROUNDS = 5


def engine(peer: str, num_rounds: int, num_threads: int, as_json: bool) -> None:
    """Our engine against a peer."""
    if peer != "transformers":
        raise InvalidRequest("--peer", f"{peer!r} is not one of transformers")
    from cluster.bench_engine import bench_engine

    _print(bench_engine(num_rounds, num_threads), as_json)


def cluster(num_streams: int, as_json: bool) -> None:
    """An application of its own over gRPC, against the same engine without Ray."""
    if num_streams < 1:
        raise InvalidRequest("--streams", f"{num_streams} is below 1")
    from cluster.bench_cluster import bench_cluster

    # Prompts come again in each round, and a token is the unit: each is computed.
    with _own_application(prefix_cache=False, mtp=False) as (address, config):
        result = asyncio.run(bench_cluster(address, config, num_streams, CLUSTER_ROUNDS))
    _print(result, as_json)


def mtp(num_rounds: int, num_threads: int, as_json: bool) -> None:
    """The default model with drafts and without."""
    from cluster.bench_mtp import bench_mtp

    _print(bench_mtp(num_rounds, num_threads), as_json)


def forms(num_rounds: int, num_threads: int, as_json: bool) -> None:
    """The default model held to a form and free, the same tokens."""
    for name, value in (("rounds", num_rounds), ("threads", num_threads)):
        if value < 1:
            raise InvalidRequest(f"--{name}", f"{value} is below 1")
    from cluster.bench_forms import bench_forms

    _print(bench_forms(num_rounds, num_threads), as_json)


def agents(num_agents: int, num_turns: int, num_threads: int, in_process: bool, as_json: bool) -> None:
    """Agents with a shared prompt, with the prefix cache and without."""
    for name, value in (("agents", num_agents), ("turns", num_turns)):
        if value < 1:
            raise InvalidRequest(f"--{name}", f"{value} is below 1")
    from cluster.bench_agents import bench_agents, bench_in_process

    @contextmanager
    def application(prefix_cache: bool) -> Iterator[str]:
        with _own_application(prefix_cache=prefix_cache, threads_per_rank=num_threads) as (address, _):
            yield address

    if in_process:
        _print(bench_in_process(num_agents, num_turns, num_threads), as_json)
    else:
        _print(bench_agents(application, num_agents, num_turns), as_json)


def nano(count: int, as_json: bool) -> None:
    """The default model's examination through an application of its own."""
    if count < 1:
        raise InvalidRequest("--count", f"{count} is below 1")
    from cluster.bench_nano import bench_nano

    with _own_application() as (address, _):
        result = bench_nano(address, count)
    _print(result, as_json)


def gpu(arguments: list[str]) -> None:
    """The whole model with random weights on this machine's GPUs, without Ray; see model/device/README.md."""
    from model.device.bench import main

    main(arguments)


@contextmanager
def _own_application(**gang: object) -> Iterator[tuple[str, ClusterConfig]]:
    """An application with ports and state of its own, `gang` as said; ends it on leaving."""
    from cluster.cli_up import progress
    from cluster.config import ClusterConfig
    from cluster.local_ray import free_port
    from cluster.up import down, up

    config = ClusterConfig().replaced("gang", **gang)
    config = config.replaced("frontdoor", port=free_port(), health_port=free_port())
    report = progress(sys.stderr.write)
    with tempfile.TemporaryDirectory(prefix="fluyt-bench-") as directory:
        os.environ["FLUYT_STATE_DIR"] = directory
        try:
            yield up(config, None, report).address, config
        finally:
            down(report)
            os.chdir("/")  # the directory that Ray was used from goes


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22} {value}")
