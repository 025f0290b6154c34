"""Typefaces: which ones train, which ones test, and letters of a given height in pixels.

Sizes are heights of a capital letter, not of the em square: "14 px high" means the same in each face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# Packages of faces that no training run has seen (`pip install` brings them with the dev extra).
HELD_OUT_FACES = {
    "font_lato": ("Lato-Regular.ttf", "Lato-Bold.ttf"),
    "font_caladea": ("Caladea-Regular.ttf", "Caladea-Bold.ttf"),
    "font_hanken_grotesk": ("HankenGrotesk-Regular.otf", "HankenGrotesk-SemiBold.otf"),
    "font_source_serif_pro": ("SourceSerifPro-Regular.ttf", "SourceSerifPro-Bold.ttf"),
    "font_rhd": ("RedHatDisplay-Regular.ttf", "RedHatDisplay-Bold.ttf"),
}
_PROBE_PX = 200


@dataclass(frozen=True)
class Face:
    """A font file."""

    path: str

    def capped(self, cap_px: float) -> ImageFont.FreeTypeFont:
        """The face at the size at which a capital H is `cap_px` high."""
        return _load(self.path, max(4, round(cap_px * _em_per_cap(self.path))))


@lru_cache(maxsize=4096)
def _load(path: str, em_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, em_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1024)
def _em_per_cap(path: str) -> float:
    _, top, _, bottom = _load(path, _PROBE_PX).getbbox("H")
    return _PROBE_PX / max(bottom - top, 1)


@lru_cache(maxsize=65536)
def advance(path: str, em_px: float, text: str) -> float:
    """Width of a string in pixels; single characters are asked for again and again."""
    return _load(path, round(em_px)).getlength(text)


def held_out_faces() -> tuple[Face, ...]:
    """The held-out faces that are installed. Raises FileNotFoundError if there are none."""
    faces = [
        Face(str(Path(places[0]) / "files" / file))
        for package, files in HELD_OUT_FACES.items()
        if (spec := find_spec(package)) is not None and (places := spec.submodule_search_locations)
        for file in files
    ]
    if not faces:
        raise FileNotFoundError(f"no held-out fonts: install {', '.join(HELD_OUT_FACES)}")
    return tuple(faces)


def faces_in(directory: Path) -> tuple[Face, ...]:
    """All font files of a directory. Raises FileNotFoundError if there are none."""
    files: Sequence[Path] = sorted([*directory.glob("*.ttf"), *directory.glob("*.otf")])
    if not files:
        raise FileNotFoundError(f"{directory}: no font files; python -m model.nano fonts {directory}")
    return tuple(Face(str(file)) for file in files)
