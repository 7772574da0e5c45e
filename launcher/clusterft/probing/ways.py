"""Which way each node runs doctor's programs: a container of the run's image, the node's own Python, or none."""

from __future__ import annotations

import sys

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.fleet import Fleet
from clusterft.probing.crew import Way
from clusterft.remote import Remote, Unreachable

_SECONDS = 15.0
# Python 3.8 or later, whatever it is called; the first that is there says where it is.
_PYTHON = (
    "for p in python3 python; do command -v $p >/dev/null 2>&1 && "
    '$p -c "import sys; sys.exit(sys.version_info < (3, 8))" 2>/dev/null && command -v $p && exit; done; echo none'
)


def find(fleet: Fleet, survey: Survey, wanted: Wanted) -> dict[str, Way]:
    """One look at every node that has given its facts."""

    def one(name: str, remote: Remote) -> Way:
        facts = survey.facts.get(name)
        if facts is None:
            return Way("none", words="its facts are not known")
        image = "the run's image is not there yet"
        docker = facts.docker.command if facts.docker and facts.docker.state == "ok" else ()
        if wanted.contained and wanted.tag and docker:
            done = remote.run((*docker, "image", "inspect", "-f", "{{.Id}}", wanted.tag), seconds=_SECONDS)
            if done.code == 0:
                run = (*docker, "run", "--rm", "-i", "--pull=never")
                return Way("image", (*run, wanted.tag), docker=docker)
            if "no such" not in done.err.lower():
                said = (done.err.strip().splitlines() or [f"exit code {done.code}"])[-1]
                image = f"its engine does not say whether it has the run's image: {said[-200:]}"
        elif wanted.contained and not docker:
            image = "its engine cannot be used"
        if _local(survey, name):
            return Way("python", (sys.executable,), docker=docker)
        done = remote.run(("sh", "-c", _PYTHON), seconds=_SECONDS)
        python = done.out.strip().splitlines()[-1:] or ["none"]
        if python[0].startswith("/"):
            return Way("python", (python[0],), docker=docker)
        return Way("none", words="it has no Python" + f", and {image}" * wanted.contained, docker=docker)

    found = fleet.each(one)
    return {
        name: Way("none", words=way.what) if isinstance(way, Unreachable) else way for name, way in found.items()
    }


def _local(survey: Survey, name: str) -> bool:
    return any(node.name == name and node.transport == "local" for node in survey.cluster.active)
