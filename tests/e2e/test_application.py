"""The application as users meet it: commands, the public client, and what happens when parts die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client import Client, ServerError, chat_request
from cluster.processes import session_members
from model.nano import ABOUT
from protos.fluyt.v1 import inference_pb2 as pb
from tests.e2e.conftest import (
    GREEDY,
    RECOVERY_S,
    Application,
    run_fluyt,
    shell_env,
    write_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]

RECEIPT = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "receipt.png"
# Copied from any place on, it gives answers that differ from token to token and from request to request.
CODE = "9YFWH9XNRBTHQZLX5DGKQCEBHNH3"
RESOURCES = ("frontdoor", "vision", "scheduler", "moe_shard")


@pytest.fixture
async def client(application: Application) -> AsyncIterator[Client]:
    async with Client(application.address) as connected:
        yield connected


def exports(application: Application) -> dict[str, str]:
    """What the printed `export` line sets, in a shell that has nothing else."""
    (line,) = re.findall(r"^export (.+)$", application.output, re.MULTILINE)
    return {**application.env, **dict(pair.split("=", 1) for pair in line.split())}


def tool(name: str, *arguments: str, env: dict[str, str]) -> str:
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


async def test_many_streams_at_once_answer_as_one_process_does(
    application: Application, client: Client, tmp_path: Path
) -> None:
    prompts = [f"Repeat: {CODE[4 * number :]}" for number in range(6)]
    samplings = [{"max_tokens": 24, "temperature": 2.0 * (number % 2), "seed": 7} for number in range(6)]
    lines = [
        json.dumps({"text": prompt, **sampling}) for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    alone = application.fluyt(
        "run", "--requests", str(tmp_path / "r.jsonl"), "--dtype", "float64", "--json", timeout_s=100
    )
    assert alone.returncode == 0, alone.stderr
    expected = [json.loads(line)["token_ids"] for line in alone.stdout.splitlines()]
    assert len({tuple(ids) for ids in expected}) == 6
    assert min(len(set(ids)) for ids in expected) > 8, "answers that do not vary show nothing"
    requests = [chat_request(prompt, **sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    answers = await asyncio.gather(*(client.answer(request) for request in requests))
    assert [list(answer.token_ids) for answer in answers] == expected


def test_samples_of_ask_are_those_of_one_process(application: Application, tmp_path: Path) -> None:
    sampling = {"max_tokens": 20, "temperature": 9.0, "seed": 7, "n": 3, "num_prompt_logprobs": 1}
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "Say anything.", **sampling}))
    alone = application.fluyt("run", "--requests", str(tmp_path / "r.jsonl"), "--dtype", "float64", "--json")
    flags = ("--max-tokens", "20", "--temperature", "9", "--seed", "7", "--n", "3", "--prompt-logprobs", "1")
    asked = application.fluyt("ask", "Say anything.", *flags, "--json")
    expected, found = (json.loads(result.stdout) for result in (alone, asked))
    assert [s["token_ids"] for s in found["samples"]] == [s["token_ids"] for s in expected["samples"]]
    assert len({tuple(sample["token_ids"]) for sample in found["samples"]}) == 3
    assert found["usage"]["num_prompt_tokens"] == len(found["prompt_logprobs"])
    shown = application.fluyt("ask", "Say anything.", *flags)
    assert [f"--- sample {number} of 3 ---" in shown.stdout for number in (1, 2, 3)] == [True] * 3


async def test_an_image_goes_through_the_encoder_and_gives_the_tokens_of_one_process(
    application: Application, client: Client
) -> None:
    request = chat_request("What is this?", [RECEIPT.read_bytes()], max_tokens=12, **GREEDY)
    answer = await client.answer(request)
    assert answer.finished.usage.num_image_tokens > 169
    assert answer.finished.usage.vision_us > 0
    flags = ("--max-tokens", "12", "--temperature", "0", "--ignore-eos", "--dtype", "float64", "--json")
    alone = application.fluyt("run", "What is this?", "--image", str(RECEIPT), *flags)
    assert alone.returncode == 0, alone.stderr
    assert list(answer.token_ids) == json.loads(alone.stdout)["token_ids"]


def test_ask_prints_the_answer_below_the_line_about_the_default_model(application: Application) -> None:
    result = application.fluyt("ask", "What is 12 + 30?", "--max-tokens", "20")
    assert result.returncode == 0, result.stderr
    assert ABOUT in result.stderr
    assert result.stdout.strip() == "42"


def test_ask_as_json_has_the_keys_of_run(application: Application) -> None:
    flags = ("--max-tokens", "4", "--ignore-eos", "--temperature", "0", "--json")
    asked = application.fluyt("ask", "Hello", *flags, "--image", str(RECEIPT))
    run = application.fluyt("run", "Hello", *flags)
    answers = [json.loads(result.stdout) for result in (asked, run)]
    assert answers[0].keys() == answers[1].keys()
    assert answers[0]["usage"].keys() == answers[1]["usage"].keys()
    assert len(answers[0]["token_ids"]) == 4


def test_ask_with_bad_input_ends_with_2_and_names_the_field(application: Application) -> None:
    result = application.fluyt("ask", "Hello", "--temperature=-1")
    assert result.returncode == 2
    assert "sampling.temperature: -1" in result.stderr


def test_ray_status_and_serve_status_show_the_four_in_a_clean_shell(application: Application) -> None:
    env = exports(application)
    status = tool("ray", "status", env=env)
    for name in RESOURCES:
        assert re.search(rf"\b[12]\.0/[12]\.0 {name}\b", status), status
    assert "status: RUNNING" in tool("serve", "status", env=env)


def test_a_second_up_is_refused_with_2(application: Application) -> None:
    result = application.fluyt("up")
    assert result.returncode == 2
    assert application.address in result.stderr


def test_status_says_where_and_how_busy(application: Application) -> None:
    application.wait_until_serving()
    report = json.loads(application.fluyt("status", "--json").stdout)
    assert report["serving"]
    assert report["load"]["num_running"] == 0


async def test_a_client_that_leaves_frees_its_blocks(application: Application, client: Client) -> None:
    before = (await client.load()).num_free_kv_blocks
    stream = client.generate(chat_request("Go on", max_tokens=4000, **GREEDY))
    async for event in stream:
        if event.WhichOneof("event") == "delta":
            break
    assert (await client.load()).num_free_kv_blocks < before
    await stream.aclose()
    async with asyncio.timeout(5):
        while (await client.load()).num_free_kv_blocks < before:
            await asyncio.sleep(0.02)


async def serves_again(client: Client, killed_at: float) -> float:
    """Seconds until a new request is answered."""
    while time.monotonic() - killed_at < 2 * RECOVERY_S:
        try:
            await client.answer(chat_request("Hi", max_tokens=2, **GREEDY), timeout_s=5)
        except ServerError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise
            await asyncio.sleep(0.1)
        else:
            break
    return time.monotonic() - killed_at


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["DecodeScheduler", "MoEShard", "VisionEncoder", "FrontDoor"])
async def test_after_a_kill_it_serves_again_by_itself(
    application: Application, client: Client, deployment: str
) -> None:
    application.wait_until_serving()
    running = asyncio.create_task(client.answer(chat_request("Go on", max_tokens=400, **GREEDY)))
    await asyncio.sleep(0.5)
    os.kill(application.replicas(deployment)[-1].pid, signal.SIGKILL)
    killed_at = time.monotonic()
    if deployment != "VisionEncoder":
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            await running
    assert await serves_again(client, killed_at) < RECOVERY_S
    if deployment == "VisionEncoder":
        assert len((await running).token_ids) == 400


@pytest.mark.slow
async def test_a_gang_that_was_idle_for_a_minute_still_answers(
    application: Application, client: Client
) -> None:
    application.wait_until_serving()
    ranks = application.replicas("MoEShard")
    await asyncio.sleep(61)
    answer = await client.answer(chat_request("Still there?", max_tokens=3, **GREEDY), timeout_s=5)
    assert len(answer.token_ids) == 3
    assert application.replicas("MoEShard") == ranks


@pytest.mark.slow
async def test_down_lets_a_running_stream_end_and_leaves_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", gang={"size": 1})
    env = shell_env(tmp_path / "state")
    up = await asyncio.to_thread(run_fluyt, env, tmp_path, "up", "--config", str(config), timeout_s=120)
    assert up.returncode == 0, up.stderr
    app = Application(tmp_path / "state", tmp_path, up.stdout, 0.0)
    state = app.state
    async with Client(app.address) as client:
        stream = asyncio.create_task(client.answer(chat_request("Go on", max_tokens=600, **GREEDY)))
        await asyncio.sleep(0.5)
        down = asyncio.create_task(asyncio.to_thread(app.fluyt, "down"))
        assert len((await stream).token_ids) == 600
    assert (await down).returncode == 0
    assert session_members(state["root"]["pid"]) == []
    assert not is_there(Path(state["temp_dir"]))
    assert not is_there(tmp_path / "state" / "state.json")


def is_there(path: Path) -> bool:
    return path.exists()


def test_events_of_one_request_are_started_deltas_finished(application: Application) -> None:
    async def collect() -> list[str]:
        request = chat_request("Hello", max_tokens=5, **GREEDY)
        async with Client(application.address) as client:
            return [str(event.WhichOneof("event")) async for event in client.generate(request)]

    kinds = asyncio.run(collect())
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}


async def test_model_info_names_model_limits_and_epoch(client: Client) -> None:
    info: pb.ModelInfo = await client.model_info()
    assert info.name == "nano"
    assert info.epoch
    assert info.model_fingerprint
    assert info.limits.max_images == 60
