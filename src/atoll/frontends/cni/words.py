"""CNI's words: what a runtime says to a plugin, and in which form it is answered (CNI spec 1.1.0, sections 2 to 5).

Results are in `results.py`, and what is answered instead of one in `refusal.py`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from atoll.frontends.cni.refusal import BAD_CONFIG, BAD_ENVIRONMENT, INCOMPATIBLE, UNDECODABLE, Refusal, convert
from atoll.frontends.cni.results import Result, read_result

if TYPE_CHECKING:
    from atoll.frontends.call import Call

T = TypeVar("T")

#: The versions of the specification that we speak, oldest first. A configuration without one is of the oldest (libcni does the same).
VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
#: Since when there is a verb at all.
SINCE: Final = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

#: What a verb must be told (spec, section 2, "CNI operations"). NETNS of DEL may be missing or empty.
_NEEDS: Final = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
    "VERSION": (),
}
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_MOST_BYTES: Final = 1 << 20
#: So that an attachment is no longer than what the engine takes for an owner.
_LONGEST: Final = 230
#: The words of CNI_ARGS that we know; Kubernetes' runtimes always send theirs.
_ARGUMENTS: Final = ("IP", "MAC", "GATEWAY", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID")


class Environment(Struct, frozen=True):
    """The CNI_* variables, checked; `arguments` are CNI_ARGS."""

    command: str
    container: str = ""
    netns: str = ""
    interface: str = ""
    arguments: dict[str, str] = {}


class Valid(Struct, frozen=True):
    """An attachment that a GC must keep."""

    container: str = field(name="containerID")
    interface: str = field(name="ifname")


class Common(Struct, frozen=True):
    """What every plugin's configuration may have; the structs of single plugins inherit it."""

    cni_version: str = field(name="cniVersion", default="")
    name: str = ""
    type: str = ""


class _Frame(Common, frozen=True):
    valid: tuple[Valid, ...] | None = field(name="cni.dev/valid-attachments", default=None)
    older_valid: tuple[Valid, ...] | None = field(name="cni.dev/attachments", default=None)


class Request(Struct, frozen=True):
    """One call of one plugin, checked as far as all plugins have it in common.

    `plugin` is the name under which it was called, `network` the name of the network configuration, `previous` the result of the plugins
    before it (or, of DEL and CHECK, the last result of all); `valid` are a GC's attachments to keep, as (container id, interface).
    """

    plugin: str
    program: str
    version: str
    network: str
    environment: Environment
    configuration: dict[str, Any]
    previous: Result | None = None
    valid: frozenset[tuple[str, str]] = frozenset()

    @property
    def owner(self) -> str:
        """What the attachment's endpoint is known by: `Endpoint.owner`."""
        return owner_of(self.environment.container, self.environment.interface)

    def read(self, kind: type[T]) -> T:
        """The configuration as a struct. Raises `Refusal` where it isn't one."""
        return convert(kind, self.configuration)


def owner_of(container: str, interface: str) -> str:
    return f"cni:{container}/{interface}"


def attachment_of(owner: str) -> tuple[str, str]:
    """Container id and interface: the way back from `owner_of`. A container id has no slash."""
    container, _, interface = owner.removeprefix("cni:").partition("/")
    return container, interface


def version_said(stdin: bytes) -> str:
    """The version that an answer to this input is in, however bad the rest is."""
    try:
        found = _value(_decode(stdin), "cniVersion")
    except Refusal:
        return VERSIONS[-1]
    return found if found in VERSIONS else VERSIONS[-1]


def read_request(call: Call) -> Request:
    """Everything that is checked for all plugins alike. Raises `Refusal`."""
    environment = _environment(call.environment, call.folder)
    raw = _decode(call.stdin)
    frame = convert(_Frame, raw)
    version = frame.cni_version or VERSIONS[0]
    program = os.path.join(call.folder, call.program)
    plugin = os.path.basename(program)
    if environment.command == "VERSION":
        return Request(plugin, program, version, frame.name, environment, raw)
    _check_version(version, environment.command)
    if not _NAME.match(frame.name) or len(frame.name) > _LONGEST:
        raise Refusal(
            BAD_CONFIG, f"{frame.name[:80]!r} is not a network's name", "letters, digits, '_', '.' or '-', the first a letter or digit"
        )
    previous = _value(raw, "prevResult")
    if environment.command == "CHECK" and previous is None:
        raise Refusal(BAD_CONFIG, "CHECK needs the result of ADD", "prevResult is missing in the configuration")
    kept: tuple[Valid, ...] = ()
    if environment.command == "GC":
        found = frame.valid if frame.valid is not None else frame.older_valid
        if found is None:
            # Nothing said is not the same as nothing valid: that would take away everything.
            raise Refusal(BAD_CONFIG, "GC needs to know what to keep", "cni.dev/valid-attachments is missing in the configuration")
        kept = found
    return Request(
        plugin=plugin,
        program=program,
        version=version,
        network=frame.name,
        environment=environment,
        configuration=raw,
        previous=read_result(previous) if previous is not None else None,
        valid=frozenset((one.container, one.interface) for one in kept),
    )


def _decode(stdin: bytes) -> dict[str, Any]:
    if len(stdin) > _MOST_BYTES:
        raise Refusal(UNDECODABLE, f"the network configuration has {len(stdin)} bytes", f"at most {_MOST_BYTES} are read")
    try:
        found = msgspec.json.decode(stdin)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(UNDECODABLE, "the network configuration is not JSON", str(error)) from None
    except RecursionError:
        raise Refusal(UNDECODABLE, "the network configuration is nested too deeply") from None
    if not isinstance(found, dict):
        raise Refusal(UNDECODABLE, "the network configuration is not a JSON object")
    return found


def _value(raw: dict[str, Any], name: str) -> Any:
    """The value of a key that is no struct's; None when it is missing or null."""
    found = None
    for key, value in raw.items():
        if value is not None and key.lower() == name.lower():
            found = value
    return found


def _environment(words: dict[str, str], folder: str) -> Environment:
    command = words.get("CNI_COMMAND", "")
    if command not in _NEEDS:
        what = f"CNI_COMMAND {command[:40]!r} is unknown" if command else "required env variables [CNI_COMMAND] missing"
        raise Refusal(BAD_ENVIRONMENT, what, f"expected one of {', '.join(_NEEDS)}")
    missing = [name for name in _NEEDS[command] if not words.get(name)]
    if missing:
        raise Refusal(BAD_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    made = Environment(command, words.get("CNI_CONTAINERID", ""), words.get("CNI_NETNS", ""), words.get("CNI_IFNAME", ""))
    if made.container and (not _NAME.match(made.container) or len(made.container) > _LONGEST):
        raise Refusal(
            BAD_ENVIRONMENT, f"CNI_CONTAINERID {made.container[:80]!r} is not a container's id", "letters, digits, '_', '.' or '-'"
        )
    if made.interface and not is_interface(made.interface):
        raise Refusal(
            BAD_ENVIRONMENT, f"CNI_IFNAME {made.interface[:80]!r} is not an interface's name", "1 to 15 bytes, no '/', ':' or space"
        )
    if made.netns and (len(made.netns) > 4000 or not made.netns.isprintable()):
        raise Refusal(BAD_ENVIRONMENT, f"CNI_NETNS {made.netns[:80]!r} is not a path")
    path = os.path.join(folder, made.netns) if made.netns else ""
    if path and not path.startswith("/"):
        raise Refusal(BAD_ENVIRONMENT, f"CNI_NETNS {made.netns[:80]!r} is not an absolute path")
    return msgspec.structs.replace(made, netns=path, arguments=_arguments(words.get("CNI_ARGS", "")))


def is_interface(name: str) -> bool:
    """As the kernel has it (dev_valid_name in net/core/dev.c), and nothing that can't be shown: bytes that aren't UTF-8."""
    return name.isprintable() and 0 < len(name.encode()) <= 15 and name not in (".", "..") and not re.search(r"[/:\s\0]", name)


def _arguments(text: str) -> dict[str, str]:
    """CNI_ARGS: `KEY=VALUE;KEY=VALUE`. A key that is unknown is an error, unless IgnoreUnknown says otherwise."""
    found: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise Refusal(BAD_ENVIRONMENT, f"CNI_ARGS: {pair[:80]!r} is not KEY=VALUE")
        found[key] = value
    lenient = found.pop("IgnoreUnknown", "").lower() in ("1", "true")
    strangers = [key for key in found if key not in _ARGUMENTS]
    if strangers and not lenient:
        raise Refusal(BAD_ENVIRONMENT, f"CNI_ARGS: unknown args {strangers[:8]}", "IgnoreUnknown=1 has them ignored")
    return {key: value for key, value in found.items() if key in _ARGUMENTS}


def _check_version(version: str, command: str) -> None:
    if version not in VERSIONS:
        raise Refusal(INCOMPATIBLE, "incompatible CNI versions", f'config is "{version[:40]}", plugin supports {list(VERSIONS)}')
    since = SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise Refusal(INCOMPATIBLE, f"config version {version} does not allow {command}", f"{command} came with {since}")
