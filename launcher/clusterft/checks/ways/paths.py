"""What the way between two nodes carries: large packets, all packets, and how many of them in a second. Pure.

A figure is judged against those of the other nodes, or of the card itself, never against a wish; a moment's dip on
a busy machine is no finding.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.ways import untried
from clusterft.checks.ways.reach import names
from clusterft.facts.links import Dial, Flow
from clusterft.findings import Finding

_LOST_SHARE = 0.002  # own threshold, of packets sent one at a time; a good LAN loses none
_LOST_LEAST = 4
_SLOW_SHARE = 0.3  # of what the other nodes do
_SLOW_MOST = 150e6  # bytes a second: above that it is the machines that were busy
_FAR = 4  # times slower than the others' cards
_SHOWN = 10


def mtu(seen: Examination) -> Iterator[Finding]:
    """net.mtu: small messages pass, large ones vanish."""
    stalled = [one for one in (seen.links.dials if seen.links else ()) if one.lost and one.lost[0] == "large"]
    if not stalled:
        return
    at_fault = _odd(seen, stalled)
    cards = {name: _card(seen, name) for name in seen.nodes}
    most = max((size for name in at_fault if (size := cards[name][1])), default=1500)
    fits = min((one.passes for one in stalled if one.passes), default=1500 if most > 1500 else 1280)
    large = {name: size for name in at_fault if (size := cards[name][1]) and size > fits}
    steps = [f"on {name}: sudo ip link set {cards[name][0]} mtu {fits}" for name in (large or at_fault)]
    jumbo = any(size > 1500 for size in large.values())
    yield Finding(
        id="net.mtu",
        status="fail",
        nodes=at_fault,
        summary="1 KB comes through and 64 KB does not: large packets are lost on the way",
        evidence="\n".join([*_stalls(stalled), _sizes(cards)]),
        cause="an MTU that some switch or tunnel between these nodes does not carry",
        fix=(
            *steps,
            *(("or jumbo frames on every switch port between them",) if jumbo else ()),
            "and the same in the node's network configuration, so that it lasts",
        ),
        needs_root=True,
        blast_radius="the node's network, for a moment",
    )


def some_lost(seen: Examination) -> Iterator[Finding]:
    """net.loss: of connections made at once, some never come about, each time that they are tried."""
    partly = [one for one in (seen.links.dials if seen.links else ()) if one.partly]
    if not partly:
        return
    pairs = {frozenset((one.source, one.target)) for one in partly}
    counts = {name: sum(name in pair for pair in pairs) for name in seen.nodes}
    most = max(counts.values())
    nodes = tuple(name for name in seen.nodes if counts[name] == most) if most > 1 else ()
    nodes = nodes or tuple(name for name in seen.nodes if counts[name])
    cards = {name: _card(seen, name)[0] for name in nodes}
    yield Finding(
        id="net.loss",
        status="fail",
        nodes=nodes,
        summary=f"some connections with {names(nodes)} come about, and others to the same port never do",
        evidence="\n".join(one.told for one in partly[:_SHOWN]),
        cause="which way a connection takes hangs on its ports: one link of a bond, or one of several ways to the "
        "same place, loses everything; or connections are limited in number",
        fix=tuple(
            step
            for name, card in cards.items()
            for step in (
                f"on {name}: grep -E 'Slave|MII Status|Failure' /proc/net/bonding/*; ip -s link show {card}   "
                "a leg without traffic is the dead one: pull its cable, or sudo ip link set LEG down",
                f"on {name}: sudo iptables -S | grep -E 'connlimit|limit|recent|statistic'   tells a limit",
            )
        ),
        needs_root=True,
        blast_radius="the node's link",
    )


def loss(seen: Examination) -> Iterator[Finding]:
    """net.loss: packets that had to be sent again although no queue was full."""
    flows = [one for one in untried.flows(seen) if one.again is not None and one.packets]
    bad = {tuple(sorted((one.source, one.target))) for one in flows if _lossy([one])}
    culprits: list[str] = []
    left = flows
    while bad:  # whoever is in most of the bad pairs; then what is left without that one
        counts = {name: sum(name in pair for pair in bad) for pair in bad for name in pair}
        most = max(counts.values())
        worst = [name for name in seen.nodes if counts.get(name) == most]
        worst = worst[:1] if most > 1 else worst
        mine = [one for one in left if {one.source, one.target} & set(worst)]
        if _lossy(mine):
            culprits += worst
        left = [one for one in left if one not in mine]
        bad = {pair for pair in bad if not set(pair) & set(worst)}
    if not culprits:
        return
    nodes = tuple(name for name in seen.nodes if name in culprits)
    theirs = [one for one in flows if {one.source, one.target} & set(nodes)]
    again, packets = sum(one.again or 0 for one in theirs), sum(one.packets for one in theirs)
    cards = {name: _card(seen, name)[0] for name in nodes}
    yield Finding(
        id="net.loss",
        status="warn",
        nodes=nodes,
        summary=f"packets are lost: {again / packets:.1%} had to be sent again",
        evidence="\n".join(
            f"{one.source} → {one.target}: {one.again} of {one.packets} small packets, sent one at a time"
            for one in theirs[:_SHOWN]
        ),
        cause="a bad cable, plug, optic or switch port; or radio",
        fix=(
            *(
                f"replace the cable of {card} on {name}, or use another switch port"
                for name, card in cards.items()
            ),
            *(
                f"on {name}: ip -s link show dev {card}   errors that grow there tell it"
                for name, card in cards.items()
            ),
        ),
        blast_radius="the node's link",
    )


def linkspeed(seen: Examination) -> Iterator[Finding]:
    """net.linkspeed, by the cards: Wi-Fi, 100 Mbit/s, or much less than the others'."""
    if len(seen.nodes) < 2:
        return
    cards = {name: _card(seen, name)[0] for name in seen.survey.facts}
    radios = [name for name, card in cards.items() if name in seen.health and card in _radios(seen, name)]
    if radios:
        yield _slow(
            tuple(radios),
            "trains over Wi-Fi",
            "\n".join(f"{name}: {cards[name]} is a radio" for name in radios),
            "the address that the others dial is that of a radio",
            (f"connect {', '.join(radios)} by cable, and give those addresses as addr= in the hostfile",),
        )
    speeds = {
        name: speed
        for name, card in cards.items()
        if name not in radios and (speed := networks.speed(seen.survey.facts[name], card))
    }
    same: dict[str, list[str]] = {}
    for name, speed in speeds.items():
        others = [each for other, each in speeds.items() if other != name]
        usual = statistics.median_low(others) if others else 0
        if speed <= 100 or speed * _FAR <= usual:
            compared = f", and the others' at {networks.rate(usual)}" if speed * _FAR <= usual else ""
            same.setdefault(f"its link runs at {networks.rate(speed)}{compared}", []).append(name)
    for summary, slow in same.items():
        yield _slow(
            tuple(slow),
            summary,
            "\n".join(f"{name}: /sys/class/net/{cards[name]}/speed: {speeds[name]}" for name in slow),
            "a cable with broken pairs, a slow switch port, or the wrong card",
            tuple(_negotiated(name, cards[name]) for name in slow),
        )


def _radios(seen: Examination, name: str) -> frozenset[str]:
    return seen.health[name].network.wireless or frozenset()


def linkspeed_measured(seen: Examination) -> Iterator[Finding]:
    """net.linkspeed, by sending: far below the other nodes, or below the card itself where there are but two."""
    flows = [one for one in untried.flows(seen) if one.rate]
    if not flows:
        return
    best = {side: _best(flows, side) for side in ("source", "target")}
    worst: dict[str, list[str]] = {}
    for name in seen.nodes:
        for side, verb in (("source", "sends"), ("target", "receives")):
            own = best[side].get(name)
            others = [rate for other, rate in best[side].items() if other != name]
            if own is None or own >= _SLOW_MOST:
                continue
            if len(others) > 1 and own < _SLOW_SHARE * statistics.median(others):
                worst.setdefault(name, []).append(
                    f"{verb} {_rate(own)} at best, and the other nodes {_rate(statistics.median(others))}"
                )
    if len(best["source"]) == 2:
        worst = _below_card(seen, flows)
    for name, told in worst.items():
        card = _card(seen, name)[0]
        pairs = [one for one in flows if name in (one.source, one.target)]
        lines = [f"{one.source} → {one.target}: {_rate(one.rate or 0)}" for one in pairs[:_SHOWN]]
        cause = "a limit that was set, a cable with broken pairs, a slow switch port, or a machine that was busy"
        fix = (
            _negotiated(name, card),
            f"on {name}: sudo tc qdisc del dev {card} root   if tc qdisc show dev {card} tells a limit",
        )
        yield _slow((name,), "its link is slow: " + "; ".join(told), "\n".join(lines), cause, fix)


def slowest(flows: Iterable[Flow]) -> str:
    """9.38 Gbit/s n1→n2, 9.41 back: of the slowest pair."""
    rates: Mapping[tuple[str, str], float] = {(one.source, one.target): one.rate for one in flows if one.rate}
    if not rates:
        return ""
    source, target = min(rates, key=lambda pair: rates[pair])
    there, back = rates[source, target], rates.get((target, source))
    returned = f", {_rate(back, like=there)} back" if back else ""
    return f"{_rate(there)} {source}→{target}{returned}"


def _odd(seen: Examination, stalled: list[Dial]) -> tuple[str, ...]:
    """The cards that send larger packets than the way carries, else whoever is in all pairs."""
    ends = {name for one in stalled for name in (one.source, one.target)}
    pairs = {frozenset((one.source, one.target)) for one in stalled}
    sizes = {name: _card(seen, name)[1] for name in seen.nodes}
    known = [size for size in sizes.values() if size]
    large = [name for name in seen.nodes if name in ends and (sizes[name] or 0) > 1500]
    usual = statistics.mode(known) if known else None
    common = [name for name in seen.nodes if all(name in pair for pair in pairs)]
    if large and len(large) < len(seen.nodes):
        return tuple(large)
    if len(common) == 1:
        return tuple(common)
    other = [name for name in common if sizes[name] and sizes[name] != usual]
    if len(other) == 1 and len(seen.nodes) > 2:
        return tuple(other)
    towards = {one.target if one.lost and one.lost[2] == "there" else one.source for one in stalled}
    if len(pairs) == 1 and len(towards) == 1:  # only what goes to that one is lost
        return tuple(towards)
    return tuple(name for name in seen.nodes if name in ends)


def _stalls(tries: list[Dial]) -> Iterator[str]:
    pairs = {(one.source, one.target): one for one in tries}
    stalled = list(pairs.values())
    for one in stalled[:_SHOWN]:
        lost = one.lost or ("", "", "")
        way = {"there": f", stuck on the way to {one.target}", "back": f", stuck on the way to {one.source}"}
        fits = f"; with packets of {one.passes} bytes it comes through" if one.passes else ""
        mss = f" (MSS {one.mss})" if one.mss else ""
        yield f"{one.source} → {one.target}  64 KB echo: {lost[1]}{way.get(lost[2], '')}{mss}{fits}"
    if len(stalled) > _SHOWN:
        yield f"and {len(stalled) - _SHOWN} more"


def _sizes(cards: Mapping[str, tuple[str, int | None]]) -> str:
    known = [f"{name} {card} {size}" for name, (card, size) in cards.items() if size]
    return "MTU: " + ", ".join(known[:16])


def _card(seen: Examination, name: str) -> tuple[str, int | None]:
    """(interface, MTU) that a node uses towards the others."""
    facts = seen.survey.facts.get(name)
    at = networks.holder(facts, seen.dialled.get(name, "")) if facts else None
    if facts is None or at is None:
        return "IF", None
    return at.interface, facts.mtus.get(at.interface)


def _lossy(flows: list[Flow]) -> bool:
    again, packets = sum(one.again or 0 for one in flows), sum(one.packets for one in flows)
    return again >= (_LOST_LEAST if len(flows) > 1 else 2) and again > _LOST_SHARE * packets


def _best(flows: list[Flow], side: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in flows:
        name = one.source if side == "source" else one.target
        found[name] = max(found.get(name, 0.0), one.rate or 0.0)
    return found


def _below_card(seen: Examination, flows: list[Flow]) -> dict[str, list[str]]:
    """Of two nodes nobody can be compared with: a tenth of what the slower card says is too little."""
    rates = [networks.speed(facts, _card(seen, name)[0]) for name, facts in seen.survey.facts.items()]
    known = [rate for rate in rates if rate]
    slow = [one for one in flows if len(known) == 2 and (one.rate or 0) < min(*known, 10_000) * 1e6 / 8 / 10]
    slow = [one for one in slow if (one.rate or 0) < _SLOW_MOST / 2]
    told = [f"{_rate(one.rate or 0)} from {one.source} to {one.target}" for one in slow]
    words = f"{names(tuple(told))}, on cards of {networks.rate(min(known))}" if told else ""
    ends = dict.fromkeys(name for one in slow for name in (one.source, one.target))
    return {name: [words] for name in ends}


def _negotiated(name: str, card: str) -> str:
    return f"on {name}: sudo ethtool {card}   tells what was negotiated: try another cable, another switch port"


def _slow(nodes: tuple[str, ...], summary: str, evidence: str, cause: str, fix: tuple[str, ...]) -> Finding:
    return Finding(
        id="net.linkspeed",
        status="warn",
        nodes=nodes,
        summary=summary,
        evidence=evidence,
        cause=cause,
        fix=fix,
        needs_root=any("sudo" in step for step in fix),
        blast_radius="the node's link",
    )


def _rate(rate: float, like: float | None = None) -> str:
    """Of bytes a second, in the unit that is usual for links; the unit is left out beside one of the same."""
    bits = rate * 8
    unit, words = (1e9, "Gbit/s") if (like or rate) * 8 >= 1e9 else (1e6, "Mbit/s")
    return f"{bits / unit:.3g}" + ("" if like is not None else f" {words}")
