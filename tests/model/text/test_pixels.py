"""Pixels: modes by rule, orientation, and the order of the resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from model.text.images import ImageLimits, check_image, tile_image
from model.text.pixels import MEAN, STD, decode, to_rgb
from tests.model.text import pictures

LIMITS = ImageLimits()


def decoded(data):
    return np.asarray(decode(check_image(data, LIMITS)))


def normalised(rgb):
    return [(value / 255 - mean) / std for value, mean, std in zip(rgb, MEAN, STD, strict=True)]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (1, 1), (100, 255)), (100, 100, 100)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBA", (1, 1), (9, 9, 9, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 0, 255, 128)), (127, 127, 255)),
        (Image.new("RGBa", (1, 1), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("La", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("PA", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (1, 1), (128, 128, 128)), (128, 128, 128)),
        (Image.new("HSV", (1, 1), (0, 255, 255)), (255, 0, 0)),
        (Image.new("I;16", (1, 1), 32768), (128, 128, 128)),
        (Image.new("I;16", (1, 1), 300), (1, 1, 1)),
        (Image.new("I;16B", (1, 1), 257 * 5), (5, 5, 5)),
        (Image.new("I", (1, 1), 65535), (255, 255, 255)),
        (Image.new("I", (1, 1), 257 * 9), (9, 9, 9)),
        (Image.new("F", (1, 1), 0.4), (102, 102, 102)),
        (Image.new("F", (1, 1), 102.0), (102, 102, 102)),
        (Image.new("F", (1, 1), 25700.0), (100, 100, 100)),
        (Image.new("F", (1, 1), float("nan")), (0, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_rgb_by_its_rule(picture, expected):
    assert to_rgb(picture).getpixel((0, 0)) == expected


def test_values_outside_of_every_range_are_stretched():
    far = Image.fromarray(np.array([[-1000, 0, 1000]], dtype=np.int32))
    assert [to_rgb(far).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_a_16_bit_grey_png_keeps_its_greys():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    data = pictures.encode(Image.fromarray(np.tile(ramp, (4, 1))))
    grey = decoded(data)[0, :, 0]
    assert np.abs(grey.astype(int) - np.arange(256)).max() <= 1
    assert (grey == 255).mean() < 0.01


def test_a_palette_with_transparency_lies_on_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    data = pictures.encode(picture, transparency=0)
    assert decoded(data).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_named_as_transparent_becomes_white(mode):
    key = 10 if mode == "L" else (10, 10, 10)
    picture = Image.new(mode, (2, 1), key)
    picture.putpixel((1, 0), 40 if mode == "L" else (40, 40, 40))
    assert decoded(pictures.encode(picture, transparency=key)).tolist() == [[[255] * 3, [40] * 3]]


def test_a_16_bit_colour_named_as_transparent_becomes_white():
    picture = Image.fromarray(np.array([[257, 514]], dtype=np.uint16))
    assert decoded(pictures.encode(picture, transparency=257)).tolist() == [[[255] * 3, [2] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white at the top left
    turn = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    turn |= {6: np.rot90, 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2), 8: lambda a: np.rot90(a, -1)}
    stored = turn.get(orientation, lambda a: a)(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP"):
        found = decoded(pictures.encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
        assert np.abs(found.astype(int) - upright).max() < 30, kind


def test_the_first_frame_of_a_gif_counts():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = pictures.encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[10, 10].tolist() == [255, 0, 0]


def test_one_colour_stays_one_colour_in_every_view():
    image = tile_image(pictures.encode(Image.new("RGB", (1300, 900), (200, 100, 50))), LIMITS)
    assert image.global_pixels.shape == (3, 728, 728)
    assert image.tile_pixels.shape == (image.plan.tiles, 3, 504, 504)
    assert image.global_pixels.dtype == image.tile_pixels.dtype == torch.float32
    for channel, value in enumerate(normalised((200, 100, 50))):
        assert torch.allclose(image.global_pixels[channel], torch.tensor(value), atol=1e-5)
        assert torch.allclose(image.tile_pixels[:, channel], torch.tensor(value), atol=1e-5)


def test_tiles_are_the_windows_row_by_row():
    picture = Image.new("RGB", (1008, 1008))
    for index in range(4):
        x, y = 504 * (index % 2), 504 * (index // 2)
        picture.paste((50 * index,) * 3, (x, y, x + 504, y + 504))
    image = tile_image(pictures.encode(picture), LIMITS)
    for index in range(4):
        grey = torch.tensor(normalised((50 * index,) * 3)[0])
        assert torch.allclose(image.tile_pixels[index, 0], grey, atol=1e-5)


def test_what_lies_outside_of_the_picture_is_black():
    image = tile_image(pictures.encode(Image.new("RGB", (728, 400), "white")), LIMITS)
    black, white = normalised((0, 0, 0))[0], normalised((255, 255, 255))[0]
    assert image.plan.crop_size == (1008, 400)
    assert torch.allclose(image.tile_pixels[:, 0, :400], torch.tensor(white), atol=1e-5)
    assert torch.allclose(image.tile_pixels[:, 0, 400:], torch.tensor(black), atol=1e-5)


def test_a_sliver_is_padded_to_a_black_square():
    image = tile_image(pictures.encode(Image.new("RGB", (200, 20), "white")), LIMITS)
    assert image.plan.square_side == 200
    assert image.tile_pixels.shape == (0, 3, 504, 504)
    black, white = normalised((0, 0, 0))[2], normalised((255, 255, 255))[2]
    assert torch.allclose(image.global_pixels[2, :60], torch.tensor(white), atol=1e-5)
    assert torch.allclose(image.global_pixels[2, 80:], torch.tensor(black), atol=1e-5)


def triangle_weights(source: int, target: int) -> np.ndarray:
    """[target, source] weights of bilinear resizing with antialias: a triangle as wide as the scale."""
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source)[None] + 0.5 - centres[:, None]) / support
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(1, keepdims=True)


def resized(pixels_HWC: np.ndarray, width: int, height: int) -> np.ndarray:
    """In float32: half the time, and what it rounds is a thousandth of a level."""
    rows = triangle_weights(pixels_HWC.shape[0], height)
    columns = triangle_weights(pixels_HWC.shape[1], width)
    factors = (each.astype(np.float32) for each in (rows, pixels_HWC, columns))
    return np.einsum("hH,HWc,wW->hwc", *factors, optimize=True)


def as_stored(pixels_HWC: np.ndarray) -> np.ndarray:
    """What an 8-bit picture keeps between two resizes."""
    return np.clip(np.rint(pixels_HWC), 0, 255)


@pytest.mark.parametrize("size", [(900, 800), (3200, 500), (700, 100), (640, 480)])
def test_views_follow_the_written_order_of_resizes(size):
    picture = pictures.noise(*size, seed=size[0])
    # Smooth enough that Pillow's fixed-point rounding (one level) is the only difference.
    picture = picture.resize((size[0] // 16, size[1] // 16)).resize(size, Image.Resampling.BICUBIC)
    image = tile_image(pictures.encode(picture), LIMITS)
    plan, pixels = image.plan, np.asarray(picture, dtype=np.float64)
    capped = as_stored(resized(pixels, *plan.capped_size)) if plan.capped_size != size else pixels
    one_level = 2.01 / 255 / min(STD)
    expected = (resized(capped, 728, 728) / 255 - MEAN) / STD
    assert np.abs(image.global_pixels.numpy() - expected.transpose(2, 0, 1)).max() < one_level
    if plan.tiles == 0:
        return
    crop = as_stored(resized(capped, *plan.crop_size))
    canvas = np.zeros((plan.rows * plan.window, plan.cols * plan.window, 3))
    canvas[: crop.shape[0], : crop.shape[1]] = crop
    for index in (0, plan.tiles - 1):
        y, x = (plan.window * part for part in divmod(index, plan.cols))
        window = canvas[y : y + plan.window, x : x + plan.window]
        expected = (resized(window, 504, 504) / 255 - MEAN) / STD
        assert np.abs(image.tile_pixels[index].numpy() - expected.transpose(2, 0, 1)).max() < one_level
