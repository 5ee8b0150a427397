#!/usr/bin/env python3
"""A web application behind a host that publishes its port: clients outside see the host, the application sees the clients.

Needs no root and touches nothing of the machine:

    python3 examples/lab_nat.py
"""

from __future__ import annotations

import http.server

from atoll.lab import Lab, assert_blocked, assert_reachable


class App(http.server.BaseHTTPRequestHandler):
    """Says who it thinks is asking."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())

    def log_message(self, *_: object) -> None: ...


def main() -> None:
    with Lab() as lab:
        host, outside = lab.host("server"), lab.host("outside")
        lab.wire(host, outside, "203.0.113.0/24")
        app = host.namespace("app", network="web", publish=["8080:80"])
        app.serve(80, App)
        outside.serve(80, App)

        print("the application sees", outside.get("http://server:8080/"))
        print("who is called by the application sees", app.get("http://outside/"))

        # The application's own address is no way in, even for one who knows the way.
        outside.route(app.links[0].subnet, via=host.address)
        assert_blocked(outside, app, tcp=81, canary=host)
        assert_reachable(outside, app, tcp=8080, address=host.address, inner=80)
        print("by its own address it is out of reach")


if __name__ == "__main__":
    main()
