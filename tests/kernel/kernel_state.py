"""What a host's kernel holds, read with the tools that people use: iproute2, nft, tc, conntrack and /proc/sys.

A `Shell` runs bash on a host; `state` reads everything, of the host and of each named namespace, as plain values that can be compared.
"""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from typing import Any, Self

from atoll.lab.machine import Machine

#: One stack, as JSON documents one after the other, then its settings as `file:value` lines.
_STACK = r"""
printf 'addr show\nroute show table all\nrule show\n' | ip -d -j -b -
ip -6 -d -j rule show
tc -j qdisc show
for dev in $(tc qdisc show | sed -n 's/^qdisc ingress .* dev \([^ ]*\) .*/\1/p'); do tc -j filter show dev "$dev" parent ffff:; done
echo SETTINGS
cd /proc/sys/net
grep -s . ipv4/ip_forward bridge/bridge-nf-call-ip*tables \
    ipv4/conf/*/{forwarding,route_localnet,accept_redirects} \
    ipv6/conf/*/{forwarding,disable_ipv6,accept_ra,autoconf,accept_dad,accept_redirects}
true
"""
_HOST = f"""
read_stack() {{ {_STACK} }}
echo "STACK "; read_stack
for name in $(ls /run/netns); do
    echo "STACK $name"; export -f read_stack; nsenter --net=/run/netns/$name bash -c read_stack
done
echo RULESET; nft -j list ruleset
for family in ipv4 ipv6; do echo CONNECTIONS; conntrack -L -f $family -o extended 2>/dev/null; done
true
"""

#: Counters that run, and a port's state machine while it waits for one of them.
_TIMERS = re.compile(r'"(?:hello|tcn|topology_change|gc|hold|message_age|forward_delay)_timer":[0-9.]+,?')
#: Links that nobody names a MAC address for; the kernel draws one.
_UNNAMED_MAC = re.compile(r"at[vti][0-9a-f]{10}")


class Shell:
    """Bash on a host; by default on the calling thread's own."""

    prefix: tuple[str, ...] = ()

    def run(self, script: str) -> str:
        """What the script printed. It stops at the first command that fails, and that fails the test with the command's words."""
        command = [*self.prefix, "bash", "-e"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{script}\nfailed with status {done.returncode}: {done.stderr}")
        return done.stdout

    def succeeds(self, command: str) -> bool:
        return subprocess.run([*self.prefix, "bash", "-c", command], capture_output=True, check=False).returncode == 0


class OtherHost(Shell):
    """A second host, as empty as the test's own, with an empty /run/netns."""

    def __init__(self) -> None:
        self._machine = Machine("other")
        # Ends with its input, so also when this process is killed.
        script = "mount -t tmpfs -o mode=755 atoll /run/netns && mount -t sysfs sysfs /sys && echo && exec cat >/dev/null"
        self._holder = self._machine.popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n"
        self.prefix = ("nsenter", "-m", "-n", "-t", str(self._holder.pid))

    def close(self) -> None:
        self._holder.communicate()
        self._machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raw(shell: Shell) -> str:
    """Everything as the tools print it, but for counters that run by themselves."""
    return _TIMERS.sub("", re.sub(r"^((?:udp|tcp|sctp|icmp)\S* +\d+) \d+ ", r"\1 ", _output(shell), flags=re.MULTILINE))


def _output(shell: Shell) -> str:
    return shell.run(_HOST)


def state(shell: Shell) -> dict[str, Any]:
    """Everything as values, by place and kind, without what the kernel draws by chance.

    - Interface indexes, handles, filter and action numbers: given in the order of making, over the whole life of the host.
    - The MAC addresses of host ends, trunks and shapers, and the link-local addresses made of them: random when none is named.
    - The ids of connections: an address in the kernel's memory.
    - The order of lists: that of making, or of a hash.
    """
    return values(raw(shell))


def values(output: str) -> dict[str, Any]:
    head, _, connections = output.partition("CONNECTIONS\n")
    stacks, _, ruleset = head.partition("RULESET\n")
    found: dict[str, Any] = {"connections": sorted(connections.replace("CONNECTIONS\n", "").splitlines())}
    found["ruleset"] = [_elements_sorted(_without(row, {"handle"})) for row in json.loads(ruleset)["nftables"] if "metainfo" not in row]
    for part in stacks.split("STACK ")[1:]:
        name, _, rest = part.partition("\n")
        text, _, settings = rest.partition("SETTINGS\n")
        links, *others = _documents(text)
        for mac, link in {row["address"]: row["ifname"] for row in links if _UNNAMED_MAC.fullmatch(row["ifname"])}.items():
            text = text.replace(mac, f"MAC of {link}").replace(_link_local(mac), f"link-local address of {link}")
        links, *others = _documents(text)
        for link in links:
            where = f"{name or 'host'}: {link['ifname']}"
            chance = {"ifindex", "link_index", "link_netnsid"} | ({"id", "no", "designated_port"} if "master" in link else set())
            found[where] = _without(link, chance)
        for kind, rows in zip(("routes", "rules", "rules6", "queues"), others, strict=False):
            chance = {"handle"} if kind == "queues" else set()
            found[f"{name or 'host'}: {kind}"] = sorted((_without(row, chance) for row in rows), key=json.dumps)
        found[f"{name or 'host'}: filters"] = _without(others[4:], {"index", "fh", "key_ht"})
        found[f"{name or 'host'}: settings"] = sorted(settings.splitlines())
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Where two states differ, one line a place; empty when they don't."""
    return "\n".join(
        f"{place}:\n    {json.dumps(one.get(place))}\n    {json.dumps(other.get(place))}"
        for place in sorted(one.keys() | other.keys())
        if one.get(place) != other.get(place)
    )


def _documents(text: str) -> list[Any]:
    decoder, found, position = json.JSONDecoder(), [], 0
    while (position := len(text) - len(text[position:].lstrip())) < len(text):
        document, position = decoder.raw_decode(text, position)
        found.append(document)
    return found


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(inner, keys) for inner in value]
    return value


def _elements_sorted(row: dict[str, Any]) -> dict[str, Any]:
    """A set or map with its elements in an order of their own; rules stay in theirs."""
    for value in row.values():
        if "elem" in value:
            value["elem"].sort(key=json.dumps)
    return row


def _link_local(mac: str) -> str:
    raw_mac = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw_mac[0] ^ 2]) + raw_mac[1:3] + b"\xff\xfe" + raw_mac[3:]))
