"""Each worked example does what it says; it fails by itself when it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("example", "last"),
    [
        ("lab_loss.py", "over UDP: some of 100 datagrams were lost"),
        ("lab_nat.py", "by its own address it is out of reach"),
        ("lab_partition.py", "healed: all three say blue"),
    ],
)
def test_a_worked_example_runs_to_its_end(host: None, example: str, last: str) -> None:
    if example == "lab_partition.py" and not (shutil.which("etcd") and shutil.which("etcdctl")):
        pytest.skip("etcd or etcdctl is not installed")
    done = subprocess.run([sys.executable, EXAMPLES / example], capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == last
