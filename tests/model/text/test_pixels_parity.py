"""Pixels against the image processor of transformers, where torchvision can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.text.images import ImageLimits, tile_image
from model.text.pixels import STD

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is missing"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def processor():
    """Their processor. Where torchvision's compiled part does not load, its operators are declared:
    resizing does not use them, but the import wants them to exist."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = importlib.import_module("transformers.models.step3p7.image_processing_step3p7")
    return module.Step3p7ImageProcessor()


# Sizes at which both follow the same plan: theirs makes no tiles at 728x728 and stretches 728x400.
@pytest.mark.parametrize("size", [(1000, 1000), (640, 480), (1920, 1080), (700, 100), (595, 842)])
def test_pixels_are_within_one_level_of_the_library(processor, size):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    picture = coarse.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    ours = tile_image(buffer.getvalue(), ImageLimits())
    theirs = processor(images=[picture], return_tensors="pt")
    one_level = 1.01 / 255 / min(STD)  # they round to 8 bits after the last resize, we do not
    assert (theirs["pixel_values"][0] - ours.global_pixels).abs().max() < one_level
    if ours.plan.tiles:
        assert (theirs["pixel_values_local"] - ours.tile_pixels).abs().max() < 2 * one_level
