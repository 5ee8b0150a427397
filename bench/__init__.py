"""Atoll's benchmarks: the engine, the kernel's own cost and the peers, side by side on one machine.

    python -m bench                     every row, a table on the terminal (root, less than 12 minutes)
    python -m bench --quick             the same with smaller numbers (less than 2 minutes)
    python -m bench connect path        only these rows
    python -m bench --write             every row, and docs/benchmarks.md with docs/benchmarks.svg

What is measured is the checkout that holds this package. Everything runs in network, mount and process namespaces of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

if str(REPOSITORY / "src") not in sys.path:
    sys.path.insert(0, str(REPOSITORY / "src"))
