"""The machine loses its power and starts again: all that a disk keeps is there, and nothing else, and the boot id is another.

Networks are as small as what is on them, so one address that is lost leaves a container without.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Final

from tests.clients import docker_host
from tests.clients.cni_hosts import PLUGINS, ContainerdHost, containerd_host
from tests.clients.docker_host import DockerHost
from tests.clients.neighbours_host import Host, need, private_host
from tests.clients.podman_host import PodmanHost, podman_host

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Of five addresses beside the gateway's.
_SMALL: Final = "10.1.0.0/29"
_NAMES: Final = ("one", "two", "three", "four", "five")
_LIST: Final = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": _SMALL}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def lose_power(host: Host) -> None:
    """End everything at once; nobody gets to say goodbye."""
    host.runner(["sh", "-c", "kill -KILL -1"])


def carry_over(before: Host, after: Host, folders: Iterable[str]) -> None:
    """Give another host the files of these folders, as their disk, and a boot of its own."""
    for folder in folders:
        disk = subprocess.run(
            ["tar", "-C", f"/proc/{before.pid}/root/{folder}", "--one-file-system", "--warning=no-file-ignored", "-c", "."],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        after.run("mkdir", "-p", f"/{folder}")
        subprocess.run([*after.enter, "tar", "-C", f"/{folder}", "-x"], input=disk, check=True)
    boot = "echo $0 >/run/boot_id; mount --bind /run/boot_id /proc/sys/kernel/random/boot_id"
    after.run("sh", "-c", boot, str(uuid.uuid4()))


def test_dockers_containers_come_back() -> None:
    need("dockerd", "docker", "containerd", "busybox", "curl", "ip", "nft", "unshare", "nsenter", "iptables-nft")
    with private_host() as before, private_host() as after:
        made = docker_host.prepare(before)
        made.docker("network", "create", "-d", "atoll", "--ipam-driver", "atoll", "--subnet", _SMALL, "web")
        made.docker("network", "create", "-d", "atoll", "--ipam-driver", "atoll", "--internal", "back")
        made.atoll("network", "create", "lab", "--subnet", "10.9.0.0/29")
        made.docker("network", "create", "-d", "atoll", "-o", "network=lab", "--ipam-driver", "atoll", "--ipam-opt", "network=lab", "lab")
        made.serve("one", "--network", "web", "--restart", "always", "-p", "8080:80", "--network-alias", "first")
        made.docker("network", "connect", "back", "one")
        for name in _NAMES[1:4]:
            made.serve(name, "--network", "web", "--restart", "unless-stopped")
        made.serve("five", "--network", "web")
        made.serve("guest", "--network", "lab", "--restart", "always")

        lose_power(before)
        carry_over(before, after, ("var/lib", "etc/docker"))
        again = DockerHost(after)
        again.start_atoll()
        assert set(again.networks()) >= {"web", "back", "lab"}
        after.start_dockerd("nft")
        again.follows()
        again.wait_for("the containers' names", lambda: set(again.namespaces()) == {*_NAMES[:4], "guest"})
        again.answers("one", "http://127.0.0.1:8080")
        again.docker("start", "five")
        again.wait_for("the name of five", lambda: "five" in again.namespaces())
        assert again.lookup("five", "first") == [again.address("one", "web")]
        assert len({again.address(name, "web") for name in _NAMES}) == 5
        assert [len(again.networks()[name]["endpoints"]) for name in ("back", "lab")] == [1, 1]
        again.docker("rm", "-f", *_NAMES, "guest")
        again.docker("network", "rm", "lab")
        again.atoll("network", "rm", "lab")
        again.empty()
        again.atoll("daemon", "stop")


def test_podmans_containers_come_back() -> None:
    with podman_host() as made, private_host() as after:
        made.atoll("podman", "install")
        made.podman("network", "create", "--subnet", _SMALL, "web")
        made.serve("one", "--network", "web:alias=first", "--restart", "always", "-p", "8080:80")
        for name in _NAMES[1:4]:
            made.serve(name, "--network", "web", "--restart", "always")
        made.serve("five", "--network", "web", "--ip", "10.1.0.6")

        lose_power(made.host)
        carry_over(made.host, after, ("var/lib", "etc/containers"))
        after.run("sh", "-c", "umount -l /sys/fs/cgroup/unified; mkdir -p /run/netns; mount -t tmpfs tmpfs /var/tmp")
        again = PodmanHost(after)
        # As podman-restart.service does.
        again.podman("start", "--all", "--filter", "restart-policy=always")
        assert {item["name"] for item in again.shown("ns", "ls")} == set(_NAMES[:4])
        again.podman("start", "five")
        again.host.wait_for("one to serve", lambda: again.fetch("127.0.0.1:8080") == "one")
        assert again.ask("five", "first") == "one"
        addresses = {end["addresses"][0] for item in again.shown("ns", "ls") for end in item["endpoints"]}
        assert len(addresses) == 5
        assert "10.1.0.6/29" in addresses
        again.podman("rm", "-f", "-t", "0", *_NAMES)
        assert again.shown("ns", "ls") == []
        assert "all is as" in again.atoll("doctor")
        assert "at" not in {link["ifname"][:2] for link in json.loads(after.run("ip", "-j", "link"))}
        again.atoll("daemon", "stop")


def test_a_cni_runtimes_addresses_are_free_again() -> None:
    with containerd_host() as made, private_host() as after:
        made.atoll("cni", "install", "--replace")
        made.host.run("sh", "-c", "mkdir -p /etc/cni/net.d; echo $0 >/etc/cni/net.d/10-pods.conflist", json.dumps(_LIST))
        for name in _NAMES:
            made.run(name)

        lose_power(made.host)
        after.run("sh", "-c", PLUGINS)
        carry_over(made.host, after, ("var/lib", "etc/cni", "opt", "usr/lib/cni"))
        again = ContainerdHost(after)
        again.start()
        assert again.shown("ns", "ls") == []
        again.ctr("container", "delete", *_NAMES)
        assert len({again.run(name) for name in _NAMES}) == 5
        assert sorted(item["name"] for item in again.shown("ns", "ls")) == sorted(f"default-{name}" for name in _NAMES)
        for name in _NAMES:
            again.remove(name)
        assert again.shown("ns", "ls") == []
        again.atoll("daemon", "stop")
