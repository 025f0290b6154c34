"""`fluyt ask` and `fluyt status`: the client on the command line. Needs nothing but the base install."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from cluster.cli_calls import calls_json, calls_text, request_json
from cluster.cli_flags import program, read_bytes
from cluster.cli_print import SamplePrinter, prompt_lines
from cluster.client import Answer, Client, ServerError, collect_all
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


def ask(request: pb.GenerateRequest, target: Target, as_json: bool) -> None:
    """One question. Raises what becomes exit code 1 or 2."""
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
        await show(client.generate(request), request.sampling.n or 1)


async def show(events: AsyncIterator[pb.GenerateEvent], num_samples: int) -> None:
    """Print an answer, or several one after another, as the events come."""
    printer: SamplePrinter | None = None
    async for event in events:
        kind = event.WhichOneof("event")
        if kind == "prompt_logprobs":
            piece = event.prompt_logprobs
            print(prompt_lines(piece.first_token_index, piece.tokens), end="")
            continue
        if printer is None and kind in ("delta", "finished"):
            printer = SamplePrinter(num_samples, lambda text: print(text, end="", flush=True))
        if printer is not None and kind == "delta":
            printer.add(event.delta.choice, _shown(event.delta))
        elif printer is not None and kind == "finished":
            printer.end(event.finished.choice)


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
    answers = collect_all(events)
    bill = next((a.finished.usage for a in answers if a.finished.HasField("usage")), pb.Usage())
    scores = answers[0].prompt_logprobs
    return request_json(
        [_sample_json(answer) for answer in answers],
        {field.name: getattr(bill, field.name) for field in pb.Usage.DESCRIPTOR.fields},
        [_logprob_json(item) if item.HasField("logprob") else None for item in scores],
    )


def _sample_json(answer: Answer) -> dict[str, Any]:
    result: dict[str, Any] = {
        "token_ids": list(answer.token_ids),
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": calls_json(answer.tool_calls),
        "finish_reason": answer.finish_reason,
    }
    if answer.logprobs:
        result["logprobs"] = [_logprob_json(item) for item in answer.logprobs]
    return result


def _logprob_json(item: pb.TokenLogprob | pb.PromptTokenLogprob) -> dict[str, Any]:
    return {"logprob": item.logprob, "top": [[top.token_id, top.logprob] for top in item.top]}


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
