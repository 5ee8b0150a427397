"""The runner: makes a private place, runs the rows there one after the other, prints the figures and writes them down."""

from __future__ import annotations

import argparse
import os
import sys

from atoll.errors import AtollError
from bench import page, private, stats
from bench.rows import FULL, QUICK, ROWS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Atoll beside the bare kernel and its peers.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these: {', '.join(row.key for row in ROWS)}")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, to see that all works")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and docs/benchmarks.svg (all rows, not --quick)")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - {row.key for row in ROWS}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(row.key for row in ROWS)}")
    if arguments.write and (arguments.rows or arguments.quick):
        parser.error("--write takes the figures of one whole run: leave out the rows and --quick")
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    private.prepare()
    load = os.getloadavg()[0]
    effort = QUICK if arguments.quick else FULL
    chosen = [row for row in ROWS if not arguments.rows or row.key in arguments.rows]
    print(page.machine(load), end="\n\n")
    results = []
    for row in chosen:
        result = row.run(effort)
        print(stats.section(result), f"\n({result.seconds:.1f} s)\n", flush=True)
        results.append(result)
    print(stats.summary(results, judge=not arguments.quick))
    if arguments.write:
        page.write(private.DOCS, results, load)


def main() -> int:
    arguments = _arguments()
    try:
        if not private.is_private():
            return private.run_inside(sys.argv[1:])
        _run(arguments)
    except AtollError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
