"""Doctor's own look at every node: its clock in a round trip of its own, then all the rest in one."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from clusterft.checks.examination import Wanted
from clusterft.facts import health, probe
from clusterft.facts.frames import Unreadable
from clusterft.facts.health import Health, storage
from clusterft.fleet import Fleet
from clusterft.remote import Partial, Remote, Unreachable

_SECONDS = 15.0
_AGAIN = 3
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
        paths=wanted.job.named_paths if wanted.job else (),
    )
    done = remote.run(_WHOLE, stdin=health.script(asked).encode(), seconds=_SECONDS)
    try:
        found = health.parse(name, done.out, asked)
    except Unreadable as error:
        raise Partial(f"{error}; exit {done.code}; stderr: {done.err.strip()[-300:] or 'none'}") from None
    return _once_more(remote, found)


def _once_more(remote: Remote, found: Health) -> Health:
    """A path that did not answer is told only when it does not answer a second time either: a node may be busy."""
    stuck = [path for path, answer in found.storage.paths.items() if answer == "waits"]
    if not stuck:
        return found
    try:
        stages = {"storage.paths": storage.paths_text(stuck, _AGAIN)}
        text = probe.framed("again", {"begin": ":"}, stages, within=_AGAIN + 2)
        said = storage.answers(remote.run(_WHOLE, stdin=text.encode(), seconds=_AGAIN + 4.0).out, stuck)
    except Unreachable:
        said = {}
    paths = {
        path: one for path, one in {**found.storage.paths, **said}.items() if path not in stuck or path in said
    }
    return replace(found, storage=replace(found.storage, paths=paths))
