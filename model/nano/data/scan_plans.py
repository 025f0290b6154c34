"""Plans of 16-bit scans: soft spots of distinct brightness, and where they and their letters stand."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from model.nano.data.canvas import Box, Style, text_width
from model.nano.data.chart_plans import MARGIN, free_cap, least_cap
from model.nano.data.fonts import Face

LEAST_LEAD = 0.12  # brightness between the brightest spot and the next, of the full range


@dataclass(frozen=True)
class Spot:
    """A soft spot: its peak (0 to 1), its middle and radii, how it is turned, how steep its edge is."""

    label: str
    peak: float
    x: float
    y: float
    radii: tuple[float, float]
    turn: float
    power: float
    label_at: tuple[float, float]

    @property
    def reach(self) -> float:
        """Beyond this distance nothing of the spot is left."""
        return max(self.radii) * (2.2 if self.power < 1.5 else 1.6)


@dataclass(frozen=True)
class Scan:
    """The plan of a scan; `ground` is the brightness beside the spots, `noise` its deviation."""

    spots: tuple[Spot, ...]
    face: Face
    cap: float
    ink: float
    size: tuple[int, int]
    ground: float
    noise: float


def plan_scan(rng: random.Random, style: Style, size: tuple[int, int]) -> Scan:
    """Spots and labels that keep clear of each other; fewer and smaller ones where there is little room."""
    low = least_cap(style)
    for attempt in range(20):
        cap = free_cap(rng, style, size) if attempt < 8 else low
        face, num = rng.choice(style.faces), rng.randint(3, 5) if attempt < 8 else 3
        most = min(size) * rng.uniform(0.06, 0.15) * (1.0 if attempt < 8 else 0.6)
        spots = _place_spots(rng, face, cap, size, _peaks(rng, num), most)
        if len(spots) == num:
            ink = rng.choice((rng.uniform(0.9, 1.0), rng.uniform(0.5, 0.7)))
            return Scan(spots, face, cap, ink, size, rng.uniform(0.02, 0.1), rng.uniform(0.002, 0.012))
    raise ValueError(f"no scan fits {size} with letters {low:.1f} px high")


def _peaks(rng: random.Random, num: int) -> list[float]:
    """Brightest first; the first and the last stand clear of the others."""
    gaps = [LEAST_LEAD + 0.01, *[0.05] * (num - 3), 0.1]
    top = rng.uniform(0.24 + sum(gaps), 0.97)
    extra = [rng.random() for _ in range(num)]
    scale = (top - 0.22 - sum(gaps)) / sum(extra)
    peaks = [top]
    for gap, more in zip(gaps, extra, strict=False):
        peaks.append(peaks[-1] - gap - scale * more)
    return peaks


def _place_spots(
    rng: random.Random, face: Face, cap: float, size: tuple[int, int], peaks: list[float], most: float
) -> tuple[Spot, ...]:
    """As many of the spots as find a place in 60 throws, with labels in any order."""
    taken: list[Box] = []
    found: list[Spot] = []
    labels = [chr(65 + index) for index in range(len(peaks))]
    rng.shuffle(labels)
    for _ in range(60):
        if len(found) == len(peaks):
            break
        label, radius = labels[len(found)], most * rng.uniform(0.6, 1.0)
        radii = radius, radius * rng.choice((1.0, rng.uniform(0.6, 1.0)))
        spot = Spot(
            label,
            peaks[len(found)],
            0,
            0,
            radii,
            rng.uniform(0, math.pi),
            rng.choice((1.0, 2.0, 3.0)),
            (0, 0),
        )
        reach, wide = spot.reach, text_width(label, face, cap)
        x, y = rng.uniform(reach, size[0] - reach), rng.uniform(reach, size[1] - reach)
        away_x, away_y = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1)))
        centre_x = x + away_x * (0.85 * reach + wide / 2 + 0.3 * cap)
        centre_y = y + away_y * (0.85 * reach + 0.8 * cap)
        text = Box(centre_x - wide / 2, centre_y - cap / 2, centre_x + wide / 2, centre_y + cap / 2)
        outer = text.grown(MARGIN + 0.3 * cap)
        if outer.left < 0 or outer.top < 0 or outer.right > size[0] or outer.bottom > size[1]:
            continue
        disc = Box(x - reach, y - reach, x + reach, y + reach)
        whole = Box(
            min(disc.left, text.left),
            min(disc.top, text.top),
            max(disc.right, text.right),
            max(disc.bottom, text.bottom),
        ).grown(0.5 * cap)
        if not any(whole.meets(other) for other in taken):
            taken.append(whole)
            found.append(replace(spot, x=x, y=y, label_at=(centre_x, text.top)))
    return tuple(found)
