"""The real Podman with Atoll in netavark's place."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator

import pytest

from tests.clients.podman_host import IMAGE, ORIGINAL, PodmanHost, podman_host

PLACED = "/var/lib/atoll/podman/netavark"


@pytest.fixture
def bare() -> Iterator[PodmanHost]:
    """With netavark, as it was before."""
    with podman_host() as there:
        yield there


@pytest.fixture
def there(bare: PodmanHost) -> PodmanHost:
    bare.atoll("podman", "install")
    return bare


def networks(there: PodmanHost) -> list[str]:
    return [network["name"] for network in there.shown("network", "ls") if network["name"] not in ("host", "none")]


def namespaces(there: PodmanHost) -> list[str]:
    return [namespace["name"] for namespace in there.shown("ns", "ls")]


def links(there: PodmanHost) -> list[str]:
    return [link["ifname"] for link in json.loads(there.host.run("ip", "-j", "link"))]


def nothing_is_left(there: PodmanHost) -> None:
    assert namespaces(there) == networks(there) == []
    assert links(there) == ["lo", "wire0"]
    assert there.host.run("nft", "list", "ruleset") == ""
    assert there.host.run("ls", "/run/netns").split() == ["outside"]


def test_a_container_is_reached_by_its_port_and_goes_without_a_trace(there: PodmanHost) -> None:
    there.serve("a", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "9000-9002:80-82/tcp")
    assert there.inspect("a")["NetworkSettings"]["IPAddress"] == "10.88.0.2"
    for address in ("127.0.0.1:8080", "198.51.100.1:8080", "10.88.0.2", "127.0.0.1:8081", "127.0.0.1:9000"):
        assert there.fetch(address) == "a"
    assert there.fetch("198.51.100.1:8080", "outside") == "a"
    assert there.fetch("198.51.100.1:8081", "outside") == ""
    assert there.fetch("10.88.0.2", "outside") == ""
    assert there.pings("a", "198.51.100.9")
    assert namespaces(there) == ["a"]
    assert networks(there) == ["podman"]
    there.podman("rm", "-f", "-t", "0", "a")
    nothing_is_left(there)


def test_containers_know_each_other_by_name(there: PodmanHost) -> None:
    there.podman("network", "create", "web")
    there.serve("a", "--network", "web", "--network-alias", "alpha")
    there.serve("b", "--network", "web")
    for name in ("a", "a.dns.podman", "alpha", "alpha.dns.podman", "a.web.atoll", "a.web", there.inspect("a")["Id"][:12]):
        assert there.ask("b", name) == "a", name
    assert "NXDOMAIN" in there.host.runner(["podman", "exec", "b", "nslookup", "c.dns.podman"])[1]
    assert "search dns.podman" in there.exec("b", "cat", "/etc/resolv.conf")


def test_a_running_container_is_connected_and_disconnected(there: PodmanHost) -> None:
    for name in ("web", "db"):
        there.podman("network", "create", name)
    there.serve("a", "--network", "web", "-p", "8080:80")
    there.serve("c", "--network", "db")
    assert there.ask("c", "a") == ""
    there.podman("network", "connect", "--alias", "again", "db", "a")
    assert there.ask("c", "a") == there.ask("c", "again") == there.fetch("127.0.0.1:8080") == "a"
    # The network that its port was published on goes; the port stays.
    there.podman("network", "disconnect", "web", "a")
    assert there.fetch("127.0.0.1:8080") == there.fetch("198.51.100.1:8080", "outside") == "a"
    assert networks(there) == ["db"]
    there.podman("network", "reload", "--all")
    assert there.fetch("127.0.0.1:8080") == there.ask("c", "a") == "a"
    there.podman("rm", "-f", "-t", "0", "a", "c")
    nothing_is_left(there)


def test_an_internal_network_leads_nowhere(there: PodmanHost) -> None:
    there.podman("network", "create", "--internal", "inner")
    there.serve("a", "--network", "inner")
    there.serve("b", "--network", "inner")
    assert there.ask("b", "a") == "a"
    assert not there.pings("b", "198.51.100.9")
    assert "default" not in there.exec("b", "ip", "route")


def test_isolation_is_netavarks(there: PodmanHost) -> None:
    wanted = (("open1", "false"), ("open2", "false"), ("apart1", "true"), ("apart2", "true"), ("strict", "strict"))
    for number, (name, isolate) in enumerate(wanted):
        there.define(name, f"10.90.{number}", options={"isolate": isolate})
        there.serve(name, "--network", name)
    addresses = {name: there.inspect(name)["NetworkSettings"]["Networks"][name]["IPAddress"] for name in networks(there)}
    reached = {(one, other) for one in addresses for other in addresses if one != other and there.ask(one, addresses[other])}
    assert reached == {("open1", "open2"), ("open2", "open1")} | {
        pair for apart in ("apart1", "apart2") for open_ in ("open1", "open2") for pair in ((apart, open_), (open_, apart))
    }


def test_both_families(there: PodmanHost) -> None:
    there.podman("network", "create", "--ipv6", "--subnet", "10.90.0.0/24", "--subnet", "fd90::/64", "dual")
    there.serve("a", "--network", "dual", "-p", "8080:80")
    there.run("b", "--network", "dual")
    assert there.ask("b", "fd90::2") == there.fetch("[fd90::2]") == there.fetch("[2001:db8:100::1]:8080", "outside") == "a"
    assert there.fetch("[::1]:8080") == there.fetch("127.0.0.1:8080") == "a"
    assert there.pings("b", "2001:db8:100::9")


def test_addresses_and_options_that_were_asked_for(there: PodmanHost) -> None:
    there.define("web", "10.90.0", options={"mtu": "1400", "metric": "77"})
    there.run("a", "--network", "web:ip=10.90.0.42,mac=92:d0:c6:0a:29:33,interface_name=net7")
    shown = there.exec("a", "ip", "addr", "show", "net7")
    for word in ("10.90.0.42/24", "92:d0:c6:0a:29:33", "mtu 1400"):
        assert word in shown
    assert "default via 10.90.0.1 dev net7  metric 77" in there.exec("a", "ip", "route")
    assert there.inspect("a")["NetworkSettings"]["Networks"]["web"]["MacAddress"] == "92:d0:c6:0a:29:33"


def test_what_atoll_can_not_do_is_one_line_and_leaves_nothing(there: PodmanHost) -> None:
    there.define("tagged", "10.90.0", options={"vlan": "7"})
    code, _, words = there.host.runner(["podman", "run", "--rm", "--network", "tagged", IMAGE, "true"])
    assert code != 0
    assert "netavark: network tagged: Atoll tags no bridge ports; use a macvlan network on a VLAN interface" in words
    nothing_is_left(there)


def test_restarting(there: PodmanHost) -> None:
    there.podman("network", "create", "web")
    there.serve("a", "--network", "web", "-p", "8080:80")
    there.serve("b", "--network", "web")
    there.podman("restart", "-t", "0", "a")
    there.host.wait_for("a to serve again", lambda: there.fetch("127.0.0.1:8080") == "a")
    assert there.ask("b", "a") == "a"


def test_a_pod_is_one_namespace(there: PodmanHost) -> None:
    there.podman("network", "create", "web")
    infra = ["--infra-image", IMAGE, "--infra-command", "sleep 1000"]
    there.podman("pod", "create", "--name", "pod", "--network", "web", "-p", "8080:80", *infra)
    there.serve("a", "--pod", "pod")
    there.run("b", "--pod", "pod")
    assert len(namespaces(there)) == 1
    assert there.ask("b", "127.0.0.1") == "a"
    there.podman("pod", "rm", "-f", "-t", "0", "pod")
    nothing_is_left(there)


def test_two_hundred_ports_one_by_one(there: PodmanHost) -> None:
    there.serve("a", *(word for number in range(200) for word in ("-p", f"{20000 + number * 2}:80")))
    assert {there.fetch(f"127.0.0.1:{port}") for port in (20000, 20200, 20398)} == {"a"}
    assert there.fetch("198.51.100.1:20398", "outside") == "a"
    there.podman("rm", "-f", "-t", "0", "a")
    nothing_is_left(there)


def test_a_killed_container_goes_by_itself(there: PodmanHost) -> None:
    there.serve("a", "-p", "8080:80")
    there.host.run("kill", "-9", str(there.inspect("a")["State"]["Pid"]))
    there.host.wait_for("it to go", lambda: not namespaces(there))
    nothing_is_left(there)


def test_a_container_that_nobody_tears_down_goes_by_itself(there: PodmanHost) -> None:
    """Its caretaker is killed, and its namespace removed by someone else."""
    there.serve("a", "-p", "8080:80")
    about = there.inspect("a")
    path = about["NetworkSettings"]["SandboxKey"]
    there.host.run("kill", "-9", str(about["State"]["ConmonPid"]), str(about["State"]["Pid"]))
    there.host.run("umount", "-l", path)
    there.host.run("rm", path)
    there.host.wait_for("all of it to go", lambda: not networks(there))
    nothing_is_left(there)


def test_a_killed_daemon_comes_back_and_nothing_is_missed(there: PodmanHost) -> None:
    there.podman("network", "create", "web")
    there.serve("a", "--network", "web", "-p", "8080:80")
    kill_daemon(there)
    assert there.fetch("127.0.0.1:8080") == "a"
    there.serve("b", "--network", "web")
    assert there.ask("b", "a") == "a"
    kill_daemon(there)
    there.podman("rm", "-f", "-t", "0", "a", "b")
    nothing_is_left(there)


def kill_daemon(there: PodmanHost) -> None:
    pid = json.loads(there.host.run("curl", "-s", "--unix-socket", "/run/atoll/atoll.sock", "http://atoll/v1/status"))["pid"]
    there.host.run("kill", f"-{signal.SIGKILL}", str(pid))
    ended = f"! grep -qs '^State:.[^ZX]' /proc/{pid}/status"
    there.host.wait_for("the daemon to end", lambda: there.host.runner(["sh", "-c", ended])[0] == 0)


def test_podman_containers_and_plain_processes_share_a_network(there: PodmanHost) -> None:
    there.podman("network", "create", "--subnet", "10.77.0.0/24", "lan")  # first: Podman refuses subnets that the host has
    there.atoll("network", "create", "lan", "--subnet", "10.77.0.0/24", "--ip-range", "10.77.0.128/25")
    there.atoll("run", "-d", "--network", "lan", "--name", "plain", "--", "python3", "-m", "http.server", "80", "-d", "/etc/containers")
    there.serve("a", "--network", "lan")
    there.host.wait_for("plain to serve", lambda: "</html>" in there.ask("a", "plain"))
    assert there.host.run(*there.command("ns", "exec", "plain", "--", "curl", "-s", "-m", "5", "http://a/")) == "a\n"
    assert there.host.run(*there.command("ns", "exec", "plain", "--", "curl", "-s", "-m", "5", "http://a.dns.podman/")) == "a\n"
    there.podman("rm", "-f", "-t", "0", "a")
    assert networks(there) == ["lan"]


# --- switching over and back ---------------------------------------------------------------------------------------------------------


def test_containers_that_ran_before_are_torn_down_by_what_set_them_up(bare: PodmanHost) -> None:
    bare.serve("old", "-p", "8080:80")
    bare.podman("network", "create", "web")
    bare.run("olds", "--network", "web")
    bare.atoll("podman", "install")
    bare.serve("new", "-p", "8081:80")
    assert bare.fetch("127.0.0.1:8080") == "old"
    assert bare.fetch("127.0.0.1:8081") == bare.fetch("198.51.100.1:8081", "outside") == "new"
    assert bare.ask("old", "10.88.0.3") == "new"
    assert bare.ask("new", "10.88.0.2") == "old"
    # One of the former joins a network by us. Each takes down what it has set up; netavark complains that it doesn't know the other.
    bare.podman("network", "create", "late")
    bare.podman("network", "connect", "late", "old")
    bare.serve("peer", "--network", "late")
    assert bare.ask("peer", "old") == "old"
    assert bare.host.runner(["podman", "rm", "-f", "-t", "0", "old"])[0] == 0
    bare.podman("rm", "-f", "-t", "0", "olds", "peer")
    assert bare.fetch("127.0.0.1:8080") == ""
    assert bare.fetch("127.0.0.1:8081") == "new"
    bare.podman("rm", "-f", "-t", "0", "new")
    assert namespaces(bare) == networks(bare) == []
    assert links(bare) == ["lo", "wire0"]


def test_a_reload_hands_over_what_ran_before(bare: PodmanHost) -> None:
    bare.podman("network", "create", "web")
    bare.serve("old", "--network", "web", "-p", "8080:80")
    address = bare.inspect("old")["NetworkSettings"]["Networks"]["web"]["IPAddress"]
    bare.atoll("podman", "install")
    bare.serve("new", "--network", "web")
    assert namespaces(bare) == ["new"]
    bare.podman("network", "reload", "--all")
    assert namespaces(bare) == ["new", "old"]
    assert address in bare.exec("old", "ip", "address")
    assert bare.fetch("127.0.0.1:8080") == bare.fetch("198.51.100.1:8080", "outside") == bare.ask("new", "old") == "old"
    assert bare.ask("old", "new") == "new"
    bare.podman("rm", "-f", "-t", "0", "old", "new")
    assert namespaces(bare) == networks(bare) == []
    assert links(bare) == ["lo", "wire0"]


def test_uninstalled_with_containers_that_run(there: PodmanHost) -> None:
    there.podman("network", "create", "web")
    there.serve("a", "--network", "web", "-p", "8080:80")
    there.serve("b", "--network", "web")
    there.atoll("podman", "uninstall")
    assert there.host.runner(["ls", "/etc/containers/containers.conf.d/atoll.conf", PLACED])[1] == ""
    assert there.podman("info", "--format", "{{.Host.NetworkBackend}}").strip() == "netavark"
    assert there.fetch("127.0.0.1:8080") == there.ask("b", "a") == "a"
    # netavark doesn't know them, and they go all the same, when their namespaces do.
    for name in ("a", "b"):
        there.host.runner(["podman", "rm", "-f", "-t", "0", name])
    there.host.wait_for("all of Atoll's to go", lambda: not networks(there) and not namespaces(there))
    there.serve("c", "--network", "web", "-p", "8080:80")
    assert there.fetch("127.0.0.1:8080") == "c"
    assert "atoll" not in there.host.run("nft", "list", "tables")


def test_installing_twice_is_as_good_as_once_and_status_tells(bare: PodmanHost) -> None:
    before = bare.shown("podman", "status")
    assert before == {"installed": False, "netavark": ORIGINAL, "before": ORIGINAL, "driver": False, "backend": "netavark"}
    assert bare.host.runner(bare.command("podman", "uninstall"))[0] == 3
    plan = bare.atoll("podman", "install", "--dry-run")
    assert bare.host.runner(["ls", "/etc/containers/containers.conf.d/atoll.conf", PLACED])[1] == ""
    for _ in range(2):
        bare.atoll("podman", "install")
        written = bare.host.run("cat", "/etc/containers/containers.conf.d/atoll.conf")
        assert written in plan
    found = bare.shown("podman", "status")
    assert found == {"installed": True, "netavark": PLACED, "before": ORIGINAL, "driver": True, "backend": "netavark"}
    bare.atoll("podman", "uninstall")
    assert bare.shown("podman", "status") == before


def test_folders_of_the_users_own_stay_behind_ours(bare: PodmanHost) -> None:
    bare.host.run(
        "sh", "-c", 'printf "[engine]\\nhelper_binaries_dir = [\\"/opt/own\\", \\"/usr/lib/podman\\"]\\n" >>/etc/containers/my.conf'
    )
    bare.host.run(
        "sh", "-c", "mkdir -p /etc/containers/containers.conf.d; mv /etc/containers/my.conf /etc/containers/containers.conf.d/aa.conf"
    )
    bare.atoll("podman", "install")
    assert '["/var/lib/atoll/podman", "/opt/own", "/usr/lib/podman"]' in bare.host.run(
        "cat", "/etc/containers/containers.conf.d/atoll.conf"
    )
    bare.host.run("mv", "/etc/containers/containers.conf.d/aa.conf", "/etc/containers/containers.conf.d/zz.conf")
    code, _, words = bare.host.runner(bare.command("podman", "install"))
    assert code == 4
    assert f"Podman still uses {ORIGINAL}" in words


def test_a_drop_in_of_somebody_elses_is_left_alone(bare: PodmanHost) -> None:
    path = "/etc/containers/containers.conf.d/atoll.conf"
    bare.host.run("sh", "-c", f"mkdir -p {path.rpartition('/')[0]}; echo '[engine]' >{path}")
    for command in ("install", "uninstall"):
        assert bare.host.runner(bare.command("podman", command))[0] == 4
    assert bare.host.run("cat", path) == "[engine]\n"


def test_with_cni_status_says_whose_door_it_is(bare: PodmanHost) -> None:
    bare.host.run("sh", "-c", "sed -i s/netavark/cni/ /etc/containers/containers.conf")
    with contextlib.suppress(AssertionError):
        bare.podman("info")
    assert "see atoll cni install" in bare.atoll("podman", "status")
