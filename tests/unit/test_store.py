"""The state file: what an earlier version wrote is read, and a later one's is refused."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from atoll.errors import Failed
from atoll.model import AddressPool, Endpoint, Namespace, Network, PublishedPort
from atoll.store import sqlite
from atoll.store.sqlite import Store

if TYPE_CHECKING:
    from pathlib import Path

#: As version 1 made it, with a row in each table.
VERSION_1 = """
CREATE TABLE networks (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE namespaces (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE endpoints (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE ports (endpoint TEXT NOT NULL, port TEXT NOT NULL, PRIMARY KEY (endpoint, port)) STRICT;
CREATE TABLE cursors (network TEXT NOT NULL, subnet TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (network, subnet)) STRICT;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO networks VALUES ('n1', CAST('{"id":"n1","name":"web","driver":"bridge","subnets":[{"subnet":"10.1.0.0/24"}]}' AS BLOB));
INSERT INTO namespaces VALUES ('r1', CAST('{"name":"r1","inode":7,"state":"ready"}' AS BLOB));
INSERT INTO endpoints VALUES ('e1', CAST('{"id":"e1","network":"n1","namespace":"r1","interface":"eth0"}' AS BLOB));
INSERT INTO ports VALUES ('e1', '8080:80/tcp');
INSERT INTO cursors VALUES ('n1', '10.1.0.0/24', '167837698');
INSERT INTO facts VALUES ('ula', '1');
PRAGMA user_version=1;
"""


def test_what_version_1_wrote_is_there_and_more_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    old = sqlite3.connect(path)
    old.executescript(VERSION_1)
    old.close()
    for _ in range(2):
        store = Store(path)
        assert [(network.name, network.subnets[0].subnet) for network in store.load(Network)] == [("web", "10.1.0.0/24")]
        assert store.load(Namespace) == [Namespace(name="r1", inode=7, state="ready")]
        ports = (PublishedPort(host_port=8080, port=80),)
        assert list(store.load_endpoints()) == [Endpoint(id="e1", network="n1", namespace="r1", interface="eth0", ports=ports)]
        assert (store.cursor("n1", "10.1.0.0/24"), store.fact("ula")) == (167837698, "1")
        with store.transaction():
            store.put_hold("n1", "10.1.0.9", "docker")
            store.put_pool(AddressPool(name="p", subnet="10.7.0.0/24"))
            store.put_lease("p", "10.7.0.1", "a")
        assert store.load_holds() == {("n1", "10.1.0.9"): "docker"}
        assert store.load_leases("p") == {"10.7.0.1": "a"}
        store.close()


def test_what_a_later_version_wrote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    Store(path).close()
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version={sqlite.VERSION + 1}")
    later.close()
    with pytest.raises(Failed, match="newer than this program's"):
        Store(path)


def test_what_goes_takes_along_what_belongs_to_it() -> None:
    store = Store(None)
    network = Network(id="n1", name="web", driver="bridge")
    pool = AddressPool(name="p", subnet="10.7.0.0/24")
    with store.transaction():
        store.put(network)
        store.put_hold("n1", "10.1.0.9", "docker")
        store.put_hold("n2", "10.1.0.9", "docker")
        store.put_pool(pool)
        store.put_lease("p", "10.7.0.1", "a")
        store.set_pool_cursor(pool, 5)
    with store.transaction():
        store.delete(network)
        store.delete_pool("p")
    assert store.load_holds() == {("n2", "10.1.0.9"): "docker"}
    assert (store.load_pools(), store.load_leases("p"), store.pool_cursor(pool)) == ([], {}, 0)
    store.close()
