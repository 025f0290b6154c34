"""Bytes of images a tenant has sent, so that the next request may name them by sha256."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from model.errors import NotFound


class ImageStore:
    """The most recently used images of all tenants, bounded in bytes. Used from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._num_bytes

    def put(self, tenant: str, data: bytes) -> None:
        """Keep `data`; what was used longest ago makes room."""
        if len(data) > self._max_bytes:
            return
        key = (tenant, hashlib.sha256(data).hexdigest())
        with self._lock:
            if key not in self._images:
                self._images[key] = data
                self._num_bytes += len(data)
            self._images.move_to_end(key)
            while self._num_bytes > self._max_bytes:
                _, dropped = self._images.popitem(last=False)
                self._num_bytes -= len(dropped)

    def get(self, tenant: str, sha256: str) -> bytes:
        """The bytes with that hash which `tenant` itself has sent. Raises NotFound."""
        key = (tenant, sha256.lower())
        with self._lock:
            data = self._images.get(key)
            if data is None:
                raise NotFound(f"no image with sha256 {sha256[:64]!r} is kept here: send its bytes")
            self._images.move_to_end(key)
            return data
