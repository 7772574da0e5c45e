"""Whether somebody works on the nodes: a run of ours, or another program on their cards. Looks only."""

from __future__ import annotations

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.checks.job import COMPUTES, used
from clusterft.facts.gpu import Gpu
from clusterft.probing.crew import Crew
from clusterft.remote import Remote, Unreachable

_SECONDS = 12.0
_EMPTY_MIB = 64  # the driver itself holds less of a card that nothing runs on
# Our containers by their label; our plain processes by their supervisor, for which this search is not taken.
_LOOK = """\
if [ $# != 0 ]; then
  r=$("$@" ps --filter label=clusterft.run --filter status=running --format '{{.Label "clusterft.run"}}' 2>&1)
  if [ $? = 0 ]; then printf '%s\n' "$r" | sed 's/^/run /'; else printf '%s\n' "$r" | sed 's/^/unread /'; fi
fi
for f in $(grep -la 'clusterft_trainer[.]supervisor' /proc/[0-9]*/cmdline 2>/dev/null); do
  tr '\\000' ' ' <$f 2>/dev/null | sed 's/^/process /; s/$/ /' && echo
done
echo looked
"""
_KEPT = 160  # characters


def reason(crew: Crew, survey: Survey, wanted: Wanted, *, cards: bool = True) -> str:
    """Why these nodes must not be loaded now, or nothing. What could not be read is no leave to load it.

    Whose program uses cards matters to those who want to use them.
    """
    for node in survey.cluster.active if cards and wanted.device == "cuda" else ():
        known = survey.facts.get(node.name)
        for card in used(node, known) if known else ():
            if words := _card(node.name, card):
                return words

    def look(name: str, remote: Remote) -> str:
        way = crew.ways.get(name)
        return remote.run(("sh", "-c", _LOOK, "look", *(way.docker if way else ())), seconds=_SECONDS).out

    unread = ""
    for name, said in crew.fleet.each(look).items():
        if isinstance(said, Unreachable):
            if name in survey.facts:  # others take no part, and are told of elsewhere
                unread = unread or f"whether {name} is in use could not be read: {said}"
        elif words := read(said):
            return f"a run is going on on {name}: {words}"
        elif words := unanswered(said):
            unread = unread or f"whether {name} is in use could not be read: {words}"
    return unread


def _card(node: str, card: Gpu) -> str:
    if card.processes is None:
        empty = card.used is not None and card.used <= _EMPTY_MIB
        return "" if empty else f"whether card {card.index} of {node} is in use could not be read"
    for one in card.processes:
        if one.kind in COMPUTES:
            return f"card {card.index} of {node} is in use: pid {one.pid} {one.name}"
    return ""


def unanswered(text: str) -> str:
    """What of the look has failed; nothing if it was whole. Pure."""
    lines = text.splitlines()
    if "looked" not in lines:
        return "no whole answer"
    return next((f"docker ps: {line[7:]}"[:_KEPT] for line in lines if line.startswith("unread ")), "")


def read(text: str) -> str:
    """Which run, from what a node answered; nothing if none. Pure."""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "run" and rest.strip():
            return rest.strip()[:_KEPT]
        if word == "process" and "clusterft_trainer.supervisor" in rest:
            return rest.strip()[:_KEPT]
    return ""
