"""What is refused before a pixel is decoded, and what is refused after."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from model.errors import InvalidRequest
from model.text.images import ImageLimits, check_image, image_key, tile_image
from tests.model.text import pictures

LIMITS = ImageLimits()
KINDS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF"]


@pytest.fixture
def no_decoding(monkeypatch):
    """Decoding anything is a failure."""

    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_is_read_without_decoding(no_decoding, kind):
    data = _data(kind)
    image = check_image(data, LIMITS)
    assert (image.width, image.height, image.plan.tiles) == (900, 800, 4)


def _data(kind, size=(900, 800)):
    return pictures.encode(Image.new("RGB", size, "teal"), kind)


@pytest.mark.parametrize(
    ("width", "height", "found", "limit"),
    [
        (100_000, 32, "100000x32", "16384"),
        (96_768, 32, "96768x32", "16384"),
        (32, 16_385, "32x16385", "16384"),
        (100_000, 100_000, "100000x100000", "16384"),
        (8001, 8000, "64008000", "64000000"),
        (16_000, 16_000, "256000000", "64000000"),
        (16_384, 32, "605 tiles", "100"),
        (16_384, 20, "268435456", "64000000"),
    ],
)
def test_a_hostile_size_is_refused_before_decoding(no_decoding, width, height, found, limit):
    with pytest.raises(InvalidRequest) as caught:
        check_image(pictures.png_claiming(width, height), LIMITS, field="messages[0].content[1].image")
    assert caught.value.field == "messages[0].content[1].image"
    assert found in caught.value.description
    assert limit in caught.value.description


def test_a_size_at_the_limit_is_taken(no_decoding):
    assert check_image(pictures.png_claiming(8000, 8000), LIMITS).plan.tiles == 36


def test_fewer_tiles_make_room_for_a_long_strip(no_decoding):
    assert check_image(pictures.png_claiming(16_384, 32), LIMITS, max_tiles=10).plan.tiles <= 10


def test_a_negative_max_tiles_is_refused():
    with pytest.raises(InvalidRequest, match=r"image\.max_tiles: -1 is below 0"):
        check_image(_data("PNG"), LIMITS, max_tiles=-1)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"BM" + bytes(60), b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(InvalidRequest, match="image"):
        tile_image(data, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_file_is_refused(kind):
    whole = pictures.encode(pictures.noise(200, 150), kind)
    tile_image(whole, LIMITS)
    with pytest.raises(InvalidRequest):
        tile_image(whole[: len(whole) // 2], LIMITS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_gives_pixels_or_one_clear_error(kind, cut, flips):
    data = bytearray(pictures.encode(pictures.noise(40, 30), kind))
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    try:
        tile_image(bytes(data[: int(cut * len(data)) + 1]), ImageLimits(max_pixels=100_000))
    except InvalidRequest:
        return


def test_a_gif_frame_that_outgrows_the_screen_is_refused():
    data = bytearray(pictures.encode(Image.new("P", (8, 8)), "GIF"))
    frame = data.index(b",", 6 + 7)
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # the frame's size, 65535 x 65535
    with pytest.raises(InvalidRequest):
        tile_image(bytes(data), LIMITS)


def test_the_key_is_the_content_the_tiling_and_the_resolution():
    data = _data("PNG")
    key = check_image(data, LIMITS).key
    assert key.startswith(hashlib.sha256(data).hexdigest())
    assert key == tile_image(data, LIMITS).key
    assert len({key, image_key(data + b"x", None), image_key(data, 3), image_key(data, 0)}) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_counts_as_looked_at(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pictures.encode(Image.new("RGB", (1500, 600)), "JPEG", exif=exif)
    image = check_image(data, LIMITS)
    assert (image.width, image.height) == ((1500, 600) if orientation < 5 else (600, 1500))
