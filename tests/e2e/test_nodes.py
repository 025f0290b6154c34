"""Scheduler, vision and shards on different nodes of a Ray that others started."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.client import Client, chat_request
from cluster.local_ray import ensure_token, ray_environment
from tests.e2e.conftest import GREEDY, Application, run_fluyt, shell_env, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]

RECEIPT = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "receipt.png"


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ensure_token()
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("three_nodes.py"))],
        env=ray_environment(shell_env(tmp_path_factory.mktemp("unused"))),
        cwd=tmp_path_factory.mktemp("nodes"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nodes:
        assert nodes.stdout is not None
        assert nodes.stdin is not None
        for line in nodes.stdout:
            if line.startswith("{"):
                yield json.loads(line)["address"]
                break
        nodes.stdin.close()
        nodes.wait(60)


def test_a_missing_resource_is_named_and_nothing_is_deployed(ray_address: str, tmp_path: Path) -> None:
    env = shell_env(tmp_path / "state")
    result = run_fluyt(env, tmp_path, "up", "--ray", ray_address, "--gang-size", "4", timeout_s=90)
    assert result.returncode == 2, result.stderr
    assert "resource 'moe_shard': need 4, the cluster has 2" in result.stderr
    assert not (tmp_path / "state" / "state.json").exists()


def test_the_application_spans_nodes(ray_address: str, tmp_path: Path) -> None:
    env = shell_env(tmp_path / "state")
    config = write_config(tmp_path / "c.yaml")
    up = run_fluyt(env, tmp_path, "up", "--ray", ray_address, "--config", str(config), timeout_s=120)
    assert up.returncode == 0, up.stderr
    app = Application(tmp_path / "state", tmp_path, up.stdout, 0.0)

    async def ask() -> int:
        async with Client(app.address) as client:
            request = chat_request("What is this?", [RECEIPT.read_bytes()], max_tokens=6, **GREEDY)
            return len((await client.answer(request)).token_ids)

    try:
        assert asyncio.run(ask()) == 6
        nodes = placement(ray_address, tmp_path)
        (scheduler,), (vision,), shards = (
            nodes[name] for name in ("DecodeScheduler", "VisionEncoder", "MoEShard")
        )
        assert len({scheduler, vision, *shards}) == 3
        assert len(shards) == 2
    finally:
        down = app.fluyt("down", timeout_s=90)
    assert down.returncode == 0, down.stderr


PLACEMENT = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
from ray._private.state import actors
nodes = {}
for actor in actors().values():
    if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith("ServeReplica:fluyt:"):
        nodes.setdefault(actor["ActorClassName"].split(":")[-1], []).append(actor["Address"]["NodeID"])
print(json.dumps(nodes))
"""


def placement(address: str, cwd: Path) -> dict[str, list[str]]:
    """Node ids of the living replicas, by deployment."""
    command = [sys.executable, "-c", PLACEMENT, address]
    env = ray_environment(shell_env(cwd))
    result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60, check=True)
    nodes: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return nodes
