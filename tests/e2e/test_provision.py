"""Keys, pins and hostfile on real sshds: what `apply` gives, what every pair can do with it, what `take_back` leaves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterft import hosts, provision
from clusterft.checks import Survey
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.provision import Order, Provisioned
from lab import LightLab

pytestmark = pytest.mark.lab_light

_TREE = (
    "cd; find . -path ./.cache -prune -o -printf '%p %m %u %y %s {more}\\n' | sort; "
    "find . -path ./.cache -prune -o -type f -exec sha256sum {{}} + | sort"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes that keep their homes from test to test: each test takes back what it gave."""
    with LightLab.up(count=3) as made:
        yield made


class Desk:
    """A controller with the lab's pins."""

    def __init__(self, lab: LightLab, cluster: str = "rack") -> None:
        self.lab, self.name = lab, cluster
        self.lines = {line.split()[0]: line for line in lab.hostfile.read_text().splitlines()}
        self.said: list[str] = []

    def fleet(self) -> Fleet:
        """A fleet over the lines as they are now, not yet connected."""
        text = "".join(f"{line}\n" for line in self.lines.values())
        return Fleet(hosts.parse(text, path=Path("rack"), name=self.name), self.lab.known_hosts)

    def order(self, survey: Survey, **more: Any) -> Order:
        """The whole order for what the survey has found."""
        keys = {}
        for line in self.lab.known_hosts.read_text().splitlines():
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

    def sh(self, name: str, script: str) -> str:
        """What a shell line prints on a node."""
        done = self.lab.node(name).run(["sh", "-c", script])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def trees(self, *, exact: bool = False) -> dict[str, str]:
        """All files of all homes; `exact`: with their inodes and times."""
        script = _TREE.format(more="%i %T@" if exact else "")
        return {name: self.sh(name, script) for name in self.lines}


@pytest.fixture
def desk(lab: LightLab) -> Iterator[Desk]:
    """A desk whose nodes are as they were afterwards."""
    made = Desk(lab)
    before = made.trees()
    yield made
    made.down()
    assert made.trees() == before


def all_pairs(*names: str) -> set[tuple[str, str]]:
    return {(caller, peer) for caller in names for peer in names if caller != peer}


def test_up_then_up_then_down(desk: Desk) -> None:
    before = desk.trees()
    done = desk.up()
    assert done.proof.refused == {} and set(done.proof.heard) == all_pairs("n1", "n2", "n3")
    assert done.proof.findings == ()
    for outcome in done.outcomes.values():
        assert not isinstance(outcome, Finding)
        assert "relay key made" in outcome and "authorized_keys: 2 lines added" in outcome
    after = desk.trees(exact=True)
    again = desk.up()
    assert again.outcomes == {"n1": (), "n2": (), "n3": ()}
    assert again.proof.refused == {} and desk.trees(exact=True) == after
    outcomes = desk.down()
    assert outcomes["n1"] == ("authorized_keys: 2 lines removed", "keys and files removed")
    assert desk.trees() == before
    assert set(desk.down().values()) == {()}


def test_a_relay_key_opens_nothing_but_the_relay(desk: Desk) -> None:
    desk.up()
    config = desk.sh("n1", "echo ~/.clusterft/rack/nodes/n1/ssh_config").strip()
    ways = ("id", "sh -c id", "serve ../../x y 0 0", "hello; id", "")
    for way in ways:
        done = desk.lab.node("n1").run(["ssh", "-F", config, "n2", way])
        assert done.returncode == 65 and "uid=" not in done.stdout + done.stderr, (way, done)
    for options in (["-L", "1:localhost:22", "-N"], ["-R", "0:localhost:22", "-N"], ["-W", "localhost:22"]):
        done = desk.lab.node("n1").run(["timeout", "5", "ssh", "-F", config, *options, "n2"])
        assert done.returncode != 0 and "SSH-2.0" not in done.stdout, done
    stolen = desk.sh("n1", "cat ~/.clusterft/rack/nodes/n1/relay_ed25519")
    desk.sh("n3", f"umask 077; printf '%s' {shlex.quote(stolen)} >~/stolen")
    done = desk.lab.node("n3").run(["ssh", "-F", config.replace("n1", "n3"), "-i", "stolen", "n2", "hello"])
    own = desk.sh("n3", "ssh -F ~/.clusterft/rack/nodes/n3/ssh_config n2 hello")
    assert "clusterft-relay 1" in own
    address = desk.lab.node("n2").address
    options = "-o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    done = desk.lab.node("n3").run(
        ["sh", "-c", f"ssh -F none {options} -i ~/stolen root@{address} hello; rm ~/stolen"]
    )
    assert "Permission denied" in done.stderr and "clusterft-relay" not in done.stdout
