"""All nodes of a cluster at once: one Remote each, bounded fan-out, every node's outcome kept."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from clusterft import facts
from clusterft.checks import Survey, Unreached
from clusterft.facts import NodeFacts
from clusterft.facts.health import confines
from clusterft.hosts import Cluster, Node
from clusterft.remote import Asker, Broken, Completed, Partial, Remote, Unreachable, account, startup
from clusterft.remote.local import LocalRemote

if TYPE_CHECKING:  # paramiko costs 0.1 s that a local cluster need not pay
    from clusterft.remote.dial import Dialer
    from clusterft.remote.hostkeys import HostKey, Stranger
    from clusterft.remote.ssh import SshRemote

_WIDTH = 32  # nodes at a time
_WIDTH_BEHIND = 8  # of those behind one bastion, which carries them all
_PROBE_SECONDS = 20.0
# The answer in one piece: a message for each of its many lines would be most of the controller's work.
_PROBE = ("sh", "-c", 'said=$(sh); printf "%s\\n" "$said"')
# What cloud images answer to whoever logs in as root.
_OTHER_USER = re.compile(
    r"[Pp]lease log ?in as the (?:user )?[\"'\\]*([A-Za-z0-9_.-]+)[\"'\\]* (?:user )?rather than"
)
_LAST_BREATH = 2.0  # seconds that calls under way get when the user stops; a healthy node needs less

T = TypeVar("T")


class Fleet:
    """Open connections to a cluster's active nodes; a node that cannot be reached is kept with its reason.

    `key` is the cluster's own, used if it is there; without an asker, nothing is ever asked.
    """

    def __init__(
        self, cluster: Cluster, pins: Path, *, key: Path | None = None, asker: Asker | None = None
    ) -> None:
        self.cluster = cluster
        self.remotes: dict[str, Remote] = {}
        self._missed: dict[str, Unreachable] = {}
        self._contacts: dict[str, str] = {}
        self.login_seconds: dict[str, float] = {}  # node -> from the first packet to the end of the login
        self._pins = pins
        self._key = key
        self._asker = asker
        self._dialled: Dialer | None = None
        self._turn = threading.Lock()
        self._renewing = {node.name: threading.Lock() for node in cluster.active}

    def __enter__(self) -> Fleet:
        self._connect_all(self.cluster.active)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for remote in self.remotes.values():
            remote.close()
        if self._dialled:
            self._dialled.close()

    @property
    def unreached(self) -> list[Unreached]:
        """The nodes without a connection, in the hostfile's order, each with its reason."""
        missed = ((node.name, self._missed.get(node.name)) for node in self.cluster.active)
        return [_unreached(name, why) for name, why in missed if why]

    @property
    def strangers(self) -> tuple[Stranger, ...]:
        """The hosts that nobody has pinned, bastions too; nobody has logged in to them."""
        if self._dialled is None:
            return ()
        from clusterft.remote.refusal import Strange

        found: dict[tuple[str, HostKey], Stranger] = {}
        for why in self._missed.values():
            if isinstance(why, Strange):
                one = why.stranger
                known = found.get((one.name, one.key))
                found[one.name, one.key] = replace(one, nodes=known.nodes + one.nodes) if known else one
        return tuple(found.values())

    @property
    def host_keys(self) -> dict[str, HostKey]:
        """The key that each connected node has presented, and that was found right."""
        return {name: remote.hop.presented for name, remote in self._by_ssh().items()}

    @property
    def by_password(self) -> frozenset[str]:
        """The connected nodes that no key opened: whoever can, installs one."""
        return frozenset(name for name, remote in self._by_ssh().items() if remote.by_password)

    @property
    def crowded(self) -> frozenset[str]:
        """The connected nodes whose sshd had too few channels for us, so that we waited for one."""
        return frozenset(name for name, remote in self._by_ssh().items() if remote.crowded)

    def trust(self, strangers: tuple[Stranger, ...]) -> None:
        """Pin what these hosts presented, and connect their nodes; behind a bastion more strangers may wait."""
        self._dialer().trust(strangers)
        names = {name for one in strangers for name in one.nodes}
        self._connect_all(tuple(node for node in self.cluster.active if node.name in names))

    def adopt(self) -> bool:
        """Pin the keys that the user's own known_hosts vouched for, so that they hold ever after; whether any."""
        remotes = list(self._by_ssh().values())
        return bool(remotes) and self._dialer().adopt(remotes)

    def forget(self, name: str) -> bool:
        """Drop the pins of a node or a bastion, before connecting; whether there were any."""
        nodes = [node for node in self.cluster.nodes if node.transport == "ssh"]
        return any([self._dialer().forget(node, name) for node in nodes])

    def survey(self, disks: Callable[[Node], tuple[str, ...]], only: Container[str] | None = None) -> Survey:
        """Gather the facts of all reached nodes, one round trip each; one more behind a bastion.

        With `only`, the others are left alone: one of them may be what does not answer.
        """
        self._learn_addresses()
        # addr= is how nodes reach each other: on a second, faster network the route to it is another one.
        known_by = (node.addr or self._contacts.get(node.name) for node in self.cluster.active)
        peers = tuple(address for address in known_by if address)
        reached = (node for node in self.cluster.active if node.name in self.remotes)
        asked = tuple(node for node in reached if only is None or node.name in only)
        found = self._fan_out(lambda node: self._probe(node, peers, disks(node)), asked)
        known: dict[str, NodeFacts] = {}
        missed = list(self.unreached)
        for name, outcome in found.items():
            if isinstance(outcome, Unreachable):
                missed.append(_unreached(name, outcome))
            else:
                known[name] = outcome
        return Survey(self.cluster, known, tuple(missed), dict(self._contacts))

    def each(self, work: Callable[[str, Remote], T]) -> dict[str, T | Unreachable]:
        """Do the same on every reached node at once; an Unreachable is an outcome, other errors are raised."""
        nodes = tuple(node for node in self.cluster.active if node.name in self.remotes)
        return self._fan_out(lambda node: work(node.name, self.remotes[node.name]), nodes)

    def ask(self, name: str, question: Callable[[Remote], T]) -> T:
        """The answer to what changes nothing; asked once more if the connection broke or a part of it came.

        Either may come of a moment without memory or time on the node; what is wrong with it is wrong again.
        """
        remote = self.remotes[name]
        try:
            return question(remote)
        except Broken:
            remote = self._renewed(name, remote)
        except Partial:
            pass
        return question(remote)

    def leave(self, name: str) -> None:
        """Let go of a node: nothing more is asked of it."""
        if remote := self.remotes.pop(name, None):
            remote.close()

    def reconnect(self, name: str) -> None:
        """Replace a broken connection; if that fails, the old one stays and the next use of it says why."""
        try:
            node = next(node for node in self.cluster.active if node.name == name)
            fresh = self._connect(node)
            old, self.remotes[name] = self.remotes.get(name), fresh
            self._missed.pop(name, None)
            if old:
                old.close()
        except Exception:  # noqa: BLE001 - in a listener's thread nobody would hear it; the old connection tells
            return

    def _renewed(self, name: str, broken: Remote) -> Remote:
        """A connection in place of one that broke; the same for all who ask over it."""
        with self._renewing[name]:
            if self.remotes[name] is broken:
                self.remotes[name] = self._connect(next(one for one in self.cluster.active if one.name == name))
                broken.close()
            return self.remotes[name]

    def _connect_all(self, nodes: tuple[Node, ...]) -> None:
        for name, outcome in self._fan_out(self._connect, nodes).items():
            if isinstance(outcome, Unreachable):
                self._missed[name] = outcome
            else:
                self._missed.pop(name, None)
                self.remotes[name] = outcome
        # In the hostfile's order, whatever the order in which they came.
        order = [node.name for node in self.cluster.active]
        self.remotes = {name: self.remotes[name] for name in order if name in self.remotes}

    def _connect(self, node: Node) -> Remote:
        if node.transport == "local":
            return LocalRemote()
        began = time.monotonic()
        remote = self._dialer().connect(node)
        self.login_seconds[node.name] = time.monotonic() - began
        if remote.address:
            self._contacts[node.name] = remote.address
        return remote

    def _dialer(self) -> Dialer:
        with self._turn:
            if self._dialled is None:
                from clusterft.remote.dial import Dialer
                from clusterft.remote.login import Keyring

                self._dialled = Dialer(self._pins, Keyring(self._asker, self._key))
            return self._dialled

    def _by_ssh(self) -> dict[str, SshRemote]:
        if self._dialled is None:
            return {}
        from clusterft.remote.ssh import SshRemote

        return {name: remote for name, remote in self.remotes.items() if isinstance(remote, SshRemote)}

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
        def question(remote: Remote) -> NodeFacts:
            word = secrets.token_hex(8)
            sent = time.time()
            # Piped into sh, not given as an argument: a process list shows nothing, and no length limit applies.
            text = facts.script(word, peers=peers, disks=disks)
            done = remote.run(_PROBE, stdin=text.encode(), seconds=_PROBE_SECONDS)
            asked = facts.Asked(word, peers, disks, sent, time.time())
            try:
                return facts.parse(node.name, done.out, asked)
            except facts.Unreadable as error:
                raise _unread(str(error), done, word, self._login(node)) from None

        return self.ask(node.name, question)

    def _login(self, node: Node) -> account.Login:
        remote = self._by_ssh().get(node.name)
        return remote.hop.account if remote else account.Login()

    def _fan_out(self, work: Callable[[Node], T], nodes: tuple[Node, ...]) -> dict[str, T | Unreachable]:
        """Each bastion's nodes are a group of their own, so that a slow one holds up nobody else."""
        groups: dict[str, list[Node]] = {}
        for node in nodes:
            behind = self._dialer().ways.bastion(node) if node.transport == "ssh" else ""
            groups.setdefault(behind, []).append(node)
        widths = ((group, _WIDTH_BEHIND if behind else _WIDTH) for behind, group in groups.items())
        return _at_once(work, nodes, tuple(widths))


# What every shell says of the first command that wants it.
_NULL = re.compile(r"[^\n]*/dev/null: (?:Permission denied|Read-only file system|No such file or directory)")


def _unreached(name: str, why: Unreachable) -> Unreached:
    return Unreached(name, why.id, why.what, why.fix, why.cause)


def _unread(why: str, done: Completed, word: str, login: account.Login) -> Unreachable:
    """Something else than the probe has answered, or only a part of it came."""
    err = done.err.strip()
    said = (done.out.strip() or err)[:300]
    other = _OTHER_USER.search(done.out + done.err)
    if other:
        step = f"user={other[1]} on the node's line of the hostfile"
        return Unreachable("ssh.auth", f"this user's key is let in for a message alone: {said}", fix=(step,))
    if null := _NULL.search(err):
        step = "on the node: sudo rm -f /dev/null && sudo mknod -m 666 /dev/null c 1 3   (or reboot it)"
        cause = (
            "a program of root's has replaced /dev/null, as `-o /dev/null` or a mv does: it is no device any more"
        )
        return Unreachable("ssh.devnull", f"nothing can be thrown away there: {null[0]}", fix=(step,), cause=cause)
    if limit := confines.stopped(err):
        step = "on the node, as root: its pids.max and memory.max above the login, and ulimit -u -v of this user"
        cause = "pids.max or memory.max of a slice, or nproc or as in /etc/security/limits.d"
        return Unreachable("os.nproc", f"its shell broke off: {limit}", fix=(step,), cause=cause)
    if word not in done.out and (closed := account.closed(done.out + done.err, login, done.code)):
        return closed
    if not said and (silent := account.mute(login, done.code)):
        return silent
    if word not in done.out and (rc := startup.ended(done.out, done.err, done.code, login)):
        return rc
    if word in done.out or not said:
        return Partial(f"{why}; exit {done.code}; stderr: {err[-300:] or 'none'}")
    fix = (
        'is there a command="..." before the key in ~/.ssh/authorized_keys, or ForceCommand in sshd_config?',
        "log in as a user with a plain shell: user= in the hostfile",
    )
    cause = "a command of the node's own takes the place of every other one"
    return Unreachable("ssh.noisy-shell", f"something else than a shell answers: {said}", fix=fix, cause=cause)


def _at_once(
    work: Callable[[Node], T], nodes: tuple[Node, ...], groups: tuple[tuple[list[Node], int], ...]
) -> dict[str, T | Unreachable]:
    """Daemon threads, not a pool: a call that hangs must hold up neither a Ctrl-C nor the exit."""
    results: dict[str, Future[T | Unreachable]] = {node.name: Future() for node in nodes}

    def worker(todo: deque[Node]) -> None:
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

    for group, width in groups:
        todo = deque(group)
        for _ in range(min(width, len(group))):
            threading.Thread(target=worker, args=(todo,), name="fleet", daemon=True).start()
    try:
        return {name: result.result() for name, result in results.items()}
    except BaseException:
        begun = [result for result in results.values() if not result.cancel()]
        wait(begun, timeout=_LAST_BREATH)  # so that what is undone next was not still being done
        raise
