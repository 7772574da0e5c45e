"""This member's part in the meeting before the first attempt: two probes, and how long they are waited for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clusterft_trainer.assignment import Assignment
from clusterft_trainer.supervisor.messages import Link, Met, Tried
from clusterft_trainer.supervisor.processes import Child

_FIRST = 5.0  # seconds for a probe to have its port, or its file in the shared dir
_SECOND = 14.0  # seconds for all dials, or for seeing all others' files
_PROBE = (sys.executable, "-P", "-m", "clusterft_trainer.supervisor.probe")


class Look:
    """From `Meet` to the first attempt."""

    def __init__(self, told: Assignment, word: str, now: float) -> None:
        address = told.members[told.machine_rank].address
        self._ports = Child((*_PROBE, "ports", address))
        self._share = Child((*_PROBE, "share", told.run_dir, told.node, word))
        self._node = told.node
        self._until = now + _FIRST
        self._met = self._dialling = False
        self._port = 0
        self._written: str | None = None
        self._links: tuple[Link, ...] | None = None
        self._unseen: tuple[str, ...] | None = None

    def begin(self, peers: Sequence[Link], now: float) -> None:
        """Dial these, and look for what they wrote."""
        others = [peer for peer in peers if peer.to != self._node]
        self._ports.say(json.dumps([asdict(peer) for peer in others if peer.port]))
        self._share.say(json.dumps([peer.to for peer in others]))
        self._until, self._dialling = now + _SECOND, True

    def turn(self, now: float) -> Met | Tried | None:
        """What there is to tell the head, once for each half."""
        for body in (*_bodies(self._ports), *_bodies(self._share)):
            self._take(body)
        late = now > self._until
        if not self._met:
            if late or (self._port and self._written is not None):
                self._met = True
                return Met(self._port, "fs.hung" if self._written is None else self._written)
        elif self._dialling and (late or (self._links is not None and self._unseen is not None)):
            self._dialling = False
            hung = self._written is None or self._unseen is None
            return Tried(self._links or (), self._unseen or (), "fs.hung" if hung else self._written or "")
        return None

    def close(self) -> None:
        """The probes tidy up and end by themselves, if they can."""
        self._ports.close()
        self._share.close()

    def _take(self, body: dict[str, Any]) -> None:
        if "port" in body:
            self._port = body["port"]
        elif "links" in body:
            self._links = tuple(Link(**one) for one in body["links"])
        elif "unseen" in body:
            self._unseen, self._written = tuple(body["unseen"]), body["share"] or self._written
        elif "share" in body:
            self._written = body["share"]


def _bodies(child: Child) -> list[dict[str, Any]]:
    return [json.loads(line) for line in child.lines() if line.startswith("{")]
