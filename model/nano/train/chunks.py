"""Lessons packed into chunks of known sizes, so that memory and the time of a step are known.

Shapes: G global views, N tiles, R rows of L tokens, M marks.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from model.nano.data import tasks
from model.nano.data.canvas import Style
from model.nano.data.fonts import faces_in
from model.nano.data.looking import look_lesson
from model.nano.data.scene import KINDS, Mark
from model.nano.data.talk import Lesson, View
from model.nano.train.rows import NOT_AN_IMAGE, RowMaker, TokenRow
from model.text.pixels import to_rgb
from model.text.tiles import GLOBAL_SIDE, GLOBAL_TOKENS, TILE_SIDE, TILE_TOKENS, TilePlan, plan_tiles

CELL_PX = 56  # an embedding row of a view stands for 56 x 56 pixels
SLOTS_ACROSS, SLOTS_DOWN = 8, 4  # of a cell: 7 x 14 pixels, about one small character each
NUM_SLOTS = SLOTS_ACROSS * SLOTS_DOWN
FIRST_TARGET = 8  # no row's own words begin before; every position that predicts it exists
# In views at less than this share of the best one, the smallest letters are a blur: no labels there.
LEAST_SHARE_FOR_MARKS = 0.6


@dataclass(frozen=True)
class ChunkShape:
    """A kind of chunk: how many views, rows of what length, learned tokens and marks it holds."""

    name: str
    num_globals: int
    num_tiles: int
    num_rows: int
    row_len: int
    num_targets: int
    num_marks: int


SMALL = ChunkShape("small", 64, 0, 120, 480, 8192, 8192)
TILED = ChunkShape("tiled", 12, 48, 28, 928, 2560, 4096)
LOOKS = ChunkShape("looks", 40, 0, 20, 1408, 2560, 1024)
TOOLS = ChunkShape("tools", 32, 0, 32, 736, 1536, 2048)
TEXT = ChunkShape("text", 0, 0, 192, 160, 5120, 0)
SHAPES = (SMALL, TILED, LOOKS, TOOLS, TEXT)


@dataclass
class Chunk:
    """Tensors of one chunk, always of the shape's full size. `place_RL`: row of the embeddings, or -1.

    `target_X`: flat indices (into R * L) of the tokens that are the model's own, filled up with
    any others; `depth_X`: how many tokens of the same answer stand before each, -1 where filled up.
    `task_R`: index into tasks.NAMES. `mark_M3`: embedding row, slot, kind; filled up with kind 0 in the row
    behind the last. Embedding rows: all global views, then all tiles.
    """

    globals_GSS3: torch.Tensor
    tiles_NSS3: torch.Tensor
    ids_RL: torch.Tensor
    place_RL: torch.Tensor
    target_X: torch.Tensor
    depth_X: torch.Tensor
    task_R: torch.Tensor
    mark_M3: torch.Tensor

    def to(self, device: torch.device) -> Chunk:
        """The chunk on a device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return Chunk(**moved)

    def cloned(self) -> Chunk:
        """A copy with memory of its own."""
        return Chunk(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def copy_from(self, other: Chunk) -> None:
        """Overwrite every tensor in place."""
        for f in fields(self):
            getattr(self, f.name).copy_(getattr(other, f.name), non_blocking=True)

    @property
    def num_targets(self) -> int:
        """Learned tokens."""
        return int((self.depth_X >= 0).sum())

    @property
    def num_marks(self) -> int:
        """Labelled slots."""
        return int((self.mark_M3[:, 2] > 0).sum())


@dataclass
class _Views:
    """Pixels and labels of one view that was cut."""

    plan: TilePlan
    whole: np.ndarray
    tiles: list[np.ndarray]
    marks: list[tuple[int, int, int, int]]  # tile (-1: the whole), cell, slot, kind


class ChunkMaker:
    """Makes chunks of one shape after another from a seed."""

    def __init__(self, fonts: Path, checkpoint: Path, seed: int) -> None:
        self._style = Style(faces_in(fonts))
        self._rows = RowMaker(checkpoint)
        self._rng = random.Random(seed)

    def chunk(self, shape: ChunkShape, *, only_reading: bool = False) -> Chunk:
        """Lessons until rows or views are full."""
        packer = _Packer(shape)
        lesson = self._lesson_maker(shape, only_reading)
        while not packer.is_full:
            made = lesson()
            views = [cut_view(view) for view in made.views]
            plans = [view.plan for view in views]
            rows = [(tasks.NAMES.index(talk.task), self._rows.row(talk, plans)) for talk in made.talks]
            if not packer.add(views, rows) and not packer.is_empty:
                break
        return packer.chunk()

    def _lesson_maker(self, shape: ChunkShape, only_reading: bool) -> Callable[[], Lesson]:
        rng, style = self._rng, self._style
        wanted = tasks.READING if only_reading else tasks.SCENES
        return {
            "small": lambda: tasks.scene_lesson(rng, style, tasks.small_size(rng), 2, wanted),
            "tiled": lambda: tasks.scene_lesson(rng, style, tasks.large_size(rng), 3, wanted),
            "looks": lambda: look_lesson(rng, style),
            "tools": lambda: tasks.tool_lesson(rng, style),
            "text": lambda: tasks.text_lesson(rng),
        }[shape.name]


class _Packer:
    """Fills the arrays of one chunk."""

    def __init__(self, shape: ChunkShape) -> None:
        self.shape = shape
        self._globals: list[np.ndarray] = []
        self._tiles: list[np.ndarray] = []
        self._rows: list[tuple[int, TokenRow, dict[int, tuple[int, int, int]]]] = []
        self._marks: list[tuple[int, int, int]] = []

    @property
    def is_full(self) -> bool:
        shape = self.shape
        has_room = len(self._rows) < shape.num_rows
        return not has_room or bool(shape.num_globals and len(self._globals) >= shape.num_globals)

    @property
    def is_empty(self) -> bool:
        """Whether nothing fitted so far."""
        return not self._rows

    def add(self, views: list[_Views], rows: list[tuple[int, TokenRow]]) -> bool:
        """False if it does not fit any more. Rows that are too long are left out."""
        shape = self.shape
        rows = [(task, row) for task, row in rows if len(row.ids) <= shape.row_len]
        if not rows:
            return True
        num_tiles = sum(len(view.tiles) for view in views)
        if (
            len(self._globals) + len(views) > shape.num_globals
            or len(self._tiles) + num_tiles > shape.num_tiles
            or len(self._rows) + len(rows) > shape.num_rows
        ):
            return False
        where: dict[int, tuple[int, int, int]] = {}  # view -> number of tiles, its first tile, its global
        for index, view in enumerate(views):
            first_tile, whole = len(self._tiles), len(self._globals)
            where[index] = (len(view.tiles), first_tile, whole)
            for tile, cell, slot, kind in view.marks:
                first_row = whole * GLOBAL_TOKENS
                if tile >= 0:
                    first_row = shape.num_globals * GLOBAL_TOKENS + (first_tile + tile) * TILE_TOKENS
                self._marks.append((first_row + cell, slot, kind))
            self._globals.append(view.whole)
            self._tiles += view.tiles
        self._rows += [(task, row, where) for task, row in rows]
        return True

    def chunk(self) -> Chunk:
        shape = self.shape
        ids = np.zeros((shape.num_rows, shape.row_len), np.int64)
        learned = np.zeros((shape.num_rows, shape.row_len), bool)
        place = np.full((shape.num_rows, shape.row_len), NOT_AN_IMAGE, np.int32)
        task = np.zeros(shape.num_rows, np.int64)
        for index, (number_of_task, row, where) in enumerate(self._rows):
            length = len(row.ids)
            task[index] = number_of_task
            ids[index, :length], learned[index, :length] = row.ids, row.is_learned
            for position, (view, number) in enumerate(row.places):
                if view != NOT_AN_IMAGE:
                    place[index, position] = self._embedding_row(where[view], number)
        num_rows = shape.num_globals * GLOBAL_TOKENS + shape.num_tiles * TILE_TOKENS
        target_X, depth_X = _targets(learned, shape.num_targets)
        return Chunk(
            globals_GSS3=_stacked(self._globals, shape.num_globals, GLOBAL_SIDE),
            tiles_NSS3=_stacked(self._tiles, shape.num_tiles, TILE_SIDE),
            ids_RL=torch.from_numpy(ids),
            place_RL=torch.from_numpy(place),
            target_X=torch.from_numpy(target_X),
            depth_X=torch.from_numpy(depth_X),
            task_R=torch.from_numpy(task),
            mark_M3=_filled_up(self._marks, shape.num_marks, (num_rows, 0, 0)),
        )

    def _embedding_row(self, where: tuple[int, int, int], number: int) -> int:
        """An image's rows are its tiles in order, then its global view."""
        num_tiles, first_tile, whole = where
        if number < num_tiles * TILE_TOKENS:
            return self.shape.num_globals * GLOBAL_TOKENS + first_tile * TILE_TOKENS + number
        return whole * GLOBAL_TOKENS + number - num_tiles * TILE_TOKENS


def _targets(learned_RL: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`Chunk.target_X` and `depth_X`; what is beyond `count` is not learned.

    Filled up with positions that differ: gradients of one position met thousands of times are added one
    after another.
    """
    depth_RL = np.full(learned_RL.shape, -1, np.int64)
    for position in range(1, learned_RL.shape[1]):
        is_learned = learned_RL[:, position]
        depth_RL[:, position] = np.where(is_learned, depth_RL[:, position - 1] + 1, -1)
    found = np.flatnonzero(learned_RL)[:count]
    target_X = FIRST_TARGET + np.arange(count, dtype=np.int64) % (learned_RL.size - FIRST_TARGET)
    depth_X = np.full(count, -1, np.int64)
    target_X[: len(found)] = found
    depth_X[: len(found)] = depth_RL.ravel()[found]
    return target_X, depth_X


def _filled_up(marks: list[tuple[int, int, int]], count: int, filler: tuple[int, int, int]) -> torch.Tensor:
    kept = marks[:count]
    return torch.tensor([*kept, *[filler] * (count - len(kept))], dtype=torch.long).view(-1, 3)


def _stacked(pictures: list[np.ndarray], count: int, side: int) -> torch.Tensor:
    stack = np.zeros((count, side, side, 3), np.uint8)
    for index, picture in enumerate(pictures):
        stack[index] = picture
    return torch.from_numpy(stack)


def cut_view(view: View) -> _Views:
    """Global view and tiles as bytes. Resized by Pillow: within a level or two of the server's floats."""
    picture = to_rgb(view.picture)
    plan = plan_tiles(*picture.size, view.max_tiles)
    whole = np.asarray(picture.resize((GLOBAL_SIDE, GLOBAL_SIDE), Image.Resampling.BILINEAR))
    tiles: list[np.ndarray] = []
    if plan.tiles:
        page = picture.resize(plan.crop_size, Image.Resampling.BILINEAR)
        for row in range(plan.rows):
            for col in range(plan.cols):
                left, top = col * plan.window, row * plan.window
                tile = page.crop((left, top, left + plan.window, top + plan.window))
                tiles.append(np.asarray(tile.resize((TILE_SIDE, TILE_SIDE), Image.Resampling.BILINEAR)))
    return _Views(plan, whole, tiles, list(_labels(picture.size, plan, view.marks)))


def _labels(
    size: tuple[int, int], plan: TilePlan, marks: tuple[Mark, ...]
) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    across, down = GLOBAL_SIDE / width, GLOBAL_SIDE / height
    scale = plan.crop_size[0] / width, plan.crop_size[1] / height
    in_whole = plan.tiles == 0 or min(across, down) >= LEAST_SHARE_FOR_MARKS * min(scale)
    for mark in marks:
        kind = _KIND_IDS[mark.kind]
        if in_whole and 0 <= mark.x < width and 0 <= mark.y < height:
            yield (-1, *_cell_and_slot(mark.x * across, mark.y * down, GLOBAL_SIDE), kind)
        if plan.tiles:
            x, y = mark.x * scale[0], mark.y * scale[1]
            col, row = int(x // plan.window), int(y // plan.window)
            if 0 <= col < plan.cols and 0 <= row < plan.rows:
                zoom = TILE_SIDE / plan.window
                inside = (x - col * plan.window) * zoom, (y - row * plan.window) * zoom
                yield (row * plan.cols + col, *_cell_and_slot(*inside, TILE_SIDE), kind)


_KIND_IDS = {kind: number for number, kind in enumerate(KINDS, start=1)}
NUM_KINDS = len(KINDS) + 1  # 0: nothing there


def _cell_and_slot(x: float, y: float, side: int) -> tuple[int, int]:
    x, y = min(x, side - 0.01), min(y, side - 0.01)
    cell = int(y // CELL_PX) * (side // CELL_PX) + int(x // CELL_PX)
    slot = int(y % CELL_PX * SLOTS_DOWN / CELL_PX) * SLOTS_ACROSS + int(x % CELL_PX * SLOTS_ACROSS / CELL_PX)
    return cell, slot


class ChunkStream(IterableDataset[tuple[ChunkShape, Chunk]]):
    """An endless stream of chunks for a data loader's workers; each worker has a seed of its own.

    `shares` says how often each shape is made; it is read anew before each chunk, so that the loop may
    change it: a tensor in shared memory, one number per shape, and last whether to read only.
    """

    def __init__(self, fonts: Path, checkpoint: Path, seed: int, shares: torch.Tensor) -> None:
        self._fonts, self._checkpoint, self._seed, self._shares = fonts, checkpoint, seed, shares

    def __iter__(self) -> Iterator[tuple[ChunkShape, Chunk]]:
        worker = torch.utils.data.get_worker_info()
        number = worker.id if worker is not None else 0
        torch.set_num_threads(1)
        if worker is not None:
            os.nice(10)  # the GPU's own process comes first
        maker = ChunkMaker(self._fonts, self._checkpoint, self._seed * 1000 + number)
        rng = random.Random(self._seed * 1000 + number + 500)
        while True:
            *shares, only_reading = self._shares.tolist()
            shape = rng.choices(SHAPES, shares)[0]
            yield shape, maker.chunk(shape, only_reading=bool(only_reading))
