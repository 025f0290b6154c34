"""What `zoom` gives."""

from __future__ import annotations

import pytest
from PIL import Image

from model.nano.tools import SEARCH, ZOOM, crop

PICTURE = Image.linear_gradient("L").resize((500, 200))


@pytest.mark.parametrize(
    ("box", "edges"),
    [
        ((0, 0, 1000, 1000), (0, 0, 500, 200)),
        ((100, 250, 300, 750), (50, 50, 150, 150)),
        ((999, 0, 1000, 5), (500, 0, 501, 1)),  # less than a pixel is a pixel
    ],
)
def test_a_crop_is_the_box_in_thousandths(
    box: tuple[int, int, int, int], edges: tuple[int, int, int, int]
) -> None:
    part = crop(PICTURE, box)
    assert part.size == (edges[2] - edges[0], edges[3] - edges[1])
    assert part.tobytes() == PICTURE.crop(edges).tobytes()


@pytest.mark.parametrize(
    "box", [(-1, 0, 9, 9), (0, 0, 1001, 9), (5, 0, 5, 9), (9, 0, 5, 9), (0, 9, 9, 9), (0, 9, 9, 1001)]
)
def test_a_box_outside_or_empty_is_refused_with_its_values(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="needs 0 <= left < right <= 1000") as caught:
        crop(PICTURE, box)
    assert str(list(box)) in str(caught.value)


@pytest.mark.parametrize("tool", [ZOOM, SEARCH])
def test_a_tool_requires_all_of_its_parameters(tool: dict[str, dict[str, dict[str, list[str]]]]) -> None:
    parameters = tool["function"]["parameters"]
    assert parameters["required"] == list(parameters["properties"])
