#!/usr/bin/env python3
"""A client against a server on a link that loses 5 % of all packets: TCP brings every byte, of datagrams some are lost.

Needs no root and touches nothing of the machine:

    python3 examples/lab_loss.py
"""

from __future__ import annotations

import contextlib
import http.server
import socket

from atoll.lab import Lab

PAGE = "".join(f"line {number}\n" for number in range(20_000))


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_: object) -> None: ...


def count(sender: socket.socket, receiver: socket.socket, address: str) -> int:
    """How many of 100 datagrams arrive."""
    receiver.bind(("0.0.0.0", 123))
    for _ in range(100):
        sender.sendto(b"?", (address, 123))
    receiver.settimeout(1)
    found = 0
    with contextlib.suppress(TimeoutError):
        while receiver.recv(100):
            found += 1
    return found


def main() -> None:
    with Lab() as lab:
        client, server = lab.namespaces("client", "server", network="net")
        server.serve(80, Server)
        with client.links[0].loss(0.05, seed=1):
            page = client.get("http://server/", timeout=60)
            print("over TCP:", "every byte" if page == PAGE else "bytes are missing")

            with client.socket(kind=socket.SOCK_DGRAM) as sender, server.socket(kind=socket.SOCK_DGRAM) as receiver:
                arrived = count(sender, receiver, server.address)
        print("over UDP:", "some of 100 datagrams were lost" if arrived < 100 else "nothing was lost")
        if page != PAGE or not 70 < arrived < 100:
            raise SystemExit("that is wrong")


if __name__ == "__main__":
    main()
