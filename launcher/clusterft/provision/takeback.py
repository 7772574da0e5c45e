"""take_back: our keys, files and directories go from the nodes; what was there before stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from clusterft.events import Progress
from clusterft.findings import Outcome
from clusterft.fleet import Fleet
from clusterft.places import NodePlaces, controller_home
from clusterft.provision import admission, scripts, wire
from clusterft.provision.seen import Seen, answers, filesystems
from clusterft.remote import Remote

_STAGE = "take back"


def take_back(fleet: Fleet, report: Callable[[Progress], None]) -> dict[str, Outcome]:
    """Undo `apply` on all reached nodes, the controller's own line included. What a run left there goes, too.

    Ask before for whatever still runs: nothing is stopped here. A node that is not reached keeps what it has.
    """
    cluster = fleet.cluster.name
    # The root is left to each other node: not even its facts are needed to leave it.
    places = {name: NodePlaces(PurePosixPath(), cluster, name) for name in fleet.remotes}
    local = {node.name for node in fleet.cluster.active if node.transport == "local"}
    here = str(controller_home())
    ledger = wire.Ledger(tuple(places))

    def look(name: str, remote: Remote) -> Seen:
        return wire.look_home(remote, places[name])

    seen = ledger.take(wire.each(fleet, tuple(places), look))
    remote_nodes = {name: one for name, one in seen.items() if name not in local}
    first = {group[0] for group in filesystems(remote_nodes)}

    def close(name: str, remote: Remote) -> tuple[str, ...]:
        report(Progress(name, _STAGE, "authorized_keys"))
        edited, more = admission.admit(remote, places[name], seen[name], {}, ())
        return (edited.words, *more)

    def clear(name: str, remote: Remote) -> tuple[str, ...]:
        report(Progress(name, _STAGE, "files"))
        word, out = wire.run(remote, scripts.TAKE, (cluster, name, here if name in local else ""))
        return tuple(filter(None, (_words(*answer) for answer in answers(out, word))))

    for name, sentences in ledger.take(wire.each(fleet, tuple(first), close)).items():
        ledger.add(name, *sentences)
    left = tuple(name for name in seen if name not in ledger.failed)
    for name, sentences in ledger.take(wire.each(fleet, left, clear)).items():
        ledger.add(name, *sentences)
    return ledger.outcomes


def _words(kind: str, rest: str) -> str:
    if kind == "scratch":
        return "node-local scratch removed"
    if kind != "removed":
        return ""
    runs = "" if rest == "0" else f", the logs of {rest} {'run' if rest == '1' else 'runs'} with them"
    return f"keys and files removed{runs}"
