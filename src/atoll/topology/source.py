"""YAML as a tree that remembers where everything was written, with Compose's variables put in.

Made for files that come from anywhere: size, depth and the number of nodes after aliases are bounded, tags are refused, nothing is ever
constructed but text, lists and maps. Every error names FILE:LINE:COLUMN.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import yaml

from atoll.errors import AtollError, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

#: Bytes of a file, levels of nesting, nodes with aliases written out.
_MOST_BYTES: Final = 256 * 1024
_MOST_DEPTH: Final = 32
_MOST_NODES: Final = 50_000
_KINDS: Final[dict[str, Kind]] = {"bool": "boolean", "int": "number", "float": "number", "null": "null"}
_TRUE: Final = ("true", "yes", "on", "y")
_FALSE: Final = ("false", "no", "off", "n")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Kind = Literal["text", "boolean", "number", "null"]


class Mark(NamedTuple):
    """A place in a file; lines and columns from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def error(self, what: str, expected: str = "") -> Invalid:
        return Invalid(f"{self}: {what}", expected)


class _Position(Protocol):
    """YAML's own mark; lines and columns from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class Scalar(NamedTuple):
    mark: Mark
    text: str
    kind: Kind = "text"


class List(NamedTuple):
    mark: Mark
    items: tuple[Node, ...]


class Map(NamedTuple):
    """`keys` has the mark of each key."""

    mark: Mark
    entries: dict[str, Node]
    keys: dict[str, Mark]


Node = Scalar | List | Map


@contextlib.contextmanager
def at(mark: Mark) -> Iterator[None]:
    """Errors of the model's own checks, with the place in the file."""
    try:
        yield
    except AtollError as error:
        raise Invalid(f"{mark}: {error.what}", error.hint) from None


def read(path: str) -> str:
    """A file's text. Raises `NotFound` or `Invalid`."""
    data = b""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise NotFound(f"no file {path}", "give one with -f") from None
    except OSError as error:
        raise Invalid(f"reading {path}: {error.strerror}", "give a file that can be read with -f") from None
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise Mark(path, line, column).error("not UTF-8", "expected text in UTF-8") from None
    if len(data) > _MOST_BYTES:
        raise Invalid(f"{path}:1:1: larger than {_MOST_BYTES // 1024} KiB", "split it up")
    return text


def parse(text: str, file: str, variables: Mapping[str, str]) -> Map:
    """The document's map. Raises `Invalid` for what isn't YAML, or more than a topology needs."""
    if len(text) > _MOST_BYTES:
        raise Mark(file, 1, 1).error(f"larger than {_MOST_BYTES // 1024} KiB", "split it up")
    try:
        _check_events(text, file)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = _mark(file, error.problem_mark or error.context_mark)
        raise mark.error(f"not YAML: {error.problem or error.context}", "expected a map of names to values") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        mark = Mark(file, line, error.position - text.rfind("\n", 0, error.position))
        raise mark.error(f"a character that YAML doesn't allow: #x{ord(str(error.character)[:1]):04x}", "expected printable text") from None
    if root is None:
        raise Mark(file, 1, 1).error("the file is empty", "expected services: and networks:")
    found = _Tree(file, variables).convert(root, 0)
    if not isinstance(found, Map):
        raise found.mark.error(f"a {describe(found)} where the document begins", "expected a map with services: and networks:")
    return found


def _check_events(text: str, file: str) -> None:
    """Depth and tags, before anything is built that would need the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        mark = _mark(file, event.start_mark)
        if depth > _MOST_DEPTH:
            raise mark.error(f"nested deeper than {_MOST_DEPTH} levels", "a topology needs no more")
        if tag := getattr(event, "tag", None):
            raise mark.error(f"a tag ({tag[:40]})", "expected plain values; tags aren't used")


def _mark(file: str, found: _Position | None) -> Mark:
    return Mark(file, 1, 1) if found is None else Mark(file, found.line + 1, found.column + 1)


class _Tree:
    def __init__(self, file: str, variables: Mapping[str, str]) -> None:
        self._file = file
        self._variables = variables
        self._nodes = 0

    def convert(self, node: yaml.Node, depth: int) -> Node:
        mark = self._mark(node)
        self._nodes += 1
        if self._nodes > _MOST_NODES or depth > _MOST_DEPTH:
            raise mark.error(f"more than {_MOST_NODES} values or {_MOST_DEPTH} levels once aliases are written out", "use fewer aliases")
        if isinstance(node, yaml.ScalarNode):
            kind = _KINDS.get(node.tag.rpartition(":")[2], "text")
            return Scalar(mark, interpolate(node.value, self._variables, mark), kind)
        if isinstance(node, yaml.SequenceNode):
            return List(mark, tuple(self.convert(item, depth + 1) for item in node.value))
        return self._map(node, mark, depth)

    def _map(self, node: yaml.Node, mark: Mark, depth: int) -> Map:
        entries: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        merged: list[Map] = []
        for key, value in node.value:
            where = self._mark(key)
            if not isinstance(key, yaml.ScalarNode):
                raise where.error("a key that isn't a plain word", "expected a name")
            if key.tag.endswith(":merge"):
                merged += self._merged(self.convert(value, depth + 1))
                continue
            if key.value in entries:
                raise where.error(f"{key.value!r} is here twice", f"it was at line {keys[key.value].line} already")
            entries[key.value] = self.convert(value, depth + 1)
            keys[key.value] = where
        for other in merged:  # what is written here wins, then the first that is merged
            for name, found in other.entries.items():
                if name not in entries:
                    entries[name], keys[name] = found, other.keys[name]
        return Map(mark, entries, keys)

    def _merged(self, value: Node) -> list[Map]:
        items = value.items if isinstance(value, List) else (value,)
        for item in items:
            if not isinstance(item, Map):
                raise item.mark.error(f"a {describe(item)} to merge", "expected a map, or a list of maps")
        return [item for item in items if isinstance(item, Map)]

    def _mark(self, node: yaml.Node) -> Mark:
        return _mark(self._file, node.start_mark)


# --- variables -----------------------------------------------------------------------------------------------------------------------


def interpolate(text: str, variables: Mapping[str, str], mark: Mark) -> str:
    """Compose's `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?error}`, `${NAME:+other}` and `$$`."""
    if "$" not in text:
        return text
    result, end = _expand(text, 0, variables, mark, nested=False)
    assert end == len(text)  # noqa: S101
    return result


def _expand(text: str, at_: int, variables: Mapping[str, str], mark: Mark, *, nested: bool) -> tuple[str, int]:
    """Up to the end of the text, or to the brace that closes a default."""
    parts: list[str] = []
    while at_ < len(text):
        if nested and text[at_] == "}":
            break
        if text[at_] != "$":
            parts.append(text[at_])
            at_ += 1
        elif text.startswith("$$", at_):
            parts.append("$")
            at_ += 2
        elif text.startswith("${", at_):
            value, at_ = _braced(text, at_ + 2, variables, mark)
            parts.append(value)
        elif match := _VARIABLE.match(text, at_ + 1):
            parts.append(variables.get(match[0], ""))
            at_ = match.end()
        else:
            raise mark.error(f"a $ that begins no variable in {text[:60]!r}", "expected $NAME, ${NAME} or, for a dollar, $$")
    return "".join(parts), at_


def _braced(text: str, at_: int, variables: Mapping[str, str], mark: Mark) -> tuple[str, int]:
    name = _VARIABLE.match(text, at_)
    operator = re.compile(r":?[-?+]|(?=\})").match(text, name.end()) if name else None
    if name is None or operator is None:
        raise mark.error(f"{text[:60]!r} has a variable that isn't one", "expected ${NAME}, ${NAME:-default} or ${NAME:?error}")
    other, end = _expand(text, operator.end(), variables, mark, nested=True)
    if end >= len(text):
        raise mark.error(f"a variable in {text[:60]!r} is not closed", "expected }")
    value = variables.get(name[0])
    is_set = bool(value) if operator[0].startswith(":") else value is not None
    if operator[0].endswith("?") and not is_set:
        raise mark.error(f"variable {name[0]} is not set{': ' + other if other else ''}", "set it in the environment or in .env")
    if operator[0].endswith("+"):
        return (other if is_set else ""), end + 1
    return (value or "" if is_set or not operator[0] else other), end + 1


def dotenv(path: str) -> dict[str, str]:
    """`NAME=value` lines, as in .env files: comments, `export`, quotes. Raises `NotFound` or `Invalid`."""
    found: dict[str, str] = {}
    for number, raw in enumerate(read(path).splitlines(), 1):
        line = raw.strip().removeprefix("export ").lstrip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not _VARIABLE.fullmatch(name):
            raise Invalid(f"{path}:{number}:1: {name[:40]!r} is not a variable's name", "expected NAME=value")
        if not separator:
            found[name] = os.environ.get(name, "")
        elif value[:1] in ("'", '"') and (end := value.find(value[0], 1)) > 0:
            found[name] = value[1:end]
        else:
            found[name] = re.split(r"\s#", value, maxsplit=1)[0].rstrip()
    return found


# --- reading the tree ----------------------------------------------------------------------------------------------------------------


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.kind == "null"


def describe(node: Node) -> str:
    return {Map: "map", List: "list"}.get(type(node), node.kind if isinstance(node, Scalar) else "")


def as_map(node: Node, what: str) -> Map:
    """A map; nothing at all is an empty one."""
    if is_null(node):
        return Map(node.mark, {}, {})
    if not isinstance(node, Map):
        raise node.mark.error(f"{what} is a {describe(node)}", "expected a map")
    return node


def as_list(node: Node, what: str) -> tuple[Node, ...]:
    if is_null(node):
        return ()
    if not isinstance(node, List):
        raise node.mark.error(f"{what} is a {describe(node)}", "expected a list")
    return node.items


def as_text(node: Node, what: str) -> str:
    """Text as it was written, so that 1.10 or a MAC address needs no quotes."""
    if not isinstance(node, Scalar) or node.kind == "null":
        raise node.mark.error(f"{what} is {'empty' if isinstance(node, Scalar) else 'a ' + describe(node)}", "expected text")
    return node.text


def as_boolean(node: Node, what: str) -> bool:
    text = node.text.lower() if isinstance(node, Scalar) else ""
    if text not in (*_TRUE, *_FALSE):
        raise node.mark.error(f"{what} is neither true nor false", "expected true or false")
    return text in _TRUE


def as_number(node: Node, what: str, low: int, high: int) -> int:
    text = node.text if isinstance(node, Scalar) else ""
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise node.mark.error(f"{what} is not a whole number from {low} to {high}", "expected such a number")
    return int(text)


def as_texts(node: Node, what: str) -> list[str]:
    """A list of text; one text is a list of one."""
    items = (node,) if isinstance(node, Scalar) else as_list(node, what)
    return [as_text(item, what) for item in items]


def as_pairs(node: Node, what: str) -> dict[str, str]:
    """A map of text, or a list of `NAME=value`. A name without a value has an empty one."""
    if isinstance(node, List):
        return {name: value for name, _, value in (as_text(item, what).partition("=") for item in node.items)}
    return {name: "" if is_null(value) else as_text(value, f"{what} {name}") for name, value in as_map(node, what).entries.items()}


def check_keys(found: Map, known: Collection[str], what: str) -> None:
    """Raises `Invalid` for a key that nobody knows, with the one that was meant."""
    for key, mark in found.keys.items():
        if key in known or key.startswith("x-"):
            continue
        close = difflib.get_close_matches(key, list(known), 1)
        raise mark.error(
            f"{key[:60]!r} is unknown in {what}", f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        )
