"""Other software on the host that filters forwarded packets: Docker's iptables rules, firewalld, and whoever else drops.

The table `inet atoll` decides what may pass, but in nftables an accept is final only within its own base chain: a packet that
Atoll allows is still dropped when any other chain at the same hook drops it. So each neighbour is asked, at the place that it
offers for that, to let the packets of Atoll's bridges through. These hooks never decide what is reachable, and they are the only
things that Atoll writes outside its own table.

    docker.py      the chain DOCKER-USER
    firewalld.py   a zone and a policy of our own, over D-Bus
    drops.py       who else drops, and the command that helps; written for people to run, nothing is changed

Whatever looks at the host here looks at the network namespace of the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from atoll.model import BRIDGE_PREFIX

#: Runs a program in the host's network namespace: argv -> (exit code, stdout, stderr); 127 where there is no such program.
Runner = Callable[[Sequence[str]], tuple[int, str, str]]


def interfaces(bridges: Collection[str]) -> list[str]:
    """The names by which iptables, ufw and firewalld know these bridges, where a closing `+` stands for any ending.

    One wildcard for all bridges with default names, so that the neighbours' rules don't grow with the number of networks; then
    the others, sorted.
    """
    chosen = sorted(name for name in set(bridges) if not name.startswith(BRIDGE_PREFIX))
    return ([f"{BRIDGE_PREFIX}+"] if len(chosen) < len(set(bridges)) else []) + chosen
