"""The Python client. Needs grpcio and protobuf, nothing else.

async with Client("localhost:50051") as client:
    async for event in client.generate(chat_request("What is in this picture?", [png])):
        print(event.delta.text, end="")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from protos.fluyt.v1 import error_details_pb2 as details
from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import inference_pb2_grpc as pb_grpc

T = TypeVar("T")

_DETAILS_KEY = "grpc-status-details-bin"
# The server takes messages up to its own limit and says so; the client adds none.
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class ServerError(Exception):
    """The server, or the way to it, said no.

    `code` is the name of the gRPC status; `violations` are (field, what is wrong with it);
    `retry_after_s` is set where trying again later makes sense; `quota` names the limit that was met.
    """

    def __init__(
        self,
        code: str,
        message: str,
        violations: tuple[tuple[str, str], ...] = (),
        retry_after_s: float | None = None,
        quota: str = "",
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.violations = violations
        self.retry_after_s = retry_after_s
        self.quota = quota


@dataclass(frozen=True)
class ToolCall:
    """A function the model calls. `arguments` is JSON text: an object if the call is complete."""

    name: str
    arguments: str
    is_complete: bool


@dataclass(frozen=True)
class Answer:
    """A whole answer: what the events of one sample add up to.

    Of several samples the one that ended last has the request's usage in `finished`.
    """

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    started: pb.Started
    finished: pb.Finished
    logprobs: tuple[pb.TokenLogprob, ...] = field(default=())
    prompt_logprobs: tuple[pb.PromptTokenLogprob, ...] = field(default=())

    @property
    def finish_reason(self) -> str:
        """One of stop, length, tool_calls, loop, aborted."""
        return pb.FinishReason.Name(self.finished.reason).removeprefix("FINISH_REASON_").lower()


class Client:
    """One connection to a front door. Use as `async with`, or call `close`."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`address` is host:port; without `credentials` the connection is plain text."""
        self.address = address
        self._metadata = tuple(metadata)
        self._channel = (
            aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            if credentials is None
            else aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        )
        self._calls: set[Any] = set()
        self._stub = pb_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call, unused-ignore]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and every call on it."""
        for call in tuple(self._calls):
            call.cancel()
        await self._channel.close()

    async def generate(
        self, request: pb.GenerateRequest, *, timeout_s: float | None = None
    ) -> AsyncIterator[pb.GenerateEvent]:
        """The events of one request. Leaving the loop early cancels it. Raises ServerError."""
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        self._calls.add(call)
        try:
            async for event in call:
                yield event
        except aio.AioRpcError as error:
            raise to_server_error(error) from None
        finally:
            call.cancel()
            self._calls.discard(call)

    async def answer(self, request: pb.GenerateRequest, *, timeout_s: float | None = None) -> Answer:
        """The whole answer at once, of several samples the first. Raises ServerError."""
        return (await self.answers(request, timeout_s=timeout_s))[0]

    async def answers(
        self, request: pb.GenerateRequest, *, timeout_s: float | None = None
    ) -> tuple[Answer, ...]:
        """The whole answers of all samples. Raises ServerError."""
        return collect_all([event async for event in self.generate(request, timeout_s=timeout_s)])

    async def abort(self, request_id: str, *, timeout_s: float | None = 10.0) -> None:
        """End a request of ours, wherever it was started. Raises ServerError."""
        await self._call(self._stub.Abort, pb.AbortRequest(request_id=request_id), timeout_s)

    async def tokenize(
        self, request: pb.TokenizeRequest, *, timeout_s: float | None = 60.0
    ) -> pb.TokenizeResponse:
        """What a prompt becomes. Raises ServerError."""
        response: pb.TokenizeResponse = await self._call(self._stub.Tokenize, request, timeout_s)
        return response

    async def model_info(self, *, timeout_s: float | None = 10.0) -> pb.ModelInfo:
        """What is served, and its limits. Raises ServerError."""
        info: pb.ModelInfo = await self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout_s)
        return info

    async def load(self, *, timeout_s: float | None = 10.0) -> pb.Load:
        """How busy it is. Raises ServerError."""
        load: pb.Load = await self._call(self._stub.GetLoad, pb.GetLoadRequest(), timeout_s)
        return load

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise to_server_error(error) from None


def chat_request(
    text: str,
    images: Iterable[bytes | pb.Image] = (),
    *,
    request_id: str = "",
    reasoning_effort: str | None = None,
    **sampling: Any,
) -> pb.GenerateRequest:
    """One user turn: the images, then the text. `sampling` are fields of SamplingOptions."""
    parts = [
        pb.ContentPart(image=image if isinstance(image, pb.Image) else pb.Image(data=image))
        for image in images
    ]
    message = pb.ChatMessage(role="user", content=[*parts, pb.ContentPart(text=text)])
    return pb.GenerateRequest(
        request_id=request_id,
        chat=pb.ChatPrompt(messages=[message], reasoning_effort=reasoning_effort),
        sampling=pb.SamplingOptions(**sampling),
    )


def collect(events: Iterable[pb.GenerateEvent]) -> Answer:
    """Add up the events of one request, of several samples the first. They must be all of them."""
    return collect_all(events)[0]


def collect_all(events: Iterable[pb.GenerateEvent]) -> tuple[Answer, ...]:
    """Add up the events of one request: an answer for each sample. They must be all of them."""
    started, scores = pb.Started(), list[pb.PromptTokenLogprob]()
    deltas: dict[int, list[pb.Delta]] = {}
    ends: dict[int, pb.Finished] = {}
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "started":
            started = event.started
        elif kind == "prompt_logprobs":
            scores.extend(event.prompt_logprobs.tokens)
        elif kind == "finished":
            ends[event.finished.choice] = event.finished
        elif kind == "delta":
            deltas.setdefault(event.delta.choice, []).append(event.delta)
    choices = sorted({0, *deltas, *ends})
    return tuple(
        _answer(started, scores, deltas.get(choice, []), ends.get(choice, pb.Finished()))
        for choice in choices
    )


def _answer(
    started: pb.Started,
    scores: Sequence[pb.PromptTokenLogprob],
    deltas: Sequence[pb.Delta],
    finished: pb.Finished,
) -> Answer:
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    return Answer(
        text="".join(delta.text for delta in deltas if delta.channel == pb.CHANNEL_TEXT),
        reasoning="".join(delta.text for delta in deltas if delta.channel == pb.CHANNEL_REASONING),
        tool_calls=tuple(_tool_call(list(group)) for _, group in groupby(pieces, lambda piece: piece.index)),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        started=started,
        finished=finished,
        logprobs=tuple(item for delta in deltas for item in delta.logprobs),
        prompt_logprobs=tuple(scores),
    )


def _tool_call(pieces: Sequence[pb.ToolCallDelta]) -> ToolCall:
    return ToolCall(
        name="".join(piece.name for piece in pieces),
        arguments="".join(piece.arguments for piece in pieces),
        is_complete=pieces[-1].end == pb.TOOL_CALL_END_COMPLETE,
    )


def to_server_error(error: aio.AioRpcError) -> ServerError:
    """The status of a failed call with the google.rpc details that came with it."""
    code, message = error.code().name, error.details() or ""
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_s, quota = None, ""
    for detail in _details_of(error):
        kind = detail.type_url.rpartition("/")[2]
        if kind == "google.rpc.BadRequest":
            bad = details.ErrorBadRequest.FromString(detail.value)
            violations = tuple((item.field, item.description) for item in bad.field_violations)
        elif kind == "google.rpc.RetryInfo":
            delay = details.ErrorRetryInfo.FromString(detail.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
        elif kind == "google.rpc.QuotaFailure":
            quota = ", ".join(
                item.subject for item in details.ErrorQuotaFailure.FromString(detail.value).violations
            )
    return ServerError(code, message, violations, retry_after_s, quota)


def _details_of(error: aio.AioRpcError) -> Sequence[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return details.ErrorStatus.FromString(value).details
    return ()


__all__ = ["Answer", "Client", "ServerError", "ToolCall", "chat_request", "collect", "collect_all", "pb"]
