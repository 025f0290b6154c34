"""Pixels: decode an image, bring any mode to RGB, cut and normalise. CPU.

Shapes: H, W picture height and width; N tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.errors import InvalidRequest
from model.text.images import PlannedImage, TiledImage, open_image
from model.text.tiles import GLOBAL_SIDE, TILE_SIDE, TilePlan

# Mean and standard deviation of CLIP's training pictures (`OPENAI_CLIP_MEAN`, `OPENAI_CLIP_STD`).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def render(image: PlannedImage) -> TiledImage:
    """Decode a checked image and make its views. Raises InvalidRequest for broken data."""
    picture = decode(image)
    plan = image.plan
    if plan.square_side is not None:
        picture = picture.crop((0, 0, plan.square_side, plan.square_side))  # outside is black
    capped = _resize(picture, plan.capped_size)
    global_pixels = _scale(_normalise(capped)[None], GLOBAL_SIDE)[0]
    return TiledImage(image.key, plan, global_pixels, _tiles(capped, plan))


def decode(image: PlannedImage) -> Image.Image:
    """The first frame, upright, in RGB. Raises InvalidRequest for broken data."""
    try:
        picture = open_image(image.data, image.field)
        picture.load()
        upright = to_rgb(picture)
    except InvalidRequest:
        raise
    except Exception as error:  # truncated and hostile files make decoders raise nearly anything
        raise InvalidRequest(image.field, f"the image is broken: {error}") from error
    if image.orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[image.orientation])
    if upright.size != (image.width, image.height):
        found = "x".join(map(str, upright.size))
        raise InvalidRequest(image.field, f"the header says {image.width}x{image.height}, the data {found}")
    return upright


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, by rule.

    Whole numbers of more than 8 bits are scaled, not clipped; what is transparent lies on white.
    """
    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        return _numbers_to_rgb(picture)
    if mode == "La":
        picture = picture.convert("LA")
    if mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")


def _numbers_to_rgb(picture: Image.Image) -> Image.Image:
    """Grey from modes I;16, I and F; a colour named as transparent becomes white."""
    values_HW = np.asarray(picture)
    grey_HW = _to_bytes(values_HW, picture.mode)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey_HW = np.where(values_HW == transparent, np.uint8(255), grey_HW)
    return Image.fromarray(grey_HW).convert("RGB")


def _to_bytes(values_HW: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Scale to 0..255.

    16 bits: by 257. Mode I (32 bits, mostly 16-bit pictures in a wider store): the same if the
    values fit, else stretched from least to most. Mode F has no scale of its own: the smallest
    of 0..1, 0..255 and 0..65535 that holds all values, else stretched; NaN and infinity count as 0.
    """
    # 16 bits fit into float32; a picture may have 64 million values.
    values: NDArray[Any] = values_HW.astype(np.float32 if mode.startswith("I;16") else np.float64)
    if mode == "F":
        values[~np.isfinite(values)] = 0
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (65535.0,)
    fitting = [top for top in ranges if low >= 0 and high <= top]
    if fitting:
        low, high = 0.0, fitting[0]
    values -= low
    values *= 255.0 / max(high - low, 1e-30)
    np.rint(values, out=values)
    return values.astype(np.uint8)


def _tiles(capped: Image.Image, plan: TilePlan) -> torch.Tensor:
    """[N, 3, 504, 504]: the windows, row by row."""
    window, cols, rows = plan.window, plan.cols, plan.rows
    if plan.tiles == 0:
        return torch.empty(0, 3, TILE_SIDE, TILE_SIDE)
    picture = _resize(capped, plan.crop_size)
    # A side below the window is filled up with black, as the model's own processor does.
    pixels_CHW = _normalise(picture.crop((0, 0, cols * window, rows * window)))
    tiles = pixels_CHW.reshape(3, rows, window, cols, window).permute(1, 3, 0, 2, 4)
    return _scale(tiles.reshape(plan.tiles, 3, window, window), TILE_SIDE)


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


def _normalise(picture: Image.Image) -> torch.Tensor:
    """RGB to float32 [3, H, W] with CLIP's mean and deviation."""
    pixels_HWC = torch.from_numpy(np.array(picture, dtype=np.float32))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return pixels_HWC.div_(255).sub_(mean).div_(std).permute(2, 0, 1).contiguous()


def _scale(pixels_NCHW: torch.Tensor, side: int) -> torch.Tensor:
    """To side x side, bilinear with antialias."""
    if pixels_NCHW.shape[-2:] == (side, side):
        return pixels_NCHW
    return torch.nn.functional.interpolate(
        pixels_NCHW, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
