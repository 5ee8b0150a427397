"""A private host where a CNI runtime finds Atoll's plugins: real files, the real daemon, and the reference plugins that they replaced."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from tests.clients.cni_runtime import Attachment, Runtime, run_in
from tests.clients.neighbours_host import Host, need, private_host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.cni_runtime import Json

ATOLL: Final = f"{sys.prefix}/bin/atoll"
REFERENCE: Final = "/usr/lib/cni"
FOLDER: Final = "/opt/cni/bin"

_SETUP: Final = """
set -eu
mkdir -p /opt/cni/bin /run/netns
cp -a "$2"/. /opt/cni/bin
ip link add wire0 type veth peer name wire1
ip link set wire1 up
ip link set wire0 up
ip address add 198.51.100.1/24 dev wire0
"$1" cni install --replace --dir /opt/cni/bin
"""


class CniHost:
    """The host with a runtime and Atoll on it."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host, self._folder = host, folder
        self.cni = self._runtime(FOLDER)

    def _runtime(self, *path: str) -> Runtime:
        return Runtime(path, self._folder, execute=run_in(self.host.pid), root=f"/proc/{self.host.pid}/root")

    def with_path(self, *path: str) -> CniHost:
        """The same host, with a runtime that looks for plugins there."""
        self.cni = self._runtime(*path)
        return self

    def container(self, name: str, **more: Any) -> Attachment:
        self.host.run("ip", "netns", "add", name)
        return self.known(name, **more)

    @staticmethod
    def known(name: str, **more: Any) -> Attachment:
        """The same of one that is there."""
        return Attachment(f"id-{name}", f"/run/netns/{name}", **more)

    def atoll(self, *words: str) -> str:
        return self.host.run(ATOLL, *words)

    def shown(self, *words: str) -> Any:
        return json.loads(self.atoll(*words, "--format", "json"))

    def inside(self, pod: Attachment, *words: str) -> str:
        return self.host.run("ip", "netns", "exec", pod.netns.rpartition("/")[2], *words)

    def addresses(self, pod: Attachment) -> list[str]:
        """Those of its interface, with prefix length."""
        found = json.loads(self.inside(pod, "ip", "-j", "address", "show", pod.interface))[0]["addr_info"]
        return [f"{info['local']}/{info['prefixlen']}" for info in found if info["scope"] == "global"]


def conflist(*plugins: Json, name: str = "n1", version: str = "1.0.0") -> Json:
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


@contextlib.contextmanager
def cni_host(folder: Path) -> Iterator[CniHost]:
    need("ip", "nft", "unshare", "nsenter", f"{REFERENCE}/bridge", f"{REFERENCE}/host-local")
    with private_host() as host:
        host.run("sh", "-c", _SETUP, "setup", ATOLL, REFERENCE)
        yield CniHost(host, folder)
        host.runner([ATOLL, "daemon", "stop"])
