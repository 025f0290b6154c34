"""Screens of phones and computers: lists, bars, forms and dialogs that one can tap and read."""

from __future__ import annotations

import random
from dataclasses import replace

from model.nano.data import drills
from model.nano.data.boards import (
    LOW_CAP,
    dialog,
    form,
    make_board,
    rows,
    search_field,
    side_bar,
    strip,
    title_bar,
)
from model.nano.data.canvas import Box, Style, weather
from model.nano.data.scene import Scene
from model.nano.data.widgets import Icon, Panel, Screen, draw_screen, screen_exchanges, target_lines

_EDGE = 3.0


def phone(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """The screen of a phone."""
    return _scene(rng, plan_phone(rng, style, width, height))


def desktop(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """A window of a program."""
    return _scene(rng, plan_desktop(rng, style, width, height))


def _scene(rng: random.Random, screen: Screen) -> Scene:
    picture, marks = weather(draw_screen(screen), rng, most_degrees=0)
    exchanges = screen_exchanges(rng, screen)
    where = drills.places("Where is what can be tapped?", target_lines(screen))
    titles = drills.written([title for title, _ in screen.entries]) if screen.entries else where
    titles = replace(titles, question=titles.question.replace("line", "title"))
    return Scene(picture, marks, exchanges, (where, where, titles))


def plan_phone(rng: random.Random, style: Style, width: int, height: int) -> Screen:
    """A phone's screen: title bar, list, tab bar and what else there is room for."""
    slim = height * rng.uniform(0.55, 0.8)
    is_slim = slim < width and slim > 24 * LOW_CAP * style.unit and rng.random() < 0.7
    left = rng.uniform(0, width - slim) if is_slim else 0.0
    column = Box(left + _EDGE, _EDGE, (left + slim if is_slim else width) - _EDGE, height - _EDGE)
    board = make_board(rng, style, column.width, height)
    if is_slim:
        board.panels += [Panel(Box(0, 0, width, height), "rule"), Panel(column, "ground")]
    top, bottom = column.top, column.bottom
    row = max(board.least, board.cap * rng.uniform(2.1, 2.8))
    if rng.random() < 0.4 and height > 9 * row:
        bar = Box(column.left, top, column.right, top + 2 * board.cap)
        board.write(f"{rng.randint(1, 23)}:{rng.randint(0, 59):02d}", bar, "left")
        board.icons.append(Icon("square", Box(bar.right - 2 * board.cap, bar.top, bar.right, bar.bottom)))
        top = bar.bottom
    title_bar(board, Box(column.left, top, column.right, top + 1.1 * row))
    top += 1.1 * row
    if rng.random() < 0.75 and bottom - top > 4 * row:
        has_icons = rng.random() < 0.6 and bottom - top > 6 * row
        tabs = Box(column.left, bottom - (1.7 if has_icons else 1.1) * row, column.right, bottom)
        if strip(board, tabs, "tab", has_icons=has_icons, is_filled=False):
            bottom = tabs.top
    if rng.random() < 0.35 and bottom - top > 4 * row:
        label = board.take(column.width - 4 * board.cap, 0.9, is_verb=True)
        box = Box(column.left + board.cap, bottom - 1.25 * row, column.right - board.cap, bottom - 0.2 * row)
        if label is not None:
            board.button(label, box, "the wide button below the list", is_filled=True)
            bottom = box.top - 0.2 * row
    if rng.random() < 0.35 and bottom - top > 4 * row:
        top = search_field(board, Box(column.left, top + 0.15 * row, column.right, top + 1.15 * row))
    free = Box(column.left, top + 0.1 * row, column.right, bottom)
    hole = dialog(board, free, row) if rng.random() < 0.3 else None
    rows(board, free, row, hole)
    return board.finished(width, height)


def plan_desktop(rng: random.Random, style: Style, width: int, height: int) -> Screen:
    """A window: title bar, menus, tool bar, side bar, and a list or a form."""
    most = 0.06 if min(width, height) > 40 * LOW_CAP * style.unit else 0.0
    across, down = (_EDGE + rng.uniform(0, most) * width for _ in range(2))
    window = Box(across, down, width - across, height - down)
    board = make_board(rng, style, window.width, window.height)
    row = max(board.least, board.cap * rng.uniform(1.9, 2.5))
    if most:
        board.panels += [Panel(Box(0, 0, width, height), "rule"), Panel(window, "ground", is_outlined=True)]
    top = window.top + 1.05 * row
    title_bar(board, Box(window.left, window.top, window.right, top))
    if rng.random() < 0.7 and window.bottom - top > 4 * row:
        top += row if strip(board, Box(window.left, top, window.right, top + row), "menu") else 0.0
    if rng.random() < 0.6 and window.bottom - top > 5 * row:
        has_icons = rng.random() < 0.5 and window.bottom - top > 7 * row
        tools = Box(window.left, top, window.right, top + (1.8 if has_icons else 1.2) * row)
        if strip(board, tools, "button", has_icons=has_icons, is_filled=not has_icons):
            top = tools.bottom
    main = Box(window.left, top + 0.2 * row, window.right, window.bottom)
    if rng.random() < 0.6 and main.width > 30 * board.cap:
        side = Box(main.left, main.top, main.left + main.width * rng.uniform(0.28, 0.38), main.bottom)
        side_bar(board, side, row)
        main = Box(side.right + 0.3 * board.cap, main.top, main.right, main.bottom)
    if rng.random() < 0.4 and main.height > 3.5 * row:
        form(board, main, row)
    else:
        hole = dialog(board, main, row) if rng.random() < 0.3 else None
        rows(board, main, row, hole)
    return board.finished(width, height)
