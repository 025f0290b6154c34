"""Embeddings live as long as somebody needs them; images as long as there is room."""

from __future__ import annotations

import hashlib

import pytest

from cluster.embeddings_store import EmbeddingStore
from cluster.image_store import ImageStore
from model.errors import NotFound
from model.types import RequestKey

FIRST, SECOND = RequestKey("local", "first"), RequestKey("local", "second")


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_embedding_outlives_the_first_of_two_holders() -> None:
    store = EmbeddingStore()
    store.put(FIRST, "image", [1])
    store.put(SECOND, "image", [1])
    store.release(FIRST)
    assert store.get("image") == [1]
    store.release(SECOND)
    assert store.get("image") is None
    assert len(store) == 0


def test_releasing_what_was_never_put_is_nothing() -> None:
    EmbeddingStore().release(FIRST)


def test_putting_twice_is_holding_once() -> None:
    store = EmbeddingStore()
    store.put(FIRST, "image", [1])
    store.put(FIRST, "image", [1])
    store.release(FIRST)
    assert len(store) == 0


def test_an_image_is_found_by_the_hash_of_its_bytes() -> None:
    store = ImageStore(100)
    store.put("anna", b"picture")
    assert store.get("anna", hex_of(b"picture").upper()) == b"picture"


def test_another_tenants_image_is_not_found() -> None:
    store = ImageStore(100)
    store.put("anna", b"picture")
    with pytest.raises(NotFound, match="send its bytes"):
        store.get("bela", hex_of(b"picture"))


def test_the_image_used_longest_ago_makes_room() -> None:
    store = ImageStore(8)
    store.put("anna", b"aaaa")
    store.put("anna", b"bbbb")
    store.get("anna", hex_of(b"aaaa"))
    store.put("anna", b"cccc")
    assert store.get("anna", hex_of(b"aaaa")) == b"aaaa"
    with pytest.raises(NotFound):
        store.get("anna", hex_of(b"bbbb"))
    assert store.num_bytes == 8


def test_an_image_larger_than_the_store_drives_nothing_out() -> None:
    store = ImageStore(8)
    store.put("anna", b"aaaa")
    store.put("anna", b"x" * 9)
    assert store.get("anna", hex_of(b"aaaa")) == b"aaaa"
