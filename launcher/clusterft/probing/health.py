"""Doctor's own look at every node: its clock in a round trip of its own, then all the rest in one."""

from __future__ import annotations

import secrets
import time

from clusterft.checks.examination import Wanted
from clusterft.facts import health
from clusterft.facts.frames import Unreadable
from clusterft.facts.health import Health
from clusterft.fleet import Fleet
from clusterft.remote import Partial, Remote, Unreachable

_SECONDS = 15.0
# The answer in one piece: a message for each of its many lines would be most of the controller's work.
_WHOLE = ("sh", "-c", 'said=$(sh); printf "%s\\n" "$said"')


def ask(fleet: Fleet, wanted: Wanted) -> dict[str, Health | Unreachable]:
    """What every reached node tells; Unreachable of one that does not answer, or nonsense."""
    return fleet.each(
        lambda name, _: fleet.ask(name, lambda remote: _one(name, remote, wanted, fleet.cluster.name))
    )


def _one(name: str, remote: Remote, wanted: Wanted, cluster: str) -> Health:
    word, sent = secrets.token_hex(8), time.time()
    # The clock by itself, as a short round trip tells it best.
    clock = remote.run(("date", "+%s.%N"), seconds=_SECONDS)
    received = time.time()
    asked = health.Asked(
        word,
        wanted.shared,
        wanted.port,
        cluster,
        wanted.device == "cuda",
        sent,
        received,
        contained=wanted.contained,
        tag=wanted.tag,
        clock=clock.out,
    )
    done = remote.run(_WHOLE, stdin=health.script(asked).encode(), seconds=_SECONDS)
    try:
        return health.parse(name, done.out, asked)
    except Unreadable as error:
        raise Partial(f"{error}; exit {done.code}; stderr: {done.err.strip()[-300:] or 'none'}") from None
