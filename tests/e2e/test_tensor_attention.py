"""The application with ranks that split attention: it answers, looks, and survives a rank."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.client import Client, ServerError, chat_request
from tests.e2e.conftest import GREEDY, RECOVERY_S, Application, run_fluyt, shell_env, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(150)]

RECEIPT = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "receipt.png"


@pytest.fixture(scope="module")
def tensor_application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    path = tmp_path_factory.mktemp("tensor")
    config = write_config(path / "c.yaml", model={"attention": "tensor"}, gang={"size": 2})
    began = time.monotonic()
    up = run_fluyt(shell_env(path / "state"), path, "up", "--config", str(config), timeout_s=120)
    assert up.returncode == 0, up.stderr
    app = Application(path / "state", path, up.stdout, time.monotonic() - began)
    yield app
    app.fluyt("down", timeout_s=60)


def ask(app: Application, *arguments: str) -> list[int]:
    asked = app.fluyt("ask", *arguments, "--max-tokens", "24", "--seed", "7", "--json")
    assert asked.returncode == 0, asked.stderr
    token_ids: list[int] = json.loads(asked.stdout)["token_ids"]
    return token_ids


def run_alone(app: Application, *arguments: str) -> list[int]:
    ran = app.fluyt("run", *arguments, "--max-tokens", "24", "--seed", "7", "--json")
    assert ran.returncode == 0, ran.stderr
    token_ids: list[int] = json.loads(ran.stdout)["token_ids"]
    return token_ids


@pytest.mark.parametrize(
    "arguments",
    [("What is 12 + 30?", "--temperature", "1"), ("What is the total?", "--image", str(RECEIPT))],
    ids=["sampled", "image"],
)
def test_answers_are_those_of_one_process(
    tensor_application: Application, arguments: tuple[str, ...]
) -> None:
    assert ask(tensor_application, *arguments) == run_alone(tensor_application, *arguments)


async def test_after_a_rank_is_killed_it_serves_again(tensor_application: Application) -> None:
    async with Client(tensor_application.address) as client:
        before = await client.answer(chat_request("Say anything.", max_tokens=8, **GREEDY), timeout_s=10)
        os.kill(tensor_application.replicas("MoEShard")[-1].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        while True:
            assert time.monotonic() - killed_at < RECOVERY_S
            try:
                after = await client.answer(
                    chat_request("Say anything.", max_tokens=8, **GREEDY), timeout_s=5
                )
                break
            except ServerError as error:
                if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    raise
                await asyncio.sleep(0.1)
        assert list(after.token_ids) == list(before.token_ids)
