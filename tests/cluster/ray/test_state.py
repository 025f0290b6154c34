"""What `up` leaves behind, and that `down` ends exactly that."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.processes import ProcessId, end_session, identify, is_alive, our_members, session_members
from cluster.signals import interrupt_later
from cluster.state import AlreadyUpError, State, read_state, remove_state, starting, write_state

# A child and a grandchild that ignore SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
print("ready", flush=True)
time.sleep(60)
"""


def start(code: str) -> ProcessId:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    found = identify(process.pid)
    process.returncode = 0  # the session is ended by the test: nothing to wait for
    assert found is not None
    return found


def state_of(root: ProcessId | None, *processes: ProcessId) -> State:
    return State(
        root=root,
        processes=processes,
        address="127.0.0.1:1",
        health_address="127.0.0.1:2",
        ray_address="127.0.0.1:3",
        dashboard_url="",
        temp_dir="",
        drain_s=1.0,
    )


@pytest.fixture(autouse=True)
def own_state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUYT_STATE_DIR", str(tmp_path / "state"))


def test_a_session_is_ended_to_the_last_grandchild() -> None:
    root = start(STUBBORN)
    members = session_members(root.pid)
    assert len(members) == 2
    assert end_session(root, members, grace_s=0.2) == 2
    assert session_members(root.pid) == []


def test_what_is_left_of_a_dead_root_is_found_by_a_recorded_member() -> None:
    root = start(STUBBORN)
    members = session_members(root.pid)
    (grandchild,) = [member for member in members if member != root]
    subprocess.run(["kill", "-9", str(root.pid)], check=True)
    while is_alive(root):
        time.sleep(0.01)
    assert our_members(root, ()) == []
    assert our_members(root, members) == [grandchild]
    end_session(root, members, grace_s=0.0)
    assert not is_alive(grandchild)


def test_a_pid_that_was_used_again_is_not_ours() -> None:
    root = start(STUBBORN)
    stranger = ProcessId(root.pid, root.started - 1)  # another process had this pid before
    assert not is_alive(stranger)
    assert end_session(stranger, (stranger,), grace_s=0.0) == 0
    assert is_alive(root)
    end_session(root, (), grace_s=0.0)


def test_the_state_survives_the_file() -> None:
    own = identify(1) or ProcessId(1, 2)
    state = state_of(own, ProcessId(3, 4))
    write_state(state)
    assert read_state() == state
    remove_state()
    assert read_state() is None


def test_starting_twice_is_refused() -> None:
    with starting(), pytest.raises(AlreadyUpError, match="at work"), starting():
        pass


def test_starting_while_one_is_up_is_refused_with_its_address() -> None:
    root = start(STUBBORN)
    write_state(state_of(root))
    with pytest.raises(AlreadyUpError, match=r"127\.0\.0\.1:1"), starting():
        pass
    end_session(root, (), grace_s=0.0)
    with starting():
        pass


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    assert reached == ["end"]


@pytest.mark.usefixtures("interrupts")
def test_a_second_interrupt_does_not_wait() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    assert reached == []
