"""Embeddings of images, kept by the front door until the last request that needs them ends.

rows_RH: R rows (81 for each tile, 169 for the global view), H hidden.
"""

from __future__ import annotations

from typing import Any

from model.types import RequestKey


class EmbeddingStore:
    """Arrays [num_rows, hidden] by image key; each is held by one or more requests.

    Used from one event loop. A rank may fetch an array as often as it likes while it is held.
    """

    def __init__(self) -> None:
        self._rows_RH: dict[str, Any] = {}
        self._holders: dict[str, set[RequestKey]] = {}
        self._keys: dict[RequestKey, set[str]] = {}

    def put(self, holder: RequestKey, key: str, rows_RH: Any) -> None:
        """Keep `rows_RH` under `key` until `holder`, and everyone else who put it, has released it."""
        self._rows_RH[key] = rows_RH
        self._holders.setdefault(key, set()).add(holder)
        self._keys.setdefault(holder, set()).add(key)

    def get(self, key: str) -> Any | None:
        """The array, None if nobody holds it."""
        return self._rows_RH.get(key)

    def release(self, holder: RequestKey) -> None:
        """`holder` has ended. Unknown holders are fine: a request may end before it put anything."""
        for key in self._keys.pop(holder, ()):
            holders = self._holders[key]
            holders.discard(holder)
            if not holders:
                del self._holders[key], self._rows_RH[key]

    def __len__(self) -> int:
        return len(self._rows_RH)
