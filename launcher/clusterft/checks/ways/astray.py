"""Tries of the port matrix that an address explains: who else answered, or that nobody is there. Pure.

A neighbour's MAC alone proves nothing, as clouds and some radios answer for others; it counts only where the
connection failed, and others find the node elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clusterft.checks import networks
from clusterft.checks.examination import Examination
from clusterft.checks.ways import isolated, routes
from clusterft.facts import NodeFacts
from clusterft.facts.links import Dial

_AWAY = 1.0  # seconds: a firewall refuses at once, a host that is not there takes three


@dataclass(frozen=True, slots=True)
class Trouble:
    """A try that an address explains: who else answered, if that is known, and under which MAC.

    forwarded: somebody else on this port only; kept: a MAC that the sender alone has, and where nobody answers.
    """

    dial: Dial
    kind: Literal["answered", "forwarded", "mac", "kept", "nowhere"]
    who: str = ""
    mac: str = ""


def misled(seen: Examination) -> set[tuple[str, str]]:
    """(source, target) of tries that an address explains; answers to an impostor go astray too."""
    found = [one for one in troubles(seen) if one.kind != "forwarded"]  # which says nothing of other ports
    back = {(one.dial.target, one.dial.source) for one in found if one.kind in ("mac", "kept")}
    return back | {(one.dial.source, one.dial.target) for one in found}


def troubles(seen: Examination) -> tuple[Trouble, ...]:
    """All of them."""
    return seen.once(_troubles)


def _troubles(seen: Examination) -> tuple[Trouble, ...]:
    found = (_trouble(seen, one) for one in (seen.links.dials if seen.links else ()))
    return tuple(one for one in found if one)


def _trouble(seen: Examination, one: Dial) -> Trouble | None:
    facts = seen.survey.facts.get(one.target)
    way = (one.source, one.target)
    if facts is None or (one.error and (way in routes.cut(seen) or way in isolated.pairs(seen))):
        return None
    # Its own program is no stranger, whatever boot id it was told: in a container on a node that is one itself.
    if one.boot and facts.boot_id and one.boot != facts.boot_id and one.name != one.target:
        who = next((name for name, each in seen.survey.facts.items() if each.boot_id == one.boot), "")
        return Trouble(one, "forwarded" if _elsewhere_itself(seen, one) else "answered", who)
    if one.stranger == "it answers something else" and one.listened:
        return Trouble(one, "forwarded" if _elsewhere_itself(seen, one) else "answered")
    if one.reached or not one.error:
        return None
    foreign = _foreign(seen, one)
    if foreign:
        return Trouble(one, "kept" if _kept(seen, one) else "mac", _carrier(seen, foreign), foreign)
    at = networks.holder(facts, one.address)
    away = one.error == "no route to host" and one.seconds >= _AWAY
    strange = bool(facts.addresses) and (at is None or bool(networks.virtual(at.interface)))
    if one.error == "network is unreachable" or away or (strange and networks.parsed(one.address) is not None):
        return Trouble(one, "nowhere")
    return None


def _foreign(seen: Examination, one: Dial) -> str:
    """The MAC that the sender takes for the target's, if it is none of its own, nor of a proxy for several."""
    known = seen.links.macs if seen.links else {}
    here, facts = known.get(one.source, {}), seen.survey.facts[one.target]
    mac, own = here.get(one.address), {card.mac for card in facts.links or () if card.mac}
    if mac is None or not own or mac in own:
        return ""
    if any(macs.get(one.address) in own for macs in known.values()):
        return mac  # others find it where it is
    return mac if len(known) < 3 and list(here.values()).count(mac) == 1 else ""


def itself(seen: Examination, one: Dial) -> bool:
    """Whether it is the target's own program that answered."""
    facts = seen.survey.facts.get(one.target)
    known = facts is not None and bool(facts.boot_id) and one.boot == facts.boot_id
    return not one.error and not one.stranger and bool(one.boot) and (known or one.name == one.target)


def _elsewhere_itself(seen: Examination, one: Dial) -> bool:
    """Whether the same sender finds the target itself on another port: then it is no second machine."""
    return any(
        itself(seen, other)
        for other in (seen.links.dials if seen.links else ())
        if (other.source, other.target, other.address) == (one.source, one.target, one.address)
        and other.port != one.port
    )


def _kept(seen: Examination, one: Dial) -> bool:
    """Whether the sender alone has it wrong and met nobody there: an entry of its own, and no second machine."""
    known, dials = (seen.links.macs, seen.links.dials) if seen.links else ({}, ())
    own = {card.mac for card in seen.survey.facts[one.target].links or () if card.mac}
    wrong = [name for name, macs in known.items() if macs.get(one.address, next(iter(own))) not in own]
    to = [other for other in dials if other.target == one.target and other.address == one.address]
    mine = [other for other in to if other.source == one.source]
    nobody = all(other.error in ("timed out", "no route to host") for other in mine)
    return wrong == [one.source] and nobody and any(itself(seen, other) for other in to)


def _carrier(seen: Examination, mac: str) -> str:
    return next(
        (name for name, each in seen.survey.facts.items() if any(card.mac == mac for card in each.links or ())), ""
    )


def own(facts: NodeFacts, ip: str) -> str:
    """The real interface on which a node has this address; empty if it has it on none."""
    return next((one.interface for one in networks.real(facts) if one.ip == ip), "")
