"""From samples to figures: medians, ratios, checks against targets; shown as a table in Markdown and a chart in SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.variant import Series


@dataclass(frozen=True)
class Check:
    """One figure that a row must give: `value` is None where a part of it is missing. Without a limit it is only reported."""

    text: str
    value: float | None
    unit: str
    limit: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None or self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Result:
    """One row, measured."""

    key: str
    title: str
    unit: str
    series: Mapping[str, Series]
    checks: Sequence[Check]
    seconds: float
    more_is_better: bool


def median(series: Series) -> float | None:
    """The middle sample, or None where there are none."""
    return statistics.median(series.samples) if series.samples else None


def quantile(series: Series, share: float) -> float:
    """The sample below which `share` of all lie, by nearest rank."""
    ordered = sorted(series.samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(above: Series, below: Series) -> float | None:
    """The median of one over that of the other, or None where one is missing."""
    top, bottom = median(above), median(below)
    return None if top is None or bottom is None else top / bottom


def figure(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "not available"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _verdict(check: Check, *, judge: bool) -> str:
    if check.met is None:
        return ""
    return {True: "yes", False: "**no**"}[check.met] if judge else "not judged"


def _limit(check: Check) -> str:
    if check.limit is None:
        return "reported"
    return f"{'≥' if check.at_least else '≤'} {check.limit:g} {check.unit}"


def summary(results: Sequence[Result], *, judge: bool) -> str:
    """The checks of all rows in one table. A quick run is not judged, since the targets hold for the sizes of a full one."""
    checks = [
        (
            check.text,
            f"{figure(check.value)} {check.unit if check.value is not None else ''}".strip(),
            _limit(check),
            _verdict(check, judge=judge),
        )
        for result in results
        for check in result.checks
    ]
    return "### Against the targets\n\n" + _table(("What", "Figure", "Target", "Met"), checks)


def section(result: Result) -> str:
    """One row with its variants."""
    rows = []
    for series in result.series.values():
        if series.missing:
            rows.append((series.name, f"missing: {series.missing}", "", ""))
        else:
            worst = quantile(series, 0.01 if result.more_is_better else 0.99)
            rows.append((series.name, figure(median(series)), figure(worst), str(len(series.samples))))
    head = ("Variant", f"median, {result.unit}", "p1" if result.more_is_better else "p99", "samples")
    return f"### {result.title} (`{result.key}`)\n\n{_table(head, rows)}"


_WIDTH, _LABEL, _BAR, _STEP = 960, 330, 480, 22


def _scale(values: Sequence[float]) -> tuple[str, Callable[[float], float]]:
    """How long a bar is: from zero where the values are near each other, else logarithmic, which the title must then say."""
    low, high = min(values), max(values)
    if high < 10 * low:
        return "", lambda value: _BAR * value / high
    least = math.floor(math.log10(low) - 0.01)
    decades = math.ceil(math.log10(high)) - least
    return ", logarithmic", lambda value: _BAR * (math.log10(value) - least) / decades


def chart(results: Sequence[Result]) -> str:
    """All rows as bars of their medians, each row on a scale of its own, Atoll's in another colour."""
    parts: list[str] = []
    top = 20
    for result in results:
        medians = {name: median(series) for name, series in result.series.items()}
        present = [value for value in medians.values() if value]
        if not present:
            continue
        remark, length = _scale(present)
        parts.append(f'<text x="10" y="{top + 14}" class="title">{escape(f"{result.title}, {result.unit}{remark}")}</text>')
        top += 24
        for name, value in medians.items():
            width = length(value) if value else 0
            kind = "ours" if name.startswith("Atoll") else "other"
            parts.append(f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{_LABEL}" y="{top + 3}" width="{width:.1f}" height="14" class="{kind}"/>')
            parts.append(f'<text x="{_LABEL + width + 6:.1f}" y="{top + 14}">{figure(value)}</text>')
            top += _STEP
        top += 14
    style = (
        "text{font:12px sans-serif;fill:#333}.title{font-weight:bold;font-size:13px}.ours{fill:#1769aa}.other{fill:#b8c2cc}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>\n"])
