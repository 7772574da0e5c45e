"""Every way to log in to a node, on real sshds: bastions, ~/.ssh/config, pins, and what ends a way that hangs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fabric
import pytest

from clusterft import hosts
from clusterft.checks import Survey
from clusterft.fleet import Fleet
from clusterft.plan import network
from clusterft.remote import dial
from lab import LightLab

pytestmark = pytest.mark.lab_light


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes: n1 is the bastion, as a rule. They resolve each other's names; this machine does not."""
    with LightLab.up(count=3) as made:
        yield made


class Desk:
    """A person's home: ~/.ssh/config with n1 in it, no known_hosts, and the lab's keys as the cluster's pins."""

    def __init__(self, lab: LightLab, home: Path) -> None:
        self.lab, self.home = lab, home
        self.config, self.known_hosts = home / ".ssh" / "config", home / ".ssh" / "known_hosts"
        self.config.parent.mkdir(mode=0o700)
        self.pins = home / "pins"
        self.pins.write_text(lab.known_hosts.read_text())
        self.configure(self.login("n1"))

    def login(self, name: str, *more: str, key: Path | None = None) -> str:
        """A Host entry that says where the node is and who may log in."""
        lines = (
            f"HostName {self.lab.node(name).address}",
            "User root",
            f"IdentityFile {key or self.lab.key}",
            *more,
        )
        return "\n  ".join((f"Host {name}", *lines)) + "\n"

    def configure(self, *entries: str) -> None:
        """Write ~/.ssh/config."""
        self.config.write_text("".join(entries))

    def pin_only(self, *names: str) -> None:
        """Forget the pins of all other nodes."""
        lines = self.lab.known_hosts.read_text().splitlines(keepends=True)
        self.pins.write_text("".join(line for line in lines if line.split(",")[0] in names))

    def fleet(self, *lines: str) -> Fleet:
        """A fleet over hostfile lines, not yet connected."""
        text = "".join(f"{line}\n" for line in lines)
        return Fleet(hosts.parse(text, path=self.home / "rack", name="rack"), self.pins)

    def survey(self, *lines: str) -> Survey:
        """Log in to all, and ask."""
        with self.fleet(*lines) as fleet:
            return fleet.survey(lambda node: ())

    def refusal(self, *lines: str) -> tuple[str, str, str]:
        """(id, words, fix) of the one node that could not be reached."""
        (miss,) = self.survey(*lines).unreached
        return miss.id, miss.words, "; ".join(miss.fix)


@pytest.fixture
def desk(lab: LightLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A home of the test's own, without an agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Desk(lab, tmp_path)


@pytest.mark.parametrize("way", ["jump", "ProxyJump", "ProxyCommand"])
def test_a_node_behind_a_bastion_is_known_by_its_own_address(desk: Desk, lab: LightLab, way: str) -> None:
    n2 = f"n2 slots=1 user=root identity={lab.key}"
    if way == "jump":
        n2 += " jump=n1"
    elif way == "ProxyJump":
        desk.configure(desk.login("n1"), "Host n2\n  ProxyJump n1\n")
    else:
        desk.configure(desk.login("n1"), f"Host n2\n  ProxyCommand ssh -F {lab.ssh_config} -W %h:%p n1\n")
    survey = desk.survey("n1 slots=1", n2)
    assert survey.unreached == ()
    assert survey.facts["n2"].hostname == "n2"
    addresses = {name: lab.node(name).address for name in ("n1", "n2")}
    assert survey.contacts == addresses
    assert {name: at.ip for name, at in network.solve(survey).items()} == addresses
    assert [route[0] for route in survey.facts["n1"].routes] == list(addresses.values()), "n1 was told of n2"


def test_a_bastion_with_an_unpinned_key_is_refused(desk: Desk, lab: LightLab) -> None:
    desk.pin_only("n2")
    found = desk.refusal(f"n2 slots=1 identity={lab.key} jump=n1")
    assert found[0] == "ssh.hostkey-unknown" and found[1].startswith(lab.node("n1").address), found


@pytest.mark.parametrize("way", ["list", "nested", "hostfile"])
def test_more_than_one_bastion_is_refused(desk: Desk, lab: LightLab, way: str) -> None:
    desk.pin_only("n1", "n2")  # fabric would take whatever key n3 presents
    nested = desk.login("n1", *(["ProxyJump n3"] if way == "nested" else []))
    jump = {"list": "\n  ProxyJump n3,n1\n", "nested": "\n  ProxyJump n1\n", "hostfile": "\n  User root\n"}[way]
    desk.configure(nested, desk.login("n3"), "Host n2" + jump)
    line = f"n2 slots=1 identity={lab.key}" + (" jump=n3,n1" if way == "hostfile" else "")
    found = desk.refusal(line)
    assert found[0] == "ssh.jump" and "n3,n1: more than one bastion" in found[1], found
    assert "ProxyCommand ssh -W %h:%p n1" in found[2]


def test_a_proxyjump_for_all_hosts_spares_the_bastion_itself(desk: Desk, lab: LightLab) -> None:
    everyone = f"Host *\n  ProxyJump n1\n  User root\n  IdentityFile {lab.key}\n"
    desk.configure(f"Host n1\n  HostName {lab.node('n1').address}\n", everyone)
    survey = desk.survey("n1 slots=1", "n2 slots=1")
    assert survey.unreached == () and survey.contacts["n2"] == lab.node("n2").address


def test_what_a_proxycommand_said_is_told(desk: Desk) -> None:
    desk.configure("Host n2\n  ProxyCommand sh -c 'echo no such door >&2; exit 7'\n")
    found = desk.refusal("n2 slots=1")
    assert found[0] == "ssh.jump" and "exit code 7: no such door" in found[1], found


def test_a_bastion_that_cannot_reach_the_node_is_told_apart(desk: Desk, lab: LightLab) -> None:
    found = desk.refusal(f"n9 slots=1 identity={lab.key} jump=n1")
    assert found[0] == "ssh.jump" and "the bastion opens no way to n9:22" in found[1], found


def test_a_host_entry_counts_although_only_addr_tells_where_the_node_is(desk: Desk, lab: LightLab) -> None:
    desk.configure(f"Host n2\n  IdentityFile {lab.key}\n", f"Host n3\n  User stranger\n  IdentityFile {lab.key}\n")
    survey = desk.survey(*(f"{name} slots=1 addr={lab.node(name).address}" for name in ("n2", "n3")))
    assert survey.contacts == {"n2": lab.node("n2").address}
    (miss,) = survey.unreached
    assert (miss.node, miss.id) == ("n3", "ssh.auth") and f"stranger@{lab.node('n3').address}" in miss.words


def test_a_jump_is_kept_although_addr_is_given(desk: Desk, lab: LightLab) -> None:
    desk.configure(desk.login("n1"), f"Host n2\n  ProxyJump n1\n  IdentityFile {lab.key}\n")
    desk.pin_only("n2")
    found = desk.refusal(f"n2 slots=1 addr={lab.node('n2').address}")
    assert found[0] == "ssh.hostkey-unknown" and found[1].startswith(lab.node("n1").address), found


@pytest.mark.parametrize("behind", ["", " jump=n1"])
def test_a_stale_key_of_the_users_own_does_not_beat_the_pin(desk: Desk, lab: LightLab, behind: str) -> None:
    stale = lab.key.with_name(lab.key.name + ".pub").read_text().split()[1]
    names = ",".join((*(node.name for node in lab.nodes), *(node.address for node in lab.nodes)))
    desk.known_hosts.write_text(f"{names} ssh-ed25519 {stale}\n")
    line = f"n2 slots=1 addr={lab.node('n2').address} identity={lab.key}{behind}"
    assert desk.survey(line).unreached == ()
    desk.pins.write_text("")
    assert desk.refusal(line)[0] == "ssh.hostkey-changed", "without a pin the user's own file counts"


def test_the_users_own_known_hosts_serve_where_nothing_is_pinned(desk: Desk, lab: LightLab) -> None:
    authority = f"@cert-authority *.example.com {lab.key.with_name(lab.key.name + '.pub').read_text()}"
    desk.known_hosts.write_text(f"# mine\n\n{authority}" + lab.known_hosts.read_text().replace(" ", " \t ", 1))
    desk.pins.unlink()
    assert desk.survey("n1 slots=1").unreached == ()


def test_a_revoked_key_is_no_key(desk: Desk, lab: LightLab) -> None:
    key = next(line for line in lab.known_hosts.read_text().splitlines() if line.startswith("n1,")).split(" ", 1)[
        1
    ]
    desk.pins.write_text(lab.known_hosts.read_text() + f"@revoked * {key}\n")
    found = desk.refusal("n1 slots=1")
    assert found[0] == "ssh.hostkey-revoked", "nor is it one that could be trusted anew"


@pytest.mark.parametrize(
    "line", ["n9 ssh-ed25519 AAAA!", "n9 ssh-ed25519", "n9 ssh-rsa ////", "|1|x|y ssh-ed25519 {key}"]
)
@pytest.mark.parametrize("place", ["pins", "known_hosts"])
def test_a_broken_line_of_known_hosts_is_named(desk: Desk, lab: LightLab, place: str, line: str) -> None:
    desk.pin_only()
    file: Path = getattr(desk, place)
    whole = lab.known_hosts.read_text()
    file.write_text(whole + line.format(key=whole.split()[2]) + "\n")
    found = desk.refusal("n1 slots=1")
    assert found[0] == "ssh.known-hosts" and f"{file}:4:" in found[1], found


@pytest.mark.parametrize("line", ["Nonsense", 'Host "n1', "Match host", "Port many"])
def test_a_broken_ssh_config_is_named(desk: Desk, line: str) -> None:
    desk.configure("# mine\n", f"{line}\n", desk.login("n1"))
    found = desk.refusal("n1 slots=1")
    where = "~/.ssh/config or jump=, for n1 (" if line == "Port many" else f"{desk.config}:2:"
    assert found[0] == "ssh.config" and where in found[1], found


def test_a_key_that_is_not_there_or_locked_is_named(desk: Desk, lab: LightLab) -> None:
    found = desk.refusal("n1 slots=1 identity=~/nowhere")
    assert found[0] == "ssh.auth" and f"{desk.home}/nowhere: No such file" in found[1], found
    locked = desk.home / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    desk.configure(desk.login("n1", key=locked))
    found = desk.refusal("n1 slots=1")
    assert found[0] == "ssh.auth" and f"{locked}: encrypted" in found[1], found
    assert f"ssh-add {locked}" in found[2]
    desk.configure(desk.login("n1", key=desk.home / "gone"))
    assert desk.refusal("n1 slots=1")[0] == "ssh.auth", "an IdentityFile may be missing, as with OpenSSH"
    assert desk.survey(f"n1 slots=1 identity={lab.key}").unreached == ()


@pytest.mark.parametrize("moment", ["before the login", "before the channel"])
def test_a_frozen_bastion_ends_in_time(
    desk: Desk, lab: LightLab, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    original = dial._through

    def freeze(connection: fabric.Connection) -> object:
        lab.node("n1").pause()
        return original(connection)

    if moment == "before the channel":
        monkeypatch.setattr(dial, "_through", freeze)
    else:
        lab.node("n1").pause()
    began = time.monotonic()
    try:
        found = desk.refusal(f"n2 slots=1 identity={lab.key} jump=n1")
    finally:
        lab.node("n1").resume()
    assert found[0] == "ssh.timeout", found
    assert time.monotonic() - began < 25


# Started deaf to SIGINT by a shell in the background, a test would hand that down: the script listens again.
_HANGS = """\
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from clusterft import hosts
from clusterft.fleet import Fleet

lines = "".join(f"n{i} slots=1 transport=local\\n" for i in range(3))
with Fleet(hosts.parse(lines, path=Path("rack"), name="rack"), Path("pins")) as fleet:
    def hang(name, remote):
        os.write(1, f"{name}\\n".encode())
        time.sleep(100)
    fleet.each(hang)
"""


def test_ctrl_c_does_not_wait_for_a_node_that_hangs() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert {process.stdout.readline().strip() for _ in range(3)} == {"n0", "n1", "n2"}
    process.send_signal(signal.SIGINT)
    try:
        err = process.communicate(timeout=10)[1]
    finally:
        process.kill()
    assert "KeyboardInterrupt" in err and process.returncode != 0


def test_reconnect_leaves_the_old_connection_in_place_whatever_happens(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk.fleet("n1 slots=1") as fleet:
        old = fleet.remotes["n1"]
        nowhere = ("127.0.0.1", 1)
        monkeypatch.setattr(dial, "_socket", lambda connection: socket.create_connection(nowhere))
        fleet.reconnect("n1")
        monkeypatch.setattr(dial.Dialer, "open", lambda *_: 1 / 0)
        fleet.reconnect("n1")
        fleet.reconnect("n9")
        assert fleet.remotes == {"n1": old} and old.run(("uname", "-n")).out == "n1\n"
        monkeypatch.undo()
        monkeypatch.setenv("HOME", str(desk.home))
        fleet.reconnect("n1")
        assert fleet.remotes["n1"] is not old and fleet.remotes["n1"].run(("uname", "-n")).out == "n1\n"
