"""Proves what doctor makes of ports, ways, addresses and interfaces: who is named, what mends it, else silence.

Of the samples in tests/golden/doctor/network, iptables.txt is recorded from a lab node; nft_native.txt is written
by hand after nft's documentation.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft.checks import Survey, highlights, networks, report
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import network, rendezvous
from clusterft.checks.ways import addresses, meeting, reach, severed, untried, walls
from clusterft.checks.ways import routes as routing
from clusterft.facts import Address, Firewall, InfiniBand, Link, NodeFacts, frames, health
from clusterft.facts import links as matrix
from clusterft.facts import network as parse
from clusterft.facts.health import network as look
from clusterft.facts.health.docker import Container, DockerHealth
from clusterft.facts.health.network import Chain, Listener, NetworkHealth
from clusterft.facts.links import Dial, Flow, Links
from clusterft.findings import Finding
from clusterft.plan import network as plan
from clusterft.probing import links as probe
from clusterft.probing import pairing, site
from clusterft.probing.dialler import Forwarding, Peer

NAMES = ("a", "b", "c")
THREE = scenes.cluster("a slots=1\nb slots=1\nc slots=1\n")
WORD = "5eed5eed5eed5eed"
GOLDEN = scenes.GOLDEN / "doctor" / "network"
MAC = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b", "c": "02:00:00:00:00:0c"}
HOST = {"a": 10, "b": 11, "c": 12}
QUIET = NetworkHealth(wireless=frozenset(), listening=False, running=False)


def ip(name: str, net: str = "10.0.0") -> str:
    """A node's address in a network."""
    return f"{net}.{HOST[name]}"


def node(name: str, *more: Address, speed: int | None = 1000, mtu: int = 1500, **changes: Any) -> NodeFacts:
    """A machine on one LAN, with Docker's usual bridge."""
    own = (
        Address("lo", "127.0.0.1", 8),
        Address("eno1", ip(name), 24),
        Address("docker0", "172.17.0.1", 16),
        *more,
    )
    cards = {one.interface for one in more} - {"eno1", "lo", "docker0"}
    links = (
        Link("lo", True, 65536, None, None),
        Link("eno1", True, mtu, MAC[name], speed),
        Link("docker0", True, 1500, "02:42:00:00:00:01", None),
        *(Link(card, True, 1500, "02:00:00:00:01:01", None) for card in sorted(cards)),
    )
    return scenes.facts(name, **{"addresses": own, "links": links, **changes})


def survey(*known: NodeFacts, of: Any = THREE, **contacts: str) -> Survey:
    """Three nodes that SSH reaches on the LAN."""
    return scenes.survey(of, *(known or map(node, NAMES)), contacts=contacts or {name: ip(name) for name in NAMES})


def dials(*failed: tuple[str, str, str, float], kind: str = "high", **changes: Any) -> tuple[Dial, ...]:
    """All pairs reach each other, but for these: (source, target, error, seconds)."""
    wrong = {(source, target): (error, seconds) for source, target, error, seconds in failed}
    found = []
    for source, target in permutations(NAMES, 2):
        error, seconds = wrong.get((source, target), ("", 0.001))
        one = Dial(
            source, target, ip(target), 40000 if kind == "high" else 29500, kind, error=error, seconds=seconds
        )  # type: ignore[arg-type]
        one = one if error else replace(one, boot=f"boot-of-{target}", large=0.002, mss=1448)
        found.append(replace(one, **changes.get(f"{source}{target}", {})))
    return tuple(found)


def seen(tried: Iterable[Dial] = (), **changes: Any) -> Examination:
    """What doctor knows of the three."""
    links = Links(addresses={name: ip(name) for name in NAMES}, dials=tuple(tried))
    whole = Examination(
        Wanted("cpu", contained=False),
        survey(),
        links=links,
        health={name: _health(QUIET) for name in NAMES},
    )
    return replace(whole, **changes)


def _health(of: NetworkHealth, containers: tuple[Container, ...] | None = None) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(network=of, docker=DockerHealth(containers=containers))


def judged(what: Examination) -> list[Finding]:
    """All that both layers have to say above info."""
    found = report.judge(what, (*network.CHECKS, *rendezvous.CHECKS))
    return [one for one in found if one.status in ("fail", "warn")]


def one_of(what: Examination, identity: str) -> Finding:
    """The only finding, of this id."""
    found = judged(what)
    assert [one.id for one in found] == [identity], [(one.id, one.nodes, one.summary) for one in found]
    return found[0]


def test_nodes_that_nobody_could_ask_share_no_network() -> None:
    assert networks.shared((), survey()) == ()


def test_a_port_that_our_own_program_no_longer_holds_is_no_firewall() -> None:
    """A limit on b's logins had ended it there; found with `ulimit -v` in its ~/.bashrc."""
    tried = dials(("a", "b", "connection refused", 0.001), ("c", "b", "connection refused", 0.001))
    of = seen(tried)
    assert [one.id for one in judged(of)] == ["net.high-ports"]
    assert of.links and judged(replace(of, links=replace(of.links, missing={"b": "it ended"}))) == []


# -- routes that send nothing -------------------------------------------------


def table(*lines: str) -> NetworkHealth:
    """As a node tells of its routes."""
    text = "seen\n" + "".join(f"{line}\n" for line in lines)
    return replace(QUIET, refusals=tuple(look._refusals(text)))


@pytest.mark.parametrize(
    ("route", "error", "undo"),
    [
        (f"unreachable {ip('a')}", "no route to host", f"unreachable {ip('a')}"),
        (f"blackhole {ip('a')} metric 5", "Invalid argument", f"blackhole {ip('a')} metric 5"),
        ("prohibit 10.0.0.8/29 table 7", "Permission denied", "prohibit 10.0.0.8/29 table 7"),
        (f"throw {ip('a')} proto static", "network is unreachable", f"throw {ip('a')}"),
    ],
)
def test_a_route_that_sends_nothing_is_one_finding_of_the_sender(route: str, error: str, undo: str) -> None:
    """Found blind as a firewall of both ends: c refuses to send to a, so that a hears no answer of c's either."""
    tried = dials(("c", "a", error, 0.001), ("a", "c", "timed out", 3.0))
    routed = {"a": node("a"), "b": node("b"), "c": node("c", routes=((ip("b"), "eno1", ip("c")),))}
    health_of = {name: _health(table(route) if name == "c" else table()) for name in NAMES}
    of = seen(tried, survey=survey(*routed.values()), health=health_of)
    one = one_of(of, "net.route")
    assert one.nodes == ("c",) and one.fix[0] == f"on c: sudo ip route del {undo}"
    assert f"c, ip route: {route}" in one.evidence and "c → a" in one.evidence
    assert one_of(replace(of, links=None), "net.route").nodes == ("c",)


def test_a_route_that_is_not_taken_is_nothing() -> None:
    """A narrower one leads to the peer, by the kernel's word or because it came about; or it is of nobody here."""
    wide = {name: _health(table("blackhole 10.0.0.0/8", "unreachable 203.0.113.9")) for name in NAMES}
    ways = [node(name, routes=tuple((ip(other), "eno1", ip(name)) for other in NAMES)) for name in NAMES]
    assert judged(seen((), survey=survey(*ways), health=wide, links=None)) == []
    assert judged(seen(dials(), health=wide)) == []


VPN = "10.0.0.10 dev tailscale0 table 52 src 100.101.7.12 uid 0"  # as the fourth blind round had it
RULES = "seen\nfamily 4\n0:\tfrom all lookup local\n5210:\tfrom all fwmark 0x80000/0xff0000 lookup main\n" + (
    "5270:\tfrom all lookup 52\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default\nfamily 6\n"
    "0:\tfrom all lookup local\n5270:\tfrom all lookup 52\n"
)
AWAY = tuple((one, other, "timed out", 3.0) for one, other in (("b", "a"), ("b", "c"), ("a", "b"), ("c", "b")))


def led(interface: str, table: str = "", *more: Address, tried: tuple[Dial, ...] | None = None) -> Examination:
    """b's way to its peers leaves by this interface."""
    routes = tuple((ip(peer), interface, "100.101.7.12") for peer in "ac")
    tables = tuple((ip(peer), table) for peer in "ac") if table else ()
    other = node("b", *more, routes=routes, tables=tables)
    usual = [node(name, routes=tuple((ip(to), "eno1", ip(name)) for to in NAMES if to != name)) for name in "ac"]
    both = (*dials(*AWAY), *dials(*AWAY, kind="rendezvous"))
    rules = replace(QUIET, rules=tuple(look._policy(RULES)))
    health_of = {name: _health(rules if name == "b" else QUIET) for name in NAMES}
    return seen(tried or both, survey=survey(usual[0], other, usual[1]), health=health_of)


def test_a_vpns_table_that_leads_to_the_peers_is_the_route_of_that_node_and_no_firewall() -> None:
    assert parse.route(VPN) == ("tailscale0", "100.101.7.12") and parse.table(VPN) == "52"
    assert parse.table("10.0.0.10 dev eno1 src 10.0.0.11 uid 0") == ""
    of = led("tailscale0", "52", Address("tailscale0", "100.101.7.12", 32))
    one = one_of(of, "net.route")
    assert one.nodes == ("b",) and "leaves by tailscale0, by table 52, and not by eno1" in one.summary
    assert "b, ip route get 10.0.0.10: dev tailscale0 table 52 src 100.101.7.12" in one.evidence
    assert "b, ip rule: 5270: from all lookup 52" in one.evidence and "b → a" in one.evidence
    assert one.fix[0] == "on b: sudo tailscale set --accept-routes=false"
    assert one.fix[1].startswith("on b: sudo ip rule add to 10.0.0.0/24 lookup main priority 5269")
    assert severed.by(of, NAMES) == "net.route" and severed.by(of, ()) == ""
    tun = led("tun0", "", Address("tun0", "10.0.0.77", 25))  # narrower than the node's own network
    (found,) = routing.led_away(tun)
    assert found.nodes == ("b",) and found.fix[0].startswith("on b: sudo ip route replace 10.0.0.10 dev eno1 src ")


def test_another_way_that_is_well_or_as_good_is_nothing() -> None:
    vpn = Address("tailscale0", "100.101.7.12", 32)
    assert judged(led("tailscale0", "52", vpn, tried=dials())) == []
    second = led("eno2", "", Address("eno2", "10.0.0.77", 24))
    assert list(routing.led_away(second)) == [], "two cards of one subnet are another id's"
    assert list(routing.led_away(led("eno1"))) == []
    assert list(routing.led_away(replace(led("tailscale0", "52", vpn), links=None))) == []


# -- a switch that keeps ports apart -------------------------------------------


APART = (("b", "c", "no route to host", 0.002), ("c", "b", "no route to host", 3.0))


def arp(*failed: tuple[str, str, str, float], **silent: str) -> Examination:
    """Dials in two kinds, and for which of the nodes a sender's neighbour table has no answer."""
    unanswered = {name: {ip(to): "eno1" for to in others} for name, others in silent.items()}
    both = (*dials(*failed), *dials(*failed, kind="rendezvous"))
    return seen(links=Links({name: ip(name) for name in NAMES}, both, unanswered=unanswered))


def test_a_pair_without_an_answer_to_arp_is_kept_apart_and_has_no_firewall() -> None:
    """The fourth blind round: "n2's firewall for n3", where the switch had isolated the two ports."""
    of = arp(*APART, b="c", c="b")
    one = one_of(of, "net.isolated")
    assert one.nodes == ("b", "c") and "b and c get no answer to ARP" in one.summary
    assert "b: no MAC of c, 10.0.0.12, on eno1" in one.evidence and "a → b" in one.evidence
    assert "switch or hypervisor" in one.fix[0]
    assert one.fix[1].startswith("on b: ip neigh show to 10.0.0.12 ") and not any("iptables" in x for x in one.fix)
    assert severed.by(of, NAMES) == "net.isolated"
    assert one_of(arp(*APART, b="c"), "net.isolated").nodes == ("b", "c"), "one end's table is enough"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (arp(*((*one[:3], 0.001) for one in APART)), {"net.high-ports"}),  # a REJECT: the MAC is known
        (arp(*APART[:1], b="c"), {"net.high-ports"}),  # an answer came the other way
        (arp(), set()),
        (arp(b="c"), set()),  # an old entry, and all is well
        # nobody reaches c: whether it is there at all is not known
        (arp(*((one, "c", "no route to host", 3.1) for one in "ab"),
             *(("c", one, "no route to host", 3.1) for one in "ab"), a="c", b="c", c="ab"), {"net.wrong-nic"}),
    ],
)  # fmt: skip
def test_what_is_answered_or_answers_nobody_is_not_kept_apart_by_a_switch(
    what: Examination, told: set[str]
) -> None:
    assert {one.id for one in judged(what)} == told


def test_some_ports_are_not_said_to_be_let_through_where_none_answers() -> None:
    shut = (("a", "b", "timed out", 3.0), ("c", "b", "timed out", 3.0))
    (one,) = reach.high_ports(seen((*dials(*shut), *dials(*shut, kind="rendezvous"))))
    assert "only some" not in one.cause and "no port that was tried there answers" in one.cause
    (one,) = reach.high_ports(seen((*dials(*shut), *dials(kind="rendezvous"))))
    assert one.cause.startswith("a firewall that lets only some ports through, and drops the rest in silence")


# -- which network training uses ----------------------------------------------


def test_a_bridge_that_every_node_has_is_never_chosen_and_is_said_to_be_one() -> None:
    choice = networks.choose(survey())
    assert {name: place.ip for name, place in choice.places.items()} == {name: ip(name) for name in NAMES}
    assert {place.interface for place in choice.places.values()} == {"eno1"}
    assert list(choice.others.values()) == ["docker0 is a bridge of Docker"]


def test_the_fastest_network_that_all_share_is_chosen_over_the_one_of_ssh() -> None:
    def fast(name: str) -> NodeFacts:
        made = node(name, Address("enp65s0", ip(name, "192.168.100"), 24))
        cards = tuple(replace(card, speed=25000) if card.name == "enp65s0" else card for card in made.links or ())
        return replace(made, links=cards)

    choice = networks.choose(survey(*map(fast, NAMES)))
    assert {place.ip for place in choice.places.values()} == {ip(name, "192.168.100") for name in NAMES}
    assert choice.why == "all nodes share it at 25 Gbit/s, and 10.0.0.0/24 at 1 Gbit/s"
    lacking = (fast("a"), fast("b"), node("c"))
    assert networks.choose(survey(*lacking)).places["a"].ip == ip("a")
    cable_out = replace(
        fast("c"), links=tuple(replace(one, up=one.name != "enp65s0") for one in fast("c").links or ())
    )
    assert networks.choose(survey(fast("a"), fast("b"), cable_out)).places["a"].ip == ip("a")


@pytest.mark.parametrize(
    ("interface", "net", "why"),
    [("tailscale0", "100.64.0", "tailscale0, which is a VPN"), ("wg0", "10.8.0", "wg0, which is a VPN"),
     ("virbr0", "192.168.122", "a bridge for virtual machines")],
)  # fmt: skip
def test_where_ssh_goes_through_a_vpn_the_nodes_own_network_is_chosen(interface: str, net: str, why: str) -> None:
    known = [node(name, Address(interface, ip(name, net), 24)) for name in NAMES]
    choice = networks.choose(survey(*known, **{name: ip(name, net) for name in NAMES}))
    assert {place.interface for place in choice.places.values()} == {"eno1"} and why in choice.why


def test_without_another_network_the_vpn_it_is() -> None:
    known = [
        scenes.facts(name, addresses=(Address("wg0", ip(name, "10.8.0"), 24),), controller_route=("wg0", ip(name)))
        for name in NAMES
    ]
    choice = networks.choose(survey(*known, **{name: ip(name, "10.8.0") for name in NAMES}))
    assert {place.ip for place in choice.places.values()} == {ip(name, "10.8.0") for name in NAMES}


def test_a_public_or_forwarded_contact_gives_way_to_what_all_share() -> None:
    public = networks.choose(survey(**{name: f"8.8.4.{HOST[name]}" for name in NAMES}))
    assert {place.ip for place in public.places.values()} == {ip(name) for name in NAMES}
    assert "no address of its own" in public.why
    one_door = networks.choose(survey(**dict.fromkeys(NAMES, "203.0.113.9")))
    assert {place.ip for place in one_door.places.values()} == {ip(name) for name in NAMES}


def test_the_same_address_on_all_is_no_network() -> None:
    known = [scenes.facts(name, addresses=(Address("eth0", "10.0.2.15", 24),)) for name in NAMES]
    choice = networks.choose(survey(*known))
    assert {name: place.ip for name, place in choice.places.items()} == {name: ip(name) for name in NAMES}


def test_addr_of_the_hostfile_is_always_taken() -> None:
    given = scenes.cluster("a slots=1\nb slots=1 addr=10.99.0.5\nc slots=1\n")
    places = networks.choose(survey(of=given)).places
    assert {name: place.ip for name, place in places.items()} == {"a": ip("a"), "b": "10.99.0.5", "c": ip("c")}
    assert plan.solve(survey(of=given))["b"].ip == "10.99.0.5"


def cloud(name: str, *more: Address, contact: str = "203.0.113", **changes: Any) -> NodeFacts:
    """A virtual machine whose card has a /32, and whose public address is the provider's NAT."""
    own = (Address("lo", "127.0.0.1", 8), Address("ens4", ip(name, "10.128.0"), 32), *more)
    cards = ("lo", *dict.fromkeys(one.interface for one in own[1:]))
    links = tuple(Link(card, True, 1460, None if card == "lo" else "42:01:0a:80:00:02", None) for card in cards)
    routes = tuple((ip(peer, contact), "ens4", ip(name, "10.128.0")) for peer in NAMES if peer != name)
    return scenes.facts(name, **{"addresses": own, "links": links, "routes": routes, **changes})


def test_private_addresses_without_a_subnet_are_taken_rather_than_the_providers_nat() -> None:
    public = {name: ip(name, "203.0.113") for name in NAMES}
    choice = networks.choose(survey(*map(cloud, NAMES), **public))
    assert choice.places == {name: networks.Place(ip(name, "10.128.0"), "ens4") for name in NAMES}
    assert str(choice.network) == "10.128.0.8/29" and "203.0.113.10" in choice.why
    assert plan.solve(survey(*map(cloud, NAMES), **public))["b"] == networks.Place("10.128.0.11", "ens4")
    what = seen(
        links=Links({name: place.ip for name, place in choice.places.items()}), survey=survey(*map(cloud, NAMES))
    )
    assert walls.others(what, "a", ("b", "c")) == ("10.128.0.11", "10.128.0.12")


def test_a_private_card_beside_a_public_one_is_taken_and_far_regions_are_one_network() -> None:
    def hetzner(name: str, far: str) -> NodeFacts:
        own = (Address("eth0", ip(name, "8.8.4"), 32), Address("enp7s0", ip(name, far), 32))
        routes = (("8.8.4.1", "eth0", ip(name, "8.8.4")),)
        return scenes.facts(name, addresses=own, routes=routes)

    known = [hetzner("a", "10.0.0"), hetzner("b", "10.0.1"), hetzner("c", "10.0.0")]
    choice = networks.choose(survey(*known, **{name: ip(name, "8.8.4") for name in NAMES}))
    assert {place.interface for place in choice.places.values()} == {"enp7s0"}
    assert str(choice.network) == "10.0.0.0/23" and "public" in choice.why


def test_a_single_address_that_wanders_or_belongs_to_containers_is_no_network() -> None:
    def lan(name: str) -> NodeFacts:
        pods, shared = Address("vxlan.calico", ip(name, "10.244.0"), 32), Address("eno1", ip(name, "10.9.9"), 32)
        return node(name, pods, shared)

    known = survey(*map(lan, NAMES))
    assert [str(one.network) for one in networks.shared(THREE.active, known)] == ["10.0.0.0/24"]
    twins = [cloud(name, addresses=(Address("ens4", "10.128.0.2", 32),)) for name in NAMES]
    assert networks.shared(THREE.active, survey(*twins)) == ()


# -- who is tried -------------------------------------------------------------


@given(st.integers(1, 100))
def test_every_node_dials_and_is_dialled_and_large_clusters_cost_little_more(count: int) -> None:
    nodes = tuple(f"n{place}" for place in range(count))
    chosen = pairing.targets(nodes)
    dialled = [to for others in chosen.values() for to in others]
    assert all(name not in chosen[name] and len(set(chosen[name])) == len(chosen[name]) for name in nodes)
    if count <= pairing.ALL:
        assert len(dialled) == count * (count - 1) and not pairing.sampled(nodes)
    else:
        assert len(dialled) <= 2 * count * count.bit_length() and {dialled.count(name) for name in nodes} == {
            len(chosen["n0"])
        }
        assert f"{len(dialled)} of {count * (count - 1)} pairs" in pairing.sampled(nodes)
    for pairs in pairing.matchings(nodes):
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))


# -- ports --------------------------------------------------------------------


def test_all_well_is_silence() -> None:
    assert judged(seen(dials())) == []
    assert judged(seen((*dials(), *dials(kind="rendezvous")))) == []


def test_the_node_that_nobody_reaches_is_named_with_its_own_firewalls_line() -> None:
    shut = dials(("a", "b", "timed out", 4.0), ("c", "b", "timed out", 4.0))
    one = one_of(seen(shut), "net.high-ports")
    assert one.nodes == ("b",) and one.status == "fail" and one.needs_root
    assert one.fix[0] == "on b: sudo iptables -I INPUT -p tcp -s 10.0.0.0/24 -j ACCEPT"
    assert one.fix[1].startswith("or, where nft keeps the rules: sudo nft list ruleset | awk ")
    assert "gone after a reboot" in one.fix[2] and "cloud" in one.fix[3] and "50000 51000" in one.fix[4]
    assert "new connections from a and c to high ports on b do not come about" in one.summary
    assert "in silence" in one.cause


@pytest.mark.parametrize(
    ("wall", "health", "line"),
    [
        (Firewall(True, None, None), QUIET, "on b: sudo ufw prepend allow from 10.0.0.0/24"),
        (Firewall(None, True, None), QUIET,
         "on b: sudo firewall-cmd --permanent --zone=trusted --add-source=10.0.0.0/24"),
        (Firewall(False, False, ("x",)),
         replace(QUIET, chains=(Chain("inet", "firewall", "inbound", "input", "drop"),
                                Chain("ip", "filter", "INPUT", "input", "accept"))),
         "on b: sudo nft insert rule inet firewall inbound ip saddr 10.0.0.0/24 accept"),
        (None, QUIET, "on b: sudo iptables -I INPUT -p tcp -s 10.0.0.0/24 -j ACCEPT"),
    ],
)  # fmt: skip
def test_the_line_is_for_whatever_manages_that_nodes_firewall(
    wall: Firewall | None, health: NetworkHealth, line: str
) -> None:
    known = survey(node("a"), node("b", firewall=wall), node("c"))
    shut = dials(("a", "b", "no route to host", 0.0), ("c", "b", "no route to host", 0.0))
    what = seen(shut, survey=known, health={"a": _health(QUIET), "b": _health(health), "c": _health(QUIET)})
    one = one_of(what, "net.high-ports")
    assert one.fix[0] == line and "refuses at once" in one.cause
    assert all(shlex.split(step.partition(": ")[2]) for step in one.fix if step.startswith("on b: "))


@pytest.mark.parametrize(
    ("health", "first", "nft_too"),
    [
        (replace(QUIET, iptables=True, refusing=frozenset({"INPUT"})), "iptables", False),  # root has read them
        (replace(QUIET, iptables=True), "iptables", True),
        (replace(QUIET, iptables=False), "nft", False),
        (replace(QUIET, iptables=False, chains=(Chain("inet", "f", "in", "input", "drop"),)), "nft", False),
    ],
)
def test_where_nobody_can_tell_which_tool_keeps_the_rules_both_are_given(
    health: NetworkHealth, first: str, nft_too: bool
) -> None:
    what = seen(health={name: _health(health) for name in NAMES})
    opening = walls.Opening("b", ("10.0.0.0/24",), (29500, 29500))
    lines = walls.lines(what, opening, silent=False)
    assert lines[0].startswith(f"sudo {first} ") and "29500" in lines[0] and "29500:29500" not in lines[0]
    assert any(line.startswith("or, where nft") for line in lines) == nft_too
    assert "gone after a reboot" in lines[-1]


RULESET = """table ip6 filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table inet walled {
\tset known {
\t\ttype ipv4_addr
\t}
\tchain inbound { # handle 3
\t\ttype filter hook input priority filter; policy drop;
\t\tct state established accept
\t}
\tchain outbound {
\t\ttype filter hook output priority filter; policy accept;
\t}
}
"""


@pytest.mark.parametrize(
    ("side", "others", "rules"),
    [
        ("in", "10.0.0.0/24", ["inet walled inbound ip saddr 10.0.0.0/24 accept"]),
        ("out", "10.0.0.7", ["inet walled outbound ip daddr 10.0.0.7 accept"]),
        ("in", "fd00::7",
         ["ip6 filter INPUT ip6 saddr fd00::7 accept", "inet walled inbound ip6 saddr fd00::7 accept"]),
    ],
)  # fmt: skip
def test_the_line_for_rules_that_only_root_may_read_finds_their_chains(
    side: walls.Side, others: str, rules: list[str]
) -> None:
    blind = seen(health={name: _health(replace(QUIET, iptables=False)) for name in NAMES})
    (line, _) = walls.lines(blind, walls.Opening("b", (others,), None, side), silent=False)
    piped = line.removeprefix("sudo nft list ruleset | ").removesuffix(" | sudo nft -f -")
    assert len(piped) == len(line) - len("sudo nft list ruleset |  | sudo nft -f -")
    done = subprocess.run(["sh", "-c", piped], input=RULESET, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"insert rule {rule}" for rule in rules]


def test_the_rendezvous_port_blocks_where_the_head_has_it_and_warns_elsewhere() -> None:
    head = dials(("b", "a", "timed out", 4.0), ("c", "a", "timed out", 4.0), kind="rendezvous")
    one = one_of(seen((*dials(), *head)), "net.master-port")
    assert (one.status, one.nodes) == ("fail", ("a",))
    assert one.fix[0] == "on a: sudo iptables -I INPUT -p tcp -s 10.0.0.0/24 --dport 29500:29627 -j ACCEPT"
    other = dials(("a", "b", "timed out", 4.0), ("c", "b", "timed out", 4.0), kind="rendezvous")
    one = one_of(seen((*dials(), *other)), "net.master-port")
    assert (one.status, one.nodes) == ("warn", ("b",)) and "once a is lost" in one.summary


def test_where_all_high_ports_are_shut_the_rendezvous_port_is_not_told_as_well() -> None:
    both = [*dials(("b", "a", "timed out", 4.0), ("c", "a", "timed out", 4.0))]
    both += dials(("b", "a", "timed out", 4.0), ("c", "a", "timed out", 4.0), kind="rendezvous")
    assert one_of(seen(both), "net.high-ports").nodes == ("a",)


def test_nodes_that_the_same_line_opens_are_one_finding() -> None:
    shut = dials(*((one, other, "timed out", 4.0) for one, other in permutations(NAMES, 2)))
    one = one_of(seen(shut), "net.high-ports")
    assert one.nodes == NAMES and one.fix[0].startswith("on each of a, b, c: sudo iptables")


def test_one_direction_names_the_node_that_does_not_let_in() -> None:
    one = one_of(seen(dials(("a", "b", "timed out", 4.0))), "net.high-ports")
    assert one.nodes == ("b", "a") and "b's firewall for a, or a's own for what goes out" in one.cause
    assert "c can" in one.cause and one.fix[0] == "on b: sudo iptables -I INPUT -p tcp -s 10.0.0.0/24 -j ACCEPT"
    assert "on a: sudo iptables -I OUTPUT -p tcp -d 10.0.0.0/24 -j ACCEPT" in one.fix


@pytest.mark.parametrize(
    ("sender", "target", "named"),
    [
        ({"OUTPUT"}, set(), ("a",)),  # its rules are known to refuse, and the other's not to
        (set(), {"INPUT"}, ("b",)),
        (None, {"INPUT"}, ("b",)),
        (set(), None, ("b",)),
        ({"OUTPUT"}, {"INPUT"}, ("b", "a")),
        (set(), set(), ("b", "a")),  # chains of one's own are not followed
    ],
)
def test_rules_that_could_be_read_tell_which_end_of_a_pair_it_is(
    sender: set[str] | None, target: set[str] | None, named: tuple[str, ...]
) -> None:
    rules = {"a": sender, "b": target, "c": set()}
    known = {
        name: _health(replace(QUIET, refusing=None if one is None else frozenset(one)))
        for name, one in rules.items()
    }
    one = one_of(seen(dials(("a", "b", "timed out", 4.0)), health=known), "net.high-ports")
    assert one.nodes == named
    told = [name for name in NAMES if any(step.startswith(f"on {name}: sudo") for step in one.fix)]
    assert told == sorted(named)
    if named == ("a",):
        assert one.fix[0].startswith("on a: sudo iptables -I OUTPUT ")


def test_most_senders_that_fail_are_not_each_suspected() -> None:
    four = scenes.cluster("a slots=1\nb slots=1\nc slots=1\nd slots=1\n")
    known = scenes.survey(four, *map(node, NAMES), node("c", boot_id="boot-of-d"),
                          contacts={name: ip(name) for name in NAMES})  # fmt: skip
    also = Dial("d", "b", ip("b"), 40000, "high", error="timed out", seconds=4.0)
    shut = (*dials(("a", "b", "timed out", 4.0)), also)
    found = [one for one in judged(seen(shut, survey=known)) if one.id == "net.high-ports"]
    assert [one.nodes for one in found] == [("b",)]


def test_a_new_node_that_the_others_do_not_let_in_is_not_blamed_for_it() -> None:
    shut = dials(("a", "b", "timed out", 4.0), ("a", "c", "timed out", 4.0))
    found = judged(seen(shut))
    assert [one.nodes for one in found] == [("b", "a"), ("c", "a")]  # the other end, and never alone
    assert [one.fix[0].partition(":")[0] for one in found] == ["on b", "on c"]


def test_a_sender_is_named_where_its_own_rules_are_known_to_refuse() -> None:
    shut = dials(("a", "b", "timed out", 4.0), ("a", "c", "timed out", 4.0))
    own = {name: _health(replace(QUIET, refusing=frozenset({"OUTPUT"} if name == "a" else ()))) for name in NAMES}
    one = one_of(seen(shut, health=own), "net.high-ports")
    assert one.nodes == ("a",) and one.fix[0] == "on a: sudo iptables -I OUTPUT -p tcp -d 10.0.0.0/24 -j ACCEPT"


def test_rules_that_keep_out_even_answers_are_one_nodes_fault() -> None:
    shut = dials(("a", "b", "timed out", 4.0), ("c", "b", "timed out", 4.0), ("b", "a", "timed out", 4.0),
                 ("b", "c", "timed out", 4.0))  # fmt: skip
    one = one_of(seen(shut), "net.high-ports")
    assert one.nodes == ("b",) and "from a and c" in one.summary


def test_where_nobody_listens_a_refusal_is_an_answer() -> None:
    refused = [replace(one, listened=one.target != "b", large=None, boot="") for one in dials(
        ("a", "b", "connection refused", 0.0), ("c", "b", "connection refused", 0.0))]  # fmt: skip
    assert judged(seen(refused)) == []
    silent = [replace(one, error="timed out") if one.target == "b" else one for one in refused]
    assert one_of(seen(silent), "net.high-ports").nodes == ("b",)


def test_connections_of_which_some_never_come_about_are_no_firewalls() -> None:
    """One leg of c's bond is dead: half of the flows with it, whoever begins."""
    some = [
        replace(one, some=(4, 8) if "c" in (one.source, one.target) else None)
        for one in dials(("a", "c", "timed out", 3.0), ("c", "b", "timed out", 3.0))
    ]
    found = judged(seen(tuple(some)))
    assert [(one.id, one.status, one.nodes) for one in found] == [("net.loss", "fail", ("c",))]
    assert "4 of 8 connections at once" in found[0].evidence and "bonding" in found[0].fix[0]
    none = [replace(one, some=(0, 8)) for one in dials(("a", "c", "timed out", 3.0))]
    assert {one.id for one in judged(seen(tuple(none)))} == {"net.high-ports"}


def test_a_netmask_that_leaves_the_others_out_is_that_nodes() -> None:
    known = [node(name) for name in NAMES]
    own = known[2].addresses or ()
    narrow = replace(
        known[2], addresses=tuple(one._replace(prefix=30) if one.ip == ip("c") else one for one in own)
    )
    found = judged(seen(dials(), survey=survey(known[0], known[1], narrow)))
    assert [(one.id, one.nodes) for one in found] == [("net.netmask", ("c",))]
    assert f"sudo ip addr add {ip('c')}/24 dev eno1" in found[0].fix[0]
    assert judged(seen(dials())) == []


def test_what_a_program_tells_is_taken_with_care() -> None:
    assert matrix.dial(
        "a", "high", {"to": "b", "error": "No route to host", "seconds": "x", "mss": -4, "lost": 3}
    ) == (Dial("a", "b", "None", 0, "high", error="no route to host"))
    assert matrix.flow("a", "b", {"rate": float("1e99"), "again": True, "pings": "9"}) == Flow("a", "b")


# -- addresses ----------------------------------------------------------------


def misplaced(addr: str, *failed: tuple[str, str, str, float], **changes: Any) -> Examination:
    """b is dialled at another address."""
    cluster = scenes.cluster(f"a slots=1\nb slots=1 addr={addr}\nc slots=1\n")
    tried = [replace(one, address=addr) if one.target == "b" else one for one in dials(*failed)]
    links = Links({**{name: ip(name) for name in NAMES}, "b": addr}, tuple(tried))
    return seen(survey=survey(of=cluster), links=links, **changes)


@pytest.mark.parametrize("error", [("timed out", 4.0), ("no route to host", 3.1), ("network is unreachable", 0.0)])
def test_an_address_that_leads_nowhere_is_named_with_the_hostfiles_line(error: tuple[str, float]) -> None:
    one = one_of(misplaced("10.99.0.5", ("a", "b", *error), ("c", "b", *error)), "net.wrong-nic")
    assert one.nodes == ("b",) and one.fix == ("in rack, line 2: b slots=1 addr=10.0.0.11",)


def test_a_network_that_one_node_is_cut_off_from_is_that_nodes_and_another_one_is_offered() -> None:
    gone = ("no route to host", 3.1)
    shut = dials(("a", "b", *gone), ("c", "b", *gone), ("b", "a", *gone), ("b", "c", *gone))
    links = Links({name: ip(name) for name in NAMES}, shut, elsewhere={name: ip(name, "10.1.0") for name in NAMES})
    one = one_of(seen(links=links), "net.wrong-nic")
    assert one.nodes == ("b",) and one.fix[0] == "in rack, line 1: a slots=1 addr=10.1.0.10"


def test_one_address_on_two_machines_is_told_whoever_answers() -> None:
    twice = survey(node("a"), node("b"), node("c", Address("eno1", ip("b"), 24)))
    one = one_of(seen(dials(), survey=twice), "net.dup-ip")
    assert one.nodes == ("b", "c") and one.fix[0] == "on c: sudo ip addr del 10.0.0.11/24 dev eno1"


def test_a_node_that_ssh_no_longer_finds_because_another_has_its_address() -> None:
    cluster = scenes.cluster("a slots=1\nb slots=1 addr=10.0.0.11\nc slots=1\n")
    known = scenes.survey(cluster, node("a"), node("c", Address("eno1", ip("b"), 24)), lost="b",
                          contacts={"a": ip("a"), "c": ip("c")})  # fmt: skip
    found = list(addresses.dup_ip_unreached(seen(survey=known, links=None)))
    assert [one.nodes for one in found] == [("b", "c")]


def test_a_machine_that_is_none_of_the_nodes_is_found_by_who_answers() -> None:
    tried = dials(ab={"boot": "boot-of-a-stranger"})
    one = one_of(seen(tried), "net.dup-ip")
    assert one.nodes == ("b",) and "none of the nodes" in one.evidence and "arping" in one.fix[0]


def test_a_foreign_mac_counts_only_where_the_connection_failed_and_others_know_better() -> None:
    macs = {"a": {ip("b"): "de:ad:be:ef:00:01", ip("c"): MAC["c"]}, "c": {ip("b"): MAC["b"]}}
    shut = dials(("a", "b", "connection refused", 0.0))
    links = Links({name: ip(name) for name in NAMES}, shut, macs=macs)
    one = one_of(seen(links=links), "net.dup-ip")
    assert one.nodes == ("b",) and "de:ad:be:ef:00:01" in one.fix[0]
    assert judged(seen(links=replace(links, dials=dials()))) == []
    cloud = {name: {ip(other): "12:34:56:78:9a:bc" for other in NAMES if other != name} for name in NAMES}
    assert [one.id for one in judged(seen(links=replace(links, macs=cloud)))] == ["net.high-ports"]


def test_a_wrong_mac_that_one_node_alone_has_and_where_nobody_answers_is_its_own_entry() -> None:
    macs = {"a": {ip("b"): "de:ad:be:ef:00:01", ip("c"): MAC["c"]}, "c": {ip("b"): MAC["b"]}}
    shut = dials(("a", "b", "timed out", 4.0), ("b", "a", "timed out", 4.0))  # answers go there too
    links = Links({name: ip(name) for name in NAMES}, shut, macs=macs)
    one = one_of(seen(links=links), "net.dup-ip")
    assert one.nodes == ("a",) and one.summary == "keeps a wrong hardware address for b"
    assert one.fix[0] == "on a: sudo ip neigh del 10.0.0.11 dev eno1" and "de:ad:be:ef:00:01" in one.evidence
    both = {**macs, "c": {ip("b"): "de:ad:be:ef:00:01"}}
    assert all("keeps" not in one.summary for one in judged(seen(links=replace(links, macs=both))))
    unreached = dials(*((one, "b", "timed out", 4.0) for one in "ac"), ("b", "a", "timed out", 4.0))
    found = judged(seen(links=replace(links, dials=unreached)))
    assert all("keeps" not in one.summary for one in found)


def forwarded(*senders: str, to: str = "a", **by: str) -> Examination:
    """Something else answers these on the rendezvous port of one node, whose high ports are its own."""
    other = by or {"boot": "", "stranger": "it answers something else"}
    return seen((*dials(), *dials(kind="rendezvous", **{name + to: other for name in senders})))


@pytest.mark.parametrize("by", [{}, {"boot": "boot-of-c", "name": "c"}, {"boot": "boot-of-a-stranger"}])
def test_another_answer_on_one_port_only_is_a_port_forward_and_no_second_machine(by: dict[str, str]) -> None:
    one = one_of(forwarded("b", "c", **by), "net.master-port")
    assert (one.nodes, one.status) == (("a",), "fail")
    assert one.summary == "something else answers on port 29500: a port forward or proxy on a"
    assert one.fix[0].startswith("on a: sudo iptables -t nat -S ") and "nft" in one.fix[1]
    assert one.fix[-1] == "or port: 29628 in job.yaml" and "b → a 10.0.0.10 port 29500: open" in one.evidence


def test_a_port_forward_of_a_high_port_or_off_the_head_or_for_one_sender() -> None:
    later = one_of(forwarded("a", "c", to="b"), "net.master-port")
    assert (later.nodes, later.status) == (("b",), "warn") and "once a is lost" in later.summary
    alone = one_of(forwarded("b"), "net.master-port")  # the rule may be the sender's own
    assert alone.nodes == ("a", "b") and any(step.startswith("on b: sudo iptables -t nat") for step in alone.fix)
    other = {"boot": "", "stranger": "it answers something else"}
    high = one_of(seen((*dials(ba=other, ca=other), *dials(kind="rendezvous"))), "net.high-ports")
    assert high.nodes == ("a",) and high.status == "fail" and "job.yaml" not in "".join(high.fix)
    both = seen((*dials(ba=other), *dials(kind="rendezvous", ba=other)))
    assert one_of(both, "net.dup-ip").nodes == ("a",)


def test_a_bridge_matters_only_where_it_is_dialled() -> None:
    one = one_of(misplaced("172.17.0.1"), "nccl.bridge")
    assert one.nodes == ("b",) and one.fix == ("in rack, line 2: b slots=1 addr=10.0.0.11",)


def test_public_addresses_are_a_warning_and_private_and_shared_ones_are_not() -> None:
    known = [scenes.facts(name, addresses=(Address("eth0", f"8.8.{HOST[name]}.4", 24),)) for name in NAMES]
    links = Links({name: f"8.8.{HOST[name]}.4" for name in NAMES})
    one = one_of(seen(survey=survey(*known), links=links), "net.public-addr")
    assert one.nodes == NAMES and one.status == "warn"
    for net in ("100.64.0", "192.168.1", "172.20.0", "198.18.0"):
        shared = Links({name: ip(name, net) for name in NAMES})
        assert list(addresses.public_addr(seen(links=shared))) == []


def test_global_addresses_of_one_ipv6_network_are_what_such_a_network_has() -> None:
    def told(*ips: str, prefix: int = 64) -> bool:
        each = dict(zip(NAMES, ips, strict=True))
        known = [scenes.facts(name, addresses=(Address("eth0", each[name], prefix),)) for name in NAMES]
        return bool(list(addresses.public_addr(seen(survey=survey(*known), links=Links(each)))))

    same = [f"2a01:4f8:1:2::{HOST[name]}" for name in NAMES]
    assert not told(*same) and not told(*same, prefix=128)
    far = [f"2a01:4f8:1:{HOST[name]}::1" for name in NAMES]
    assert told(*far) and not told(*far, prefix=48)
    assert told("2a01:4f8:1:2::1", "2a01:4f8:1:2::2", "8.8.4.4", prefix=24)
    assert told("8.8.4.4", "8.8.4.5", "8.8.4.6", prefix=24)


def test_two_cables_in_one_subnet_are_told_and_a_laptop_on_cable_and_radio_is_not() -> None:
    twice = survey(node("a"), node("b", Address("eno2", "10.0.0.77", 24)), node("c"))
    one = one_of(seen(dials(), survey=twice), "net.dup-route")
    assert one.nodes == ("b",) and one.fix[0] == "on b: sudo ip addr del 10.0.0.77/24 dev eno2"
    radio = {name: _health(replace(QUIET, wireless=frozenset({"eno2"}))) for name in NAMES}
    assert judged(seen(dials(), survey=twice, health=radio)) == []
    routes = ((ip("a"), "eno2", "10.0.0.77"),)
    by_radio = survey(node("a"), node("b", Address("eno2", "10.0.0.77", 24), routes=routes), node("c"))
    assert [one.id for one in judged(seen(dials(), survey=by_radio, health=radio))] == ["net.dup-route"]


def test_the_address_that_ssh_uses_is_never_taken_away() -> None:
    two = Address("eno2", "10.0.0.77", 24)
    given = scenes.cluster("a slots=1\nb slots=1 addr=10.0.0.11\nc slots=1\n")
    usual = {name: ip(name) for name in NAMES}

    def steps(known: Survey) -> tuple[str, ...]:
        return one_of(seen(dials(), survey=known), "net.dup-route").fix

    by_other = survey(node("a"), node("b", two), node("c"), of=given, **{**usual, "b": "10.0.0.77"})
    behind_nat = survey(
        node("a"), node("b", two, login_address="10.0.0.77"), node("c"), of=given, **{**usual, "b": "203.0.113.9"}
    )
    untold = survey(node("a"), node("b", two), node("c"), of=given, **{**usual, "b": "203.0.113.9"})
    for known in (by_other, behind_nat, untold):
        assert not any("addr del" in step for step in steps(known))
        assert steps(known)[0].startswith("on b, at its console, as SSH may use 10.0.0.77: give eno2 a subnet")
    twice = survey(node("a"), node("b"), node("c", Address("eno1", ip("b"), 24), login_address=ip("b")))
    (one,) = list(addresses.dup_ip_unreached(seen(links=None, survey=replace(
        twice, cluster=given, facts={name: twice.facts[name] for name in "ac"}))))  # fmt: skip
    assert one.fix[0] == "on c, at its console, as SSH may use 10.0.0.11: give eno1 another address"


# -- what the way carries -----------------------------------------------------


STALL: dict[str, Any] = {"large": None, "lost": ("large", "timed out", "there")}


def test_jumbo_frames_over_a_common_switch_name_the_two_ends() -> None:
    known = survey(node("a", mtu=9000), node("b", mtu=9000), node("c"))
    tried = dials(ab={**STALL, "passes": 1500, "mss": 8948}, ba={**STALL, "passes": 1500, "mss": 8948})
    one = one_of(seen(tried, survey=known), "net.mtu")
    assert one.nodes == ("a", "b") and one.fix[0] == "on a: sudo ip link set eno1 mtu 1500" and len(one.fix) == 4
    assert "MSS 8948" in one.evidence and "a eno1 9000, b eno1 9000, c eno1 1500" in one.evidence


def test_a_narrow_way_names_the_node_behind_it_and_what_passes() -> None:
    back = {**STALL, "lost": ("large", "timed out", "back"), "passes": 1400}
    there = {**STALL, "passes": 1400}
    one = one_of(seen(dials(ab=there, cb=there, ba=back, bc=back)), "net.mtu")
    assert one.nodes == ("b",) and one.fix[0] == "on b: sudo ip link set eno1 mtu 1400"


def flows(*lossy: str, rate: dict[str, float] | None = None, again: int = 9) -> tuple[Flow, ...]:
    """All pairs, with what was lost of the ways named, and rates of those nodes in bytes a second."""
    slow = rate or {}
    return tuple(
        Flow(
            one,
            other,
            min(slow.get(one, 1.1e9), slow.get(other, 1.1e9)),
            800,
            again if one + other in lossy else 0,
        )
        for one, other in permutations(NAMES, 2)
    )


def carried(*what: Flow) -> Examination:
    """With these measurements."""
    return seen(links=Links({name: ip(name) for name in NAMES}, dials(), what))


def test_loss_names_the_node_that_all_bad_ways_have_in_common() -> None:
    one = one_of(carried(*flows("ab", "bc", "cb")), "net.loss")
    assert one.nodes == ("b",) and one.fix[0].startswith("replace the cable of eno1 on b")
    assert one_of(carried(*flows("ab", "ba")), "net.loss").nodes == ("a", "b")
    assert judged(carried(*flows("ab", again=1))) == []


def test_a_slow_link_is_measured_against_the_others_and_a_busy_machine_is_none() -> None:
    one = one_of(carried(*flows(rate={"b": 1.2e6})), "net.linkspeed")
    assert one.nodes == ("b",) and "9.6 Mbit/s" in one.summary and "8.8 Gbit/s" in one.summary
    assert judged(carried(*flows(rate={"b": 0.25e9}))) == []


def test_a_card_at_a_tenth_of_the_others_is_named() -> None:
    known = survey(node("a", speed=10000), node("b", speed=1000), node("c", speed=10000))
    one = one_of(seen(dials(), survey=known), "net.linkspeed")
    assert one.nodes == ("b",) and "1 Gbit/s, and the others' at 10 Gbit/s" in one.summary
    equal = survey(*(node(name, speed=100) for name in NAMES))
    assert one_of(seen(dials(), survey=equal), "net.linkspeed").nodes == NAMES
    mixed = survey(node("a", speed=2500), node("b", speed=1000), node("c", speed=None))
    assert judged(seen(dials(), survey=mixed)) == []


def test_the_ten_megabits_that_a_tunnels_driver_makes_up_are_no_speed() -> None:
    def tunnelled(name: str, card: str) -> NodeFacts:
        own = (Address(card, ip(name), 24),)
        return scenes.facts(name, addresses=own, links=(Link(card, True, 1280, None, 10),))

    for card in ("tailscale0", "tun0", "corp"):
        known = survey(*(tunnelled(name, card) for name in NAMES))
        assert [one for one in judged(seen(dials(), survey=known)) if one.id == "net.linkspeed"] == [], card
    slow = survey(*(node(name, speed=10) for name in NAMES))
    assert one_of(seen(dials(), survey=slow), "net.linkspeed").nodes == NAMES


def test_a_bond_is_as_fast_as_one_of_its_cards() -> None:
    bond = ("bond0", "ens1", "ens2", "bond0.40", "eno1")
    rates = (50000, 25000, 25000, 50000, 1000)
    links = tuple(
        Link(card, True, 9000, MAC["a"] if card != "eno1" else MAC["b"], rate)
        for card, rate in zip(bond, rates, strict=True)
    )
    facts = scenes.facts("a", links=links)
    assert [networks.leg(facts, card) for card in bond] == [25000, 25000, 25000, 25000, 1000]
    assert networks.speed(facts, "bond0") == 50000 and networks.leg(facts, None) is None
    places = {"a": networks.Place(ip("a"), "bond0.40")}
    known = site.Site(Wanted("cuda"), THREE.active[:1], places, survey(facts))
    assert known.wires == {"a": 25000}


def test_training_over_wifi_is_told() -> None:
    radio = {"b": _health(replace(QUIET, wireless=frozenset({"eno1"}))), "a": _health(QUIET), "c": _health(QUIET)}
    assert one_of(seen(dials(), health=radio), "net.linkspeed").nodes == ("b",)


def test_the_slowest_pair_is_shown_beside_a_network_that_is_well() -> None:
    measured = carried(Flow("a", "b", 1.1725e9), Flow("b", "a", 1.17625e9), Flow("a", "c", 1.2e9))
    shown = highlights.of(replace(measured, health={}))
    assert shown["network"] == "9.38 Gbit/s a→b, 9.41 back"


# -- what was not tried ---------------------------------------------------------


def untold(what: Examination) -> dict[tuple[str, str], str]:
    """(id, node) -> why it is unknown."""
    found = report.judge(what, network.CHECKS)
    return {(one.id, name): one.summary for one in found if one.status == "unknown" for name in one.nodes}


def tried(*, without: str = "", **changes: Any) -> Examination:
    """All machines tried each other; of `without`, nothing was dialled or sent."""
    whole = [*dials(), *dials(kind="rendezvous")]
    links = Links(
        {name: ip(name) for name in NAMES},
        tuple(one for one in whole if one.source != without),
        tuple(one for one in flows() if without not in (one.source, one.target)),
        machines=NAMES,
        own={name: Dial(name, name, ip(name), 40001, "high") for name in NAMES if name != without},
    )
    return seen(links=replace(links, **changes))


def test_what_was_tried_of_all_is_not_unknown() -> None:
    assert untold(tried()) == {}


def test_a_node_that_could_dial_nobody_is_not_well() -> None:
    why = {"c": "its sshd forwards nothing (administratively prohibited)"}
    found = untold(tried(without="c", mute=why, unsent={"c": "not measured: no program runs there (no Python)"}))
    assert {node for _, node in found} == {"c"}
    assert found["net.high-ports", "c"] == found["net.master-port", "c"] == f"it could dial nobody: {why['c']}"
    assert (
        found["net.loss", "c"] == found["net.linkspeed", "c"] == "not measured: no program runs there (no Python)"
    )
    shut = [one for one in dials(("a", "c", "timed out", 4.0), ("b", "c", "timed out", 4.0)) if one.source != "c"]
    what = tried(without="c", mute=why, dials=tuple(shut))
    assert [(one.id, one.nodes) for one in judged(what)] == [("net.high-ports", ("c",))]  # what others saw counts


def test_large_packets_and_flows_for_which_there_was_no_time_are_unknown() -> None:
    narrow = tuple(replace(one, large=None) if "b" in (one.source, one.target) else one for one in dials())
    found = untold(tried(dials=(*narrow, *(replace(one, large=None) for one in dials(kind="rendezvous")))))
    assert set(found) == {("net.mtu", "b")}
    some = tuple(one for one in flows() if "b" not in (one.source, one.target))
    found = untold(tried(flows=some))
    assert set(found) == {("net.loss", "b"), ("net.linkspeed", "b")} and "no time" in found["net.loss", "b"]


def test_the_port_that_somebody_has_is_told_as_untried() -> None:
    kept = (*dials(), *(one for one in dials(kind="rendezvous") if one.target != "a"))
    found = untold(tried(dials=kept, busy={"a": {29500: "Address already in use"}}))
    assert set(found) == {("net.master-port", "a")} and "port 29500 is in use" in found["net.master-port", "a"]


def test_the_only_node_that_answers_is_not_well_connected() -> None:
    alone = Links({"a": ip("a")}, machines=("a",), mute={})
    found = untold(seen(links=alone))
    assert {identity for identity, _ in found} >= {"net.high-ports", "net.mtu", "net.loss"}


BUSY = (
    _health(replace(QUIET, running=True)),
    _health(QUIET, (Container("1", "x", "running", {"clusterft.run": "20260101"}),)),
)


@pytest.mark.parametrize("busy", BUSY)
def test_beside_a_run_loss_and_rate_are_not_measured_and_never_blamed(busy: Any) -> None:
    slow = carried(*flows("ab", "bc", "cb", rate={"b": 1.2e6}))
    health = {**slow.health, "b": busy}
    what = replace(slow, health=health, links=replace(slow.links or Links(), machines=NAMES))
    assert judged(what) == []
    found = untold(what)
    assert found["net.loss", "b"] == found["net.linkspeed", "b"] == untried.IN_USE
    quiet = probe._quiet(survey(), health)
    assert quiet == {"b": untried.IN_USE}
    assert set(probe._quiet(survey(), {"a": _health(QUIET)})) == {"b", "c"}  # a run that nobody can rule out
    assert probe._quiet(survey(), None) == {}


def test_a_container_that_is_over_is_no_run() -> None:
    over = (Container("1", "x", "exited", {"clusterft.run": "20260101"}),)
    assert not untried.at_work(_health(QUIET, over)) and not untried.at_work(_health(replace(QUIET, running=None)))


class Mute:
    """A node whose sshd forwards nothing."""


def test_a_node_that_forwards_nothing_says_so() -> None:
    dialler = Forwarding(Mute(), WORD)  # type: ignore[arg-type]
    assert dialler.dial((Peer("b", ip("b"), (29500,)),), 1.0, again=False).dials == () and dialler.refused


# -- rendezvous ---------------------------------------------------------------


def asking(directory: Path, more: str, device: str = "cuda") -> Wanted:
    """A job with an env: of its own."""
    text = scenes.JOB.replace("device: cpu", f"device: {device}").replace("builtin:tiny", "/models/sdxl") + more
    return Wanted("cuda" if device == "cuda" else "cpu", contained=False, job=scenes.job(text, directory))


@pytest.mark.parametrize(
    ("value", "lacking"),
    [("eno1", ()), ("=eno1", ()), ("en", ()), ("^docker,lo", ()), ("eth0", NAMES), ("=eno", NAMES),
     ("eno2,eth", ("a", "c"))],
)  # fmt: skip
def test_an_interface_that_env_names_must_be_there(value: str, lacking: tuple[str, ...], tmp_path: Path) -> None:
    wanted = asking(tmp_path, f"env: {{NCCL_SOCKET_IFNAME: '{value}'}}\n")
    known = survey(node("a"), node("b", Address("eno2", "10.5.0.1", 24)), node("c"))
    found = [one for one in meeting.ifname(seen(wanted=wanted, survey=known))]
    assert tuple(name for one in found for name in one.nodes) == lacking
    assert all("remove NCCL_SOCKET_IFNAME" in one.fix[0] for one in found)


def test_a_bridge_that_env_names_leads_every_node_to_itself(tmp_path: Path) -> None:
    one = one_of(seen(dials(), wanted=asking(tmp_path, "env: {GLOO_SOCKET_IFNAME: docker0}\n")), "nccl.bridge")
    assert one.nodes == NAMES


FABRIC = (InfiniBand("mlx5_0", 1, "ACTIVE", "200 Gb/sec (4X HDR)", "InfiniBand", "ib0"),)


def with_fabric(tmp_path: Path, more: str = "", **ports: tuple[InfiniBand, ...]) -> Examination:
    """Nodes with these RDMA ports."""
    known = (node(name, infiniband=ports.get(name, ())) for name in NAMES)
    return seen(dials(), survey=survey(*known), wanted=asking(tmp_path, more))


def test_infiniband_on_some_nodes_only_blocks_unless_it_is_switched_off(tmp_path: Path) -> None:
    one = one_of(with_fabric(tmp_path, a=FABRIC, b=FABRIC), "nccl.net-mix")
    assert (one.nodes, one.status) == (("c",), "fail") and "NCCL_IB_DISABLE" in one.fix[0]
    assert judged(with_fabric(tmp_path, "env: {NCCL_IB_DISABLE: '1'}\n", a=FABRIC)) == []
    assert judged(with_fabric(tmp_path, a=FABRIC, b=FABRIC, c=FABRIC)) == []
    assert judged(with_fabric(tmp_path)) == []
    roce = (replace(FABRIC[0], link_layer="Ethernet"),)
    assert one_of(with_fabric(tmp_path, a=roce), "nccl.net-mix").status == "warn"


@pytest.mark.parametrize(
    ("change", "words"), [({"state": "INIT"}, "subnet manager"), ({"rate": "40 Gb/sec (4X QDR)"}, "full rate")]
)
def test_a_port_that_is_not_like_its_like_is_named(tmp_path: Path, change: dict[str, str], words: str) -> None:
    two = (*FABRIC, replace(FABRIC[0], device="mlx5_1"))
    odd = (FABRIC[0], replace(two[1], **change))
    one = one_of(with_fabric(tmp_path, a=two, b=two, c=odd), "nccl.ib-timeout")
    assert one.nodes == ("c",) and words in one.cause and "mlx5_1" in one.summary


def busy(who: tuple[Listener, ...], *, at: str = "a", running: bool = False) -> Examination:
    """Somebody on the port."""
    known = survey(*(node(name, listening=frozenset({22, 29500} if name == at else {22})) for name in NAMES))
    own = replace(QUIET, listening=True, listeners=who, running=running)
    return seen(dials(), survey=known, health={**{name: _health(QUIET) for name in NAMES}, at: _health(own)})


def test_who_is_on_the_port_is_told_and_a_run_of_ours_is_none() -> None:
    one = one_of(busy((Listener(31, "python3 -m http.server 29500"),)), "rdzv.inuse")
    assert (one.nodes, one.status) == (("a",), "warn") and "29501" in one.summary
    assert one.fix[0].startswith("on a: sudo kill 31") and one.fix[1] == "or port: 29501 in job.yaml"
    assert "it matters once a is lost" in one_of(busy((), at="b"), "rdzv.inuse").summary
    assert judged(busy((Listener(31, "/usr/bin/python3 -m clusterft_trainer.supervisor run"),))) == []
    assert judged(busy((), running=True)) == []
    full = survey(node("a", listening=frozenset({22, *range(29500, 29564)})), node("b"), node("c"))
    found = list(meeting.inuse(replace(busy(()), survey=full)))
    assert [(one.status, one.nodes) for one in found] == [("fail", ("a",))]


def test_unreadable_is_unknown() -> None:
    blind = survey(*(scenes.facts(name, listening=None) for name in NAMES))
    found = report.judge(seen(survey=blind, wanted=Wanted("cuda")), (*network.CHECKS, *rendezvous.CHECKS))
    unknown = {one.id for one in found if one.status == "unknown"}
    assert unknown == {"net.dup-route", "rdzv.inuse", "nccl.net-mix"}
    assert not any(one.status in ("fail", "warn") for one in found)


# -- what a node's shell says -------------------------------------------------


def sample(name: str) -> NetworkHealth:
    """A recorded answer."""
    asked = health.Asked(WORD)
    names = (*look.sections(asked), *look.stages(asked))
    return look.parse(frames.framed((GOLDEN / f"{name}.txt").read_text(), WORD, names), asked)


def test_a_node_with_iptables() -> None:
    found = sample("iptables")
    assert found.listening and found.listeners == (Listener(31, "python3 -m http.server 29500"),)
    assert found.refusing == {"INPUT"} and found.iptables and found.chains is None
    assert found.running is False and found.wireless == frozenset() and found.refusals == ()


def test_a_node_with_nftables_of_its_own() -> None:
    found = sample("nft_native")
    assert found.chains == (
        Chain("inet", "firewall", "inbound", "input", "drop"),
        Chain("ip", "filter", "INPUT", "input", "accept"),
        Chain("inet", "firewall", "outbound", "output", "accept"),
    )
    assert found.wireless == {"wlp3s0"} and found.running and found.listening is False and found.refusing is None
    assert found.neighbours and len(found.neighbours) == 3
    assert [(one.words, str(one.network)) for one in found.refusals or ()] == [
        ("unreachable 10.0.0.13", "10.0.0.13/32"),
        ("blackhole default metric 9", "0.0.0.0/0"),
        ("prohibit default metric 5", "::/0"),
    ]


PARTS = ("neighbours", "refusals", "wireless", "running", "listeners", "rules")


@given(st.dictionaries(st.sampled_from(PARTS), st.text()))
def test_hostile_answers_do_not_break_the_parser(said: dict[str, str]) -> None:
    whole = dict.fromkeys(PARTS, "") | said
    look.parse({f"net.{key}": text for key, text in whole.items()}, health.Asked(WORD))


def test_a_shell_that_says_nothing_leaves_all_unknown() -> None:
    empty = {f"net.{key}": "" for key in PARTS}
    assert look.parse(empty, health.Asked(WORD)) == NetworkHealth()


def itself(**changes: Any) -> Dial:
    """The try of a node to reach itself."""
    return replace(Dial("a", "a", ip("a"), 40001, "high", error="timed out", seconds=3.0), **changes)


def test_a_node_that_cannot_reach_itself_is_told_though_all_others_reach_it() -> None:
    """A firewall without a rule for lo; it was told as ranks that do not meet, of all nodes."""
    of = seen(dials())
    assert of.links is not None
    bad = replace(of, links=replace(of.links, own={"a": itself(), "b": itself(error="", boot="x")}))
    told = one_of(bad, "net.loopback")
    assert (told.nodes, told.status) == (("a",), "fail")
    assert "on a: sudo iptables -I INPUT -i lo -j ACCEPT" in told.fix
    assert judged(replace(of, links=replace(of.links, own={"a": itself(error="", boot="x")}))) == []


def test_whether_a_node_without_a_program_reaches_itself_is_not_known() -> None:
    assert untold(tried(own={"a": itself(error=""), "b": itself(error="")})) == {
        ("net.loopback", "c"): "no program of ours runs there, which could have been dialled"
    }


def test_lo_that_is_down_is_told_as_that() -> None:
    down = node("a", links=(Link("lo", False, 65536, None, None), Link("eno1", True, 1500, MAC["a"], 1000)))
    of = seen(dials(), survey=survey(down, node("b"), node("c")))
    assert of.links is not None
    told = one_of(replace(of, links=replace(of.links, own={"a": itself()})), "net.loopback")
    assert told.fix == ("on a: sudo ip link set lo up",) and told.cause == "the interface lo is down"
