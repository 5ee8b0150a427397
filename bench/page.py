"""docs/benchmarks.md and docs/benchmarks.svg: the figures between two markers, with the machine and versions behind them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atoll.errors import NotFound
from bench import stats, tool

if TYPE_CHECKING:
    from pathlib import Path

    from bench.stats import Result

_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_PACKAGES = (
    ("CNI plugins", "containernetworking-plugins"),
    ("netavark", "netavark"),
    ("Docker", "docker.io"),
    ("aardvark-dns", "aardvark-dns"),
    ("dnsmasq", "dnsmasq-base"),
    ("dnsperf", "dnsperf"),
    ("iptables", "iptables"),
    ("nftables", "nftables"),
    ("iproute2", "iproute2"),
)


def _processor() -> str:
    with open("/proc/cpuinfo") as information:
        for line in information:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def machine(load: float) -> str:
    """What the figures hold for, as a Markdown list. `load` is the load average before the run."""
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {tool.package_version(package)}" for name, package in _PACKAGES)
    return "\n".join(
        (
            f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            f"- Machine: {cores} cores ({_processor()}), Linux {platform.release()}, load average before the run {load:.2f}",
            f"- Python {platform.python_version()}; peers: {versions}",
        )
    )


def write(folder: Path, results: Sequence[Result], load: float) -> None:
    """Replace what is between the markers of benchmarks.md in `folder`, and the chart beside it. Raises NotFound."""
    page = folder / "benchmarks.md"
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise NotFound(f"docs/benchmarks.md has no pair of markers {_BEGIN} {_END}", "put them where the figures belong")
    parts = (machine(load), "![medians of every row](benchmarks.svg)", stats.summary(results, judge=True), *map(stats.section, results))
    page.write_text("\n\n".join((f"{before}{_BEGIN}", *parts, f"{_END}{after}")))
    (folder / "benchmarks.svg").write_text(stats.chart(results))
