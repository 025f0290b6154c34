"""`fluyt bench`: runs a measurement and prints it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from typing import Any

from model.errors import InvalidRequest

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
    from cluster.cli_up import progress
    from cluster.config import ClusterConfig
    from cluster.local_ray import free_port
    from cluster.up import down, up

    config = ClusterConfig().replaced("frontdoor", port=free_port(), health_port=free_port())
    report = progress(sys.stderr.write)
    with tempfile.TemporaryDirectory(prefix="fluyt-bench-") as directory:
        os.environ["FLUYT_STATE_DIR"] = directory
        try:
            state = up(config, None, report)
            result = asyncio.run(bench_cluster(state.address, config, num_streams, CLUSTER_ROUNDS))
        finally:
            down(report)
            os.chdir("/")  # the directory that Ray was used from goes
    _print(result, as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22} {value}")
