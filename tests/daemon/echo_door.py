"""A door for tests: it answers with what it was asked, or does what the call's stdin says, a JSON object.

{"say": {...}}      the fields of the answer; stdout and stderr are text, and stdout comes "times" times
{"run": "exit"}     end the daemon at once, in the middle of the call; "exit once" only if CNI_ARGS says so
{"run": "hang"}     don't answer
{"run": "raise"}    a defect of the door
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import msgspec

from atoll.frontends.call import Answer

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.call import Call


def answer(engine: Engine, call: Call) -> Answer:
    try:
        wish = json.loads(call.stdin)
    except ValueError:
        wish = {}
    if not isinstance(wish, dict):
        wish = {}
    match wish.get("run"):
        case "exit":
            os._exit(9)
        case "hang":
            time.sleep(3600)
        case "raise":
            raise RuntimeError("a defect")
    if path := wish.get("wait"):
        while not os.path.exists(path):
            time.sleep(0.005)
    if path := wish.get("make"):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    if say := wish.get("say"):
        stdout = say.get("stdout", "").encode() * say.get("times", 1)
        return Answer(say.get("code", 0), stdout, say.get("stderr", "").encode(), say.get("run", ""))
    return Answer(stdout=msgspec.json.encode({"pid": os.getpid(), "call": _readable(call)}))


def _readable(call: Call) -> object:
    """As JSON, with surrogate escapes as `\\udcXX` in the text."""
    plain = {name: getattr(call, name) for name in ("door", "program", "arguments", "environment", "folder")}
    plain["stdin"] = call.stdin.decode("latin-1")
    return json.loads(json.dumps(plain).encode("ascii").replace(b"\\ud", b"\\\\ud"))
