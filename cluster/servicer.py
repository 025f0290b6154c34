"""The service fluyt.v1.Inference: who calls, what is asked, what it costs; the work is elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from grpc import aio

from cluster import convert
from cluster.admission import Admission, AdmissionLimits
from cluster.embeddings_store import EmbeddingStore
from cluster.generation import AbortedEarlyError, Encoder, FrontDoorParts, Generation, SchedulerLink
from cluster.identity import current_caller
from cluster.image_store import ImageStore
from cluster.preprocess import TextStage
from cluster.status import abort_with
from model.errors import Cancelled, DeadlineExceeded, Unavailable
from model.types import RequestKey
from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import inference_pb2_grpc


@dataclass(frozen=True)
class ServiceOptions:
    """How one front door answers."""

    model_name: str = "fluyt"
    instance: str = field(default_factory=lambda: secrets.token_hex(4))
    embeddings_address: str = ""  # host:port where ranks fetch; "" = they are in the runner's store
    client_stall_s: float = 30.0  # a client that takes no event for so long is given up
    max_message_bytes: int = 64 << 20
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)


class InferenceServicer(inference_pb2_grpc.InferenceServicer):  # type: ignore[misc, unused-ignore]
    """Answers the calls of one front door. Make it inside the event loop that serves."""

    def __init__(
        self,
        text: TextStage,
        link: SchedulerLink,
        encoder: Encoder | None,
        embeddings: EmbeddingStore,
        options: ServiceOptions,
    ) -> None:
        self._options = options
        self._admission = Admission(options.limits)
        self._parts = FrontDoorParts.of(
            text,
            link,
            encoder,
            max_samples=options.limits.max_samples,
            admission=self._admission,
            embeddings=embeddings,
            images=ImageStore(options.limits.max_kept_image_bytes),
            instance=options.instance,
            embeddings_address=options.embeddings_address,
        )

    @property
    def max_open_requests(self) -> int:
        """The admission limit."""
        return self._options.limits.max_open_requests

    @property
    def num_open(self) -> int:
        """Requests open now."""
        return self._admission.num_open

    def is_ready(self) -> bool:
        """Health: new requests are taken and a gang can work on them."""
        return self._parts.link.ready and not self._admission.draining

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for the open ones; after `grace_s` they end with Unavailable."""
        self._admission.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._admission.wait_empty()
        self._admission.interrupt_all(Unavailable("this front door shut down before the answer was complete"))

    def close(self) -> None:
        """Free the threads. No call may be running."""
        self._parts.text.close()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Server stream: Started, PromptLogprobs..., Delta..., Finished of each sample."""
        async with _errors_as_status(context):
            convert.check_request(request)
            deadline_s = self._admission.deadline_s(context.time_remaining())
            request_id = request.request_id or secrets.token_hex(8)
            send = self._sender(context)
            try:
                async with _time_limit(deadline_s):
                    with self._admission.admit(current_caller(), request_id, request.ByteSize()) as opened:
                        self._refuse_unless_ready()
                        await Generation(self._parts, opened, send, deadline_s).run(request)
            except AbortedEarlyError:
                for event in convert.aborted_events(request, self._options.limits.max_samples):
                    await send(event)

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:  # noqa: N802
        """End a request here, or, by way of the scheduler, at another front door."""
        async with _errors_as_status(context):
            key = RequestKey(current_caller().tenant, convert.checked_request_id(request.request_id))
            opened = self._admission.find(key)
            if opened is not None:
                opened.aborted = True
            if opened is not None and opened.interruptible:
                opened.interrupt(AbortedEarlyError("aborted"))
            else:
                self._parts.link.abort(key)
        return pb.AbortResponse()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        """What a prompt becomes."""
        async with _errors_as_status(context):
            caller = current_caller()
            # A prompt costs the same here as in Generate: it counts as an open request.
            with self._admission.admit(caller, f"tokenize-{secrets.token_hex(8)}", request.ByteSize()):
                return convert.tokenized(
                    await self._parts.text.build(request, self._parts.images, caller.tenant)
                )

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.ModelInfo:  # noqa: N802
        """What is served here, and its limits."""
        del request, context
        parts, options = self._parts, self._options
        info = parts.text.model_info()
        info.name = options.model_name
        info.model_fingerprint, info.epoch = parts.link.fingerprint, parts.link.epoch
        info.capacity_tokens = parts.link.capacity_tokens or 0
        info.accepts_images = parts.encoder is not None
        info.instance, info.server_version = options.instance, _version()
        info.limits.max_message_bytes = options.max_message_bytes
        info.limits.max_deadline_s = int(options.limits.max_deadline_s)
        info.limits.max_open_requests = options.limits.max_open_requests
        info.limits.max_samples = options.limits.max_samples
        return info

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.Load:  # noqa: N802
        """How busy the scheduler and this front door are."""
        del request
        async with _errors_as_status(context):
            counts = await self._parts.link.load()
        return pb.Load(
            num_waiting=counts.num_waiting,
            num_running=counts.num_running,
            num_queued_tokens=counts.num_queued_tokens,
            num_free_kv_blocks=counts.num_free_full_blocks,
            num_open_here=self._admission.num_open,
            ready=self.is_ready(),
        )

    def _refuse_unless_ready(self) -> None:
        if not self._parts.link.ready:
            raise Unavailable("no scheduler with a gang of shards can take work now")

    def _sender(self, context: Any) -> Any:
        """A function that sends one event and gives up on a client that takes none."""
        stall_s = self._options.client_stall_s

        async def send(event: pb.GenerateEvent) -> None:
            try:
                async with asyncio.timeout(stall_s) as limit:
                    await context.write(event)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise Cancelled(f"the client took no event for {stall_s:g} s") from None

        return send


@asynccontextmanager
async def _errors_as_status(context: Any) -> AsyncIterator[None]:
    """Ends the call with the status of whatever is raised inside."""
    try:
        yield
    except aio.BaseError:  # the call itself is over
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets one status
        await abort_with(context, _single(error))


@asynccontextmanager
async def _time_limit(limit_s: float) -> AsyncIterator[None]:
    """Raises DeadlineExceeded when the time is up."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"not complete within {limit_s:.3g} s") from None


def _version() -> str:
    """Of the installed distribution; "" where the code runs from a folder without installing."""
    try:
        return metadata.version("fluyt")
    except metadata.PackageNotFoundError:
        return ""


def _single(error: Exception) -> BaseException:
    """The first error of a group: images are worked on together, one reason is enough."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
