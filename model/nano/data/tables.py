"""Tables: a header, named rows, cells that are asked for by name or place."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from model.nano.data import drills, words
from model.nano.data.canvas import (
    Align,
    Box,
    Canvas,
    Colour,
    Style,
    brightness,
    ink_on,
    random_colour,
    text_width,
    weather,
)
from model.nano.data.paper import Field, Sheet, json_exchange, make_sheet, start_canvas
from model.nano.data.scene import Exchange, Scene

Kind = Literal["money", "whole", "word", "code", "percent"]
_NAMES = ("Name", "Item", "Product", "Place", "Player", "Team", "Town", "Model")
_HEADERS: dict[Kind, tuple[str, ...]] = {
    "money": ("Price", "Cost", "Fee", "Rent", "Amount", "Tax"),
    "whole": ("Stock", "Count", "Age", "Score", "Size", "Year", "Points", "Rank", "Seats", "Weight"),
    "word": ("Owner", "City", "Type", "Kind", "Label", "Group", "Brand"),
    "code": ("Code", "Ref", "Seat", "Key", "Lot", "Tag"),
    "percent": ("Share", "Rate", "Change", "Fat"),
}
_CELLS: dict[Kind, Callable[[random.Random], str]] = {
    "money": lambda rng: words.money(words.amount(rng)),
    "whole": words.whole,
    "word": words.name,
    "code": lambda rng: words.code(rng, 2, 5),
    "percent": lambda rng: f"{rng.randint(1, 100)}%",
}
_JSON_KINDS: dict[Kind, tuple[str, ...]] = {
    "money": ("number", "number", "string"),
    "whole": ("integer", "number", "string"),
    "word": ("string",),
    "code": ("string",),
    "percent": ("string",),
}


@dataclass(frozen=True)
class Column:
    """A header, the cells below it, and what they are."""

    header: str
    cells: tuple[str, ...]
    kind: Kind
    align: Align
    width: float


@dataclass(frozen=True)
class Grid:
    """The plan of a table. The first column holds the names of the rows."""

    sheet: Sheet
    columns: tuple[Column, ...]
    dressing: Literal["grid", "lines", "zebra", "plain"]
    band: Colour | None

    @property
    def names(self) -> tuple[str, ...]:
        """What the rows are called."""
        return self.columns[0].cells


def table(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """A table of two to six columns and two to eight rows."""
    return draw_table(rng, plan_table(rng, style, width, height))


def plan_table(rng: random.Random, style: Style, width: int, height: int) -> Grid:
    """A table that fits the picture."""
    sheet = make_sheet(rng, style, (width, height), rng.randint(3, 9), (200, 201))
    room, num_rows = sheet.area.width, sheet.rows - 1
    pad = 1.2 * sheet.cap
    short = [text for text in words.distinct(words.name, 40, rng) if _wide(sheet, text) < 0.5 * room]
    names = [*short, *words.distinct(lambda rng: words.code(rng, 3, 3), num_rows, rng)][:num_rows]
    columns = [_column(sheet, rng.choice(_NAMES), tuple(names), "word", "left", pad)]
    wanted = rng.randint(1, 5)
    for attempt in range(4 * wanted + 8):
        if len(columns) > wanted or (attempt >= 4 * wanted and len(columns) > 1):
            break
        kind = rng.choice(tuple(_CELLS))
        header = rng.choice(_HEADERS[kind]) if rng.random() < 0.75 else words.name(rng)
        cells = tuple(_CELLS[kind](rng) for _ in range(num_rows))
        right: Align = "right" if kind in {"money", "whole", "percent"} else "left"
        column = _column(sheet, header, cells, kind, rng.choice(("left", "centre", right, right)), pad)
        known = {other.header.lower() for other in columns} | {name.lower() for name in names}
        if header.lower() not in known and sum(c.width for c in columns) + column.width <= room:
            columns.append(column)
    if len(columns) == 1:
        numbers = tuple(str(rng.randint(1, 99)) for _ in range(num_rows))
        columns.append(_column(sheet, "No.", numbers, "whole", "left", 0.8 * pad))
    wider = rng.uniform(0, min(6 * sheet.cap, (room - sum(c.width for c in columns)) / len(columns)))
    columns = [replace(column, width=column.width + max(0.0, wider)) for column in columns]
    left = sheet.area.left + rng.uniform(0, max(0.0, room - sum(c.width for c in columns)))
    area = replace(sheet.area, left=left, right=left + sum(column.width for column in columns))
    band = random_colour(rng) if rng.random() < 0.5 else None
    dressing: Literal["grid", "lines", "zebra", "plain"] = rng.choice(("grid", "lines", "zebra", "plain"))
    return Grid(replace(sheet, area=area), tuple(columns), dressing, band)


def _wide(sheet: Sheet, text: str) -> float:
    return text_width(text, sheet.face, sheet.cap)


def _column(
    sheet: Sheet, header: str, cells: tuple[str, ...], kind: Kind, align: Align, pad: float
) -> Column:
    width = max(_wide(sheet, text) for text in (header, *cells)) + pad
    return Column(header, cells, kind, align, width)


def draw_table(rng: random.Random, grid: Grid) -> Scene:
    """The picture of a plan."""
    sheet = grid.sheet
    area = replace(sheet.area, bottom=sheet.area.top + sheet.step * (len(grid.names) + 1))
    canvas = start_canvas(sheet, area)
    _dress(canvas, grid, area)
    head_ink = sheet.ink if grid.band is None else ink_on(grid.band, rng, 110.0)
    left = area.left
    for column in grid.columns:
        inset = 0.5 * sheet.cap
        right = left + column.width
        x = {"left": left + inset, "centre": (left + right) / 2, "right": right - inset}[column.align]
        for index, text in enumerate((column.header, *column.cells)):
            y = area.top + index * sheet.step + (sheet.step - sheet.cap) / 2
            ink = sheet.ink if index else head_ink
            canvas.text(x, y, text, sheet.face, sheet.cap, ink, column.align)
        left = right
    picture, marks = weather(canvas, rng, most_degrees=sheet.degrees)
    lines = [" ".join(cells) for cells in zip(*((c.header, *c.cells) for c in grid.columns), strict=True)]
    transcripts = drills.written(lines), drills.written_from_below(lines)
    return Scene(picture, marks, table_exchanges(rng, grid), transcripts)


def _dress(canvas: Canvas, grid: Grid, area: Box) -> None:
    """Bands and lines below the writing."""
    sheet, draw = grid.sheet, canvas.draw
    thick = max(1, round(sheet.cap / 14))
    tops = [area.top + index * sheet.step for index in range(len(grid.names) + 2)]
    if grid.band is not None:
        draw.rectangle((area.left, tops[0], area.right, tops[1]), fill=grid.band)
    if grid.dressing == "zebra":
        shift = -16 if brightness(sheet.paper) > 127 else 16
        shade = tuple(min(255, max(0, value + shift)) for value in sheet.paper)
        for top in tops[2:-1:2]:
            draw.rectangle((area.left, top, area.right, top + sheet.step), fill=shade)
    if grid.dressing in {"grid", "lines"}:
        for top in tops:
            draw.line((area.left, top, area.right, top), fill=sheet.ink, width=thick)
    if grid.dressing == "grid":
        x = area.left
        for width in (0.0, *(column.width for column in grid.columns)):
            x += width
            draw.line((x, tops[0], x, tops[-1]), fill=sheet.ink, width=thick)


def table_exchanges(rng: random.Random, grid: Grid) -> tuple[Exchange, ...]:
    """Cells by name, a row by its cell, a cell by number, and as many questions that want JSON.

    Thoughts write down headers and rows as far as what is asked for.
    """
    found = []
    for _ in range(4):
        column, row = rng.randrange(1, len(grid.columns)), rng.randrange(len(grid.names))
        asked = rng.choice(
            (
                "What is the {} of {}?",
                "What is the {} for {}?",
                "Read the column {} in the row {}.",
                "What does the column {} say for {}?",
            )
        )
        question = asked.format(grid.columns[column].header, grid.names[row])
        found.append(_cell_exchange(grid, question, row, column))
    column, row = rng.randrange(1, len(grid.columns)), rng.randrange(len(grid.names))
    header, cells = grid.columns[column].header, grid.columns[column].cells
    if cells.count(cells[row]) == 1:
        question = f"Which {grid.columns[0].header} has the {header} {cells[row]}?"
        pairs = zip(grid.names[: row + 1], cells, strict=False)
        thought = f"{_headers_until(grid, column)}; {', '.join(f'{name} {cell}' for name, cell in pairs)}"
        found.append(Exchange(question, grid.names[row], thought, _says(grid, row, grid.columns[column])))
    number = rng.randrange(len(grid.columns))
    if rng.random() < 0.5:
        question = f"What is in row {row + 1} below the header, column {number + 1}?"
        found.append(_cell_exchange(grid, question, row, number))
    else:
        question = f"What is the header of column {number + 1}?"
        begin = _headers_until(grid, number)
        found.append(
            Exchange(question, grid.columns[number].header, begin, f"The headers begin with {begin}.")
        )
    found += [_json_of_row(rng, grid) for _ in range(len(found))]
    return tuple({exchange.question: exchange for exchange in found}.values())


def _cell_exchange(grid: Grid, question: str, row: int, column: int) -> Exchange:
    chosen = grid.columns[column]
    return Exchange(question, chosen.cells[row], _way_to(grid, row, column), _says(grid, row, chosen))


def _headers_until(grid: Grid, column: int) -> str:
    return ", ".join(column.header for column in grid.columns[: column + 1])


def _way_to(grid: Grid, row: int, column: int) -> str:
    """Headers until the column, names until the row, then the row until the cell."""
    names = ", ".join(grid.names[: row + 1])
    cells = " ".join(column.cells[row] for column in grid.columns[: column + 1])
    return f"{_headers_until(grid, column)}; {names}; {cells}"


def _says(grid: Grid, row: int, column: Column) -> str:
    return f"The row {grid.names[row]} says {column.cells[row]} below {column.header}."


def _json_of_row(rng: random.Random, grid: Grid) -> Exchange:
    row = rng.randrange(len(grid.names))
    some = rng.sample(grid.columns[1:], min(rng.randint(1, 2), len(grid.columns) - 1))
    steps = " ".join(_says(grid, row, column) for column in some)
    thought = _way_to(grid, row, max(grid.columns.index(column) for column in some))
    if len(some) == 1 and rng.random() < 0.5:
        column = some[0]
        fields = [Field(rng.choice(("value", "answer", "cell")), column.cells[row], _JSON_KINDS[column.kind])]
        if rng.random() < 0.6:
            fields.insert(0, Field("row", grid.names[row]))
        return json_exchange(
            rng, f"What is the {column.header} of {grid.names[row]}? ", fields, thought, steps
        )
    fields = [
        Field(column.header.lower().rstrip("."), column.cells[row], _JSON_KINDS[column.kind])
        for column in some
    ]
    return json_exchange(rng, f"What does the row {grid.names[row]} say? ", fields, thought, steps)
