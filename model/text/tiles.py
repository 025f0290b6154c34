"""How an image is cut into tiles: pure arithmetic on its size.

An image becomes a global view (728 x 728 pixels, 169 tokens) and, where it is large or elongated,
a grid of local tiles (504 x 504 pixels, 81 tokens each). The rules are those of the model's own
processor as vLLM carries it (`processors/step3_vl.py`); where the transformers port differs (a
long side of exactly 728, a remainder of exactly one fifth) that processor is followed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GLOBAL_SIDE = 728
TILE_SIDE = 504
GLOBAL_TOKENS = 169
TILE_TOKENS = 81
LONGEST_SIDE = 3024  # a longer image is scaled down to this first


@dataclass(frozen=True)
class TilePlan:
    """Sizes in pixels, (width, height). Without tiles `window`, `cols` and `rows` are 0.

    Steps on the picture: pad to a black square of `square_side` if that is set, resize to
    `capped_size` (this gives the global view), resize to `crop_size`, cut windows row by row.
    """

    square_side: int | None
    capped_size: tuple[int, int]
    crop_size: tuple[int, int]
    window: int
    cols: int
    rows: int

    @property
    def tiles(self) -> int:
        """Number of local tiles."""
        return self.cols * self.rows

    @property
    def newlines(self) -> int:
        """Row ends: one after each row of tiles but the last."""
        return max(self.rows - 1, 0)

    @property
    def tokens(self) -> int:
        """All tokens of the image in a prompt, markers included."""
        return (TILE_TOKENS + 2) * self.tiles + self.newlines + GLOBAL_TOKENS + 2

    @property
    def num_rows(self) -> int:
        """Rows of the image's embedding: tiles in order, then the global view."""
        return TILE_TOKENS * self.tiles + GLOBAL_TOKENS


def plan_tiles(width: int, height: int, max_tiles: int | None = None) -> TilePlan:
    """The plan for an image of this size (as it is looked at, EXIF orientation applied).

    With `max_tiles` the long side is brought down to the largest multiple of 504 at which the
    tiles are few enough; where none is, the image keeps its global view alone.
    """
    assert width > 0 and height > 0, (width, height)
    plan = _plan(width, height, LONGEST_SIDE)
    if max_tiles is None or plan.tiles <= max_tiles:
        return plan
    for longest in range(LONGEST_SIDE - TILE_SIDE, 0, -TILE_SIDE):
        smaller = _plan(width, height, longest)
        if smaller.tiles <= max_tiles:
            return smaller
    return replace(plan, crop_size=plan.capped_size, window=0, cols=0, rows=0)


def _plan(width: int, height: int, longest: int) -> TilePlan:
    """The plan when the long side is capped at `longest`."""
    long, short = max(width, height), min(width, height)
    square_side = long if short < 32 and long / short > 4 else None
    if square_side is not None:
        width = height = square_side
    if long > longest:
        scale = longest / long
        width, height = max(int(width * scale), 1), max(int(height * scale), 1)
    window = _window(max(width, height), min(width, height))
    if window == 0:
        return TilePlan(square_side, (width, height), (width, height), 0, 0, 0)
    crop_size = _snap(width, window), _snap(height, window)
    cols, rows = (max(side // window, 1) for side in crop_size)
    return TilePlan(square_side, (width, height), crop_size, window, cols, rows)


def _window(long: int, short: int) -> int:
    """Side of the cutting window; 0 for an image that the global view shows well enough."""
    if long < GLOBAL_SIDE:
        return short if long / short > 1.5 else 0
    return min(short, TILE_SIDE) if long / short > 4 else TILE_SIDE


def _snap(side: int, window: int) -> int:
    """Nearest multiple of the window, up from a remainder of 0.2; a smaller side stays."""
    if side < window:
        return side
    whole = side // window
    # In floating point, as the model's processor computes it: 2.2 - 2 is above 0.2, 1.2 - 1 is not.
    return window * (whole + (side / window - whole > 0.2))
