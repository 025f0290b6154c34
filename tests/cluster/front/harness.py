"""A front door on free ports of this machine, with fakes behind it, and small pictures."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from cluster.client import Client, chat_request
from cluster.embeddings_store import EmbeddingStore
from cluster.frontdoor_server import FrontDoorServer, ServerOptions, start_server
from cluster.preprocess import TextStage
from cluster.servicer import InferenceServicer, ServiceOptions
from model.nano import default_checkpoint
from model.text.tokenizer import Tokenizer
from protos.fluyt.v1 import inference_pb2 as pb
from tests.fakes import FakeEncoder, FakeLink


@dataclass(frozen=True)
class FrontDoor:
    """Everything a test looks at."""

    server: FrontDoorServer
    client: Client
    link: FakeLink
    encoder: FakeEncoder
    embeddings: EmbeddingStore

    @property
    def address(self) -> str:
        """host:port of the public server."""
        return f"127.0.0.1:{self.server.port}"

    @property
    def num_open(self) -> int:
        """Requests the front door holds."""
        return self.server.servicer.num_open


@asynccontextmanager
async def front_door(
    link: FakeLink | None = None,
    encoder: FakeEncoder | None = None,
    service: ServiceOptions | None = None,
    text: TextStage | None = None,
    **server_options: Any,
) -> AsyncIterator[FrontDoor]:
    """A running front door, stopped at the end."""
    link, encoder = link or FakeLink(), encoder or FakeEncoder()
    embeddings = EmbeddingStore()
    servicer = InferenceServicer(
        text or TextStage.load(default_checkpoint()), link, encoder, embeddings, service or ServiceOptions()
    )
    options = {"host": "127.0.0.1", "port": 0, "health_port": 0, **server_options}
    server = await start_server(ServerOptions(**options), servicer)
    try:
        async with Client(f"127.0.0.1:{server.port}") as client:
            yield FrontDoor(server, client, link, encoder, embeddings)
    finally:
        link.gate.set()
        await server.stop(grace_s=0.2)


@cache
def tokenizer() -> Tokenizer:
    """The default checkpoint's."""
    return Tokenizer.load(default_checkpoint())


async def settled(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def answering(text: str) -> FakeLink:
    """A link that answers everything with `text`, token by token; control tokens in it count."""
    ids = tuple(tokenizer().encode_prompt(tokenizer().split(text)))
    return FakeLink(tokens_of=lambda request: ids[: request.sampling.max_tokens])


def ask(text: str = "Hello", images: Sequence[bytes] = (), **fields: Any) -> pb.GenerateRequest:
    """A short chat request."""
    return chat_request(text, images, **{"max_tokens": 8, **fields})


def png(width: int = 40, height: int = 30, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A picture of one colour."""
    return encoded(Image.new("RGB", (width, height), color))


def grey16(values_HW: np.ndarray[Any, Any]) -> bytes:
    """A 16-bit grey PNG."""
    return encoded(Image.fromarray(values_HW.astype(np.uint16)))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def blank_png(width: int, height: int) -> bytes:
    """A valid PNG of any size, made without holding its pixels: one bit a pixel, all black."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
