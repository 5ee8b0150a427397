"""Deleting links: what is gone when it returns, and what it says when there is nothing to delete."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from atoll.kernel.host import Host
from atoll.kernel.netlink import NetlinkError
from tests.daemon.processes import Here
from tests.support import ip

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def own(host: None) -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


def names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_a_link_and_its_peer_are_gone_at_once(own: Host) -> None:
    own.create_namespace("inside")
    ip(Here(), "link add br0 type bridge")
    for _ in range(20):
        ip(Here(), "link add v0 master br0 up type veth peer name eth0 netns inside")
        own.delete_link("v0")
        with own.namespace("inside") as fd:
            assert own.visitor.run(fd, names) == {"lo"}
        assert names() == {"lo", "br0"}
    own.delete_link("br0")
    assert names() == {"lo"}


def test_a_link_that_is_not_there_is_refused(own: Host) -> None:
    with pytest.raises(NetlinkError) as caught:
        own.delete_link("nothing")
    assert caught.value.errno == errno.ENODEV


def test_a_port_that_leaves_its_bridge_is_not_taken_for_a_deleted_one(own: Host) -> None:
    """The bridge's words for that come first, and the link that is not deleted stays."""
    ip(Here(), "link add br0 type bridge", "link add v0 type veth peer name w0", "link add v1 master br0 up type veth peer name w1")
    own.delete_link("v1")
    assert names() == {"lo", "br0", "v0", "w0"}


def test_nothing_is_left_running_when_the_host_is_closed(host: None) -> None:
    made = Host()
    ip(Here(), "link add v0 type veth peer name w0")
    made.delete_link("v0")
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "atoll-unlink"]
