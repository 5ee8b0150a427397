"""The CNI front door: one function from a plugin's call to its answer (CNI spec 1.1.0).

A runtime executes a file for each plugin of a network configuration and each verb; the file hands what it was given to the daemon, which
calls `answer` on the engine's thread. What each plugin does is a module of `plugins`. What Atoll didn't make, or doesn't do, is left
to the plugin that stood at this place before, where there is one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from atoll.errors import AtollError, Denied, Failed, Invalid, NotFound, Unsupported
from atoll.frontends.call import Answer
from atoll.frontends.cni import refusal, words
from atoll.frontends.cni.plugins import PLUGINS
from atoll.frontends.cni.refusal import Refusal, Unknown, Unserved
from atoll.frontends.cni.results import form
from atoll.frontends.forwarder import REPLACED

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.call import Call
    from atoll.frontends.cni.words import Request


#: A file in the plugins' folder that `atoll cni uninstall` leaves as long as containers that we made go on: only their DEL is waited for.
RETIRED: Final = ".atoll-retired"


def answer(engine: Engine, call: Call) -> Answer:
    """Serve one plugin's call. Never raises for what the caller says: that is answered with the spec's error object."""
    version = words.version_said(call.stdin)
    try:
        request = words.read_request(call)
        if request.environment.command == "VERSION":
            return Answer(stdout=_versions(version))
        return Answer(stdout=_serve(engine, request))
    except (Unknown, Unserved) as refused:
        return _left_to_others(call, version, refused)
    except Refusal as refused:
        return _refused(version, refused)
    except AtollError as error:
        return _refused(version, Refusal(_code(error), error.what, error.hint))
    except OSError as error:
        return _refused(version, Refusal(refusal.IO_FAILURE, error.strerror or str(error), str(error.filename or "")))


def _serve(engine: Engine, request: Request) -> bytes:
    plugin = PLUGINS.get(request.plugin)
    if plugin is None:
        known = ", ".join(sorted(PLUGINS))
        raise Refusal(refusal.BAD_CONFIG, f"there is no plugin {request.plugin[:40]!r} in Atoll", f"it serves {known}")
    if request.environment.command in ("ADD", "STATUS") and os.path.exists(os.path.join(os.path.dirname(request.program), RETIRED)):
        raise Unserved("Atoll's plugins take no new containers here", "atoll cni install has them do so again")
    match request.environment.command:
        case "ADD":
            return form(plugin.add(engine, request), request.version)
        case "DEL":
            plugin.delete(engine, request)
        case "CHECK":
            plugin.check(engine, request)
        case "GC":
            plugin.gc(engine, request)
        case _:
            plugin.status(engine, request)
    return b""


def _left_to_others(call: Call, version: str, refused: Refusal) -> Answer:
    """What stood here before us does what we don't and knows what we don't. Where it is gone, deleting what isn't there is success."""
    folder, name = os.path.split(os.path.join(call.folder, call.program))
    replaced = os.path.join(folder, REPLACED, name)
    if os.path.isabs(replaced) and os.access(replaced, os.X_OK):
        return Answer(run=replaced)
    if isinstance(refused, Unknown) and call.environment.get("CNI_COMMAND") == "DEL":
        return Answer()
    return _refused(version, refused)


def _refused(version: str, refused: Refusal) -> Answer:
    return Answer(code=1, stdout=refusal.error_object(version, refused.code, refused.message, refused.details))


def _code(error: AtollError) -> int:
    match error:
        case Invalid():
            return refusal.BAD_CONFIG
        case NotFound():
            return refusal.UNKNOWN_CONTAINER
        case Unsupported():
            return refusal.UNSUPPORTED
        case Denied() | Failed():
            return refusal.IO_FAILURE
        case _:
            return refusal.OWN + error.exit_code


def _versions(version: str) -> bytes:
    return msgspec.json.encode({"cniVersion": version, "supportedVersions": words.VERSIONS}) + b"\n"
