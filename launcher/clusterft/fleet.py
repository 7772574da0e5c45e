"""All nodes of a cluster at once: one Remote each, bounded fan-out, every node's outcome kept."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from clusterft import facts
from clusterft.checks import Survey, Unreached
from clusterft.facts import NodeFacts
from clusterft.hosts import Cluster, Node
from clusterft.remote import Remote, Unreachable
from clusterft.remote.local import LocalRemote

_WIDTH = 32  # nodes at a time; sshd drops handshakes at random beyond its MaxStartups only behind one bastion
_PROBE_SECONDS = 20.0
_LAST_BREATH = 2.0  # seconds that calls under way get when the user stops; a healthy node needs less

T = TypeVar("T")


class Fleet:
    """Open connections to a cluster's active nodes; a node that cannot be reached is kept with its reason."""

    def __init__(self, cluster: Cluster, pins: Path) -> None:
        self.cluster = cluster
        self.remotes: dict[str, Remote] = {}
        self.unreached: list[Unreached] = []
        self._contacts: dict[str, str] = {}
        self._pins = pins

    def __enter__(self) -> Fleet:
        found = self._fan_out(self._connect, self.cluster.active)
        for node in self.cluster.active:
            outcome = found[node.name]
            if isinstance(outcome, Unreachable):
                self.unreached.append(Unreached(node.name, outcome.id, outcome.what, outcome.fix))
            else:
                self.remotes[node.name] = outcome
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for remote in self.remotes.values():
            remote.close()

    def survey(self, disks: Callable[[Node], tuple[str, ...]]) -> Survey:
        """Gather the facts of all reached nodes, one round trip each; one more behind a bastion."""
        self._learn_addresses()
        # addr= is how nodes reach each other: on a second, faster network the route to it is another one.
        known_by = (node.addr or self._contacts.get(node.name) for node in self.cluster.active)
        peers = tuple(address for address in known_by if address)
        reached = tuple(node for node in self.cluster.active if node.name in self.remotes)
        found = self._fan_out(lambda node: self._probe(node, peers, disks(node)), reached)
        known: dict[str, NodeFacts] = {}
        missed = list(self.unreached)
        for name, outcome in found.items():
            if isinstance(outcome, Unreachable):
                missed.append(Unreached(name, outcome.id, outcome.what, outcome.fix))
            else:
                known[name] = outcome
        return Survey(self.cluster, known, tuple(missed), dict(self._contacts))

    def each(self, work: Callable[[str, Remote], T]) -> dict[str, T | Unreachable]:
        """Do the same on every reached node at once; an Unreachable is an outcome, other errors are raised."""
        nodes = tuple(node for node in self.cluster.active if node.name in self.remotes)
        return self._fan_out(lambda node: work(node.name, self.remotes[node.name]), nodes)

    def reconnect(self, name: str) -> None:
        """Replace a broken connection; if that fails, the old one stays and the next use of it says why."""
        try:
            node = next(node for node in self.cluster.active if node.name == name)
            fresh = self._connect(node)
            old, self.remotes[name] = self.remotes.get(name), fresh
            if old:
                old.close()
        except Exception:  # noqa: BLE001 - in a listener's thread nobody would hear it; the old connection tells
            return

    def _connect(self, node: Node) -> Remote:
        if node.transport == "local":
            return LocalRemote()
        from clusterft.remote.ssh import connect  # paramiko costs 0.1 s that a local cluster need not pay

        remote = connect(node, self._pins)
        if remote.address:
            self._contacts[node.name] = remote.address
        return remote

    def _learn_addresses(self) -> None:
        """Ask the nodes behind a bastion for their own address, which the others need to look up the route."""
        unknown = tuple(
            node
            for node in self.cluster.active
            if node.name in self.remotes and node.transport == "ssh" and node.name not in self._contacts
        )
        for name, outcome in self._fan_out(lambda node: self._probe(node, (), ()), unknown).items():
            if not isinstance(outcome, Unreachable) and outcome.login_address:
                self._contacts[name] = outcome.login_address

    def _probe(self, node: Node, peers: tuple[str, ...], disks: tuple[str, ...]) -> NodeFacts:
        word = secrets.token_hex(8)
        sent = time.time()
        # Piped into sh, not given as an argument: a process list shows nothing, and no length limit applies.
        text = facts.script(word, peers=peers, disks=disks)
        done = self.remotes[node.name].run(("sh",), stdin=text.encode(), seconds=_PROBE_SECONDS)
        asked = facts.Asked(word, peers, disks, sent, time.time())
        try:
            return facts.parse(node.name, done.out, asked)
        except facts.Unreadable as error:
            words = f"{error}; stderr: {done.err.strip()[-300:] or 'none'}"
            raise Unreachable("ssh.noisy-shell", words) from None

    @staticmethod
    def _fan_out(work: Callable[[Node], T], nodes: tuple[Node, ...]) -> dict[str, T | Unreachable]:
        """Daemon threads, not a pool: a call that hangs must hold up neither a Ctrl-C nor the exit."""
        todo = deque(nodes)
        results: dict[str, Future[T | Unreachable]] = {node.name: Future() for node in nodes}

        def worker() -> None:
            while todo:
                try:
                    node = todo.popleft()
                except IndexError:  # another worker was faster
                    return
                result = results[node.name]
                if not result.set_running_or_notify_cancel():
                    continue
                try:
                    result.set_result(work(node))
                except Unreachable as error:
                    result.set_result(error)
                except BaseException as error:  # noqa: BLE001 - raised below, where the result is waited for
                    result.set_exception(error)

        for _ in range(min(_WIDTH, len(nodes))):
            threading.Thread(target=worker, name="fleet", daemon=True).start()
        try:
            return {name: result.result() for name, result in results.items()}
        except BaseException:
            begun = [result for result in results.values() if not result.cancel()]
            wait(begun, timeout=_LAST_BREATH)  # so that what is undone next was not still being done
            raise
