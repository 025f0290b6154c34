"""How a chart is thought through: what there is, in order, as far as it is asked for.

A model of this size reads on far better than it finds: it writes down labels and values until the label
that is asked for. Where values are not written, it writes down the numbers of the axis and where values end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.nano.data.chart_plans import Chart


@dataclass(frozen=True)
class Axis:
    """Where its numbers are and where the values end, along the axis, in thousandths of the picture."""

    ticks: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Told:
    """One value of a chart; `end` is where it ends along the axis, in thousandths of the picture."""

    chart: Chart
    index: int
    end: int

    @property
    def label(self) -> str:
        """Its name."""
        return self.chart.labels[self.index]

    @property
    def value(self) -> int:
        """Its number."""
        return self.chart.values[self.index]

    @property
    def beside(self) -> str:
        """The numbers of the axis that it ends at or between; "" where the number is written."""
        if self.chart.is_written:
            return ""
        below = max(tick for tick in self.chart.ticks if tick <= self.value)
        return f"at {below}" if below == self.value else f"between {below} and {below + self.chart.step}"

    @property
    def read(self) -> str:
        """What leads to the number, and the number."""
        said = f"{self.label} is {self.value}"
        return f"{self.label} {self.beside}, so {said}" if self.beside else said

    @property
    def sentence(self) -> str:
        """The same in a sentence about bars or points."""
        is_bar = self.chart.form in {"columns", "bars"}
        return (
            f"The bar of {self.label} ends at {self.value}" if is_bar else f"{self.label} is at {self.value}"
        )


def listed(told: Sequence[Told], axis: Axis) -> str:
    """The first values; where they are not written, the numbers of the axis and where the values end."""
    chart = told[0].chart
    if chart.is_written:
        return ", ".join(f"{one.label} {one.value}" for one in told)
    numbers = ", ".join(f"{tick} {place}" for tick, place in zip(chart.ticks, axis.ticks, strict=True))
    return f"{numbers}; {_ends(told)}"


def ranking(told: Sequence[Told]) -> str:
    """What highest and lowest are told by: written values, else where they end, if that is as clear."""
    chart = told[0].chart
    is_upright = chart.form != "bars"
    by_end = [one.index for one in sorted(told, key=lambda one: one.end * (-1 if is_upright else 1))]
    values = [chart.values[index] for index in by_end]
    is_clear = values[0] == min(chart.values) and values[-1] == max(chart.values)
    if chart.is_written or not is_clear:
        return ", ".join(f"{one.label} {one.value}" for one in told)
    return _ends(told)


def _ends(told: Sequence[Told]) -> str:
    return ", ".join(f"{one.label} at {one.end}" for one in told)
