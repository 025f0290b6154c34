"""Draws the pictures of `make demo` and writes what is asked about them: python deploy/demo/draw.py.

The makers of the default model's examination draw them, with typefaces that it was not trained on (they come
with the dev extra): a receipt, a chart, and a desk of cards whose print is too small for one view.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from cluster.demo_looks import Question
from model.nano.data import charts, documents
from model.nano.data.canvas import Style
from model.nano.data.fonts import held_out_faces
from model.nano.data.looking import look_task
from model.nano.data.tasks import unit_of

FOLDER = Path(__file__).parent
RECEIPT_SIZE, CHART_SIZE = (1024, 768), (700, 520)  # the first is larger than one view: it is cut into tiles


def draw() -> list[tuple[Image.Image, Question]]:
    """Picture and question, three times."""
    style = Style(held_out_faces())
    receipt = documents.receipt(_rng("receipt/7"), replace(style, unit=unit_of(*RECEIPT_SIZE)), *RECEIPT_SIZE)
    chart = charts.bar_chart(_rng("chart/7"), replace(style, unit=unit_of(*CHART_SIZE)), *CHART_SIZE)
    desk = look_task(_rng("page/0"), style, needs_zoom=True)
    total, highest = receipt.exchanges[2], chart.exchanges[3]
    return [
        (receipt.picture, Question("receipt.png", total.question, total.answer, zoom=False)),
        (chart.picture, Question("chart.png", highest.question, highest.answer, zoom=False)),
        (desk.desk.picture, Question("desk.png", desk.question, desk.answer, zoom=True)),
    ]


def _rng(name: str) -> random.Random:
    return random.Random(f"demo/{name}")  # noqa: S311 - pictures, not secrets


def main() -> None:
    """Write everything."""
    questions = []
    for picture, question in draw():
        picture.save(FOLDER / question.picture, optimize=True)
        questions.append(asdict(question))
    text = json.dumps(questions, indent=2)
    (FOLDER / "questions.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
