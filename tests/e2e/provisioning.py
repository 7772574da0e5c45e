"""A controller at its desk, for the tests of provisioning: a fleet over light nodes, their trees, their homes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clusterft import hosts, provision
from clusterft.checks import Survey
from clusterft.fleet import Fleet
from clusterft.provision import Order, Provisioned
from lab import FullLab, LightLab

_TREE = (
    "cd; find . -path ./.cache -prune -o -printf '%p %m %u %y %s {more}\\n' | sort; "
    "find . -path ./.cache -prune -o -type f -exec sha256sum {{}} + | sort"
)

_MOVE = 'mkdir -p "$1" && chmod 700 "$1" && { [ -z "$2" ] || cp -rp ~/.ssh "$1"; }'


class Desk:
    """A controller with the lab's pins."""

    def __init__(self, lab: LightLab | FullLab, cluster: str = "rack") -> None:
        self.lab, self.name = lab, cluster
        self.lines = {line.split()[0]: line for line in lab.hostfile.read_text().splitlines()}
        self.pins = lab.known_hosts
        self.said: list[str] = []
        self.moved: dict[str, str] = {}

    @classmethod
    @contextlib.contextmanager
    def at(cls, lab: LightLab) -> Iterator[Desk]:
        """A desk whose nodes are as they were afterwards."""
        made = cls(lab)
        before = made.trees()
        yield made
        made.down()
        made.move_back()
        assert made.trees() == before

    def fleet(self) -> Fleet:
        """A fleet over the lines as they are now, not yet connected."""
        text = "".join(f"{line}\n" for line in self.lines.values())
        return Fleet(hosts.parse(text, path=Path("rack"), name=self.name), self.pins)

    def order(self, survey: Survey, **more: Any) -> Order:
        """The whole order for what the survey has found."""
        keys = {}
        for line in self.pins.read_text().splitlines():
            names, kind, blob = line.split()
            keys[names.split(",")[0]] = (f"{kind} {blob}",)
        members = provision.members(survey, keys)
        return Order(**{"members": members, "hostfile": provision.hostfile(survey.cluster.active), **more})

    def up(self, **more: Any) -> Provisioned:
        """Survey, then apply."""
        with self.fleet() as fleet:
            survey = fleet.survey(lambda node: ())
            assert not survey.unreached
            return provision.apply(fleet, self.order(survey, **more), lambda event: self.said.append(event.words))

    def down(self) -> dict[str, Any]:
        """Take everything back."""
        with self.fleet() as fleet:
            return provision.take_back(fleet, lambda event: self.said.append(event.words))

    def move_home(self, name: str, home: str, *, empty: bool = False) -> None:
        """Give root on a node another home, with or without what lets the lab in."""
        node = self.lab.node(name)
        old = next(line for line in (node.state / "passwd").read_text().splitlines() if line.startswith("root:"))
        made = self.lab.node(name).run(["sh", "-c", _MOVE, "sh", home, "" if empty else "keys"])
        assert made.returncode == 0, made.stderr
        text = (node.state / "passwd").read_text()
        shell = old.rpartition(":")[2]
        self.moved[name] = old
        # In place: the node has this very file mounted over its own.
        (node.state / "passwd").write_text(text.replace(old, f"root:x:0:0:root:{home}:{shell}"))

    def move_back(self) -> None:
        """All homes where they were."""
        for name, old in self.moved.items():
            path = self.lab.node(name).state / "passwd"
            lines = path.read_text().splitlines()
            path.write_text("\n".join([old if line.startswith("root:") else line for line in lines]) + "\n")
        self.moved.clear()

    def sh(self, name: str, script: str) -> str:
        """What a shell line prints on a node."""
        done = self.lab.node(name).run(["sh", "-c", script])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def device(self, name: str) -> str:
        """The card that leads to the other nodes."""
        return self.sh(name, "ls /sys/class/net | grep -vx lo").split()[0]

    def trees(self, *, exact: bool = False) -> dict[str, str]:
        """All files of all homes; `exact`: with their inodes and times."""
        script = _TREE.format(more="%i %T@" if exact else "")
        return {name: self.sh(name, script) for name in self.lines}


ALL = ("n1", "n2", "n3")


def pairs(*names: str) -> set[tuple[str, str]]:
    """Every ordered pair."""
    return {(caller, peer) for caller in names for peer in names if caller != peer}


def works(done: Provisioned, *names: str) -> bool:
    """Whether every pair of these, and no other, relays."""
    assert done.proof.refused == {}, done.proof.refused
    return set(done.proof.heard) == pairs(*names) and done.proof.findings == ()


def keys(name: str) -> str:
    """A node's directory, as its shell writes it."""
    return f"~/.clusterft/rack/nodes/{name}"
