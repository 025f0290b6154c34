"""What is checked about an image before one pixel is decoded, and what becomes of it.

bytes -> `check_image` (header only: kind, size, orientation, tiles, key) -> `PlannedImage`
      -> `.tile()` (decodes) -> `TiledImage` for the vision tower.

A prompt needs the plan alone; pixels are made one image at a time, because a few kilobytes of
image may be gigabytes of pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import GifImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ExifTags import Base as ExifTag

from model.errors import InvalidRequest
from model.text.tiles import TilePlan, plan_tiles

if TYPE_CHECKING:
    import torch

# Part of every image key: embeddings of another way of tiling are other embeddings.
TILING_VERSION = 1


@dataclass(frozen=True)
class ImageLimits:
    """Caps on what a request may bring, each named in its error."""

    max_images: int = 60  # per request
    max_tiles: int = 100  # per image; the largest plan of an ordinary picture has 95
    max_side_px: int = 16_384
    max_pixels: int = 64_000_000  # decoded: 256 MB of RGB in Pillow's four bytes a pixel


@dataclass(frozen=True)
class ImageInput:
    """An image as it came in. `max_tiles` is the caller's wish for a lower resolution."""

    data: bytes
    max_tiles: int | None = None


@dataclass(frozen=True)
class TiledImage:
    """Normalised pixels, float32: `global_pixels` [3, 728, 728], `tile_pixels` [N, 3, 504, 504].

    The embedding of an image has its tiles' rows in order (81 each), then the global view's (169).
    """

    key: str
    plan: TilePlan
    global_pixels: torch.Tensor
    tile_pixels: torch.Tensor


@dataclass(frozen=True)
class PlannedImage:
    """An image whose header is checked. `width` and `height` are as looked at (orientation applied)."""

    data: bytes
    field: str
    width: int
    height: int
    orientation: int  # EXIF: 1 upright, 2..8 mirrored or turned
    plan: TilePlan
    key: str

    def tile(self) -> TiledImage:
        """Decode and cut. Raises InvalidRequest if the data does not hold what its header says."""
        from model.text.pixels import render  # imports torch, which planning does not need

        return render(self)


def check_image(
    data: bytes, limits: ImageLimits, *, max_tiles: int | None = None, field: str = "image"
) -> PlannedImage:
    """Read the header. Raises InvalidRequest naming `field`, what was found and the limit."""
    if max_tiles is not None and max_tiles < 0:
        raise InvalidRequest(f"{field}.max_tiles", f"{max_tiles} is below 0")
    image = open_image(data, field)
    _check_size(image.size, limits, field)
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    plan = plan_tiles(width, height, max_tiles)
    if plan.square_side is not None and plan.square_side**2 > limits.max_pixels:
        raise InvalidRequest(
            field,
            f"{width}x{height} is so thin that it is padded to a square of {plan.square_side**2} pixels, "
            f"at most {limits.max_pixels}",
        )
    if plan.tiles > limits.max_tiles:
        raise InvalidRequest(
            field,
            f"{width}x{height} pixels make {plan.tiles} tiles, at most {limits.max_tiles}; set max_tiles",
        )
    return PlannedImage(data, field, width, height, orientation, plan, image_key(data, max_tiles))


def tile_image(
    data: bytes, limits: ImageLimits, max_tiles: int | None = None, *, field: str = "image"
) -> TiledImage:
    """Check, decode and cut one image. Raises InvalidRequest."""
    return check_image(data, limits, max_tiles=max_tiles, field=field).tile()


def image_key(data: bytes, max_tiles: int | None) -> str:
    """Identity of an image's embedding: content, way of tiling, and resolution asked for."""
    suffix = "" if max_tiles is None else f"-{max_tiles}"
    return f"{hashlib.sha256(data).hexdigest()}-t{TILING_VERSION}{suffix}"


def open_image(data: bytes, field: str) -> ImageFile.ImageFile:
    """Parse the header without decoding. Raises InvalidRequest if it is no image we know.

    The reader is chosen by the first bytes, not by `Image.open`: that one tries dozens of formats
    and refuses large sizes before we can say which size it was.
    """
    reader = _reader(data)
    if reader is None:
        raise InvalidRequest(field, f"not an image: {len(data)} bytes are no JPEG, PNG, WebP, GIF or TIFF")
    try:
        return reader(io.BytesIO(data))
    except Exception as error:  # a hostile file makes Pillow's parsers raise nearly anything
        raise InvalidRequest(field, f"not a readable image: {error}") from error


def _reader(data: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if data.startswith((b"II*\0", b"MM\0*")):
        return TiffImagePlugin.TiffImageFile
    return None


def _check_size(size: tuple[int, int], limits: ImageLimits, field: str) -> None:
    width, height = size
    if min(size) < 1:
        raise InvalidRequest(field, f"{width}x{height} pixels, at least 1x1")
    if max(size) > limits.max_side_px:
        raise InvalidRequest(field, f"{width}x{height} pixels, a side has at most {limits.max_side_px}")
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            field, f"{width}x{height} is {width * height} pixels, at most {limits.max_pixels}"
        )


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation as far as the header has it; 1 where there is none or it makes no sense.

    A PNG may carry EXIF after its pixels; reading that would decode it, so it does not count.
    """
    if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # noqa: BLE001 - broken EXIF does not make a picture unreadable
        return 1
    return value if value in range(1, 9) else 1
