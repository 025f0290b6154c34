"""The two tools the default model knows, as its prompts declare them, and what `zoom` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

COORDINATES = 1000  # boxes and points count thousandths of the picture's width and height

ZOOM: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "zoom",
        "description": "Look closer",
        "parameters": {"type": "object", "properties": {"box": {"type": "array"}}, "required": ["box"]},
    },
}
SEARCH: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Look up what the picture does not say",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
        },
    },
}


def crop(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part of the picture inside `box` (left, top, right, bottom in thousandths).

    Raises ValueError if the box is not inside 0..1000 or holds nothing.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= COORDINATES and 0 <= top < bottom <= COORDINATES):
        raise ValueError(f"box is {list(box)}: needs 0 <= left < right <= 1000, 0 <= top < bottom <= 1000")
    across, down = picture.width / COORDINATES, picture.height / COORDINATES
    edges = (round(left * across), round(top * down), round(right * across), round(bottom * down))
    return picture.crop((edges[0], edges[1], max(edges[2], edges[0] + 1), max(edges[3], edges[1] + 1)))
