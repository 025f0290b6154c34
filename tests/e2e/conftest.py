"""One application for the whole session, started and ended by the command that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.local_ray import free_port
from cluster.processes import PROC, ProcessId, session_members

FLUYT = str(Path(sys.executable).with_name("fluyt"))
RECOVERY_S = 15.0
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@dataclass(frozen=True)
class Application:
    """What `fluyt up` printed and wrote, and the shell it was typed in."""

    state_dir: Path
    cwd: Path
    output: str
    up_s: float

    @property
    def env(self) -> dict[str, str]:
        return shell_env(self.state_dir)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.state_dir / "state.json").read_text())
        return state

    @property
    def address(self) -> str:
        return str(self.state["address"])

    def fluyt(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return run_fluyt(self.env, self.cwd, *arguments, timeout_s=timeout_s)

    def replicas(self, deployment: str) -> list[ProcessId]:
        """Living processes of a deployment, found by the title that Ray gives them."""
        found = []
        for process in session_members(self.state["root"]["pid"]):
            try:
                title = (PROC / str(process.pid) / "cmdline").read_text()
            except OSError:
                continue
            if title.startswith(f"ray::ServeReplica:fluyt:{deployment}"):
                found.append(process)
        return found

    def wait_until_serving(self, timeout_s: float = RECOVERY_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not json.loads(self.fluyt("status", "--json").stdout).get("serving"):
            assert time.monotonic() < deadline, f"not serving after {timeout_s} s"


def shell_env(state_dir: Path) -> dict[str, str]:
    """A clean shell, but for where the state is kept."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "FLUYT_STATE_DIR": str(state_dir),
    }


def run_fluyt(
    env: dict[str, str], cwd: Path, *arguments: str, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLUYT, *arguments],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def hostile_directory(path: Path) -> Path:
    """A directory whose names are those of our packages."""
    path.mkdir(parents=True)
    for name in ("model.py", "cluster.py", "protos.py"):
        (path / name).write_text("raise SystemExit('a file of the user was imported')\n")
    (path / "model").mkdir()
    (path / "model" / "weights.safetensors").write_bytes(b"")
    return path


def write_config(path: Path, **sections: dict[str, Any]) -> Path:
    """A config on free ports. JSON is YAML."""
    ports = {"port": free_port(), "health_port": free_port()}
    frontdoor = {**ports, **sections.pop("frontdoor", {})}
    path.write_text(json.dumps({"frontdoor": frontdoor, **sections}))
    return path


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """Two shards in float64: their tokens must be those of one process."""
    base = tmp_path_factory.mktemp("e2e")
    cwd, state_dir = hostile_directory(base / "cwd"), base / "state"
    config = write_config(base / "config.yaml", model={"dtype": "float64"})
    began = time.monotonic()
    result = run_fluyt(shell_env(state_dir), cwd, "up", "--config", str(config), timeout_s=120)
    assert result.returncode == 0, result.stderr
    yield Application(state_dir, cwd, result.stdout, time.monotonic() - began)
    ended = run_fluyt(shell_env(state_dir), cwd, "down", timeout_s=60)
    assert ended.returncode == 0, ended.stderr
