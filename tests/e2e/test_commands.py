"""What commands refuse before anything is started, and what they leave when they are interrupted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from cluster.processes import session_members
from tests.e2e.conftest import FLUYT, run_fluyt, shell_env, write_config

pytestmark = pytest.mark.slow  # every command is a process that imports torch or gRPC anew


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return shell_env(tmp_path / "state")


def test_ask_without_a_server_says_how_to_get_one(env: dict[str, str], tmp_path: Path) -> None:
    result = run_fluyt(env, tmp_path, "ask", "Hello", "--address", "127.0.0.1:1")
    assert result.returncode == 1
    assert "no server at 127.0.0.1:1; start one with" in result.stderr
    assert "fluyt run" in result.stderr


def test_down_and_status_without_anything_up(env: dict[str, str], tmp_path: Path) -> None:
    down, status = (run_fluyt(env, tmp_path, name) for name in ("down", "status"))
    assert (down.returncode, down.stdout) == (0, "nothing was up\n")
    assert (status.returncode, status.stdout) == (1, "nothing is up\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--model", "missing"], "is not a directory"),
        (["up", "--model", "."], "config.json: no such file"),
        (["up", "--gang-size", "5"], "5"),
        (["up", "--gang-size", "0"], "gang.size: 0 is below 1"),
        (["up", "--config", "missing.yaml"], "missing.yaml"),
        (["run"], "give one of text, --prompt-ids and --requests"),
        (["run", "Hi", "--image", "missing.png"], "missing.png: No such file"),
        (["run", "Hi", "--dtype", "int8"], "--dtype: 'int8' is not one of"),
        (["run", "Hi", "--top-p", "0"], "sampling.top_p"),
        (["run", "--prompt-ids", "1,x"], "--prompt-ids"),
        (["run", "--prompt-ids", "1,999999"], "999999"),
        (["tokenize"], "give either text or --messages"),
        (["check", "."], "config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_ends_with_2_and_one_line(
    env: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = run_fluyt(env, tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("fluyt: ")
    assert words in last


def test_a_taken_port_is_named(env: dict[str, str], tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    port = json.loads(config.read_text())["frontdoor"]["port"]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        result = run_fluyt(env, tmp_path, "up", "--config", str(config))
    assert result.returncode == 2
    assert f"frontdoor.port: port {port} is taken" in result.stderr


def test_ids_are_answered_with_ids(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("[5, 6,\n7]")
    given = [
        run_fluyt(env, tmp_path, "run", "--prompt-ids", ids, "--max-tokens", "3", "--ignore-eos", "--json")
        for ids in ("5,6,7", "@ids")
    ]
    first, second = (json.loads(result.stdout) for result in given)
    assert len(first["token_ids"]) == 3
    assert first["usage"]["num_prompt_tokens"] == second["usage"]["num_prompt_tokens"] == 3


def test_tokenize_prints_prompt_ids_and_images(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    result = json.loads(run_fluyt(env, tmp_path, "tokenize", "--messages", "m.json", "--json").stdout)
    assert "Hi" in result["prompt"]
    assert result["token_ids"][0] == 0
    assert result["images"] == []


@pytest.mark.ray
@pytest.mark.timeout(90)
@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("after", ["Ray starts", "Serve is up"])
def test_an_interrupted_up_leaves_nothing(env: dict[str, str], tmp_path: Path, after: str) -> None:
    config = write_config(tmp_path / "c.yaml")
    with subprocess.Popen(
        [FLUYT, "up", "--config", str(config)], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if after in line:
                break
        state = json.loads((tmp_path / "state" / "state.json").read_text())
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30) == 130
    assert session_members(state["root"]["pid"]) == []
    assert not (tmp_path / "state" / "state.json").exists()
