"""What `fluyt up` has started, in a file that `down`, `status` and `ask` read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.processes import ProcessId, is_alive
from model.errors import FluytError

STATE_FILE = "state.json"
# Ray puts the directory it is used from first on every worker's path: this one stays empty.
EMPTY_DIR = "empty"


class AlreadyUpError(FluytError):
    """An application runs already, or is being started."""

    exit_code = 2


@dataclass(frozen=True)
class State:
    """A running application. `root` is None where we joined a Ray that others started."""

    root: ProcessId | None
    processes: tuple[ProcessId, ...]
    address: str
    health_address: str
    ray_address: str
    dashboard_url: str
    temp_dir: str
    drain_s: float

    @property
    def is_ours(self) -> bool:
        """We started the Ray it runs on."""
        return self.root is not None

    @property
    def has_gone(self) -> bool:
        """None of its processes lives. Of a Ray that we joined nobody here can tell."""
        return self.root is not None and not any(map(is_alive, (self.root, *self.processes)))


def state_dir() -> Path:
    """$FLUYT_STATE_DIR, else ~/.fluyt; made if it is missing."""
    path = Path(os.environ.get("FLUYT_STATE_DIR") or Path.home() / ".fluyt").absolute()
    (path / EMPTY_DIR).mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_state(state: State) -> None:
    """Replace the file in one go."""
    path = state_dir() / STATE_FILE
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(state), indent=1))
    temporary.replace(path)


def read_state() -> State | None:
    """What was written last, whether it still lives or not."""
    try:
        data: dict[str, Any] = json.loads((state_dir() / STATE_FILE).read_text())
    except FileNotFoundError:
        return None
    root = data.pop("root")
    processes = tuple(ProcessId(**process) for process in data.pop("processes"))
    return State(root=None if root is None else ProcessId(**root), processes=processes, **data)


def remove_state() -> None:
    """Nothing runs any more."""
    (state_dir() / STATE_FILE).unlink(missing_ok=True)


@contextmanager
def starting() -> Iterator[None]:
    """Holds the right to start: one `fluyt up` at a time. Raises AlreadyUpError."""
    with (state_dir() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUpError("another fluyt up is at work here") from None
        state = read_state()
        if state is not None and not state.has_gone:
            raise AlreadyUpError(f"an application is up at {state.address}; fluyt down ends it")
        yield
