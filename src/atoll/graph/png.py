"""A drawing as PNG, by Pillow with the font that it brings along, so that it looks the same on every machine."""

from __future__ import annotations

import io
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from atoll.errors import Invalid, Unsupported
from atoll.graph.drawing import PALETTES, Circle, Path, Rect, Text

if TYPE_CHECKING:
    from atoll.graph.drawing import Drawing, Shape, Theme

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError:
    raise Unsupported("PNG needs Pillow, which is not installed", "pip install pillow") from None

#: Pixels for each unit of the drawing, and the finer grid on which round corners are drawn.
SCALE: Final = 2
_FINE: Final = 4
#: Beyond this a picture is a file that nothing opens.
_MOST_PIXELS: Final = 150_000_000


def png(drawing: Drawing, theme: Theme = "light") -> bytes:
    """Raises `Invalid` for one that is too large."""
    width, height = round(drawing.width * SCALE), round(drawing.height * SCALE)
    if width * height > _MOST_PIXELS:
        raise Invalid(f"the picture would have {width} times {height} pixels", "use SVG, or --network for a part of it")
    palette = PALETTES[theme]
    image = Image.new("RGB", (width, height), palette["page"])
    canvas = _Canvas(image, palette)
    for group in drawing.groups:
        for shape in group.shapes:
            canvas.draw(shape)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=6)
    return file.getvalue()


class _Canvas:
    def __init__(self, image: Image.Image, palette: dict[str, str]) -> None:
        self._image = image
        self._palette = palette
        self._pen = ImageDraw.Draw(image)

    def draw(self, shape: Shape) -> None:
        if isinstance(shape, Rect):
            self._rect(shape)
        elif isinstance(shape, Path):
            self._path(shape)
        elif isinstance(shape, Circle):
            left, top = round((shape.x - shape.radius) * SCALE), round((shape.y - shape.radius) * SCALE)
            side = round(2 * shape.radius * SCALE)
            self._rounded((left, top, left + side, top + side), side // 2, self._palette[shape.fill])
        elif isinstance(shape, Text):
            self._text(shape)
        else:
            self._pen.polygon([(x * SCALE, y * SCALE) for x, y in shape.points], fill=self._palette[shape.fill])

    def _rect(self, shape: Rect) -> None:
        left, top = round(shape.x * SCALE), round(shape.y * SCALE)
        right, bottom = round((shape.x + shape.width) * SCALE), round((shape.y + shape.height) * SCALE)
        radius = round(shape.radius * SCALE)
        if shape.stroke:
            self._rounded((left, top, right, bottom), radius, self._palette[shape.stroke])
            edge = round(shape.thickness * SCALE)
            left, top, right, bottom, radius = left + edge, top + edge, right - edge, bottom - edge, max(0, radius - edge)
        self._rounded((left, top, right, bottom), radius, self._palette[shape.fill])

    def _rounded(self, box: tuple[int, int, int, int], radius: int, colour: str) -> None:
        """A filled rectangle. Pillow draws no smooth corners, so they are masks."""
        left, top, right, bottom = box
        if not radius:
            self._pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            return
        if right - left > 2 * radius:
            self._pen.rectangle((left + radius, top, right - radius - 1, bottom - 1), fill=colour)
        if bottom - top > 2 * radius:
            self._pen.rectangle((left, top + radius, left + radius - 1, bottom - radius - 1), fill=colour)
            self._pen.rectangle((right - radius, top + radius, right - 1, bottom - radius - 1), fill=colour)
        disc = _disc(radius)
        for x, at in ((left, 0), (right - radius, radius)):
            for y, down in ((top, 0), (bottom - radius, radius)):
                self._image.paste(colour, (x, y, x + radius, y + radius), disc.crop((at, down, at + radius, down + radius)))

    def _path(self, shape: Path) -> None:
        """Pieces are horizontal or vertical: rectangles, each half a stroke longer at both ends so that corners are whole."""
        half = shape.thickness * SCALE / 2
        for (x1, y1), (x2, y2) in zip(shape.points, shape.points[1:], strict=False):
            left, right = sorted((x1 * SCALE, x2 * SCALE))
            top, bottom = sorted((y1 * SCALE, y2 * SCALE))
            box = (round(left - half), round(top - half), round(right + half) - 1, round(bottom + half) - 1)
            self._pen.rectangle(box, fill=self._palette[shape.stroke])

    def _text(self, shape: Text) -> None:
        font = _font(round(shape.size * SCALE))
        colour = self._palette[shape.fill]
        # The font has one weight.
        stroke = 0.25 * SCALE if shape.bold else 0.0
        pieces = _spelled(shape.text).split("→")
        arrow = shape.size * SCALE * 0.9
        x = shape.x * SCALE
        if shape.right:
            x -= sum(font.getlength(piece) for piece in pieces) + arrow * (len(pieces) - 1)
        y = shape.y * SCALE
        for place, piece in enumerate(pieces):
            if place:
                self._arrow(x, y - shape.size * SCALE * 0.32, arrow, colour)
                x += arrow
            self._pen.text((x, y), piece, fill=colour, font=font, anchor="ls", stroke_width=stroke)
            x += font.getlength(piece)

    def _arrow(self, x: float, y: float, width: float, colour: str) -> None:
        """The font has no arrows."""
        left, right, head = round(x + 0.1 * width), round(x + 0.9 * width), round(0.3 * width)
        self._pen.rectangle((left, round(y) - 1, right - head, round(y)), fill=colour)
        self._pen.polygon([(right - head, round(y) - head * 0.8), (right - head, round(y) + head * 0.8), (right, round(y))], fill=colour)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):
        raise Unsupported("this Pillow has no FreeType, so that it can't write text", "pip install --force-reinstall pillow") from None


@lru_cache(maxsize=16)
def _disc(radius: int) -> Image.Image:
    """A smooth disc."""
    side = 2 * radius * _FINE
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    return mask.reduce(_FINE)


def _spelled(text: str) -> str:
    """In characters that the font has: letters without their accents, and a question mark for what is no such letter."""
    return text if text.isascii() else "".join(map(_plain, text))


def _plain(character: str) -> str:
    if character.isascii() or character in "…→·":
        return character
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
