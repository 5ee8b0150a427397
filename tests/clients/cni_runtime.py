"""A CNI runtime for tests: what libcni (containerd, CRI-O, cnitool) does with a network configuration list, and no more.

It runs each plugin of the list in its order with the result so far as `prevResult`, gives it those of the runtime's capabilities that
it declares, keeps the last result, and takes away in reverse order with that result (CNI spec 1.1, sections 3 and 4; libcni/api.go).
Plugins are executed by one function, so the same lists run against files on disk and against a front door in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

#: What the runtime says to a plugin beside its configuration: program, environment and standard input; exit code and output come back.
Execute = Callable[[str, Mapping[str, str], bytes], tuple[int, bytes, bytes]]

_PLUGIN_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")


class CniError(Exception):
    """A plugin said no: its error object (spec, section 5), or what it printed instead of one."""

    def __init__(self, plugin: str, verb: str, exit_code: int, answer: Json) -> None:
        self.plugin, self.verb, self.exit_code, self.answer = plugin, verb, exit_code, answer
        self.code: int = answer.get("code", 999)
        self.msg: str = answer.get("msg", "")
        self.details: str = answer.get("details", "")
        super().__init__(f"{plugin} {verb}: code {self.code}: {self.msg} {self.details}".rstrip())


class Attachment(NamedTuple):
    """One interface of one container, and what the runtime says of it: CNI_ARGS and the values for capabilities."""

    container: str
    netns: str
    interface: str = "eth0"
    arguments: Mapping[str, str] = {}
    capabilities: Mapping[str, Any] = {}


def run_file(program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """The plugin as a process; it sees the caller's PATH and what CNI says, nothing else."""
    surroundings = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([program], env=surroundings, input=stdin, capture_output=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def run_in(pid: int, *, also: Mapping[str, str] | None = None) -> Execute:
    """The plugin as a process on the private host of which `pid` is the first one; `also` are further words of its environment."""

    def execute(program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        surroundings = {"PATH": os.environ["PATH"], **(also or {}), **environment}
        argv = ["nsenter", "-t", str(pid), "-n", "-m", f"--pid=/proc/{pid}/ns/pid_for_children", "--", program]
        done = subprocess.run(argv, env=surroundings, input=stdin, capture_output=True, check=False, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return execute


class Runtime:
    """`path` is CNI_PATH: where plugins lie, in a place that `there` may look at otherwise than this process does (a private host's
    files under /proc/PID/root). `cache` is where results are kept, libcni's /var/lib/cni/results."""

    def __init__(self, path: Sequence[str], cache: Path, *, execute: Execute = run_file, root: str = "") -> None:
        self._path, self._cache, self._execute, self._root = list(path), cache, execute, root

    # --- the verbs for an attachment ---

    def add(self, network: Json, attachment: Attachment) -> Json:
        """The final result, which is kept. What a failed one leaves is the caller's to delete, as in libcni."""
        result: Json | None = None
        for plugin in network["plugins"]:
            result = self._run("ADD", network, plugin, attachment, result)
        assert result is not None, "a list has a plugin"
        record = {"kind": "cniCacheV1", "networkName": network["name"], "containerId": attachment.container, "ifName": attachment.interface}
        record |= {"netns": attachment.netns, "cniArgs": dict(attachment.arguments), "capabilityArgs": dict(attachment.capabilities)}
        record |= {"config": network, "result": result}
        file = self._file(network, attachment)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))
        return result

    def delete(self, network: Json, attachment: Attachment) -> None:
        """In reverse order; without a kept result there is no prevResult."""
        previous = self.kept(network, attachment) if _since(network, "0.4.0") else None
        for plugin in reversed(network["plugins"]):
            self._run("DEL", network, plugin, attachment, previous)
        self._file(network, attachment).unlink(missing_ok=True)

    def check(self, network: Json, attachment: Attachment) -> None:
        assert _since(network, "0.4.0"), "CHECK came with 0.4.0"
        if network.get("disableCheck"):
            return
        previous = self.kept(network, attachment)
        for plugin in network["plugins"]:
            self._run("CHECK", network, plugin, attachment, previous)

    # --- the verbs for a network ---

    def garbage_collect(self, network: Json, valid: Iterable[tuple[str, str]]) -> list[CniError]:
        """Keep these attachments, as (container, interface), and nothing else of the network. All plugins are asked, whatever fails."""
        keep = set(valid)
        errors: list[CniError] = []
        for file in sorted(self._cache.glob(f"{network['name']}-*")):
            kept = json.loads(file.read_text())
            if kept["networkName"] == network["name"] and (kept["containerId"], kept["ifName"]) not in keep:
                stale = Attachment(kept["containerId"], kept["netns"], kept["ifName"], kept["cniArgs"], kept["capabilityArgs"])
                with _collected(errors):
                    self.delete(kept["config"], stale)
        if _since(network, "1.1.0") and not network.get("disableGC"):
            alive = [{"containerID": container, "ifname": interface} for container, interface in sorted(keep)]
            for plugin in network["plugins"]:
                words = {"cni.dev/valid-attachments": alive, "cni.dev/attachments": alive}
                with _collected(errors):
                    self._execute_plugin("GC", plugin["type"], self._config(network, plugin) | words, {})
        return errors

    def status(self, network: Json) -> None:
        """Raises `CniError` for the first plugin that isn't ready. Versions before 1.1.0 don't have it."""
        if _since(network, "1.1.0"):
            for plugin in network["plugins"]:
                self._execute_plugin("STATUS", plugin["type"], self._config(network, plugin), {})

    def versions(self, plugin: str, version: str = "1.0.0") -> list[str]:
        answer = self._execute_plugin("VERSION", plugin, {"cniVersion": version}, {})
        assert answer is not None
        return list(answer["supportedVersions"])

    # --- parts ---

    def kept(self, network: Json, attachment: Attachment) -> Json | None:
        try:
            return dict(json.loads(self._file(network, attachment).read_text())["result"])
        except FileNotFoundError:
            return None

    def raw(self, verb: str, plugin: str, config: object, environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
        """One call as it is, with CNI_COMMAND and CNI_PATH added where `environment` says nothing of them: for calls that no runtime
        would make. `config` is sent as it is if it is bytes, else as JSON."""
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        words = {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self._path)} | dict(environment)
        return self._execute(self._find(plugin), words, stdin)

    def _run(self, verb: str, network: Json, plugin: Json, attachment: Attachment, previous: Json | None) -> Json | None:
        config = self._config(network, plugin)
        declared = plugin.get("capabilities", {})
        given = {name: value for name, value in attachment.capabilities.items() if declared.get(name)}
        if given:
            config["runtimeConfig"] = given
        if previous is not None:
            config["prevResult"] = previous
        environment = {
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": attachment.interface,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.arguments.items()),
        }
        return self._execute_plugin(verb, plugin["type"], config, environment)

    def _config(self, network: Json, plugin: Json) -> Json:
        kept = {key: value for key, value in plugin.items() if key != "capabilities"}
        return kept | {"name": network["name"], "cniVersion": network["cniVersion"]}

    def _execute_plugin(self, verb: str, plugin: str, config: Json, environment: Mapping[str, str]) -> Json | None:
        code, out, words = self.raw(verb, plugin, config, environment)
        if code != 0:
            try:
                answer = dict(json.loads(out))
            except ValueError:
                answer = {"msg": f"no error object: {out.decode(errors='replace')}", "details": words.decode(errors="replace")}
            raise CniError(plugin, verb, code, answer)
        return dict(json.loads(out)) if out.strip() else None

    def _find(self, plugin: str) -> str:
        assert _PLUGIN_NAME.match(plugin), f"{plugin!r} is not a plugin's name"
        for folder in self._path:
            if os.path.isfile(f"{self._root}{folder}/{plugin}"):
                return f"{folder}/{plugin}"
        raise FileNotFoundError(f"failed to find plugin {plugin!r} in path {self._path}")

    def _file(self, network: Json, attachment: Attachment) -> Path:
        return self._cache / f"{network['name']}-{attachment.container}-{attachment.interface}"


@contextlib.contextmanager
def _collected(errors: list[CniError]) -> Iterator[None]:
    try:
        yield
    except CniError as error:
        errors.append(error)


def _since(network: Json, version: str) -> bool:
    return _numbers(network["cniVersion"]) >= _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
