"""How wide text is, without a font at hand, and how it is shortened to fit.

The table holds for each character the wider of two common fonts (DejaVu Sans, which is about the widest that a browser may choose for
sans-serif, and Aileron, which Pillow brings), so that text which fits by it fits wherever the picture is looked at.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


def _table(numbers: str) -> bytes:
    return bytes(map(int, numbers.split()))


#: Hundredths of the font's size, for the characters from the space on.
_REGULAR: Final = _table(
    "32 40 46 84 64 95 78 27 39 39 56 84 32 36 32 34 64 64 64 64 64 64 64 64 64 64 34 34 84 84 84 53 "
    "100 68 69 70 77 63 58 77 75 29 54 66 58 87 75 79 60 79 69 63 61 73 68 99 69 61 69 39 34 39 84 50 "
    "50 61 63 55 63 62 35 63 63 28 28 58 28 97 63 61 63 63 41 52 39 63 59 82 59 59 52 64 34 64 84"
)
_BOLD: Final = _table(
    "35 46 52 84 70 100 87 31 46 46 56 84 38 42 38 37 70 70 70 70 70 70 70 70 70 70 40 40 84 84 84 58 "
    "100 77 76 73 83 68 68 82 84 37 54 77 64 100 84 85 73 85 77 72 68 81 77 110 77 72 73 46 37 46 84 50 "
    "50 67 72 59 72 68 44 72 71 34 34 67 34 104 71 69 72 72 49 60 48 71 65 92 65 65 58 71 37 71 84"
)
_TABLES: Final = {False: _REGULAR, True: _BOLD}
_SIGNS: Final = {"·": 40, "→": 90, "…": 100}
#: As wide as characters of East Asia and pictures are.
_OTHER: Final = 140


@lru_cache(maxsize=8192)
def width(text: str, size: float, *, bold: bool = False) -> float:
    """At most how wide a line of text is, in the unit of `size`."""
    table = _TABLES[bold]
    return size * sum(table[ord(one) - 32] if " " <= one <= "~" else _SIGNS.get(one, _OTHER) for one in text) / 100


@lru_cache(maxsize=8192)
def fit(text: str, most: float, size: float, *, bold: bool = False, middle: bool = False) -> str:
    """Text that is at most so wide: itself, or its beginning and an ellipsis; with `middle` its end, too, by which many names differ."""
    return _shortened(clean(text), most, lambda part: width(part, size, bold=bold), middle)


def fit_columns(text: str, most: int, *, middle: bool = False) -> str:
    """The same for a number of columns of a terminal."""
    return _shortened(clean(text), most, columns, middle)


def _shortened(text: str, most: float, measure: Callable[[str], float], middle: bool) -> str:
    if measure(text) <= most:
        return text
    room = most - measure("…")
    if room < 0:
        return ""
    kept = _beginning(text[::-1], room / 3, measure)[::-1].lstrip() if middle else ""
    return _beginning(text, room - measure(kept), measure).rstrip() + "…" + kept


def _beginning(text: str, room: float, measure: Callable[[str], float]) -> str:
    end = 0
    while end < len(text) and (room := room - measure(text[end])) >= 0:
        end += 1
    return text[:end]


def clean(text: str) -> str:
    """What can't be shown (control characters, which a terminal would obey and XML doesn't take) is replaced."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def clean_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(map(clean, text.split("\n")))


def columns(text: str) -> int:
    """How many columns of a terminal text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def some(words: list[str], most: int) -> list[str]:
    """All of a few; of many the first and how many more, in at most so many entries."""
    return words if len(words) <= most else [*words[: most - 1], f"and {len(words) - most + 1} more"]
