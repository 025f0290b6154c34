"""A Ray of our own on this machine, in a session of its own. Knows the command `ray start` alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.config import MIB, ClusterConfig
from cluster.node import HOST_VARIABLE
from cluster.processes import ProcessId, identify
from model.errors import Unavailable

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
USUAL_DASHBOARD_PORT = 8265
READY_LINE = "This command will now block forever"


@dataclass(frozen=True)
class LocalRay:
    """A head node that is up, or being started."""

    root: ProcessId
    process: subprocess.Popen[bytes]
    address: str
    dashboard_url: str
    temp_dir: Path

    @property
    def log_file(self) -> Path:
        """What `ray start` says."""
        return self.temp_dir / "ray-start.log"


def start_ray(config: ClusterConfig, empty_dir: Path) -> LocalRay:
    """Starts a head node with the resources of `config`; returns before it is up."""
    ensure_token()
    # Socket paths have at most 107 characters: the state directory may be too deep.
    temp_dir = Path(tempfile.mkdtemp(prefix="fluyt-", dir="/tmp"))
    port, agent_port, client_port = free_port(), free_port(), free_port()
    dashboard_port = USUAL_DASHBOARD_PORT if is_free(HOST, USUAL_DASHBOARD_PORT) else free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--node-ip-address={HOST}",
        f"--port={port}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={dashboard_port}",
        # Its usual ports would keep out, or be kept out by, another Ray on this machine.
        f"--dashboard-agent-listen-port={agent_port}",
        f"--ray-client-server-port={client_port}",
        f"--num-cpus={max(2, os.cpu_count() or 1)}",
        f"--resources={json.dumps(config.resources())}",
        f"--object-store-memory={config.ray.object_store_mib * MIB}",
        f"--temp-dir={temp_dir}",
        "--include-log-monitor=false",  # nobody reads the workers' output through the driver
        "--disable-usage-stats",
    ]
    with (temp_dir / "ray-start.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            cwd=empty_dir,
            env=ray_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    root = identify(process.pid)
    assert root is not None, process.pid
    return LocalRay(root, process, f"{HOST}:{port}", f"http://{HOST}:{dashboard_port}", temp_dir)


def wait_for_ray(ray: LocalRay) -> None:
    """Returns when the head node is up. Raises Unavailable with the end of its log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while READY_LINE not in ray.log_file.read_text(errors="replace"):
        if ray.process.poll() is not None or time.monotonic() > deadline:
            tail = ray.log_file.read_text(errors="replace").strip().splitlines()[-5:]
            raise Unavailable("Ray did not start: " + " | ".join(tail))
        time.sleep(0.05)


def ray_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What Ray and all its workers run with."""
    package_root = str(Path(__file__).resolve().parents[1])
    path = [package_root, *filter(None, [base.get("PYTHONPATH")])]
    return {
        **{name: value for name, value in base.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        # Ray runs workers at nice 15: then a client on the same cores slows every token down.
        "RAY_worker_niceness": "0",
        # Serve's controller and replicas wake ten times a second for nothing: 6 % of a core together.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        # Our package before whatever a user's PYTHONPATH may hold under the same names.
        "PYTHONPATH": os.pathsep.join(path),
        # One machine: our own ports stay on loopback.
        HOST_VARIABLE: HOST,
    }


def ensure_token() -> None:
    """Ray refuses to start with its token on and no token there: let it write one."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    if not (Path.home() / ".ray" / "auth_token").exists():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own interpreter


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
