"""Keys, pins and hostfile on real sshds: what `apply` gives, what each pair does with it, what `take_back` leaves."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterft import hosts, provision
from clusterft.checks import Survey
from clusterft.findings import Finding
from clusterft.fleet import Fleet
from clusterft.provision import Order, Provisioned
from lab import LightLab
from lab.access import public_half

pytestmark = pytest.mark.lab_light

_TREE = (
    "cd; find . -path ./.cache -prune -o -printf '%p %m %u %y %s {more}\\n' | sort; "
    "find . -path ./.cache -prune -o -type f -exec sha256sum {{}} + | sort"
)

_MOVE = 'mkdir -p "$1" && chmod 700 "$1" && { [ -z "$2" ] || cp -rp ~/.ssh "$1"; }'


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
        self.pins = lab.known_hosts
        self.said: list[str] = []
        self.moved: dict[str, str] = {}

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


@pytest.fixture
def desk(lab: LightLab) -> Iterator[Desk]:
    """A desk whose nodes are as they were afterwards."""
    made = Desk(lab)
    before = made.trees()
    yield made
    made.down()
    made.move_back()
    assert made.trees() == before


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


def test_up_then_up_then_down(desk: Desk) -> None:
    before = desk.trees()
    done = desk.up()
    assert works(done, *ALL)
    for outcome in done.outcomes.values():
        assert not isinstance(outcome, Finding)
        assert outcome[:2] == ("directory made", "relay key made")
        assert outcome[-1] == "authorized_keys: 2 lines added"
    after = desk.trees(exact=True)
    again = desk.up()
    assert again.outcomes == {"n1": (), "n2": (), "n3": ()}
    assert works(again, *ALL) and desk.trees(exact=True) == after
    assert desk.down()["n1"] == ("authorized_keys: 2 lines removed", "keys and files removed")
    assert desk.trees() == before
    assert set(desk.down().values()) == {()}


def test_what_is_private_is_closed_to_others(desk: Desk) -> None:
    desk.up()
    assert desk.sh("n1", "find ~/.clusterft -perm /077").strip() == ""
    desk.sh("n1", f"chmod 755 {keys('n1')}; chmod 644 {keys('n1')}/relay_ed25519 {keys('n1')}/ssh_config")
    done = desk.up()
    said = ("directory: mode set right", "relay key: mode set right", "ssh_config written")
    assert done.outcomes == {"n1": said, "n2": (), "n3": ()}
    assert desk.sh("n1", "find ~/.clusterft -perm /077").strip() == ""


def test_a_relay_key_opens_nothing_but_the_relay(desk: Desk) -> None:
    desk.up()
    n1, n3 = desk.lab.node("n1"), desk.lab.node("n3")
    config = desk.sh("n1", f"echo {keys('n1')}/ssh_config").strip()
    for way in ("id", "sh -c id", "serve ../../x y 0 0", "hello; id", ""):
        done = n1.run(["ssh", "-F", config, "n2", way])
        assert done.returncode == 65 and "uid=" not in done.stdout + done.stderr, (way, done)
    for options in (["-L", "1:localhost:22", "-N"], ["-R", "0:localhost:22", "-N"], ["-W", "localhost:22"]):
        done = n1.run(["timeout", "5", "ssh", "-F", config, *options, "n2"])
        assert done.returncode != 0 and "SSH-2.0" not in done.stdout, done
    stolen = desk.sh("n1", f"cat {keys('n1')}/relay_ed25519")
    n3.run(["sh", "-c", "umask 077; cat >~/stolen"], stdin=stolen)
    options = "-o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    ssh = f"ssh -F none {options} -i ~/stolen root@{desk.lab.node('n2').address} hello; rm ~/stolen"
    done = n3.run(["sh", "-c", ssh])
    assert "Permission denied" in done.stderr and "clusterft-relay" not in done.stdout


def test_a_node_that_leaves_and_one_that_joins_change_no_more_than_that(desk: Desk) -> None:
    n3 = desk.lines.pop("n3")
    assert works(desk.up(), "n1", "n2")
    desk.lines["n3"] = n3
    done = desk.up()
    assert works(done, *ALL)
    joined = ("known_hosts written", "ssh_config written", "hostfile written", "authorized_keys: 1 line added")
    assert sorted(done.outcomes["n1"]) == sorted(joined)
    key = desk.sh("n1", f"cat {keys('n1')}/relay_ed25519.pub")
    del desk.lines["n3"]
    done = desk.up()
    assert "authorized_keys: 1 line removed" in done.outcomes["n1"]
    assert desk.sh("n1", f"cat {keys('n1')}/relay_ed25519.pub") == key
    assert "n3" not in desk.sh(
        "n1", f"cat {keys('n1')}/ssh_config {keys('n1')}/known_hosts ~/.ssh/authorized_keys"
    )
    desk.lines["n3"] = n3


def test_a_node_that_is_away_keeps_its_line(desk: Desk) -> None:
    desk.up()
    n3 = desk.lab.node("n3")
    n3.kill()
    try:
        with desk.fleet() as fleet:
            survey = fleet.survey(lambda node: ())
            done = provision.apply(fleet, desk.order(survey), lambda event: None)
    finally:
        n3.start()
    assert set(done.outcomes) == {"n1", "n2"} and set(done.proof.heard) == pairs("n1", "n2")
    assert "clusterft:rack:n3" in desk.sh("n1", "cat ~/.ssh/authorized_keys")
    assert works(desk.up(), *ALL)


def test_a_new_address_changes_the_lines_about_that_node_alone(desk: Desk, tmp_path: Path) -> None:
    desk.up()
    n1 = desk.lab.node("n1")
    other = n1.address.rpartition(".")[0] + ".201"
    device = desk.device("n1")
    desk.sh("n1", f"ip addr add {other}/24 dev {device}")
    old, desk.lines["n1"] = desk.lines["n1"], desk.lines["n1"].replace(n1.address, other)
    desk.pins = tmp_path / "pins"
    desk.pins.write_text(desk.lab.known_hosts.read_text().replace(n1.address, other))
    try:
        done = desk.up()
    finally:
        desk.lines["n1"], desk.pins = old, desk.lab.known_hosts
        desk.sh("n1", f"ip addr del {other}/24 dev {device}")
    assert works(done, *ALL)
    assert done.outcomes["n1"] == () and "authorized_keys: 1 line changed" in done.outcomes["n2"]
    assert f'from="{n1.address},{other}"' in desk.sh("n2", "cat ~/.ssh/authorized_keys")


NOISE = "ssh-rsa AAAAB3 me@\\xff\\377 clusterft:rack:n1\n\n# \\351\\r\nssh-ed25519 AAAA someone"


def test_what_others_have_in_authorized_keys_stays_byte_for_byte(desk: Desk) -> None:
    desk.sh("n1", f"cd ~/.ssh && cp -p authorized_keys ~/kept && printf '{NOISE}' >>authorized_keys")
    desk.sh("n1", "chmod 640 ~/.ssh/authorized_keys")
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert "640" in desk.sh("n1", "stat -c %a ~/.ssh/authorized_keys")
    again = desk.up()
    assert again.outcomes["n1"] == ()
    desk.down()
    assert desk.trees() == before
    desk.sh("n1", "mv ~/kept ~/.ssh/authorized_keys")


def test_authorized_keys_that_is_a_link_stays_one(desk: Desk) -> None:
    desk.sh(
        "n2", "mkdir ~/dots && mv ~/.ssh/authorized_keys ~/dots/keys && ln -s ../dots/keys ~/.ssh/authorized_keys"
    )
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert desk.sh("n2", "readlink ~/.ssh/authorized_keys").strip() == "../dots/keys"
    assert "clusterft:rack:n1" in desk.sh("n2", "cat ~/dots/keys")
    desk.down()
    assert desk.trees() == before
    desk.sh("n2", "rm ~/.ssh/authorized_keys; mv ~/dots/keys ~/.ssh/authorized_keys; rmdir ~/dots")


WEIRD = 'we\'ird "h%home" $x `y` \\n é;&'


def test_a_home_with_any_name(desk: Desk) -> None:
    desk.move_home("n1", f"{desk.lab.shared}/{WEIRD}")
    desk.move_home("n2", f"{desk.lab.shared}/John Doe")
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()}
    desk.down()
    assert desk.trees() == before


def test_a_home_that_all_nodes_share(desk: Desk) -> None:
    for name in ALL:
        desk.move_home(name, f"{desk.lab.shared}/one home")
    before = desk.trees()
    done = desk.up()
    assert works(done, *ALL)
    edits = [
        sentence for outcome in done.outcomes.values() for sentence in outcome if "authorized" in str(sentence)
    ]
    assert edits == ["authorized_keys: 3 lines added (one home for n1, n2, n3)"]
    after = desk.trees(exact=True)
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()} and desk.trees(exact=True) == after
    outcomes = desk.down()
    assert outcomes["n1"][0] == "authorized_keys: 3 lines removed" and desk.trees() == before
    assert outcomes["n2"] == ("keys and files removed",)


def test_homes_that_were_copied_are_not_taken_for_one(desk: Desk) -> None:
    for name in ALL:
        desk.move_home(name, f"{desk.lab.shared}/one home")
    desk.lines, n3 = {name: desk.lines[name] for name in ("n1", "n2")}, desk.lines["n3"]
    desk.up()
    copy = f"{desk.lab.shared}/a copy"
    desk.sh("n2", f"cp -rp ~ {shlex.quote(copy)}")
    desk.moved, moved = {}, desk.moved
    desk.move_home("n2", copy, empty=True)
    desk.moved = moved
    desk.lines["n3"] = n3
    assert works(desk.up(), *ALL)
    assert "clusterft:rack:n3" in desk.sh("n2", "cat ~/.ssh/authorized_keys")
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()}


def test_an_address_that_only_the_peers_see_is_learned_where_allowed(desk: Desk) -> None:
    n1, n2 = desk.lab.node("n1"), desk.lab.node("n2")
    seen = n1.address.rpartition(".")[0] + ".202"
    device = desk.device("n1")
    nat = f"POSTROUTING -p tcp --dport 22 -d {n2.address} -j SNAT --to-source {seen}"
    desk.sh("n1", f"ip addr add {seen}/32 dev {device} && iptables -w -t nat -A {nat}")
    try:
        done = desk.up()
        assert set(done.proof.refused) == {("n1", "n2")}
        (finding,) = done.proof.findings
        assert finding.id == "ssh.nat" and finding.status == "warn" and finding.nodes == ("n1", "n2")
        assert "n1 -> n2" in finding.evidence and "Permission denied" in finding.evidence
        assert desk.up(accept_nat=lambda caller, peer: peer == "n3").proof.refused.keys() == {("n1", "n2")}
        done = desk.up(accept_nat=lambda caller, peer: True)
        assert works(done, *ALL)
        assert f"the relay key of n1 is let in from {seen}" in done.outcomes["n2"]
        lines = desk.sh("n2", "grep clusterft: ~/.ssh/authorized_keys").splitlines()
        assert len(lines) == 2 and all("from=" in line for line in lines)
        after = desk.trees(exact=True)
        again = desk.up()
        assert works(again, *ALL) and set(again.outcomes.values()) == {()} and desk.trees(exact=True) == after
    finally:
        desk.sh("n1", f"iptables -w -t nat -D {nat}; ip addr del {seen}/32 dev {device}")


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
        lines = desk.sh("n2", "grep clusterft: ~/.ssh/authorized_keys").splitlines()
        assert len(lines) == 2 and all("from=" in line for line in lines)
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
        order = desk.order(fleet.survey(lambda node: ()), controller_key=public_half(desk.lab.key))
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
    done = desk.up(controller_key=other)
    assert all("authorized_keys: 3 lines added" in outcome for outcome in done.outcomes.values())
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlain clusterft:rack:controller\n"
    assert desk.sh("n1", "grep controller ~/.ssh/authorized_keys") == line
    assert set(desk.up().outcomes.values()) == {()}
    assert desk.down()["n1"][0] == "authorized_keys: 3 lines removed"


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
