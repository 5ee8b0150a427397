"""A drawing as SVG: one file that needs no other, with tooltips, and dark where its reader likes it dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.graph.drawing import PALETTES, Circle, Path, Rect, Text
from atoll.graph.text import clean, clean_lines

if TYPE_CHECKING:
    from atoll.graph.drawing import Drawing, Group, Shape, Theme

_FONTS: Final = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,'DejaVu Sans',sans-serif"


def svg(drawing: Drawing, theme: Theme | None = None) -> str:
    """`theme` None: what the reader prefers."""
    parts = [_group(group) for group in drawing.groups]
    used = {name for group in drawing.groups for shape in group.shapes for name in _colours(shape)}
    style = f"text{{font-family:{_FONTS}}}.w{{font-weight:600}}.e{{text-anchor:end}}.l{{fill:none;stroke-linejoin:round}}" + _rules(
        theme or "light", used
    )
    if theme is None:
        style += f"@media(prefers-color-scheme:dark){{{_rules('dark', used)}}}"
    size = f"{_number(drawing.width)} {_number(drawing.height)}"
    wide, high = size.split()
    title = _escaped(clean(drawing.title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{wide}" height="{high}" '
        'xml:space="preserve" role="img" aria-labelledby="title">\n'
        f'<title id="title">{title}</title>\n<style>{style}</style>\n' + "".join(parts) + "</svg>\n"
    )


def _rules(theme: Theme, used: set[str]) -> str:
    palette = PALETTES[theme]
    return "".join(f".f-{name}{{fill:{palette[name]}}}.s-{name}{{stroke:{palette[name]}}}" for name in sorted(used))


def _colours(shape: Shape) -> tuple[str, ...]:
    if isinstance(shape, Path):
        return (shape.stroke,)
    return (shape.fill, shape.stroke) if isinstance(shape, Rect) and shape.stroke else (shape.fill,)


def _group(group: Group) -> str:
    inner = "".join(map(_shape, group.shapes))
    return f"<g><title>{_escaped(clean_lines(group.tooltip))}</title>{inner}</g>\n" if group.tooltip else f"{inner}\n"


def _shape(shape: Shape) -> str:
    if isinstance(shape, Rect):
        stroke = f" s-{shape.stroke}" if shape.stroke else ""
        size = _attributes(x=shape.x, y=shape.y, width=shape.width, height=shape.height, rx=shape.radius)
        return f'<rect class="f-{shape.fill}{stroke}"{size}/>'
    if isinstance(shape, Path):
        return f'<polyline class="s-{shape.stroke} l"{_attributes(stroke_width=shape.thickness)} points="{_points(shape.points)}"/>'
    if isinstance(shape, Circle):
        return f'<circle class="f-{shape.fill}"{_attributes(cx=shape.x, cy=shape.y, r=shape.radius)}/>'
    if isinstance(shape, Text):
        names = f"f-{shape.fill}" + (" w" if shape.bold else "") + (" e" if shape.right else "")
        return f'<text class="{names}"{_attributes(x=shape.x, y=shape.y, font_size=shape.size)}>{_escaped(shape.text)}</text>'
    return f'<polygon class="f-{shape.fill}" points="{_points(shape.points)}"/>'


def _attributes(**values: float) -> str:
    return "".join(f' {name.replace("_", "-")}="{_number(value)}"' for name, value in values.items())


def _points(points: tuple[tuple[float, float], ...]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
