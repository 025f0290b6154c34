"""How a value that is not written is thought through: where it ends, between which numbers of the axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.nano.data.chart_plans import Chart


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
    def measured(self) -> str:
        """Where it ends and what stands beside it there; "" where the number is written."""
        if self.chart.is_written:
            return ""
        below = max(tick for tick in self.chart.ticks if tick <= self.value)
        beside = f"at {below}" if below == self.value else f"between {below} and {below + self.chart.step}"
        return f"{self.label} ends at {self.end}, {beside}"

    @property
    def read(self) -> str:
        """What leads to the number, and the number."""
        said = f"{self.label} is {self.value}"
        return f"{self.measured}, so {said}" if self.measured else said

    @property
    def sentence(self) -> str:
        """The same in a sentence about bars or points."""
        if self.measured:
            return self.read
        is_bar = self.chart.form in {"columns", "bars"}
        return (
            f"The bar of {self.label} ends at {self.value}" if is_bar else f"{self.label} is at {self.value}"
        )


def ranking(told: Sequence[Told]) -> str:
    """What highest and lowest are told by: written values, else where they end, if that is as clear."""
    chart = told[0].chart
    is_upright = chart.form != "bars"
    by_end = [one.index for one in sorted(told, key=lambda one: one.end * (-1 if is_upright else 1))]
    values = [chart.values[index] for index in by_end]
    is_clear = values[0] == min(chart.values) and values[-1] == max(chart.values)
    if chart.is_written or not is_clear:
        return ", ".join(f"{one.label} {one.value}" for one in told)
    return ", ".join(f"{one.label} at {one.end}" for one in told)
