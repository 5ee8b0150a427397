"""A private host: network, mount and, for ordinary users, user namespaces of this process's own.

Whatever runs in it (an engine, a daemon, a test) is independent of the machine: its own interfaces, its own firewall, its own
`/run/netns`. The kernel takes all of it back when the last process in it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import Unsupported
from atoll.kernel import netlink, netns, rtnl, sysctl

if TYPE_CHECKING:
    from collections.abc import Collection


def enter(keep: Collection[str] = ()) -> None:
    """Make the calling process, which must have one thread, a private host. Raises `Unsupported` where the kernel refuses.

    `keep` are folders that stay what they are, should `/run` have to be replaced.
    """
    _leave(netns.CLONE_NEWNET | netns.CLONE_NEWNS)
    _own_netns_folder(keep)
    with contextlib.suppress(OSError):
        _own_sysfs()
    fresh()


def become_root() -> None:
    """Make the calling process, which must have one thread, root of a user namespace of its own: it may then make network namespaces,
    while its own network and files stay what they are. Raises `Unsupported` where the kernel refuses."""
    _leave(netns.CLONE_NEWNS)


def _leave(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid != 0:
            netns.unshare(flags | netns.CLONE_NEWUSER)
            # Only one's own user may be mapped without help; inside, it is root.
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        else:
            netns.unshare(flags)
    except OSError as error:
        hint = "run as root, or allow user namespaces: sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
        raise Unsupported(f"this kernel lets user {uid} make no private namespaces ({error.strerror})", hint) from None
    # Slave, not private: what the machine mounts later is seen, what happens here stays here.
    netns.mount("", "/", flags=netns.MS_REC | netns.MS_SLAVE)


def fresh() -> None:
    """Set up the new network namespace that the calling thread is in: loopback up, bridges without a second pass through netfilter, IPv6
    addresses usable at once."""
    with netlink.Socket() as sock:
        index = next(link.ifindex for link in rtnl.links(sock) if link.name == "lo")
        sock.execute(rtnl.set_link(index, up=True))
    for setting in ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/ipv6/conf/default/accept_dad"):
        if sysctl.read(setting) is not None:
            sysctl.write(setting, "0")


def _own_sysfs() -> None:
    """A sysfs that shows this network namespace's interfaces. The cgroups, which are mounted in it, come along: containers need them."""
    cgroups = "/sys/fs/cgroup"
    if not os.path.ismount(cgroups):
        netns.mount("sysfs", "/sys", "sysfs")
        return
    fd = os.open(cgroups, os.O_PATH | os.O_CLOEXEC)
    try:
        netns.mount("sysfs", "/sys", "sysfs")
        netns.mount(f"/proc/self/fd/{fd}", cgroups, "none", netns.MS_BIND | netns.MS_REC)
    finally:
        os.close(fd)


def _own_netns_folder(keep: Collection[str]) -> None:
    """An empty `/run/netns` over the machine's. Where there is none and none can be made, `/run` itself is replaced."""
    folder = netns.NETNS_DIR
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o755, exist_ok=True)
    if folder.is_dir():
        netns.mount("atoll", str(folder), "tmpfs", data="mode=755")
        return
    wanted = (os.environ.get("XDG_RUNTIME_DIR", ""), *keep)
    kept = [path for path in wanted if path.startswith("/run/") and os.path.isdir(path)]
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in kept]
    netns.mount("atoll", "/run", "tmpfs", data="mode=755")
    folder.mkdir(mode=0o755)
    for path, fd in held:
        os.makedirs(path, mode=0o755, exist_ok=True)
        netns.mount(f"/proc/self/fd/{fd}", path, "none", netns.MS_BIND | netns.MS_REC)
        os.close(fd)
