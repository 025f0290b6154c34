"""Draws receipt.png, the picture that `make demo` asks about: python deploy/demo/receipt.py.

A bakery receipt on a table with a small chart beside it: text in several sizes, numbers that add up,
colours and shapes to ask about. Pillow's own font, so that it looks the same everywhere.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1024, 768  # larger than one 728 px view: the demo shows tiles, too
TABLE, GRAIN, SHADOW = "#c9a27a", "#bd946a", "#9b7650"
PAPER, INK, FAINT, RED = "#fdfcf7", "#26221f", "#8d857c", "#b3372b"
CARD, BARS = "#20324a", ("#f2b134", "#ed553b", "#3caea3", "#7fb7e6")

# quantity, name, price of one in cents
ITEMS = (
    (2, "Flat white", 420),
    (1, "Pot of mint tea", 380),
    (3, "Cinnamon bun", 350),
    (1, "Cheese sandwich", 690),
    (1, "Orange juice, fresh", 450),
)
VAT_PERCENT = 9
VISITS = (("Thu", 64), ("Fri", 92), ("Sat", 131), ("Sun", 110))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in face at `size` pixels."""
    return ImageFont.load_default(size)


def money(cents: int) -> str:
    """1234 -> 12.34."""
    return f"{cents // 100}.{cents % 100:02d}"


def draw_table(draw: ImageDraw.ImageDraw) -> None:
    """Boards with a seam every 128 px."""
    for y in range(0, HEIGHT, 128):
        draw.line((0, y, WIDTH, y), fill=SHADOW, width=3)
        for offset in (31, 58, 97):
            draw.line((0, y + offset, WIDTH, y + offset + 6), fill=GRAIN, width=2)


def draw_row(draw: ImageDraw.ImageDraw, y: int, left: str, right: str, size: int, fill: str = INK) -> None:
    """One line of the receipt: text on the left, amount on the right."""
    draw.text((92, y), left, font=font(size), fill=fill)
    draw.text((528, y), right, font=font(size), fill=fill, anchor="ra")


def draw_receipt(draw: ImageDraw.ImageDraw) -> None:
    """Paper with a torn edge, the items, the total and a bar code."""
    draw.polygon([(72, 52), (568, 52), (568, 742), (72, 742)], fill=SHADOW)
    edge = [(60 + 10 * i, 730 - 10 * (i % 2)) for i in range(51)]
    draw.polygon([(60, 36), (560, 36), *reversed(edge)], fill=PAPER)
    draw.text((310, 62), "Bakery De Fluit", font=font(46), fill=INK, anchor="ma")
    draw.text((310, 120), "Kade 12, Harlingen", font=font(20), fill=FAINT, anchor="ma")
    draw_row(draw, 158, "Table 7", "23 November 2026, 14:05", 20, FAINT)
    draw.line((92, 194, 528, 194), fill=FAINT, width=2)
    for i, (quantity, name, price) in enumerate(ITEMS):
        draw_row(draw, 212 + 42 * i, f"{quantity} x {name}", money(quantity * price), 27)
    draw.line((92, 430, 528, 430), fill=FAINT, width=2)
    total = sum(quantity * price for quantity, _, price in ITEMS)
    draw_row(draw, 446, "Total EUR", money(total), 40, RED)
    vat = round(total * VAT_PERCENT / (100 + VAT_PERCENT))
    draw_row(draw, 502, f"of which {VAT_PERCENT} % VAT", money(vat), 22, FAINT)
    draw_row(draw, 536, "Paid by card", money(total), 22, FAINT)
    for i, width in enumerate((3, 1, 2, 4, 1, 3, 2, 1, 4, 2, 1, 3, 1, 2, 4, 3, 1, 2, 1, 4, 2, 3, 1, 2)):
        draw.rectangle((118 + 16 * i, 588, 118 + 16 * i + 3 * width, 652), fill=INK)
    draw.text((310, 664), "Thank you, come again!", font=font(26), fill=INK, anchor="ma")


def draw_chart(draw: ImageDraw.ImageDraw) -> None:
    """A card with one bar a day."""
    draw.rounded_rectangle((624, 100, 984, 480), radius=22, fill=SHADOW)
    draw.rounded_rectangle((612, 88, 972, 468), radius=22, fill=CARD)
    draw.text((792, 108), "Visitors a day", font=font(32), fill="white", anchor="ma")
    for i, (day, visits) in enumerate(VISITS):
        left = 646 + 78 * i
        draw.rectangle((left, 414 - visits * 1.7, left + 56, 414), fill=BARS[i])
        draw.text((left + 28, 384 - visits * 1.7), str(visits), font=font(24), fill="white", anchor="ma")
        draw.text((left + 28, 424), day, font=font(24), fill="white", anchor="ma")


def draw_cup(draw: ImageDraw.ImageDraw) -> None:
    """A cup of coffee seen from above."""
    for radius, fill in ((118, SHADOW), (112, "#eef2f5"), (78, "#cfd8df"), (66, "#5b3a24")):
        draw.ellipse((800 - radius, 616 - radius, 800 + radius, 616 + radius), fill=fill)
    draw.rounded_rectangle((872, 600, 930, 632), radius=14, fill="#cfd8df")
    draw.arc((760, 576, 840, 656), 20, 250, fill="#a9794f", width=8)


def draw_picture() -> Image.Image:
    """The whole picture, mode RGB, 1024 x 768."""
    image = Image.new("RGB", (WIDTH, HEIGHT), TABLE)
    draw = ImageDraw.Draw(image)
    for part in (draw_table, draw_receipt, draw_chart, draw_cup):
        part(draw)
    return image


if __name__ == "__main__":
    # 64 colours are enough for flat shapes, and a third of the bytes.
    picture = draw_picture().quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_name("receipt.png"), optimize=True)
