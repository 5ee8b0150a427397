"""The reference pages say all that there is, and nothing that there isn't."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
import pytest

from atoll import errors
from atoll.cli import cli
from atoll.daemon import calls
from atoll.daemon.server import Server
from atoll.firewall.skeleton import SETS, SKELETON
from tests.docs import pages
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS: Final = ROOT / "docs"
_HEADING: Final = re.compile(r"^#{2,4} +(.*)$", re.MULTILINE)
_FENCE: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE_SPAN: Final = re.compile(r"`[^`]*`")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


def sections(page: str) -> dict[str, str]:
    """The text of a page of the reference by its headings."""
    _, *parts = _HEADING.split((DOCS / page).read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def first_column(text: str) -> list[str]:
    """What is in backquotes at the beginning of a table's rows."""
    return [cell.replace("\\|", "|") for cell in re.findall(r"^\| `(.*?)` +\|", text, re.MULTILINE)]


# --- the command line ----------------------------------------------------------------------------------------------------------------


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """The contexts of all commands that do something, in the order in which help lists them."""
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, found.make_context(name, [], parent=context, resilient_parsing=True))


def usage(context: click.Context) -> str:
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def options(context: click.Context) -> list[str]:
    """The options as `--help` writes them, but for --help."""
    given = (parameter for parameter in context.command.get_params(context) if isinstance(parameter, click.Option))
    records = (option.get_help_record(context) for option in given)
    return [record[0] for record in records if record is not None and "--help" not in record[0]]


def test_the_page_of_the_command_line_has_every_command_with_its_options() -> None:
    described = {heading.strip("`"): first_column(text) for heading, text in sections("cli.md").items() if heading.startswith("`atoll ")}
    top = cli.make_context("atoll", [], resilient_parsing=True)
    assert described == {usage(context): options(context) for context in commands(cli, top)}


def test_the_page_of_the_command_line_has_every_exit_code() -> None:
    described = dict(re.findall(r"^\| (\d) +\| `(\w+)`", sections("cli.md")["Exit codes"], re.MULTILINE))
    assert described == {str(kind.exit_code): name for name, kind in errors.BY_NAME.items() if kind is not errors.AtollError}


# --- the API -------------------------------------------------------------------------------------------------------------------------


def routes() -> dict[str, calls.Call | None]:
    """Every route by its method and path; those that the server has by itself have no call."""
    own = re.findall(r'app\.router\.add_(get|post)\("(.*?)"', inspect.getsource(Server))
    found: dict[str, calls.Call | None] = {f"{method.upper()} {path}": None for method, path in own}
    return found | {f"{method} {path}": call for (method, path), call in calls.ROUTES.items()}


def test_the_page_of_the_api_has_every_route_with_its_fields() -> None:
    described = {heading.strip("`"): text for heading, text in sections("api.md").items() if heading.startswith("`")}
    assert set(described) == set(routes())
    for route, call in routes().items():
        body: Any = calls.NoBody if call is None else call.body
        fields = [field.name for field in msgspec.structs.fields(body)]
        assert first_column(described[route]) == fields, route
        if call is not None and call.plan is not None:
            assert "dry_run" in described[route], route


def test_the_page_of_the_api_has_every_error() -> None:
    described = {name: int(status) for name, status in re.findall(r"^\| `(\w+)` +\| (\d+)", sections("api.md")["Errors"], re.MULTILINE)}
    assert described == {name: kind.http_status for name, kind in errors.BY_NAME.items() if kind is not errors.AtollError}


# --- the firewall --------------------------------------------------------------------------------------------------------------------


def test_the_page_of_the_firewall_has_every_set_and_every_chain() -> None:
    described = [name for text in sections("firewall.md").values() for row in first_column(text) for name in row.split("`, `")]
    assert sorted(set(described)) == sorted({*SETS, *re.findall(r"^\tchain (\w+)", SKELETON, re.MULTILINE)})


# --- links ---------------------------------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*pages.PAGES, ROOT / "CHANGELOG.md"], ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _CODE_SPAN.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ +(.*)$", _FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert fragment in map(anchor, headings), link


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        if page.name != "README.md":
            assert f"({page.relative_to(DOCS)})" in index, page
