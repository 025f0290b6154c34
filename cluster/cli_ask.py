"""`fluyt ask` and `fluyt status`: the client on the command line. Needs nothing but the base install."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from cluster.cli_calls import calls_json, calls_text
from cluster.cli_flags import Sampling, program, read_bytes
from cluster.client import Client, ServerError, chat_request, collect
from cluster.state import read_state
from model.errors import FluytError, InvalidRequest
from model.nano import ABOUT
from protos.fluyt.v1 import inference_pb2 as pb

DEFAULT_ADDRESS = "127.0.0.1:50051"
# A server that is there answers at once.
HELLO_TIMEOUT_S = 5.0
DEFAULT_MODEL_NAME = "nano"


@dataclass(frozen=True)
class Target:
    """Which server, and how to reach it."""

    address: str
    token: str | None
    ca: bytes | None

    @classmethod
    def of(cls, address: str | None, token: str | None, ca: Path | None) -> Self:
        """From flags; without an address, what `fluyt up` started here."""
        state = read_state() if address is None else None
        found = address or (state.address if state is not None else DEFAULT_ADDRESS)
        return cls(found, token, None if ca is None else read_bytes(ca, "--ca"))

    def client(self) -> Client:
        """A client for it. Use as `async with`."""
        credentials = None if self.ca is None else grpc.ssl_channel_credentials(self.ca)
        metadata = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return Client(self.address, credentials=credentials, metadata=metadata)


class NoServerError(FluytError):
    """Nobody answers."""


def ask(text: str, images: tuple[Path, ...], sampling: Sampling, target: Target, as_json: bool) -> None:
    """One question. Raises what becomes exit code 1 or 2."""
    data = [read_bytes(path, "--image") for path in images]
    try:
        request = chat_request(text, data, **sampling.given())
    except (TypeError, ValueError) as error:  # a number that the message cannot hold
        raise InvalidRequest("sampling", str(error)) from error
    try:
        asyncio.run(_ask(request, target, as_json))
    except ServerError as error:
        if error.code == "INVALID_ARGUMENT":
            field, what = error.violations[0] if error.violations else ("request", error.message)
            raise InvalidRequest(field, what) from error
        raise FluytError(f"{error.code}: {error.message}") from error


async def _ask(request: pb.GenerateRequest, target: Target, as_json: bool) -> None:
    async with target.client() as client:
        name = await _hello(client)
        if as_json:
            print(json.dumps(to_json([event async for event in client.generate(request)])))
            return
        if name == DEFAULT_MODEL_NAME:
            print(ABOUT, file=sys.stderr)
        async for event in client.generate(request):
            print(_shown(event.delta), end="", flush=True)
        print()


def _shown(delta: pb.Delta) -> str:
    return calls_text(delta.tool_calls) if delta.channel == pb.CHANNEL_TOOL_CALL else delta.text


async def _hello(client: Client) -> str:
    """The model's name. Raises NoServerError."""
    try:
        return (await client.model_info(timeout_s=HELLO_TIMEOUT_S)).name
    except ServerError as error:
        if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            raise
        raise NoServerError(
            f"no server at {client.address}; start one with {program()} up, or use {program()} run"
        ) from error


def to_json(events: list[pb.GenerateEvent]) -> dict[str, Any]:
    """What `--json` prints, the same as `fluyt run`."""
    answer = collect(events)
    usage = {field.name: getattr(answer.finished.usage, field.name) for field in pb.Usage.DESCRIPTOR.fields}
    result: dict[str, Any] = {
        "token_ids": list(answer.token_ids),
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": calls_json(answer.tool_calls),
        "finish_reason": answer.finish_reason,
        "usage": usage,
    }
    if answer.logprobs:
        result["logprobs"] = [
            {"logprob": item.logprob, "top": [[top.token_id, top.logprob] for top in item.top]}
            for item in answer.logprobs
        ]
    return result


def status(as_json: bool) -> bool:
    """Print what is up; True if it serves."""
    state = read_state()
    if state is None or state.has_gone:
        print(json.dumps({"up": False}) if as_json else "nothing is up")
        return False
    load = asyncio.run(_load(Target(state.address, None, None)))
    report = {
        "up": True,
        "serving": load is not None and load.ready,
        "address": state.address,
        "health_address": state.health_address,
        "ray_address": state.ray_address,
        "dashboard_url": state.dashboard_url,
        "load": None if load is None else {f.name: getattr(load, f.name) for f in pb.Load.DESCRIPTOR.fields},
    }
    if as_json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:15} {value}")
    return bool(report["serving"])


async def _load(target: Target) -> pb.Load | None:
    async with target.client() as client:
        try:
            return await client.load(timeout_s=HELLO_TIMEOUT_S)
        except ServerError:
            return None
