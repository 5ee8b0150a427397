"""Docker's socket as bytes on a wire: who may use it, and what is answered to what no dockerd should say."""

from __future__ import annotations

import json
import socket
import stat
from typing import TYPE_CHECKING, Any

from tests.daemon.processes import PATIENCE, CommandLine

if TYPE_CHECKING:
    from pathlib import Path


def said(path: Path, method: str, body: bytes = b"", *, verb: str = "POST") -> tuple[int, Any]:
    """Status and JSON of the answer to one request, which is as dockerd sends it: without a content type, and without a host."""
    head = f"{verb} /{method} HTTP/1.1\r\nHost: \r\nAccept: application/vnd.docker.plugins.v1.2+json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(head.encode() + body)
        data = b""
        while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + _length(data):
            received = sock.recv(65536)
            assert received, data
            data += received
    lines, _, answer = data.partition(b"\r\n\r\n")
    return int(lines.split()[1]), json.loads(answer)


def _length(data: bytes) -> int:
    headers = data.lower().partition(b"\r\n\r\n")[0].splitlines()
    return next(int(line.partition(b":")[2]) for line in headers if line.startswith(b"content-length:"))


def test_the_socket_is_roots_alone_and_answers_as_long_as_the_daemon_does(atoll: CommandLine) -> None:
    atoll.says("network", "ls")
    path = atoll.daemon.socket.with_name("docker.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said(path, "Plugin.Activate") == (200, {"Implements": ["NetworkDriver", "IpamDriver"]})
    assert said(path, "NetworkDriver.GetCapabilities")[1]["Scope"] == "local"
    status, pool = said(path, "IpamDriver.RequestPool", b'{"AddressSpace":"AtollLocal","Pool":"10.5.0.0/24"}')
    assert (status, pool["Pool"]) == (200, "10.5.0.0/24")
    assert said(path, "IpamDriver.ReleasePool", json.dumps({"PoolID": pool["PoolID"]}).encode()) == (200, {})
    atoll.says("daemon", "stop")
    assert not path.exists()


def test_what_no_dockerd_says_is_refused_in_dockers_form(atoll: CommandLine) -> None:
    atoll.says("network", "ls")
    path = atoll.daemon.socket.with_name("docker.sock")
    assert said(path, "NetworkDriver.Explode", b"{}") == (404, {"Err": "no method NetworkDriver.Explode"})
    assert said(path, "..%2F..%2Fetc%0apasswd", b"{}")[0] == 404
    assert said(path, "Plugin.Activate", verb="GET")[0] == 405
    status, answer = said(path, "NetworkDriver.Join")
    assert (status, answer["Err"].partition(";")[0]) == (400, "NetworkDriver.Join came without a body")
    assert said(path, "NetworkDriver.Join", b"[" * 1_000_000)[0] == 400
    assert said(path, "NetworkDriver.Join", b"[" * ((16 << 20) + 1))[0] == 413
    assert said(path, "NetworkDriver.DeleteNetwork", b'{"NetworkID":"ab"}') == (200, {})


def test_what_is_dockers_is_not_taken_away_by_mistake(atoll: CommandLine) -> None:
    atoll.says("network", "create", "shared", "--subnet", "10.5.0.0/24")
    path = atoll.daemon.socket.with_name("docker.sock")
    new, joined, end = "ab" * 32, "cd" * 32, "ef" * 32
    options = {"com.docker.network.generic": {"network": "shared"}}
    for id_, pool, more in ((new, "10.6.0.0/24", {}), (joined, "10.5.0.0/24", options)):
        body = {"NetworkID": id_, "Options": more, "IPv4Data": [{"AddressSpace": "LocalDefault", "Pool": pool}]}
        assert said(path, "NetworkDriver.CreateNetwork", json.dumps(body).encode()) == (200, {})
    own = f"docker-{new[:12]}"
    assert atoll.says("network", "prune") == ""
    for name in (own, "shared"):
        words = f"network {name} is one of Docker's; docker network rm {name}, or --force"
        assert atoll.fails(4, "network", "rm", name) == atoll.fails(4, "network", "rm", name, "--dry-run") == words

    ids = {"NetworkID": new, "EndpointID": end}
    made = json.dumps(ids | {"Interface": {"Address": "10.6.0.2/24"}}).encode()
    assert said(path, "NetworkDriver.CreateEndpoint", made)[0] == 200
    assert said(path, "NetworkDriver.Join", json.dumps(ids | {"SandboxKey": "/var/run/docker/netns/0123456789ab"}).encode())[0] == 200
    container = atoll.says("ns", "ls", "-q").strip()
    words = f"Docker sets up what is inside {container}; docker network connect shared {container}"
    assert atoll.fails(4, "connect", "shared", container) == atoll.fails(4, "connect", "shared", container, "--dry-run") == words
    atoll.says("publish", container, "8080:80")

    assert said(path, "NetworkDriver.DeleteEndpoint", json.dumps(ids).encode())[0] == 200
    assert atoll.says("network", "rm", own, "--force") == f"{own}\n"
    for id_ in (new, joined):
        assert said(path, "NetworkDriver.DeleteNetwork", json.dumps({"NetworkID": id_}).encode()) == (200, {})
    assert atoll.says("network", "prune") == "shared\n"
