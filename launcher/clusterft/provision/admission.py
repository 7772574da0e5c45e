"""Who is let in where: the lines of each filesystem's authorized_keys, and putting them there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from clusterft.places import NodePlaces
from clusterft.provision import scripts
from clusterft.provision.keyring import CONTROLLER, Edited, controller_line, edit, holds, relay_line
from clusterft.provision.member import Order, ip
from clusterft.provision.seen import Refused, Seen, answers, digest
from clusterft.provision.wire import look_home, run
from clusterft.remote import Remote

_TRIES = 4  # somebody else edits the same file at the same moment


def lines(
    group: tuple[str, ...], order: Order, seen: Mapping[str, Seen], unbound: Collection[str] = ()
) -> dict[str, str]:
    """The lines of one filesystem: every node that is another's peer there, bound to its own addresses.

    `unbound` are the callers that may come from anywhere for a moment, so that it is seen where they come from.
    """
    wanted = {}
    for caller, member in order.members.items():
        public = seen[caller].public if caller in seen else None
        peers = [peer for peer in group if peer != caller]
        if member.local or not public or not peers:
            continue
        met = {address for peer in peers for who, address in seen[peer].nat if who == caller and ip(address)}
        sources = (*member.sources, *sorted(met - set(member.sources)))
        if caller in unbound:
            wanted[caller] = relay_line(member.places.cluster, caller, public, ())
        elif sources:  # a line without from= would let in everybody
            wanted[caller] = relay_line(member.places.cluster, caller, public, sources)
    if order.controller_key and _takes_controller(group, order, seen):
        wanted[CONTROLLER] = controller_line(order.members[group[0]].places.cluster, order.controller_key)
    return wanted


def _takes_controller(group: tuple[str, ...], order: Order, seen: Mapping[str, Seen]) -> bool:
    """Only where a password was needed, or was once: a home that opens by the user's own key gets no other."""
    cluster = order.members[group[0]].places.cluster
    return any(
        node in order.controller_for or holds(seen[node].keys or b"", cluster, CONTROLLER) for node in group
    )


def admit(
    remote: Remote, places: NodePlaces, seen: Seen, wanted: Mapping[str, str], keep: Collection[str]
) -> tuple[Edited, tuple[str, ...]]:
    """Make the lines of this cluster these, in the node's authorized_keys; what else went with them is told."""
    for _ in range(_TRIES):
        if seen.odd:
            raise Refused(f"~/.ssh/authorized_keys is no file to edit: {seen.odd}")
        old = seen.keys or b""
        edited = edit(old, places.cluster, wanted, keep)
        if edited.content == old:
            return edited, ()
        given = (_root(places), seen.keys_sum, digest(edited.content))
        word, out = run(remote, scripts.KEYS, given, edited.content)
        found = answers(out, word)
        if ("moved", "") not in found:
            return edited, tuple(f"{rest}: empty, removed" for kind, rest in found if kind == "removed")
        seen = look_home(remote, places)
    raise Refused("~/.ssh/authorized_keys changes all the time")


def _root(places: NodePlaces) -> str:
    """Empty where only the node knows its login directory."""
    return "" if places.root == PurePosixPath() else str(places.root)


def shows(seen: Seen, cluster: str, wanted: Mapping[str, str], keep: Collection[str]) -> bool:
    """Whether a node sees the lines that were written."""
    old = seen.keys or b""
    return edit(old, cluster, wanted, keep).content == old
