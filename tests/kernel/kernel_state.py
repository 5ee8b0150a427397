"""What a host's kernel holds, read with the tools that people use: iproute2, nft, tc, conntrack and /proc/sys.

A `Shell` runs bash on a host; `state` reads everything, of the host and of each named namespace, as plain values that can be compared.
"""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, Self

from atoll.lab.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Sequence

State = dict[str, list[Any]]

#: One stack, as JSON documents one after the other, then its settings as `file:value` lines. Queues are made on the host only.
_STACK = r"""
printf 'addr show\nroute show table all\nrule show\n' | ip -d -j -b -
ip -6 -d -j rule show
if [[ $1 == host ]]; then
    tc -j qdisc show
    for dev in $(tc qdisc show | sed -n 's/^qdisc ingress .* dev \([^ ]*\) .*/\1/p'); do tc -j filter show dev "$dev" parent ffff:; done
fi
echo SETTINGS
cd /proc/sys/net
grep -s . ipv4/ip_forward bridge/bridge-nf-call-ip*tables \
    ipv4/conf/*/{forwarding,route_localnet,accept_redirects} \
    ipv6/conf/*/{forwarding,disable_ipv6,accept_ra,autoconf,accept_dad,accept_redirects} || true
"""
_HOST = f"""
stack=$(cat <<'END'
{_STACK}
END
)
echo "STACK host"; bash -ec "$stack" bash host
for name in ${{namespaces-$(ls /run/netns)}}; do
    echo "STACK $name"; nsenter --net=/run/netns/$name bash -ec "$stack" bash namespace
done
echo RULESET; nft -j list ruleset
"""
#: Apart, because a walk over the kernel's table takes longer than all else.
_CONNECTIONS = "for family in ipv4 ipv6; do conntrack -L -f $family -o extended 2>/dev/null; done"

#: Counters that run, and a port's state machine while it waits for one of them.
_TIMERS = re.compile(r'"(?:hello|tcn|topology_change|gc|hold|message_age|forward_delay)_timer":[0-9.]+,?')
#: A connection, its timeout apart; the kernel also tracks its own IGMP and MLD reports.
_TRACKED = re.compile(r"(ipv[46] +\d+ (?:tcp|udp|sctp) +\d+ )\d+ (.*)")
#: What `comparable` leaves out.
_CHANCE = frozenset(
    {
        "ifindex",
        "link_index",
        "link_netnsid",
        "id",
        "no",
        "designated_port",
        "handle",
        "index",
        "fh",
        "key_ht",
        "tso_max_size",
        "tso_max_segs",
    }
)
#: Links that nobody names a MAC address for; the kernel draws one.
_UNNAMED_MAC = re.compile(r"at[vtip][0-9a-f]{10}(\d+[du])?")


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


def exact(found: State) -> State:
    """Without what the kernel changes by itself some time after a change.

    - Whether a link has carrier, and what hangs on it (a port's state, link-local addresses): the link watch notices up to a second late.
    - The routes that it makes for addresses, those of IPv6 in a work queue.
    """
    kept = dict(found)
    for place, rows in found.items():
        if place.endswith(": links"):
            kept[place] = [row | {"addr_info": [info for info in row["addr_info"] if info["scope"] != "link"]} for row in rows]
        elif place.endswith(": routes"):
            kept[place] = [row for row in rows if row["protocol"] != "kernel"]
    return kept


def comparable(found: State) -> State:
    """As another host would have it: without what the kernel draws by chance.

    - Interface indexes, port numbers, handles and the numbers of actions: given in the order of making, over the whole life of a host.
    - The MAC addresses of host ends, trunks and shapers, and the link-local addresses made of them: random when none is named.
    - The largest segment that a bridge takes: the least of all ports that it ever had.
    - The order of links, routes, set elements and connections: that of making, or of a hash.
    """
    kept: State = {}
    for place, rows in found.items():
        text = json.dumps([_without(row, _CHANCE) for row in rows])
        for link in found.get(f"{place.partition(':')[0]}: links", ()):
            if _UNNAMED_MAC.fullmatch(link["ifname"]):
                text = text.replace(link["address"], f"MAC of {link['ifname']}")
                text = text.replace(_link_local(link["address"]), f"link-local of {link['ifname']}")
        rows = json.loads(text)
        kept[place] = [_elements_sorted(row) for row in rows] if place == "ruleset" else sorted(rows, key=json.dumps)
    return kept


def read(shell: Shell, *, namespaces: Sequence[str] | None = None, connections: bool = False) -> State:
    """Everything as values, by place and kind, but for running timers and what a link's carrier does to it.

    `namespaces` are those to look into, None for all.
    """
    limit = "" if namespaces is None else f"namespaces='{' '.join(namespaces)}'\n"
    stacks, _, ruleset = _TIMERS.sub("", shell.run(limit + _HOST)).partition("RULESET\n")
    found: State = {"ruleset": [row for row in json.loads(ruleset)["nftables"] if "metainfo" not in row]}
    if connections:
        listed = map(_TRACKED.match, shell.run(_CONNECTIONS).splitlines())
        found["connections"] = [match[1] + match[2] for match in listed if match]
    for part in stacks.split("STACK ")[1:]:
        name, _, rest = part.partition("\n")
        text, _, settings = rest.partition("SETTINGS\n")
        kinds = ["links", "routes", "rules", "rules6", "queues", "filters"]
        documents = _documents(text)
        documents[5:] = [documents[5:]]
        for kind, rows in zip(kinds, documents, strict=False):
            found[f"{name}: {kind}"] = rows
        found[f"{name}: settings"] = settings.splitlines()
        for link in documents[0]:
            _forget_carrier(link)
        for route in documents[1]:
            route["flags"] = sorted(set(route["flags"]) - {"linkdown"})
    return found


def _forget_carrier(link: dict[str, Any]) -> None:
    link.pop("operstate")
    link["flags"] = sorted(set(link["flags"]) - {"LOWER_UP", "NO-CARRIER"})
    link.get("linkinfo", {}).get("info_slave_data", {}).pop("state", None)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states differ, a line each; empty when they don't."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{place} {key}")]
    if isinstance(one, list) and isinstance(other, list):
        only = [f"{place}: first only: {row}" for row in one if row not in other]
        return only + [f"{place}: second only: {row}" for row in other if row not in one] or [f"{place}: another order or number of rows"]
    return [f"{place}: {one} and {other}"]


def _documents(text: str) -> list[Any]:
    decoder, found, position = json.JSONDecoder(), [], 0
    while (position := len(text) - len(text[position:].lstrip())) < len(text):
        document, position = decoder.raw_decode(text, position)
        found.append(document)
    return found


def _without(value: Any, keys: frozenset[str]) -> Any:
    """Without these keys, however deep."""
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def _elements_sorted(row: dict[str, Any]) -> dict[str, Any]:
    """A set or map with its elements in an order of their own; rules stay in theirs."""
    for value in row.values():
        if "elem" in value:
            value["elem"].sort(key=json.dumps)
    return row


def _link_local(mac: str) -> str:
    raw_mac = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw_mac[0] ^ 2]) + raw_mac[1:3] + b"\xff\xfe" + raw_mac[3:]))
