"""The embedded store: one SQLite file, one row an object, the object itself as JSON.

What was committed survives the death of the process (write-ahead log). `synchronous=NORMAL` may lose the last commits when the machine
loses power, but then the kernel's side is gone as well, and the file stays consistent.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from msgspec import structs

from atoll.checks import parse_publish
from atoll.errors import Failed
from atoll.model import AddressPool, Endpoint, Namespace, Network, PublishedPort, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

T = TypeVar("T", Network, Namespace, Endpoint)

VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE networks (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE namespaces (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE endpoints (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE ports (endpoint TEXT NOT NULL, port TEXT NOT NULL, PRIMARY KEY (endpoint, port)) STRICT;
CREATE TABLE cursors (network TEXT NOT NULL, subnet TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (network, subnet)) STRICT;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
#: What version 2 has beyond the first: addresses kept for someone (`holds`), and pools of addresses without a network.
_SCHEMA_2: Final = """
CREATE TABLE holds (network TEXT NOT NULL, address TEXT NOT NULL, holder TEXT NOT NULL, PRIMARY KEY (network, address)) STRICT;
CREATE TABLE pools (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE leases (pool TEXT NOT NULL, address TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (pool, address)) STRICT;
"""
_TABLES: Final[dict[type, str]] = {Network: "networks", Namespace: "namespaces", Endpoint: "endpoints"}

#: Runs are few and short-lived: they are among the facts.
_RUN: Final = "run:"
#: Before a pool's name where a network's id would be: no id has a colon.
_POOL: Final = "pool:"


def _key(value: Network | Namespace | Endpoint) -> str:
    return value.name if isinstance(value, Namespace) else value.id


class Store:
    """Networks, namespaces, endpoints, the allocation cursors and a few facts about the host. One writer, one thread at a time."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the file, or None to keep everything in memory. Raises `Failed` when it can't be used."""
        self._encode = msgspec.json.Encoder().encode
        try:
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=64)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._migrate(path)
        except sqlite3.Error as error:
            raise Failed(f"opening the state file {path}: {error}", "restore it from a copy, or move it away to start anew") from None

    def _migrate(self, path: Path | None) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise Failed(f"the state file {path} is of version {version}, newer than this program's {VERSION}", "update atoll")
        if version < VERSION:
            missing = _SCHEMA + _SCHEMA_2 if version == 0 else _SCHEMA_2
            self._db.executescript(f"BEGIN IMMEDIATE; {missing} PRAGMA user_version={VERSION}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All the writes inside, or none. Raises `Failed` when the disk refuses (the caller must then change nothing else)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise Failed(f"writing the state file: {error}", "is the disk full or read-only?") from None
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise Failed(f"writing the state file: {error}", "is the disk full or read-only?") from None
            raise

    def put(self, value: Network | Namespace | Endpoint) -> None:
        """Add, or change in its place: a load gives objects in the order in which they were made.

        An endpoint's ports are apart (`add_ports`): it may have tens of thousands.
        """
        if isinstance(value, Endpoint) and value.ports:
            value = structs.replace(value, ports=())
        table, row = _TABLES[type(value)], (_key(value), self._encode(value))
        self._db.execute(f"INSERT INTO {table} VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", row)  # noqa: S608 - our own names

    def delete(self, value: Network | Namespace | Endpoint) -> None:
        self._db.execute(f"DELETE FROM {_TABLES[type(value)]} WHERE key = ?", (_key(value),))  # noqa: S608
        if isinstance(value, Endpoint):
            self._db.execute("DELETE FROM ports WHERE endpoint = ?", (value.id,))
        if isinstance(value, Network):
            self._db.execute("DELETE FROM cursors WHERE network = ?", (value.id,))
            self._db.execute("DELETE FROM holds WHERE network = ?", (value.id,))

    def add_ports(self, endpoint: str, ports: Iterable[PublishedPort]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO ports VALUES (?, ?)", [(endpoint, str(port)) for port in ports])

    def delete_ports(self, endpoint: str, ports: Iterable[PublishedPort]) -> None:
        self._db.executemany("DELETE FROM ports WHERE endpoint = ? AND port = ?", [(endpoint, str(port)) for port in ports])

    def load_endpoints(self) -> Iterator[Endpoint]:
        """Every endpoint with its ports. Raises `Failed` on a row that can't be read."""
        ports: dict[str, list[PublishedPort]] = {}
        for endpoint, text in self._db.execute("SELECT endpoint, port FROM ports ORDER BY rowid"):
            ports.setdefault(endpoint, []).append(parse_publish(text))
        for found in self.load(Endpoint):
            yield structs.replace(found, ports=tuple(ports.get(found.id, ())))

    def load(self, kind: type[T]) -> list[T]:
        """Every object of a kind. Raises `Failed` on a row that can't be read."""
        rows: list[T] = []
        for key, value in self._db.execute(f"SELECT key, value FROM {_TABLES[kind]} ORDER BY rowid"):  # noqa: S608
            try:
                rows.append(msgspec.json.decode(value, type=kind))
            except msgspec.DecodeError as error:
                raise Failed(f"the state file's {kind.__name__.lower()} {key} can't be read: {error}", "restore it from a copy") from None
        return rows

    def set_cursor(self, network: str, subnet: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (network, subnet, str(value)))

    def cursor(self, network: str, subnet: str) -> int:
        row = self._db.execute("SELECT value FROM cursors WHERE network = ? AND subnet = ?", (network, subnet)).fetchone()
        return int(row[0]) if row else 0

    # --- addresses without an endpoint ---

    def put_hold(self, network: str, address: str, holder: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", (network, address, holder))

    def delete_hold(self, network: str, address: str) -> None:
        self._db.execute("DELETE FROM holds WHERE network = ? AND address = ?", (network, address))

    def load_holds(self) -> dict[tuple[str, str], str]:
        """Holders by network id and address, in the order in which they came."""
        rows = self._db.execute("SELECT network, address, holder FROM holds ORDER BY rowid")
        return {(network, address): holder for network, address, holder in rows}

    def put_pool(self, pool: AddressPool) -> None:
        row = (pool.name, self._encode(pool))
        self._db.execute("INSERT INTO pools VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", row)

    def delete_pool(self, name: str) -> None:
        """The pool with its leases."""
        self._db.execute("DELETE FROM pools WHERE key = ?", (name,))
        self._db.execute("DELETE FROM leases WHERE pool = ?", (name,))
        self._db.execute("DELETE FROM cursors WHERE network = ?", (f"{_POOL}{name}",))

    def load_pools(self) -> list[AddressPool]:
        """In the order in which they were opened. Raises `Failed` on one that can't be read."""
        try:
            return [msgspec.json.decode(row[0], type=AddressPool) for row in self._db.execute("SELECT value FROM pools ORDER BY rowid")]
        except msgspec.DecodeError as error:
            raise Failed(f"the state file's address pools can't be read: {error}", "restore it from a copy") from None

    def put_lease(self, pool: str, address: str, owner: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (pool, address, owner))

    def delete_lease(self, pool: str, address: str) -> None:
        self._db.execute("DELETE FROM leases WHERE pool = ? AND address = ?", (pool, address))

    def load_leases(self, pool: str) -> dict[str, str]:
        """Owners by address, in the order in which they came."""
        rows = self._db.execute("SELECT address, owner FROM leases WHERE pool = ? ORDER BY rowid", (pool,))
        return dict(rows.fetchall())

    def set_pool_cursor(self, pool: AddressPool, value: int) -> None:
        self.set_cursor(f"{_POOL}{pool.name}", pool.subnet, value)

    def pool_cursor(self, pool: AddressPool) -> int:
        return self.cursor(f"{_POOL}{pool.name}", pool.subnet)

    # --- facts ---

    def fact(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def facts(self, prefix: str) -> dict[str, str]:
        """The facts whose keys begin so, without that beginning."""
        rows = self._db.execute("SELECT key, value FROM facts WHERE substr(key, 1, ?) = ? ORDER BY rowid", (len(prefix), prefix))
        return {key[len(prefix) :]: value for key, value in rows}

    def set_fact(self, key: str, value: str | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM facts WHERE key = ?", (key,))
        else:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))

    def load_runs(self) -> list[Run]:
        """In the order in which they were made. Raises `Failed` on one that can't be read."""
        try:
            return [msgspec.json.decode(text, type=Run) for text in self.facts(_RUN).values()]
        except msgspec.DecodeError as error:
            raise Failed(f"the state file's runs can't be read: {error}", "restore it from a copy") from None

    def put_run(self, run: Run) -> None:
        self.set_fact(_RUN + run.name, self._encode(run).decode())

    def delete_run(self, run: Run) -> None:
        self.set_fact(_RUN + run.name, None)
