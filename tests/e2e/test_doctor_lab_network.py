"""Faults of network and rendezvous on real nodes: doctor names id, node and the line, and the line mends it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from doctoring import Desk, above_info, clean, finding, on

from clusterft import hosts
from clusterft.checks import Survey
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.ways import reach
from clusterft.facts.links import Links
from clusterft.fleet import Fleet
from clusterft.probing import links
from clusterft.probing.crew import Crew, Way
from lab import LightLab, LightNode

pytestmark = [pytest.mark.lab_light, pytest.mark.long]

ONLY = ("--only", "network,rendezvous")
Act = Callable[[LightLab], object]


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path) -> Desk:
    """Names lead to nodes by ~/.ssh/config, so that addr= is what the nodes dial and nothing else."""
    made = Desk(lab, tmp_path / "desk")
    lines = (f"Host {node.name}\n  HostName {node.address}\n" for node in lab.nodes)
    (made.root / ".ssh" / "config").write_text("".join(lines))
    return made


def ip(lab: LightLab, node: str, *words: str) -> None:
    """Change a node's network from outside, which goes on while its ssh does not."""
    lab.node(node)._network(["ip", *words])


def wall(lab: LightLab, node: str, *rule: str) -> None:
    """One rule of iptables: -I or -D first."""
    lab.node(node)._network(["iptables", "-w", *rule])


def obey(lab: LightLab, steps: list[str]) -> list[str]:
    """Type what the fix lines say for a node, as root; what was typed."""
    typed = []
    for step in steps:
        where, _, command = step.partition(": sudo ")
        if command and where.startswith("on "):
            command = command.partition("   ")[0]
            for node in where.removeprefix("on ").removeprefix("each of ").split(", "):
                on(lab, node, command)
                typed.append(f"{node} {command}")
    return typed


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, what doctor must say, and how the lab is made whole after the fix."""

    name: str
    id: str
    nodes: tuple[str, ...]
    fix: str  # in a fix line, with {subnet} filled in
    inject: Act
    undo: Act
    status: str = "fail"
    evidence: tuple[str, ...] = ()
    also: tuple[str, ...] = field(default=())
    heals: bool = True  # what is to be typed on nodes is enough; else something in between has to be mended

    def __str__(self) -> str:
        return self.name


def _rules(node: str, *rule: str) -> tuple[Act, Act]:
    return (lambda lab: wall(lab, node, "-I", *rule)), (lambda lab: wall(lab, node, "-D", *rule))


def _blocked(node: str, port: int | str, action: str = "drop") -> tuple[Act, Act]:
    return (
        lambda lab: lab.node(node).block_port(port, action),
        lambda lab: lab.node(node).unblock_ports(),
    )


def _one_way(lab: LightLab) -> list[str]:
    return ["INPUT", "-s", lab.node("n1").address, "-p", "tcp", "--syn", "--dport", "1024:65535", "-j", "DROP"]


HIGH = "1024:65535"
ALL = "on {0}: sudo iptables -I INPUT -p tcp -s {{subnet}} -j ACCEPT"
MEET = "on {0}: sudo iptables -I INPUT -p tcp -s {{subnet}} --dport 29500:29627 -j ACCEPT"
PORTS = (
    Case("drop 29500", "net.master-port", ("n1",), MEET.format("n1"), *_blocked("n1", 29500)),
    Case("reject 29500", "net.master-port", ("n1",), MEET.format("n1"), *_blocked("n1", 29500, "reject"),
         evidence=("refuses the rest at once",)),
    Case("drop 29500 where nobody leads", "net.master-port", ("n2",), MEET.format("n2"), *_blocked("n2", 29500),
         status="warn", evidence=("once n1 is lost",)),
    Case("drop where supervisors meet", "net.master-port", ("n1",), MEET.format("n1"), *_blocked("n1", 29564)),
    Case("high ports, one direction", "net.high-ports", ("n2",), ALL.format("n2"),
         lambda lab: wall(lab, "n2", "-I", *_one_way(lab)), lambda lab: wall(lab, "n2", "-D", *_one_way(lab)),
         evidence=("new connections from n1 to high ports on n2", "n3 can", "timed out", "in silence")),
    Case("high ports dropped", "net.high-ports", ("n2",), ALL.format("n2"), *_blocked("n2", HIGH)),
    Case("high ports rejected", "net.high-ports", ("n3",), ALL.format("n3"), *_blocked("n3", HIGH, "reject"),
         evidence=("connection refused at once",)),
    Case("high ports prohibited", "net.high-ports", ("n2",), ALL.format("n2"), *_blocked("n2", HIGH, "prohibit"),
         evidence=("no route to host at once",)),
    Case("outgoing connections dropped", "net.high-ports", ("n3",),
         "on n3: sudo iptables -I OUTPUT -p tcp -d {subnet} -j ACCEPT",
         *_rules("n3", "OUTPUT", "!", "-o", "lo", "-p", "tcp", "--syn", "--dport", HIGH, "-j", "DROP"),
         evidence=("new connections from n3 to high ports on n1 and n2",)),
)  # fmt: skip


@pytest.mark.parametrize("case", PORTS, ids=str)
def test_a_closed_port_is_named_with_the_line_that_opens_it(case: Case, lab: LightLab, desk: Desk) -> None:
    case.inject(lab)
    typed: list[str] = []
    try:
        answer = desk.doctor(*ONLY)
        one = told(case, answer, lab)
        typed = obey(lab, one["fix"])
        assert typed, one["fix"]
        clean(desk.doctor(*ONLY))
    finally:
        case.undo(lab)
        for line in typed:
            node, _, command = line.partition(" ")
            on(lab, node, command.replace(" -I ", " -D "))


def told(case: Case, answer: dict[str, Any], lab: LightLab) -> dict[str, Any]:
    """The finding, once it is seen to be right."""
    one = finding(answer, case.id, *case.nodes)
    assert one["status"] == case.status, one
    wanted = case.fix.format(
        subnet=lab.node("n1").address.rpartition(".")[0] + ".0/24", peer=lab.node("n1").address
    )
    assert any(wanted in step for step in one["fix"]), (wanted, one["fix"])
    shown = "\n".join((one["summary"], one["evidence"], one["cause"]))
    assert all(words in shown for words in case.evidence), shown
    others = {found["id"] for found in above_info(answer)} - {case.id, *case.also}
    assert not others, [(found["id"], found["nodes"], found["summary"]) for found in above_info(answer)]
    return one


SMALL = ("-p", "tcp", "!", "--dport", "22", "-m", "length", "--length", "1401:65535", "-j", "DROP")


def _segments(lab: LightLab, count: int) -> None:
    """Cards of this lab send in pieces of 64 KB, which no real switch would ever see."""
    for node in lab.nodes:
        ip(lab, node.name, "link", "set", "eth0", "gso_max_segs", str(count))


def _jumbo(lab: LightLab, size: int) -> None:
    for name in ("n1", "n2"):
        ip(lab, name, "link", "set", "eth0", "mtu", str(size))
    _segments(lab, 1 if size > 1500 else 65535)


def _tunnel(lab: LightLab, flag: str) -> None:
    _segments(lab, 1 if flag == "-I" else 65535)
    ip(lab, "n2", "link", "set", "eth0", "mtu", "1500")
    wall(lab, "n2", flag, "INPUT", "!", "-i", "lo", *SMALL)


def _stolen(lab: LightLab) -> str:
    return f"{lab.node('n2').address}/24"


PATHS = (
    Case("9000 at two ends, 1500 between", "net.mtu", ("n1", "n2"), "on n1: sudo ip link set eth0 mtu 1500",
         lambda lab: _jumbo(lab, 9000), lambda lab: _jumbo(lab, 1500), evidence=("n1 eth0 9000", "MSS 89")),
    Case("a way to one node that carries 1400", "net.mtu", ("n2",), "on n2: sudo ip link set eth0 mtu 1400",
         lambda lab: _tunnel(lab, "-I"), lambda lab: _tunnel(lab, "-D"),
         evidence=("stuck on the way to n2", "of 1400 bytes it comes through")),
    Case("one address on two nodes", "net.dup-ip", ("n2", "n3"), "on n3: sudo ip addr del",
         lambda lab: ip(lab, "n3", "addr", "add", _stolen(lab), "dev", "eth0"), lambda lab: None),
    Case("a limit on a link", "net.linkspeed", ("n2",), "on n2: sudo tc qdisc del dev eth0 root",
         lambda lab: lab.node("n2").throttle("10mbit"), lambda lab: lab.node("n2").unthrottle(), status="warn",
         heals=False),
)  # fmt: skip


BANS = [
    Case(kind, "net.route", ("n3",), "on n3: sudo ip route del " + kind + " {peer}",
         lambda lab, kind=kind: ip(lab, "n3", "route", "add", kind, lab.node("n1").address),  # type: ignore[misc]
         lambda lab, kind=kind: ip(lab, "n3", "route", "flush", "type", kind, lab.node("n1").address),  # type: ignore[misc]
         evidence=("fail2ban", f"n3, ip route: {kind} ", "n3 → n1", words))
    for kind, words in (("unreachable", "no route to host at once"), ("blackhole", "Invalid argument"),
                        ("prohibit", "Permission denied"))
]  # fmt: skip


@pytest.mark.parametrize("case", BANS, ids=str)
def test_a_peer_that_a_node_has_banned_is_one_finding_of_that_node(case: Case, lab: LightLab, desk: Desk) -> None:
    """As fail2ban does it. The way back fails too, and is not told as the other node's firewall."""
    case.inject(lab)
    try:
        one = told(case, desk.doctor(*ONLY), lab)
        assert obey(lab, one["fix"][:1]), one["fix"]
        clean(desk.doctor(*ONLY))
    finally:
        case.undo(lab)


def _vpn(lab: LightLab) -> None:
    """As tailscale keeps its routes: in a table of its own that is asked before main."""
    ip(lab, "n2", "link", "add", "tailscale0", "type", "veth", "peer", "name", "exit-node")
    ip(lab, "n2", "addr", "add", "100.101.7.12/32", "dev", "tailscale0")
    for end in ("tailscale0", "exit-node"):
        ip(lab, "n2", "link", "set", end, "up")
    for peer in ("n1", "n3"):
        ip(lab, "n2", "route", "add", lab.node(peer).address, "dev", "tailscale0", "table", "52")
    ip(lab, "n2", "rule", "add", "lookup", "52", "priority", "5270")


def test_a_vpn_that_takes_the_way_to_the_peers_is_the_route_of_that_node(lab: LightLab, desk: Desk) -> None:
    _vpn(lab)
    try:
        answer = desk.doctor(*ONLY)
        one = finding(answer, "net.route", "n2")
        assert "tailscale0, by table 52" in one["summary"]
        assert "n2, ip rule: 5270: from all lookup 52" in one["evidence"]
        assert one["fix"][0] == "on n2: sudo tailscale set --accept-routes=false"
        assert [found["id"] for found in above_info(answer)] == ["net.route"]
        assert obey(lab, [step for step in one["fix"] if "ip rule add" in step]), one["fix"]
        clean(desk.doctor(*ONLY))
        ip(lab, "n2", "rule", "del", "priority", "5269")
    finally:
        ip(lab, "n2", "rule", "del", "priority", "5270")
        ip(lab, "n2", "link", "del", "tailscale0")
    clean(desk.doctor(*ONLY))


def _apart(lab: LightLab, state: str) -> None:
    for node in ("n2", "n3"):
        words = ["link", "set", "dev", node, "type", "bridge_slave", "isolated", state]
        subprocess.run(["ip", "netns", "exec", lab.switch._self, "ip", *words], check=True)
    for node, other in (("n2", "n3"), ("n3", "n2")):
        ip(lab, node, "neigh", "flush", "to", lab.node(other).address)


def test_two_ports_that_the_switch_isolates_are_no_firewalls(lab: LightLab, desk: Desk) -> None:
    _apart(lab, "on")
    try:
        answer = desk.doctor(*ONLY)
        one = finding(answer, "net.isolated", "n2", "n3")
        assert f"n2: no MAC of n3, {lab.node('n3').address}, on eth0" in one["evidence"]
        assert "iptables" not in "".join(one["fix"]) and "switch" in one["fix"][0]
        assert [found["id"] for found in above_info(answer)] == ["net.isolated"]
    finally:
        _apart(lab, "off")
    clean(desk.doctor(*ONLY))


@pytest.mark.parametrize("case", PATHS, ids=str)
def test_what_the_way_does_not_carry_is_named_and_mended(case: Case, lab: LightLab, desk: Desk) -> None:
    case.inject(lab)
    try:
        one = told(case, desk.doctor(*ONLY), lab)
        if case.heals:
            obey(lab, one["fix"])
            clean(desk.doctor(*ONLY))
    finally:
        case.undo(lab)
    clean(desk.doctor(*ONLY))


def test_lost_packets_are_told_from_a_slow_link(lab: LightLab, desk: Desk) -> None:
    rule = ("INPUT", "!", "-i", "lo", "-m", "statistic", "--mode", "random", "--probability", "0.03", "-j", "DROP")
    wall(lab, "n2", "-I", *rule)
    try:
        answer = desk.doctor(*ONLY)
    finally:
        wall(lab, "n2", "-D", *rule)
    one = finding(answer, "net.loss", "n2")
    assert one["status"] == "warn" and any("cable of eth0 on n2" in step for step in one["fix"]), one
    assert {found["id"] for found in above_info(answer)} <= {"net.loss", "net.linkspeed"}
    clean(desk.doctor(*ONLY))


def test_a_dead_leg_of_a_bond_is_no_firewall(lab: LightLab, desk: Desk) -> None:
    """Half of the flows from n1 and n2 to n3 are lost: by one bit of their ports, as a bond's hash does."""
    half = ("-m", "u32", "--u32", "0>>22&0x3C@0&0x00020002=0x2,0x20000", "-j", "DROP")
    peers = [lab.node(name).address for name in ("n1", "n2")]
    for peer in peers:
        wall(lab, "n3", "-t", "raw", "-I", "PREROUTING", "-s", peer, "-p", "tcp", *half)
    try:
        answer = desk.doctor(*ONLY)
    finally:
        for peer in peers:
            wall(lab, "n3", "-t", "raw", "-D", "PREROUTING", "-s", peer, "-p", "tcp", *half)
    one = finding(answer, "net.loss", "n3")
    assert one["status"] == "fail" and "/proc/net/bonding" in one["fix"][0]
    assert "of 8 connections at once came about" in one["evidence"]
    clean(desk.doctor(*ONLY))


def test_an_impostor_with_a_nodes_address_is_found_by_its_card(lab: LightLab, desk: Desk) -> None:
    """A machine that is none of the nodes: one node's neighbour table leads to it."""
    stolen = lab.node("n2").address
    lab.switch.plug("thief", lab.switch.address(200))
    place = ["ip", "netns", "exec", lab.switch.name_of("thief")]

    def there(*words: str) -> str:
        return subprocess.run([*place, *words], check=True, capture_output=True, text=True).stdout

    # It keeps to itself, or this machine's way to n2 would lead there too.
    quiet = "cd /proc/sys/net/ipv4/conf/all; echo 1 >arp_ignore; echo 2 >arp_announce"
    there("sh", "-c", quiet)
    there("ip", "addr", "add", f"{stolen}/32", "dev", "lo")
    mac = there("ip", "-o", "link", "show", "eth0").partition("link/ether ")[2].split()[0]
    ip(lab, "n1", "neigh", "replace", stolen, "lladdr", mac, "dev", "eth0", "nud", "permanent")
    try:
        answer = desk.doctor(*ONLY)
    finally:
        ip(lab, "n1", "neigh", "del", stolen, "dev", "eth0")
        there("ip", "link", "set", "eth0", "down")
    one = finding(answer, "net.dup-ip", "n2")
    assert mac in one["evidence"] and any(f"at {mac}" in step and stolen in step for step in one["fix"]), one
    assert [found["id"] for found in above_info(answer)] == ["net.dup-ip"]
    clean(desk.doctor(*ONLY))


def _readdressed(desk: Desk, lab: LightLab, node: str, addr: str) -> None:
    text = lab.hostfile.read_text()
    desk.hosts.write_text(text.replace(f"addr={lab.node(node).address} ", f"addr={addr} "))
    assert addr in desk.hosts.read_text()


def _as_told(desk: Desk, one: dict[str, Any]) -> None:
    """Put the hostfile's line as the fix gives it."""
    step = next(step for step in one["fix"] if " addr=" in step and step.startswith("in "))
    words = step.rpartition(": ")[2].split()
    lines = desk.hosts.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{words[0]} "):
            kept = [word for word in line.split() if not word.startswith("addr=")]
            lines[number] = " ".join([*kept, words[-1]])
    desk.hosts.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("addr", ["10.99.0.5", "198.51.100.7"])
def test_an_address_that_leads_nowhere_is_named_with_the_right_one(lab: LightLab, desk: Desk, addr: str) -> None:
    _readdressed(desk, lab, "n2", addr)
    answer = desk.doctor(*ONLY)
    one = finding(answer, "net.wrong-nic", "n2")
    assert any(f"n2 slots=1 addr={lab.node('n2').address}" in step for step in one["fix"]), one["fix"]
    assert {found["id"] for found in above_info(answer)} == {"net.wrong-nic"}
    _as_told(desk, one)
    clean(desk.doctor(*ONLY))


def test_an_address_that_is_another_nodes_is_named(lab: LightLab, desk: Desk) -> None:
    _readdressed(desk, lab, "n2", lab.node("n3").address)
    one = finding(desk.doctor(*ONLY, "--quick"), "net.wrong-nic", "n2")
    assert "is an address of n3" in one["summary"]
    one = finding(desk.doctor(*ONLY), "net.wrong-nic", "n2")
    _as_told(desk, one)
    clean(desk.doctor(*ONLY))


def test_a_bridge_that_is_alike_on_all_nodes_matters_only_where_it_is_used(lab: LightLab, desk: Desk) -> None:
    for node in lab.nodes:
        ip(lab, node.name, "link", "add", "br-0123456789ab", "type", "bridge")
        ip(lab, node.name, "addr", "add", "172.18.0.1/16", "dev", "br-0123456789ab")
        ip(lab, node.name, "link", "set", "br-0123456789ab", "up")
    try:
        clean(desk.doctor(*ONLY))
        _readdressed(desk, lab, "n2", "172.18.0.1")
        answer = desk.doctor(*ONLY)
        one = finding(answer, "nccl.bridge", "n2")
        assert "a bridge of Docker" in one["evidence"] and {each["id"] for each in above_info(answer)} == {
            "nccl.bridge"
        }
        _as_told(desk, one)
        clean(desk.doctor(*ONLY))
    finally:
        for node in lab.nodes:
            ip(lab, node.name, "link", "del", "br-0123456789ab")


def test_a_port_that_somebody_has_is_told_by_name_and_left_alone(lab: LightLab, desk: Desk) -> None:
    program = (
        "import socket; s = socket.create_server(('', 29500)); s.settimeout(300); s.accept(); "
        "open('/run/disturbed', 'w').close()"
    )
    on(
        lab,
        "n1",
        f'rm -f /run/disturbed; nohup python3 -c "{program}" >/dev/null 2>&1 & '
        "until grep -qi ':733C 0*:0000 0A' /proc/net/tcp; do sleep .1; done",
    )
    try:
        one = finding(desk.doctor(*ONLY), "rdzv.inuse", "n1")
        assert one["status"] == "warn" and "port 29501" in one["summary"], one
        assert "socket.create_server" in one["evidence"] and "on n1: sudo kill " in one["fix"][0]
        assert on(lab, "n1", "ls /run").find("disturbed") < 0
        obey(lab, one["fix"])
    finally:
        on(lab, "n1", "pkill -f '[c]reate_server' || true")
    clean(desk.doctor(*ONLY))


def test_two_cards_in_one_subnet(lab: LightLab, desk: Desk) -> None:
    ip(lab, "n3", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1p")
    ip(lab, "n3", "link", "set", "eth1p", "up")
    ip(lab, "n3", "link", "set", "eth1", "up")
    second = lab.switch.address(150)
    ip(lab, "n3", "addr", "add", f"{second}/24", "dev", "eth1")
    try:
        one = finding(desk.doctor(*ONLY), "net.dup-route", "n3")
        assert one["fix"][0] == f"on n3: sudo ip addr del {second}/24 dev eth1"
        obey(lab, one["fix"])
        clean(desk.doctor(*ONLY))
    finally:
        ip(lab, "n3", "link", "del", "eth1")


def test_a_healthy_cluster_is_clean_each_time_and_nothing_stays(lab: LightLab, desk: Desk) -> None:
    before = {node.name: _inhabitants(node) for node in lab.nodes}
    for _ in range(5):
        clean(desk.doctor(*ONLY))
    deadline = time.monotonic() + 5
    while {node.name: _inhabitants(node) for node in lab.nodes} != before:
        assert time.monotonic() < deadline, (before, {node.name: _inhabitants(node) for node in lab.nodes})
        time.sleep(0.1)


def _inhabitants(node: LightNode) -> int:
    """sshd of a login that has ended takes a moment to go."""
    return len(node.processes())


def _looked(lab: LightLab, without: tuple[str, ...]) -> tuple[Links, Examination]:
    """The matrix by itself, with nodes that run no program."""
    cluster = hosts.parse(lab.hostfile.read_text(), path=Path("rack"), name="rack")
    with Fleet(cluster, lab.known_hosts) as fleet:
        survey: Survey = fleet.survey(lambda node: ())
        wanted = Wanted("cpu", contained=False)
        ways = {
            node.name: Way("none", words="it has no Python")
            if node.name in without
            else Way("python", ("python3",))
            for node in cluster.active
        }
        with Crew(fleet, ways) as crew:
            found = links.look(crew, survey, wanted)
    return found, Examination(wanted, survey, links=found)


def test_where_no_program_runs_sshd_dials_and_tells_the_same(lab: LightLab) -> None:
    found, seen = _looked(lab, ("n2",))
    assert found.missing == {} and any("n2: it has no Python" in note for note in found.notes)
    assert {(one.source, one.target) for one in found.dials} == {
        (one, other) for one in ("n1", "n2", "n3") for other in ("n1", "n2", "n3") if one != other
    }
    assert list(reach.high_ports(seen)) == list(reach.master_port(seen)) == []
    assert all(one.large is not None for one in found.dials if one.target != "n2")
    for action in ("drop", "reject", "prohibit"):
        lab.node("n3").block_port("30000:65535", action)
        try:
            _, seen = _looked(lab, ("n2",))
        finally:
            lab.node("n3").unblock_ports()
        assert [one.nodes for one in reach.high_ports(seen)] == [("n3",)], action
    lab.node("n2").block_port("30000:65535")  # as a target that has no program
    try:
        _, seen = _looked(lab, ("n2",))
    finally:
        lab.node("n2").unblock_ports()
    assert [one.nodes for one in reach.high_ports(seen)] == [("n2",)]


@pytest.mark.long
def test_of_forty_nodes_a_sample_is_tried_which_is_said_and_still_finds_the_one(tmp_path: Path) -> None:
    with LightLab.up(count=40) as lab:
        desk = Desk(lab, tmp_path / "desk")
        answer = desk.doctor(*ONLY, seconds=180)
        clean(answer)
        notes = "\n".join(answer["notes"])
        assert "of 40 nodes each has dialled the 10" in notes and "400 of 1560 pairs" in notes
        assert "with the two beside it" in notes
        lab.node("n17").block_port("30000:65535", "reject")
        answer = desk.doctor(*ONLY, seconds=180)
        one = finding(answer, "net.high-ports", "n17")
        assert "on n17: sudo iptables" in one["fix"][0]
