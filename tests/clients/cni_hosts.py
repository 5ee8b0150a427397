"""CNI runtimes in a host of their own: Podman with libcni, and containerd with go-cni. What they write to is theirs alone."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from tests.clients.neighbours_host import Host, need, private_host
from tests.clients.podman_host import PodmanHost, podman_host

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The distribution's plugins, as a copy that may be replaced.
FOLDER: Final = "/usr/lib/cni"
PLUGINS: Final = f"""
set -eu
mkdir -p /run/plugins /run/netns
cp -a {FOLDER}/. /run/plugins
mount --bind /run/plugins {FOLDER}
"""
_CNI_BACKEND: Final = """
set -eu
sed -i 's/network_backend = .*/network_backend = "cni"/' /etc/containers/containers.conf
rm -f /var/lib/containers/storage/defaultNetworkBackend
"""

_CONTAINERD: Final = """
set -eu
mkdir -p /opt/cni /run/containerd /var/lib/containerd /tmp/image/bin /tmp/archive
ln -s /usr/lib/cni /opt/cni/bin
rm -rf /etc/cni/net.d
cp "$(command -v busybox)" /tmp/image/bin/busybox
for applet in $(/tmp/image/bin/busybox --list); do ln -s busybox /tmp/image/bin/$applet || true; done
tar -C /tmp/image -cf /tmp/archive/layer.tar .
cd /tmp/archive
digest=$(sha256sum layer.tar | cut -d' ' -f1)
cat >config.json <<END
{"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
END
cat >manifest.json <<END
[{"Config": "config.json", "RepoTags": ["localhost/busybox:latest"], "Layers": ["layer.tar"]}]
END
tar -cf /tmp/image.tar manifest.json config.json layer.tar
"""
_IMAGE: Final = "localhost/busybox:latest"


@contextlib.contextmanager
def podman_with_cni() -> Iterator[PodmanHost]:
    need(f"{FOLDER}/bridge", f"{FOLDER}/portmap")
    with podman_host() as there:
        there.host.run("sh", "-c", PLUGINS)
        there.host.run("sh", "-c", _CNI_BACKEND)
        yield there


class ContainerdHost:
    """The host with `ctr` and `atoll` on it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def atoll(self, *argv: str) -> str:
        return self.host.run(*PodmanHost.command(*argv))

    def shown(self, *argv: str) -> Any:
        """What one of Atoll's commands says as JSON."""
        return json.loads(self.atoll(*argv, "--format", "json"))

    def start(self) -> None:
        self.host.start("containerd", "containerd", "--root", "/var/lib/containerd", "--state", "/run/containerd")
        self.host.wait_for("containerd to answer", lambda: self.host.runner(["ctr", "version"])[0] == 0)

    def ctr(self, *argv: str) -> str:
        return self.host.run("ctr", *argv)

    def run(self, name: str) -> str:
        """A container with an interface by CNI, that runs on; its address."""
        self.ctr("run", "-d", "--snapshotter", "native", "--cni", _IMAGE, name, "sleep", "1000")
        found: list[dict[str, Any]] = json.loads(self.inside(name, "ip", "-j", "address"))
        return str(next(one["local"] for link in found if link["ifname"] == "eth0" for one in link["addr_info"] if one["family"] == "inet"))

    def inside(self, name: str, *argv: str) -> str:
        """One of the host's programs in the container's network namespace."""
        return self.host.run("nsenter", "-t", self._task(name)[1], "-n", "--", *argv)

    def remove(self, name: str) -> None:
        self.ctr("task", "kill", "-s", "SIGKILL", name)
        self.host.wait_for(f"{name} to end", lambda: self._task(name)[2] == "STOPPED")
        self.ctr("task", "delete", name)
        self.ctr("container", "delete", name)

    def _task(self, name: str) -> list[str]:
        return next(row for row in map(str.split, self.ctr("task", "ls").splitlines()) if row[0] == name)


@contextlib.contextmanager
def containerd_host() -> Iterator[ContainerdHost]:
    need("containerd", "ctr", "runc", "busybox", "containerd-shim-runc-v2", f"{FOLDER}/bridge")
    with private_host() as host:
        host.run("sh", "-c", PLUGINS)
        host.run("sh", "-c", _CONTAINERD)
        made = ContainerdHost(host)
        made.start()
        made.ctr("image", "import", "--snapshotter", "native", "/tmp/image.tar")
        yield made
