"""The pages of the documentation as what can be run: commands with the output that they promise, and Python.

    ```console      `# ` begins root's command, `$ ` an ordinary user's; the lines below it are its output
    ```python       all blocks of a page are one program; `print(x)  # 1` promises the line `1`
    <!-- before ... -->     commands that a reader doesn't see, one a line, whatever they print

In promised output `...` stands for anything within a line, or, alone in a line, for any number of lines. What differs from run to run
by itself (ids, MAC addresses, pids, times) may be there as it once was.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK: Final = re.compile(r"^```(console|python)\n(.*?)^```$|^<!-- (before)\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
_PRINT: Final = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)

#: What differs from run to run, and what stands for it in both texts when they are compared.
_VARIES: Final = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'("(?:created|started|time|inode|pid)": ?)[0-9.]+', r"\1N"),
        (r"(?<![0-9a-f])[0-9a-f]{10}(?![0-9a-f])|(?<=\bat[bvti])[0-9a-f]{10}", "ID"),
        (r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "MAC"),
        (r"\b\d\d:\d\d:\d\d\b", "CLOCK"),
        (r"(?<== )\d+\.\d+(/\d+\.\d+){3}", "N"),
        (r"\b\d+(\.\d+)?( ?)ms\b", r"N\2ms"),
        (r"\b(daemon |pid[ :]|/proc/)\d+", r"\1PID"),
        (r"@if\d+\b", "@ifN"),
        (r"\b(up )?\d+s\b", r"\1AGE"),
        (r"\bfd[0-9a-f]{2}:[0-9a-f]{1,4}:[0-9a-f]{1,4}:[0-9a-f]{1,4}::", "ULA::"),
        (r"\bfe80::[0-9a-f:]+", "fe80::N"),
        (r"0xf[de][0-9a-f]{30}", "0xV6"),
        (r"(?<=\S) {2,}", "  "),  # columns are as wide as what is in them
    )
]


class Block(NamedTuple):
    """`line` is that of the block's first line of text in the page, from 1."""

    kind: Literal["console", "python", "before"]
    line: int
    text: str


class Step(NamedTuple):
    """A command; `expected` is None when it may print what it likes."""

    line: int
    command: str
    expected: str | None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1] or match[3], text.count("\n", 0, match.start()) + 2, match[2] or match[4])  # type: ignore[arg-type]
        for match in _BLOCK.finditer(text)
    ]


def has(page: Path, kind: str) -> bool:
    return any(block.kind == kind for block in blocks(page))


def steps(page: Path) -> list[Step]:
    """What a reader of the page types, in order."""
    found: list[Step] = []
    for block in blocks(page):
        if block.kind == "before":
            found += [Step(block.line + offset, line, None) for offset, line in enumerate(block.text.splitlines())]
        elif block.kind == "console":
            found += _console(block)
    return found


def _console(block: Block) -> list[Step]:
    found: list[Step] = []
    continued = False
    for offset, line in enumerate(block.text.splitlines()):
        if continued:
            found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line}")
        elif line.startswith(("# ", "$ ")):
            found.append(Step(block.line + offset, line[2:], ""))
        else:
            assert found, f"line {block.line + offset} is output of no command"
            found[-1] = found[-1]._replace(expected=f"{found[-1].expected}{line}\n")
        continued = line.endswith("\\") and (continued or line.startswith(("# ", "$ ")))
    return found


def needs_docker(page: Path) -> bool:
    """Whether dockerd must run on the host (tests/clients)."""
    return any(step.command.startswith("docker ") for step in steps(page))


def needs_podman(page: Path) -> bool:
    """Whether Podman must be on the host, and nothing of the machine's (tests/clients)."""
    return any(step.command.startswith(("podman ", "atoll podman ")) for step in steps(page))


def is_for_root(page: Path) -> bool:
    """Whose commands a page shows; one page shows one person's."""
    prompts = {line[0] for block in blocks(page) if block.kind == "console" for line in block.text.splitlines() if line[:2] in ("# ", "$ ")}
    assert len(prompts) == 1, "commands of root and of an ordinary user are on one page"
    return prompts == {"#"}


def program(page: Path) -> tuple[str, str]:
    """The page's Python, each line where it is in the page so that a traceback leads there, and the output that it promises."""
    lines: list[str] = []
    expected = ""
    for block in blocks(page):
        if block.kind == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
            expected += "".join(f"{promise}\n" for promise in _PRINT.findall(block.text))
    return "\n".join(lines) + "\n", expected


def matches(expected: str, output: str) -> bool:
    for varying, replacement in _VARIES:
        expected, output = varying.sub(replacement, expected), varying.sub(replacement, output)
    pattern = "".join(map(_pattern, expected.splitlines()))
    return re.fullmatch(pattern, output if output.endswith("\n") or not output else f"{output}\n") is not None


def _pattern(line: str) -> str:
    return r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line).replace(r"\.\.\.", ".*?") + r"[ \t]*\n"
