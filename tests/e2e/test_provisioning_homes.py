"""Provisioning for who is not root: homes of their own, shared by all nodes, closed to root; behind NAT."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from provisioning import ALL, Desk, works

from clusterft.fleet import Fleet
from lab import FullLab

pytestmark = pytest.mark.lab_full


class Workers(Desk):
    """A desk that logs in as `worker`, also to look: a home may be closed to root."""

    eyes: Fleet

    def __init__(self, lab: FullLab) -> None:
        super().__init__(lab)
        self.lines = {name: line.replace("user=root", "user=worker") for name, line in self.lines.items()}

    def sh(self, name: str, script: str) -> str:
        done = self.eyes.remotes[name].run(("sh", "-c", script))
        assert done.code == 0, done.err
        return done.out


@pytest.fixture(scope="module", params=["own", "shared", "squashed"])
def homes(request: pytest.FixtureRequest) -> str:
    """Where worker lives."""
    return str(request.param)


@pytest.fixture(scope="module")
def lab(homes: str) -> Iterator[FullLab]:
    """Three nodes, of which the others see n3 at an address that it does not have."""
    with FullLab.up(count=3, homes=homes, nat=("n3",)) as made:
        yield made


@pytest.fixture
def desk(lab: FullLab) -> Iterator[Workers]:
    """A desk with a connection of its own to look through."""
    made = Workers(lab)
    with made.fleet() as made.eyes:
        assert not made.eyes.unreached
        before = made.trees()
        yield made
        made.down()
        assert made.trees() == before


def test_up_then_up_then_down(desk: Workers, homes: str) -> None:
    before = desk.trees()
    done = desk.up()
    assert [finding.id for finding in done.proof.findings] == ["ssh.nat"]
    assert set(done.proof.refused) == {("n3", "n1"), ("n3", "n2")}
    assert works(desk.up(accept_nat=lambda caller, peer: True), *ALL)
    after = desk.trees(exact=True)
    again = desk.up()
    assert works(again, *ALL) and again.outcomes == {"n1": (), "n2": (), "n3": ()}
    assert desk.trees(exact=True) == after
    lines = desk.sh("n1", "grep -c clusterft: ~/.ssh/authorized_keys").strip()
    assert lines == ("2" if homes == "own" else "3")
    assert desk.sh("n1", "find ~/.clusterft ! -user worker -o -perm /077") == ""
    edits = [outcome for outcome in desk.down().values() if "authorized" in str(outcome)]
    assert len(edits) == (3 if homes == "own" else 1)
    assert desk.trees() == before
    assert set(desk.down().values()) == {()}
