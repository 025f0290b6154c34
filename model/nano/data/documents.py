"""Documents: receipts, invoices and tables, asked for in words and as JSON that follows a schema."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from model.nano.data import drills, words
from model.nano.data.canvas import Align, Box, Style, weather
from model.nano.data.paper import (
    Cell,
    Field,
    Line,
    Page,
    Sheet,
    draw_rule,
    json_exchange,
    labelled,
    make_sheet,
    start_canvas,
)
from model.nano.data.scene import Exchange, Scene
from model.nano.data.tables import table

__all__ = ["invoice", "receipt", "table"]

_TOTALS = ("Total", "TOTAL", "Sum", "To pay", "Amount due", "Total due", "Grand total", "SUM", "Balance due")
_LABELS = {
    "number": ("Invoice no.", "Invoice", "No.", "Number", "Invoice number", "Ref."),
    "date": ("Date", "Invoice date", "Issued", "DATE"),
    "due": ("Due", "Due date", "Pay by", "Payable by"),
    "customer": ("Customer", "Bill to", "Client", "To", "CUSTOMER"),
}
_QUESTIONS = {
    "total": (
        "What is the total?",
        "How much is it in total?",
        "What is the total amount?",
        "Read the total.",
    ),
    "date": ("What is the date?", "Which date is on it?", "When was it issued?", "Read the date."),
    "shop": ("What is the name of the shop?", "Which shop is it from?", "Who sold this?"),
    "number": ("What is the invoice number?", "Which number does the invoice have?", "Read the number."),
    "due": ("When is it due?", "What is the due date?", "Until when must it be paid?"),
    "customer": ("Who is the customer?", "Who is the invoice for?", "What is the customer's name?"),
    "paid": ("How much was paid?", "How much money was given?", "What is the amount paid?"),
}
_KEYS = {
    "total": ("total", "total", "amount", "sum"),
    "date": ("date", "date", "issued"),
    "shop": ("shop", "shop", "store", "seller"),
    "number": ("number", "invoice", "invoice_number"),
    "due": ("due", "due_date"),
    "customer": ("customer", "customer", "client"),
    "paid": ("paid", "paid_amount"),
}


@dataclass(frozen=True)
class Item:
    """Something bought; `cents` is what the line costs."""

    name: str
    cents: int


@dataclass(frozen=True)
class Fact:
    """Something to be asked for. `what` is a key of the questions, `label` what is written beside it."""

    what: str
    label: str
    value: str

    @property
    def line(self) -> str:
        """As it is written, "" where it stands alone."""
        return f"{self.label} {self.value}" if self.label else ""

    @property
    def steps(self) -> str:
        """Where it is found."""
        return f"The line {self.label} says {self.value}." if self.label else f"{self.value} stands alone."


@dataclass(frozen=True)
class Bill:
    """The plan of a receipt or an invoice."""

    sheet: Sheet
    lines: tuple[Line, ...]
    items: tuple[Item, ...]
    facts: tuple[Fact, ...]


def receipt(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """What a till prints."""
    return draw_bill(rng, plan_receipt(rng, style, width, height))


def invoice(rng: random.Random, style: Style, width: int, height: int) -> Scene:
    """A letter that asks for money."""
    return draw_bill(rng, plan_invoice(rng, style, width, height))


def plan_receipt(rng: random.Random, style: Style, width: int, height: int) -> Bill:
    """A receipt that fits the picture."""
    num_items = rng.randint(2, 7)
    page = Page(make_sheet(rng, style, (width, height), num_items + rng.randint(3, 7), (20, 32)))
    side: Align = rng.choice(("left", "centre", "centre"))
    shout = rng.random() < 0.3
    facts = []
    shop = rng.choice((words.name(rng), f"{words.name(rng)} {words.name(rng)}", f"{words.name(rng)} Shop"))
    shop = shop.upper() if shout else shop
    if page.add(page.single(shop, side, rng.choice((1.0, 1.2, 1.4))), keep=4):
        facts.append(Fact("shop", "", shop))
    if rng.random() < 0.4:
        page.add(page.single(f"{words.name(rng)} Street {rng.randint(1, 99)}", side), keep=7)
    date, label = words.date(rng), rng.choice(("Date", "", "DATE"))
    form = rng.choice(("spread", "inline"))
    if (
        page.add_labelled(label, date, form, 3) if label else page.add(page.single(date, side), keep=3)
    ) or page.add(page.single(date, "left"), keep=3):
        facts.append(Fact("date", label, date))
    items = _add_items(rng, page, num_items, rng.choice(("times", "times", "column", "plain")), shout=shout)
    total = sum(item.cents for item in items)
    facts += _add_total(rng, page, total)
    if rng.random() < 0.4:
        percent = rng.choice((5, 7, 10, 19, 20))
        tax = words.money(round(total * percent / (100 + percent)))
        page.add(page.spread(f"{rng.choice(('VAT', 'Tax', 'incl. VAT'))} {percent}%", tax))
    if rng.random() < 0.4:
        label, paid = rng.choice(("Cash", "Paid", "PAID", "Card")), words.money(math.ceil(total / 500) * 500)
        if page.add(page.spread(label, paid)):
            facts.append(Fact("paid", label, paid))
    if rng.random() < 0.4:
        page.add(page.single(rng.choice(("Thank you!", "Have a nice day", "See you soon!")), side))
    return Bill(page.sheet, tuple(page.lines), items, tuple(facts))


def plan_invoice(rng: random.Random, style: Style, width: int, height: int) -> Bill:
    """An invoice that fits the picture."""
    num_items = rng.randint(1, 6)
    page = Page(make_sheet(rng, style, (width, height), num_items + rng.randint(6, 9), (25, 46)))
    title = rng.choice(("INVOICE", "Invoice", "Bill", "TAX INVOICE"))
    page.add(page.single(title, rng.choice(("left", "centre", "right")), rng.choice((1.0, 1.3, 1.5))), keep=6)
    number = rng.choice(
        (words.code(rng, 4, 8), f"INV-{rng.randint(100, 9999)}", str(rng.randint(1000, 99999)))
    )
    customer = rng.choice((words.name(rng), f"{words.name(rng)} {words.name(rng)}", f"{words.name(rng)} Ltd"))
    values = {"number": number, "date": words.date(rng), "due": words.date(rng), "customer": customer}
    wanted = [what for what in values if what in {"number", "date"} or rng.random() < 0.8]
    rng.shuffle(wanted)
    facts = [Fact(what, rng.choice(_LABELS[what]), values[what]) for what in wanted]
    form = rng.choice(("inline", "spread", "pairs"))
    written: list[Fact] = []
    while facts:
        pair = facts[:2]
        if form == "pairs" and len(pair) == 2:
            line = page.spread(labelled(pair[0].label, pair[0].value), labelled(pair[1].label, pair[1].value))
            if page.add(line, keep=3):
                written += pair
                facts = facts[2:]
                continue
        fact = facts.pop(0)
        if page.add_labelled(fact.label, fact.value, "spread" if form == "spread" else "inline", 3):
            written.append(fact)
    if rng.random() < 0.6:
        heads = rng.choice((("Description", "Amount"), ("Item", "Price"), ("ITEM", "AMOUNT")))
        page.add(page.spread(*heads, has_rule=True), keep=4)
    items = _add_items(rng, page, num_items, rng.choice(("column", "plain", "times")), shout=False)
    written += _add_total(rng, page, sum(item.cents for item in items))
    if rng.random() < 0.3:
        page.add(page.single(rng.choice(("Thank you.", "Please pay on time.", "No discount.")), "left"))
    return Bill(page.sheet, tuple(page.lines), items, tuple(written))


def _add_items(rng: random.Random, page: Page, num_items: int, form: str, *, shout: bool) -> tuple[Item, ...]:
    """Lines of things and prices; one row stays free for the total."""
    items: dict[str, Item] = {}
    area, cap = page.sheet.area, page.sheet.cap
    for _ in range(3 * num_items + 6):
        if len(items) == num_items:
            break
        name = words.name(rng) if rng.random() < 0.8 else f"{words.name(rng)} {words.word(rng)}"
        name = name.upper() if shout else name
        times = rng.randint(2, 9) if rng.random() < 0.35 else 1
        cents = times * words.amount(rng, 400 if times == 1 else 40)
        first = Cell(f"{times} x {name}" if form == "times" and times > 1 else name, area.left)
        cells: tuple[Cell, ...] = (first, Cell(words.money(cents), area.right, "right"))
        if form == "column":
            cells = (Cell(str(times), area.left), replace(first, x=area.left + 2 * cap), cells[-1])
        is_known = any(name.lower() in other or other in name.lower() for other in items)
        if not is_known and page.add(Line(cells, has_rule=not items), keep=1):
            items[name.lower()] = Item(name, cents)
    return tuple(items.values())


def _add_total(rng: random.Random, page: Page, cents: int) -> list[Fact]:
    total = words.money(cents)
    for label in (rng.choice(_TOTALS), "Total"):
        for scale in (rng.choice((1.0, 1.2)), 1.0):
            if page.add(page.spread(label, total, scale, has_rule=True)):
                return [Fact("total", label, total)]
    return []


def bill_exchanges(rng: random.Random, bill: Bill) -> tuple[Exchange, ...]:
    """Questions in words, and as many that want JSON."""
    found = [
        Exchange(rng.choice(_QUESTIONS[fact.what]), fact.value, fact.line, fact.steps) for fact in bill.facts
    ]
    for item in rng.sample(bill.items, min(3, len(bill.items))):
        asked = rng.choice(("What is the price of {}?", "What does {} cost?", "How much is {}?"))
        price, thought = words.money(item.cents), _prices_until(bill, item)
        found.append(Exchange(asked.format(item.name), price, thought, f"The line {item.name} says {price}."))
    if rng.random() < 0.5:
        asked = rng.choice(("How many different items are there?", "How many items are listed?"))
        named = ", ".join(item.name for item in bill.items)
        found.append(Exchange(asked, str(len(bill.items)), named, f"The items are {named}."))
    for _ in range(len(found)):
        if bill.items and rng.random() < 0.25:
            item = rng.choice(bill.items)
            fields = [Field("price", words.money(item.cents), ("number", "string"))]
            if rng.random() < 0.4:
                fields.insert(0, Field("item", item.name))
            intro, steps = f"What does {item.name} cost? ", f"The line {item.name} says {fields[-1].text}."
            thought = _prices_until(bill, item)
        else:
            facts = rng.sample(bill.facts, min(rng.randint(1, 2), len(bill.facts)))
            fields = [_field_of(rng, fact) for fact in facts]
            intro, steps = "", " ".join(fact.steps for fact in facts)
            thought = ", ".join(fact.line for fact in facts if fact.line)
        found.append(json_exchange(rng, intro, fields, thought, steps))
    return tuple({exchange.question: exchange for exchange in found}.values())


def _prices_until(bill: Bill, last: Item) -> str:
    """The items and what they cost, as far as the one that is asked for."""
    kept = bill.items[: bill.items.index(last) + 1]
    return ", ".join(f"{item.name} {words.money(item.cents)}" for item in kept)


def _field_of(rng: random.Random, fact: Fact) -> Field:
    kinds: tuple[str, ...] = ("string",)
    if fact.what in {"total", "paid"}:
        kinds = ("number", "number", "string")
    elif fact.value.isdigit():
        kinds = ("integer", "string")
    return Field(rng.choice(_KEYS[fact.what]), fact.value, kinds)


def draw_bill(rng: random.Random, bill: Bill) -> Scene:
    """The picture of a plan."""
    sheet = bill.sheet
    area = sheet.area
    used = sum(line.scale for line in bill.lines) * sheet.step
    canvas = start_canvas(sheet, Box(area.left, area.top, area.right, area.top + used))
    top = area.top
    for line in bill.lines:
        slot, cap = line.scale * sheet.step, line.scale * sheet.cap
        if line.has_rule:
            draw_rule(canvas, sheet, top)
        for cell in line.cells:
            y = top + (slot - cap) / 2
            canvas.text(cell.x, y, cell.text, sheet.face, cap, sheet.ink, cell.align)
        top += slot
    picture, marks = weather(canvas, rng, most_degrees=sheet.degrees)
    lines = [" ".join(cell.text for cell in line.cells) for line in bill.lines]
    transcripts = drills.written(lines), drills.written_from_below(lines)
    return Scene(picture, marks, bill_exchanges(rng, bill), transcripts)
