"""The pytest plugin: fixtures `lab` and `network`, a marker for topologies, and reports that show what was on the wire.

It does nothing to a test that uses none of them. Where the kernel refuses a lab, such a test is skipped with the reason, and the
summary counts these skips apart.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atoll.errors import AtollError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from atoll.lab.lab import Lab
    from atoll.model import Network
    from atoll.topology import Topology

_NO_LAB = "no lab here: "


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("atoll labs")
    group.addoption("--lab-pcap", metavar="DIR", help="write the last packets of a failed test's lab to DIR/TEST.pcapng")
    group.addoption("--lab-shell", action="store_true", help="open a shell in a place of a failed test's lab (not with xdist)")
    parser.addini("atoll_rootless", "auto: an ordinary user becomes root of a user namespace for labs; off: never", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "topology(what): the lab fixture holds {network: [name, ...]}, or what a document says: a path or text"
    )
    if config.getini("atoll_rootless") not in ("auto", "off"):
        raise pytest.UsageError(f"atoll_rootless is {config.getini('atoll_rootless')!r}; expected auto or off")
    # Workers have threads from the start, so for them it is now or never; a run of one process waits until a test wants a lab.
    if getattr(config.option, "numprocesses", None) and os.geteuid() != 0 and config.getini("atoll_rootless") == "auto":
        from atoll.lab import lab

        _keep_user()
        try:
            lab.ready()
        except Unsupported:
            return  # each test that wants a lab says it


def _keep_user() -> None:
    """pytest names its temporary folder by the user; root's, which this process is about to look like, may be somebody else's."""
    if os.geteuid() != 0:
        try:
            os.environ.setdefault("LOGNAME", pwd.getpwuid(os.geteuid()).pw_name)
        except KeyError:
            os.environ.setdefault("LOGNAME", str(os.geteuid()))


def pytest_report_header(config: pytest.Config) -> str:
    if os.geteuid() == 0:
        inside = Path("/proc/self/uid_map").read_text().split()[2] != "4294967295"
        return "atoll labs: as root" + (" of a user namespace" if inside else "")
    return f"atoll labs: as an ordinary user, atoll_rootless = {config.getini('atoll_rootless')}"


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An empty lab, or what the marker `topology` says, for one test."""
    from atoll.lab.lab import Lab

    if os.geteuid() != 0 and request.config.getini("atoll_rootless") == "off":
        pytest.skip(f"{_NO_LAB}not root, and atoll_rootless is off")
    _keep_user()
    try:
        made = Lab()
    except Unsupported as error:
        pytest.skip(f"{_NO_LAB}{error}")
    with made:
        marker = request.node.get_closest_marker("topology")
        if marker is not None:
            try:
                _build(made, request.path.parent, *marker.args)
            except AtollError as error:
                pytest.fail(str(error), pytrace=False)
        yield made


@pytest.fixture
def network(lab: Lab) -> Network:
    """A network named "net" in the lab."""
    return lab.network("net")


def _build(lab: Lab, folder: Path, what: dict[str, list[str]] | str | Path | Topology) -> None:
    """What the marker says; a namespace may be on several networks."""
    if not isinstance(what, dict):
        lab.apply(what, folder=folder)
        return
    for name, members in what.items():
        lab.network(name)
        for member in members:
            known = lab.default.namespaces.get(member) or lab.namespace(member)
            known.connect(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    made = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and made is not None and hasattr(made, "watcher"):
        from atoll.lab import report as told

        try:
            report.sections.extend(told.sections(made))
            if folder := item.config.getoption("--lab-pcap"):
                path = Path(folder) / (re.sub(r"[^\w.-]+", "_", item.nodeid) + ".pcapng")
                path.parent.mkdir(parents=True, exist_ok=True)
                made.watcher.save(path)
                report.sections.append(("lab: packets as a file", str(path)))
        except (AtollError, OSError) as error:
            # The test's own failure is what matters, and must be told whatever happens here.
            report.sections.append(("lab", f"the report of the lab failed: {error}"))
        if item.config.getoption("--lab-shell") and not hasattr(item.config, "workerinput"):
            _shell(item, made)
    return report


def _shell(item: pytest.Item, lab: Lab) -> None:
    """A shell on the terminal in the place that is chosen; the test's end waits for it."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    places = {place.name: place for place in lab.places()}
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    try:
        while places:
            sys.stdout.write(f"\n{item.nodeid} failed; a shell in which place ({', '.join(places)}; empty to go on)? ")
            sys.stdout.flush()
            name = sys.stdin.readline().strip()
            if not name:
                return
            if name in places:
                places[name].popen([os.environ.get("SHELL", "sh")], stdin=None, stdout=None, stderr=None).wait()
    finally:
        if capture is not None:
            capture.resume_global_capture()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _NO_LAB in words:
            reason = words.partition(_NO_LAB)[2]
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"atoll labs: {count} skipped: {reason}")
