"""`python -P -m atoll.frontends.start`: start the daemon and end when it serves. What the forwarder runs when no daemon answers.

Ends with 0 and says nothing, or prints one line that says what went wrong. The daemon has a session of its own and none of the caller's
descriptors; for two callers at once, `starting.start_daemon` starts one.
"""

from __future__ import annotations

import sys

from atoll.errors import AtollError
from atoll.starting import running, start_daemon


def main() -> int:
    try:
        if not running():
            start_daemon()
    except AtollError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
