"""Chunks from the loader onto the device, in a thread of its own: a step does not wait for a copy."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch

from model.nano.train.chunks import Chunk, ChunkShape

NUM_AHEAD = 3  # chunks that wait on the device for the loop


@dataclass(frozen=True)
class Kept:
    """A chunk on the device, and what the host has to know of it."""

    shape: ChunkShape
    chunk: Chunk
    num_targets: int
    num_marks: int


class Intake:
    """`loader` yields shapes and chunks without end. An error in it is raised by `take`."""

    def __init__(self, loader: Iterable[tuple[ChunkShape, Chunk]], device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._ready: queue.Queue[Kept | BaseException] = queue.Queue(NUM_AHEAD)
        self._closing = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Held during a capture: nothing else may allocate or copy then.
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def take(self, *, wait: bool) -> Kept | None:
        """The next chunk; without `wait` None if none is there yet."""
        try:
            found = self._ready.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the thread, and with it the loader's workers."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for shape, chunk in self._loader:
                if not self._put(self._moved(shape, chunk)):
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop has to hear of it
            self._put(error)

    def _moved(self, shape: ChunkShape, chunk: Chunk) -> Kept:
        num_targets, num_marks = chunk.num_targets, chunk.num_marks
        if self._stream is None:
            return Kept(shape, chunk.to(self._device), num_targets, num_marks)
        with self.lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            moved = chunk.to(self._device)
            self._stream.synchronize()
        for field in fields(moved):
            # Freed by the loop's thread while its stream may still read it.
            getattr(moved, field.name).record_stream(torch.cuda.default_stream(self._device))
        return Kept(shape, moved, num_targets, num_marks)

    def _put(self, item: Kept | BaseException) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
