"""Provisioning with something in the way: NAT, firewalls, other keys, full disks, links; what it leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from provisioning import ALL, Desk, keys, pairs, works

from clusterft import provision
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.provision import Order, Proof, proof
from clusterft.provision.proof import Ground
from lab import LightLab
from lab.access import public_half

pytestmark = [pytest.mark.lab_light, pytest.mark.long]


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes that keep their homes from test to test: each test takes back what it gave."""
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture
def desk(lab: LightLab) -> Iterator[Desk]:
    """A desk whose nodes are as they were afterwards."""
    with Desk.at(lab) as made:
        yield made


@contextlib.contextmanager
def behind_nat(desk: Desk) -> Iterator[str]:
    """n2 sees n1 come from an address that n1 does not have."""
    n1, n2 = desk.lab.node("n1"), desk.lab.node("n2")
    seen = n1.address.rpartition(".")[0] + ".202"
    nat = f"POSTROUTING -p tcp --dport 22 -d {n2.address} -j SNAT --to-source {seen}"
    desk.sh("n1", f"iptables -w -t nat -A {nat}")
    desk.sh("n2", f"ip route add {seen}/32 via {n1.address}")
    try:
        yield seen
    finally:
        desk.sh("n1", f"iptables -w -t nat -D {nat}")
        desk.sh("n2", f"ip route del {seen}/32 via {n1.address}")


def lines_of(desk: Desk, name: str) -> list[str]:
    """Our lines in a node's authorized_keys."""
    return desk.sh(name, "grep clusterft: ~/.ssh/authorized_keys").splitlines()


def test_an_address_that_only_the_peers_see_is_learned_where_allowed(desk: Desk) -> None:
    with behind_nat(desk) as seen:
        done = desk.up()
        assert set(done.proof.refused) == {("n1", "n2")}
        (finding,) = done.proof.findings
        assert finding.id == "ssh.nat" and finding.status == "warn" and finding.nodes == ("n1", "n2")
        assert "n1 -> n2" in finding.evidence and "Permission denied" in finding.evidence
        done = desk.up(accept_nat=lambda caller, peer: peer == "n3")
        assert done.proof.refused.keys() == {("n1", "n2")} and seen not in str(lines_of(desk, "n2"))
        done = desk.up(accept_nat=lambda caller, peer: True)
        assert works(done, *ALL)
        assert done.outcomes["n2"] == (f"the relay key of n1 is let in from {seen}",)
        assert len(lines_of(desk, "n2")) == 2 and all("from=" in line for line in lines_of(desk, "n2"))
        after = desk.trees(exact=True)
        again = desk.up()
        assert works(again, *ALL) and set(again.outcomes.values()) == {()} and desk.trees(exact=True) == after


def test_nobody_stays_free_to_come_from_anywhere(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller is interrupted in the very moment in which a key may come from anywhere."""
    asked = []

    def interrupted(fleet: Fleet, ground: Ground, wanted: set[tuple[str, str]]) -> Proof:
        asked.append(wanted)
        if len(asked) == 2:
            assert any("from=" not in line for line in lines_of(desk, "n2"))
            raise KeyboardInterrupt
        return ask(fleet, ground, wanted)

    ask = proof.ask
    monkeypatch.setattr(proof, "ask", interrupted)
    with behind_nat(desk), pytest.raises(KeyboardInterrupt):
        desk.up(accept_nat=lambda caller, peer: True)
    assert len(lines_of(desk, "n2")) == 2 and all("from=" in line for line in lines_of(desk, "n2"))


def test_a_firewall_between_two_nodes_is_told_and_stops_nobody(desk: Desk) -> None:
    rule = f"INPUT -p tcp --dport 22 -s {desk.lab.node('n1').address} -j DROP"
    desk.sh("n3", f"iptables -w -A {rule}")
    try:
        done = desk.up()
    finally:
        desk.sh("n3", f"iptables -w -D {rule}")
    assert set(done.proof.refused) == {("n1", "n3")} and done.proof.reaches("n3", "n1")
    (finding,) = done.proof.findings
    assert finding.id == "ssh.timeout" and "controller" in finding.summary and "n1 -> n3" in finding.evidence
    assert not any(isinstance(outcome, Finding) for outcome in done.outcomes.values())


def test_another_machine_s_host_key_is_refused_by_the_peers(desk: Desk) -> None:
    with desk.fleet() as fleet:
        order = desk.order(fleet.survey(lambda node: ()))
        swapped = {**order.members, "n2": replace(order.members["n2"], host_keys=order.members["n3"].host_keys)}
        done = provision.apply(fleet, replace(order, members=swapped), lambda event: None)
    assert set(done.proof.refused) == {("n1", "n2"), ("n3", "n2")}
    assert [finding.id for finding in done.proof.findings] == ["ssh.hostkey-changed"]


def test_an_sshd_that_reads_other_keys_is_named(desk: Desk) -> None:
    """AuthorizedKeysFile elsewhere: the lines are there, and mean nothing."""
    desk.sh("n2", "cp ~/.ssh/authorized_keys ~/elsewhere")
    config = desk.lab.node("n2").state / "sshd_config"
    before = config.read_text()
    try:
        config.write_text(f"AuthorizedKeysFile elsewhere\n{before}")
        desk.lab.node("n2").reboot()
        done = desk.up()
        assert [finding.id for finding in done.proof.findings] == ["ssh.nat"]
        done = desk.up(accept_nat=lambda caller, peer: True)
        (finding,) = done.proof.findings
        assert finding.id == "ssh.auth" and "AuthorizedKeysFile" in finding.fix[0]
        assert len(lines_of(desk, "n2")) == 2 and all("from=" in line for line in lines_of(desk, "n2"))
    finally:
        config.write_text(before)
        desk.lab.node("n2").reboot()
    desk.sh("n2", "rm ~/elsewhere")


def test_what_stops_one_node_stops_no_other(desk: Desk) -> None:
    desk.lab.node("n2").fill_disk()
    try:
        done = desk.up()
        finding = done.outcomes["n2"]
        assert isinstance(finding, Finding) and finding.id == "os.disk-full" and "No space" in finding.evidence
        assert set(done.proof.heard) == pairs("n1", "n3")
    finally:
        desk.lab.node("n2").free_disk()
    assert works(desk.up(), *ALL)


@pytest.mark.parametrize("odd", ["mkdir {}", "ln -s nowhere {}", "mkfifo {}"])
def test_no_file_is_left_alone(desk: Desk, odd: str) -> None:
    """The lab logs in by the same file, so its connection is opened before."""
    with desk.fleet() as fleet:
        order = desk.order(fleet.survey(lambda node: ()))
        keep = desk.sh("n2", "mv ~/.ssh/authorized_keys ~/kept; " + odd.format("~/.ssh/authorized_keys"))
        try:
            done = provision.apply(fleet, order, lambda event: None)
        finally:
            undo = "rm -rf ~/.ssh/authorized_keys; mv ~/kept ~/.ssh/authorized_keys"
            assert fleet.remotes["n2"].run(("sh", "-c", undo)).code == 0, keep
    finding = done.outcomes["n2"]
    assert isinstance(finding, Finding) and finding.id == "fs.home" and "authorized_keys" in finding.evidence
    assert set(done.proof.heard) == pairs("n1", "n3")


@contextlib.contextmanager
def bare(desk: Desk) -> Iterator[tuple[Fleet, Order]]:
    """A fleet whose n2 has no ~/.ssh at all; the connection stands from before."""
    with desk.fleet() as fleet:
        mine = {"controller_key": public_half(desk.lab.key), "controller_for": frozenset({"n2"})}
        order = desk.order(fleet.survey(lambda node: ()), **mine)
        desk.sh("n2", "mv ~/.ssh ~/kept")
        try:
            yield fleet, order
        finally:
            done = fleet.remotes["n2"].run(("sh", "-c", "cd && rm -rf .ssh && mv kept .ssh"))
            assert done.code == 0, done.err


def test_a_home_without_ssh_gets_it_and_loses_it_again(desk: Desk) -> None:
    with bare(desk) as (fleet, order):
        done = provision.apply(fleet, order, lambda event: None)
        assert "authorized_keys: 3 lines added" in done.outcomes["n2"]
        assert works(done, *ALL)
        assert desk.sh("n2", "stat -c %a ~/.ssh ~/.ssh/authorized_keys").split() == ["700", "600"]
        outcome = provision.take_back(fleet, lambda event: None)["n2"]
        words = ("authorized_keys: 3 lines removed", "authorized_keys: empty, removed", ".ssh: empty, removed")
        assert outcome == (*words, "keys and files removed")
        assert fleet.remotes["n2"].run(("sh", "-c", "cd; ls -d .ssh .clusterft")).out == ""


def test_what_came_into_a_new_ssh_directory_stays(desk: Desk) -> None:
    with bare(desk) as (fleet, order):
        provision.apply(fleet, order, lambda event: None)
        desk.sh("n2", "echo 'ssh-rsa AAAA me' >>~/.ssh/authorized_keys; touch ~/.ssh/config")
        provision.take_back(fleet, lambda event: None)
        done = fleet.remotes["n2"].run(("sh", "-c", "cd; ls .ssh; cat .ssh/authorized_keys; ls -d .clusterft"))
    assert done.out.split("\n") == ["authorized_keys", "config", "ssh-rsa AAAA me", ""]


def test_the_controllers_key_stays_until_it_is_taken_back(desk: Desk) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlain me@desk"
    done = desk.up(controller_key=other, controller_for=frozenset({"n1"}))
    added = {name: outcome[-1] for name, outcome in done.outcomes.items() if not isinstance(outcome, Finding)}
    two = "authorized_keys: 2 lines added"
    assert added == {"n1": "authorized_keys: 3 lines added", "n2": two, "n3": two}
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlain clusterft:rack:controller\n"
    assert desk.sh("n1", "grep controller ~/.ssh/authorized_keys") == line
    assert set(desk.up().outcomes.values()) == {()}
    # Opened by that very key now, it is none that a password opened; the line stays, there and nowhere else.
    assert set(desk.up(controller_key=other).outcomes.values()) == {()}
    done = desk.up(controller_key=other.replace("Plain", "Fresh"))
    assert done.outcomes == {"n1": ("authorized_keys: 1 line changed",), "n2": (), "n3": ()}
    assert desk.down()["n1"][0] == "authorized_keys: 3 lines removed"


def test_a_damaged_relay_key_stops_no_other_node(desk: Desk) -> None:
    desk.up()
    desk.sh("n2", f"head -c 40 /dev/urandom >{keys('n2')}/relay_ed25519.pub")
    done = desk.up()
    assert works(done, *ALL)
    assert done.outcomes == {"n1": (), "n2": ("relay key: public half made anew",), "n3": ()}
    desk.sh("n2", f"echo garbage >{keys('n2')}/relay_ed25519")
    done = desk.up()
    finding = done.outcomes["n2"]
    assert (
        isinstance(finding, Finding)
        and finding.id == "ssh.relay"
        and "relay_ed25519 is damaged" in finding.evidence
    )
    assert set(done.proof.heard) == pairs("n1", "n3")
    desk.sh("n2", f"rm {keys('n2')}/relay_ed25519")
    assert works(desk.up(), *ALL)


def test_two_clusters_on_the_same_nodes_do_not_meet(desk: Desk) -> None:
    other = Desk(desk.lab, "rack.2")
    desk.up()
    between = desk.trees()
    assert works(other.up(), *ALL)
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()}
    other.down()
    assert desk.trees() == between and works(desk.up(), *ALL)


def test_take_back_leaves_what_is_not_ours(desk: Desk) -> None:
    desk.up()
    desk.sh("n1", f"mkdir -p {keys('n1')}/runs/a {keys('n1')}/runs/b ~/outside && touch ~/outside/mine")
    desk.sh("n1", f"ln -s ~/outside {keys('n1')}/runs/a/link; touch ~/.clusterft/rack/hostfile")
    desk.sh("n1", "mkdir -p -m 700 /var/tmp/clusterft-0/rack/x")
    outcomes = desk.down()
    assert "keys and files removed, the logs of 2 runs with them" in outcomes["n1"]
    # Light nodes have one /var/tmp: any of them may have come first.
    assert any("node-local scratch removed" in outcome for outcome in outcomes.values())
    left = desk.sh("n1", "ls -d ~/outside/mine ~/.clusterft/* ~/.clusterft/rack/*; rm -r ~/outside ~/.clusterft")
    assert [Path(line).name for line in left.split()] == ["rack", "hostfile", "mine"]
    assert not Path("/var/tmp/clusterft-0/rack").exists()


def test_take_back_follows_no_link(desk: Desk) -> None:
    desk.up()
    desk.sh("n1", "mkdir ~/outside && mv ~/.clusterft/rack/nodes ~/outside")
    desk.sh("n1", "ln -s ~/outside/nodes ~/.clusterft/rack/nodes")
    finding = desk.down()["n1"]
    assert isinstance(finding, Finding) and "symbolic link" in finding.evidence
    finding = desk.up().outcomes["n1"]
    assert isinstance(finding, Finding) and "symbolic link" in finding.evidence
    assert "relay_ed25519" in desk.sh("n1", "ls ~/outside/nodes/n1; rm -r ~/outside ~/.clusterft")


def test_a_noisy_shell_changes_nothing(desk: Desk) -> None:
    desk.sh("n1", "printf 'echo hello there; echo -n and more; echo oops >&2\n' >~/.bashrc")
    assert works(desk.up(), *ALL)
    assert desk.up().outcomes["n1"] == ()
    desk.down()
    desk.sh("n1", "rm ~/.bashrc")


def test_this_machine_as_a_node_gets_no_keys(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    desk.lines["here"] = "here slots=1 transport=local"
    done = desk.up()
    assert works(done, *ALL)
    assert (
        done.outcomes["here"] == ("directory made", "hostfile written")
        and "local: no SSH keys are needed" in desk.said
    )
    assert desk.up().outcomes["here"] == ()
    assert not (tmp_path / ".ssh").exists()
    assert desk.down()["here"] == ("keys and files removed",) and not any(tmp_path.iterdir())
    del desk.lines["here"]


def test_peers_that_are_busy_are_asked_again() -> None:
    """Six nodes whose sshds turn callers away at random as soon as three are at the door."""
    with LightLab.up(count=6, max_startups="3:50:6") as lab:
        assert works(Desk(lab).up(), *(node.name for node in lab.nodes))
