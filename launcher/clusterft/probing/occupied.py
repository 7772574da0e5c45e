"""Whether somebody works on the nodes: a run of ours, or another program on their cards. Looks only."""

from __future__ import annotations

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.checks.job import used
from clusterft.probing.crew import Crew
from clusterft.remote import Remote, Unreachable

_SECONDS = 12.0
_COMPUTES = ("C", "M+C", "C+G")
# Our containers by their label; our plain processes by their supervisor, for which this search is not taken.
_LOOK = (
    '[ $# = 0 ] || "$@" ps --filter label=clusterft.run --filter status=running '
    "--format '{{.Label \"clusterft.run\"}}' 2>/dev/null | sed 's/^/run /'; "
    "for f in $(grep -la 'clusterft_trainer[.]supervisor' /proc/[0-9]*/cmdline 2>/dev/null); do "
    "tr '\\000' ' ' <$f 2>/dev/null | sed 's/^/process /; s/$/ /' && echo; done; true"
)
_KEPT = 160  # characters


def reason(crew: Crew, survey: Survey, wanted: Wanted) -> str:
    """Why these nodes must not be loaded now, or nothing."""
    if wanted.device == "cuda":
        for node in survey.cluster.active:
            known = survey.facts.get(node.name)
            for card in used(node, known) if known else ():
                for one in card.processes or ():
                    if one.kind in _COMPUTES:
                        return f"card {card.index} of {node.name} is in use: pid {one.pid} {one.name}"

    def look(name: str, remote: Remote) -> str:
        way = crew.ways.get(name)
        done = remote.run(("sh", "-c", _LOOK, "look", *(way.docker if way else ())), seconds=_SECONDS)
        return read(done.out)

    for name, said in crew.fleet.each(look).items():
        if isinstance(said, Unreachable):
            continue  # which is told elsewhere, and takes no part
        if said:
            return f"a run is going on on {name}: {said}"
    return ""


def read(text: str) -> str:
    """Which run, from what a node answered; nothing if none. Pure."""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "run" and rest.strip():
            return rest.strip()[:_KEPT]
        if word == "process" and "clusterft_trainer.supervisor" in rest:
            return rest.strip()[:_KEPT]
    return ""
