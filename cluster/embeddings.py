"""Embeddings of images on their way from a front door to the rank that needs them.

The front door serves what it holds; the rank pulls, in its event loop, while its steps go on.
Rows are numpy arrays [num_rows, row_size]: R rows, H hidden.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from grpc import aio

from cluster.discovery import SECRET_KEY, broken, check_secret, open_channel
from model.errors import Unavailable
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

CHUNK_BYTES = 1 << 20
# A front door on the next host sends an image of 100 tiles (135 MB at 4,096 channels) in far less.
FETCH_TIMEOUT_S = 30.0


class EmbeddingsService(steps_pb2_grpc.StepsServicer):
    """FetchEmbeddings over what `find` knows; the other methods of Steps are served elsewhere."""

    def __init__(self, find: Callable[[str], Any | None], secret: Callable[[], str]) -> None:
        """`find(key)` gives the rows or None; `secret()` is that of the scheduler we are linked to."""
        self._find = find
        self._secret = secret

    def mount(self, server: aio.Server) -> None:
        """Add the service to a server that is not public."""
        steps_pb2_grpc.add_StepsServicer_to_server(self, server)

    async def FetchEmbeddings(  # noqa: N802
        self, request: steps.FetchRequest, context: Any
    ) -> AsyncIterator[steps.EmbeddingChunk]:
        """The rows of one image. NOT_FOUND if the request that brought it has ended."""
        await check_secret(context, self._secret())
        rows_RH = self._find(request.key)
        if rows_RH is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no open request holds this image")
        for chunk in to_chunks(np.ascontiguousarray(rows_RH)):
            yield chunk


def to_chunks(rows_RH: np.ndarray[Any, Any]) -> list[steps.EmbeddingChunk]:
    """The rows as messages; the first one says what they are."""
    data = rows_RH.reshape(-1).view(np.uint8).data
    chunks = [
        steps.EmbeddingChunk(data=bytes(data[start : start + CHUNK_BYTES]))
        for start in range(0, max(len(data), 1), CHUNK_BYTES)
    ]
    chunks[0].num_rows, chunks[0].row_size = rows_RH.shape
    chunks[0].dtype = str(rows_RH.dtype)
    return chunks


async def from_chunks(chunks: AsyncIterator[steps.EmbeddingChunk]) -> np.ndarray[Any, Any]:
    """The inverse of `to_chunks`. Raises Unavailable if it breaks off early."""
    first = await anext(chunks, None)
    if first is None:
        raise Unavailable("the front door sent nothing")
    data = bytearray(first.data)
    async for chunk in chunks:
        data += chunk.data
    dtype = np.dtype(first.dtype)
    expected = first.num_rows * first.row_size * dtype.itemsize
    if len(data) != expected:
        raise Unavailable(f"{len(data)} bytes of an image arrived, {expected} were announced")
    return np.frombuffer(data, dtype).reshape(first.num_rows, first.row_size)


async def fetch(
    address: str, secret: str, keys: Sequence[str], keep: Callable[[str, np.ndarray[Any, Any]], None]
) -> None:
    """Pull every key and `keep` it. Raises Unavailable."""
    channel = open_channel(address)
    stub = steps_pb2_grpc.StepsStub(channel)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            for key in keys:
                call = stub.FetchEmbeddings(steps.FetchRequest(key=key), metadata=((SECRET_KEY, secret),))
                keep(key, await from_chunks(aiter(call)))
    except (aio.AioRpcError, TimeoutError) as error:
        raise broken(f"an image could not be fetched from the front door at {address}", error) from error
    finally:
        await channel.close()
