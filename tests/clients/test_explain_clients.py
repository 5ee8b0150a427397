"""`explain` beside a real dockerd, whose rules are iptables' by either back end, and beside a real netavark, which uses iptables-nft: held
against what curl and the probe find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.docker_host import ATOLL, FACING, docker_host
from tests.clients.podman_host import podman_host

if TYPE_CHECKING:
    from tests.clients.docker_host import DockerHost
    from tests.clients.podman_host import PodmanHost


def asked(made: DockerHost | PodmanHost, *words: str) -> Any:
    """What is said, by its verdict in the first place."""
    code, said, _ = made.host.runner([ATOLL, "explain", *words])
    return {0: "yes", 1: "no", 8: "unsure", 9: "differs"}.get(code, code), said


@pytest.mark.timeout(240)
@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_what_is_said_of_containers_is_what_happens(back_end: str) -> None:
    with docker_host(back_end=back_end) as made:
        made.docker("network", "create", "-d", "atoll", "--ipam-driver", "atoll", "--subnet", "10.77.0.0/24", "net1")
        made.wait_for("the network's name to be known", lambda: "net1" in made.networks())
        made.serve("c1", "--network", "net1", "-p", "8081:80")
        made.serve("d1", "-p", "8082:80")
        made.atoll("ns", "create", "r1")
        made.atoll("connect", "net1", "r1")
        made.answers("c1", f"http://{FACING}:8081/", place="outside")
        made.answers("d1", f"http://{FACING}:8082/", place="outside")
        docker_own = made.docker("inspect", "d1", "--format", "{{.NetworkSettings.IPAddress}}")

        # On an Atoll network, through the port that it publishes and directly.
        for question in (
            ("outside:192.0.2.2", "host:8081"), ("host", "host:8081"), ("host", f"{FACING}:8081"), ("host", "c1:80"), ("r1", "c1:80"),
            ("r1", f"{FACING}:8081"), ("c1", "r1:80"), ("c1", "192.0.2.2:80"),
        ):  # fmt: skip
            verdict, said = asked(made, *question)
            assert verdict == "yes", said
            if question[0] != "outside:192.0.2.2":
                verdict, said = asked(made, *question, "--probe")
                assert (verdict, "probe: agrees" in said) == ("yes", True), said
        # Beside Docker, br_netfilter stands between a container and its own port.
        verdict, said = asked(made, "c1", f"{FACING}:8081", "--probe")
        assert (verdict, "by the port that it came from" in said, "probe: agrees" in said) == ("no", True, True), said
        verdict, said = asked(made, "outside:192.0.2.2", "c1:80")
        assert (verdict, "published ports only" in said) == ("no", True), said
        assert made.fetch("http://10.77.0.2/", place="outside") == ""

        # Docker's own: its rule and its bridge are seen, what is behind that is not.
        for question in (("outside:192.0.2.2", "host:8082"), ("host", f"{docker_own}:80"), ("r1", f"{FACING}:8082")):
            verdict, said = asked(made, *question)
            assert (verdict, "docker0: out to veth" in said, "nat DOCKER" in said) == ("yes", True, question[1] != f"{docker_own}:80"), said
        verdict, said = asked(made, "host", f"{docker_own}:80", "--probe")
        assert (verdict, "probe: agrees" in said) == ("yes", True), said
        # Of an address that nobody has there it isn't known who could answer.
        verdict, said = asked(made, "host", "172.17.0.99:80")
        assert (verdict, "has not heard of them" in said) == ("unsure", True), said

        # Its rule for others' networks, when Docker's bridge is entered from one of ours and the port isn't published.
        made.host.run("sh", "-c", f"iptables-{back_end} -I DOCKER-USER -i atb+ -p tcp -m multiport --dports 80,443 -o docker0 -j REJECT")
        verdict, said = asked(made, "r1", f"{docker_own}:80")
        assert (verdict, "DOCKER-USER" in said) == ("no", True), said
        assert made.host.runner([ATOLL, "ns", "exec", "r1", "--", "busybox", "nc", "-w", "1", docker_own, "80", "-e", "true"])[0] != 0
        assert asked(made, "r1", f"{FACING}:8081")[0] == "yes"


@pytest.mark.timeout(120)
def test_what_is_said_beside_netavark_is_what_happens() -> None:
    with podman_host() as made:
        made.host.run("mkdir", "-p", "/run/atoll")
        made.host.start("atoll", ATOLL, "daemon", "run")
        made.host.wait_for("Atoll to answer", lambda: made.host.runner([ATOLL, "daemon", "status"])[0] == 0)
        # One container of netavark's, and then one of ours.
        made.podman("network", "create", "--subnet", "10.66.5.0/24", "own")
        made.serve("p0", "--network", "own", "-p", "8090:80")
        made.atoll("podman", "install")
        made.podman("network", "create", "--subnet", "10.78.0.0/24", "net1")
        made.serve("p1", "--network", "net1", "-p", "8081:80")
        made.atoll("ns", "create", "r1")
        made.atoll("connect", "net1", "r1")
        facing = "198.51.100.1"
        assert (made.fetch(f"{facing}:8090", "outside"), made.fetch(f"{facing}:8081", "outside")) == ("p0", "p1")
        for port, hop in ((8081, "published port: goes on to"), (8090, "rule ip nat NETAVARK")):
            for source in ("outside:198.51.100.9", "host", "r1"):
                options = () if source.startswith("outside") else ("--probe",)
                verdict, said = asked(made, source, f"{facing}:{port}", *options)
                assert (verdict, hop in said, "probe: agrees" in said) == ("yes", True, bool(options)), said
        made.atoll("daemon", "stop")
