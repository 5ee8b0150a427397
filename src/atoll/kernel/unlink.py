"""Deleting a link without waiting for what concerns the kernel alone.

A link that is deleted leaves its namespace, and its peer the other one, within a millisecond or two, and those who listen are told. Only
then does the kernel wait until nothing in it refers to the link any more (rcu_barrier in netdev_run_todo, net/core/dev.c), for 10 ms and
more, before it answers the request. So the request is made on a thread of its own, and what the listeners hear is enough.
"""

from __future__ import annotations

import select
import socket
import threading

from atoll.kernel import netlink, rtnl


def delete_link(name: str, sender: netlink.Socket, listener: netlink.Socket) -> threading.Thread:
    """Returns when the link and its peer are gone: the thread that still waits for the kernel's answer, and closes `sender`.

    Both sockets are of the link's namespace, and `listener` hears `rtnl.GROUP_LINK`. Raises `NetlinkError` when the kernel refuses.
    """
    refusals: list[netlink.NetlinkError] = []
    answered, answering = socket.socketpair()

    def ask() -> None:
        with answering, sender:
            refusals.extend(sender.request(rtnl.delete_link(name)))

    thread = threading.Thread(target=ask, name="atoll-unlink")
    thread.start()
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    poll.register(answered.fileno(), select.POLLIN)
    with answered:
        while not _is_gone(name, listener):
            if any(fd == answered.fileno() for fd, _ in poll.poll()):
                thread.join()
                for refusal in refusals:
                    raise refusal
                break
    return thread


def _is_gone(name: str, listener: netlink.Socket) -> bool:
    """Whether that was heard. A bridge tells of a port that leaves it in the same words, but for the family."""
    try:
        events = listener.events()
    except OSError:
        return False  # More than the socket holds: the answer will come.
    gone = (event.body for event in events if event.type == rtnl.RTM_DELLINK and event.body[:1] == b"\0")
    return any(rtnl.parse_link(body).name == name for body in gone)
