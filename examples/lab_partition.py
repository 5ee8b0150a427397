#!/usr/bin/env python3
"""Three etcd servers, the leader cut off from the others and healed: what a cluster promises, seen to hold.

Wants etcd and etcdctl (Debian: etcd-server, etcd-client), no root, and touches nothing of the machine:

    python3 examples/lab_partition.py
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, TypeVar

from atoll.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.lab.places import Namespace

T = TypeVar("T")


def until(attempt: Callable[[], T], seconds: float = 60) -> T:
    """The first value that is not false; a command that fails is tried again."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := attempt():
                return value
        except subprocess.CalledProcessError as error:
            if time.monotonic() > end:
                raise SystemExit(f"gave up: {error.stderr}") from None
        if time.monotonic() > end:
            raise SystemExit("gave up")


def etcdctl(place: Namespace, *arguments: str) -> str:
    return place.check_output(["etcdctl", "--command-timeout=3s", f"--endpoints=http://{place.name}:2379", *arguments])


def leads(place: Namespace) -> bool:
    status = json.loads(etcdctl(place, "endpoint", "status", "-w", "json"))[0]["Status"]
    return bool(status["leader"] == status["header"]["member_id"])


def start(places: list[Namespace], folder: str) -> None:
    cluster = ",".join(f"{place.name}=http://{place.address}:2380" for place in places)
    for place in places:
        command = ["etcd", "--name", place.name, "--data-dir", f"{folder}/{place.name}", "--initial-cluster", cluster]
        command += ["--heartbeat-interval", "100", "--election-timeout", "1000"]
        for option, port in (("listen-client-urls", 2379), ("listen-peer-urls", 2380)):
            command += [f"--{option}", f"http://{place.address}:{port}"]
        for option, port in (("advertise-client-urls", 2379), ("initial-advertise-peer-urls", 2380)):
            command += [f"--{option}", f"http://{place.address}:{port}"]
        place.popen(command)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        places = lab.namespaces("n1", "n2", "n3", network="cluster")
        start(places, folder)
        until(lambda: etcdctl(places[0], "put", "color", "red"))
        leader = until(lambda: next((place for place in places if leads(place)), None))
        others = [place for place in places if place is not leader]
        print("a leader is elected, and a value written")

        with lab.partition({leader}, others):
            try:
                etcdctl(leader, "put", "color", "wrong")
                raise SystemExit("the minority accepted a write")
            except subprocess.CalledProcessError:
                print("the old leader, alone, refuses writes")
            until(lambda: etcdctl(others[0], "put", "color", "blue"))
            successor = until(lambda: next((place for place in others if leads(place)), None))
            print(f"the majority has {'a new leader' if successor is not leader else 'none'} and goes on")

        for place in places:
            until(lambda place=place: etcdctl(place, "get", "color", "--print-value-only").strip() == "blue")  # type: ignore[misc]
        print("healed: all three say blue")


if __name__ == "__main__":
    main()
