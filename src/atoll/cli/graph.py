"""`atoll graph`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, Literal, cast

import click

from atoll.cli import client, output
from atoll.errors import Failed, Invalid

if TYPE_CHECKING:
    from atoll.graph.scene import Scene

_FORMATS: Final = ("text", "svg", "png", "dot", "mermaid", "json")
_ENDINGS: Final = {".svg": "svg", ".png": "png", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".json": "json", ".txt": "text"}
_WIDTH: Final = 80


@click.command()
@click.option("--format", "form", type=click.Choice(_FORMATS), help="By default what FILE ends with, else text, for the terminal.")
@click.option("-o", "--output", "file", type=click.Path(dir_okay=False), metavar="FILE", help="Write to this file; - is standard output.")
@click.option(
    "--network", "only", multiple=True, metavar="NETWORK", shell_complete=output.complete_networks, help="Only this one; may be repeated."
)
@click.option("--theme", type=click.Choice(["light", "dark"]), help="For SVG by default what its reader prefers, for PNG light.")
def graph(form: str | None, file: str | None, only: tuple[str, ...], theme: str | None) -> None:
    """Draw networks, namespaces, published ports and the ways out."""
    file = None if file == "-" else file
    form = form or _form_of(file)
    if form == "png" and file is None and sys.stdout.isatty():
        raise Invalid("a terminal can't show PNG", "name a file: -o FILE.png")
    theme = cast("Literal['light', 'dark'] | None", theme)
    data = render(_scene(only), form, theme, colour=file is None and _wants_colour(), width=_columns(file))
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        with open(file, "wb") as out:
            out.write(data)
    except OSError as error:
        raise Failed(f"can't write {file} ({error.strerror})") from None


def render(scene: Scene, form: str, theme: Literal["light", "dark"] | None = None, *, colour: bool = False, width: int = _WIDTH) -> bytes:
    """A scene in one of the forms. What a form doesn't need isn't loaded."""
    if form == "text":
        from atoll.graph.terminal import lines

        return "".join(f"{line}\n" for line in lines(scene, width, colour=colour)).encode()
    if form == "json":
        import json

        return f"{json.dumps(scene.json(), indent=2)}\n".encode()
    if form == "dot":
        from atoll.graph.dot import dot

        return dot(scene).encode()
    if form == "mermaid":
        from atoll.graph.mermaid import mermaid

        return mermaid(scene).encode()
    from atoll.graph.drawing import draw
    from atoll.graph.layout import lay_out

    if form == "png":
        from atoll.graph.png import png

        return png(draw(lay_out(scene)), theme or "light")
    from atoll.graph.svg import svg

    return svg(draw(lay_out(scene)), theme).encode()


def _form_of(file: str | None) -> str:
    if file is None:
        return "text"
    ending = os.path.splitext(file)[1].lower()
    if ending not in _ENDINGS:
        raise Invalid(f"{file} doesn't say which format it should have", f"end it with {', '.join(_ENDINGS)}, or give --format")
    return _ENDINGS[ending]


def _scene(only: tuple[str, ...]) -> Scene:
    from atoll.graph import scene

    networks, namespaces = client.get("/v1/networks"), client.get("/v1/namespaces")
    return scene.read(networks, namespaces, client.get("/v1/host"), only=only)


def _wants_colour() -> bool:
    """On a terminal, unless told otherwise (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _columns(file: str | None) -> int:
    """Of the terminal, or as $COLUMNS says."""
    import shutil

    return shutil.get_terminal_size((_WIDTH, 24)).columns if file is None else _WIDTH
