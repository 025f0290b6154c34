"""`fluyt up` and `fluyt down`: flags to config, progress to the terminal."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.cli_flags import program
from cluster.config import ClusterConfig, load
from cluster.state import State
from model.errors import InvalidRequest


def up(
    config_file: Path | None, model: Path | None, gang_size: int | None, gangs: int | None, ray: str | None
) -> None:
    """Start, then say how to go on."""
    config = read_config_flags(config_file, model, gang_size, gangs)
    report = progress(sys.stderr.write)
    report("checking model, ports and resources")
    from cluster import up as starter

    state = starter.up(config, ray, report)
    for line in hints(state):
        print(line)


def down() -> None:
    """End what is up."""
    from cluster import up as starter

    report = progress(sys.stderr.write)
    print("everything is down" if starter.down(report) else "nothing was up")


def read_config_flags(
    config_file: Path | None, model: Path | None, gang_size: int | None, gangs: int | None
) -> ClusterConfig:
    """The file's config, flags first. Paths become absolute: the directory changes later."""
    config = load(config_file) if config_file is not None else ClusterConfig()
    config = config.replaced("gang", size=gang_size, count=gangs)
    directory = model if model is not None else config.model.directory
    if not directory:
        return config
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        raise InvalidRequest("model", f"{path} is not a directory")
    return config.replaced("model", directory=str(path))


def progress(write: Callable[[str], object]) -> Callable[[str], None]:
    """Lines with the seconds since the start: what each of them goes to."""
    began = time.monotonic()

    def report(text: str) -> None:
        write(f"[{time.monotonic() - began:5.1f} s] {text}\n")

    return report


def hints(state: State) -> list[str]:
    """Endpoints, and how to look at Ray from another shell."""
    lines = [
        f"public gRPC       {state.address}",
        f"health, metrics   {state.health_address}",
    ]
    variables = f"RAY_AUTH_MODE=token RAY_ADDRESS={state.ray_address}"
    if state.dashboard_url:
        lines.append(f"dashboard         {state.dashboard_url}")
        variables += f" RAY_DASHBOARD_ADDRESS={state.dashboard_url}"
    fluyt, ray = program(), shlex.quote(str(Path(sys.executable).with_name("ray")))
    return [
        *lines,
        f"export {variables}",
        f'next: {fluyt} ask "Hello"; {fluyt} status; {ray} status; {fluyt} down',
    ]
