"""Whom a fleet believes and how it gets in, on real sshds: first contact, changed keys, passphrases, passwords,
many at once, and machines that fall silent."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterft import hosts
from clusterft.checks.examination import Wanted
from clusterft.facts.health import Health
from clusterft.fleet import Fleet
from clusterft.hosts import Cluster
from clusterft.probing import health
from clusterft.remote import Broken, Unreachable, dial, hostkeys, keys
from clusterft.remote.interactive import ssh_argv
from clusterft.remote.pulse import Pulse
from clusterft.remote.ssh import SshRemote
from lab import LightLab

pytestmark = pytest.mark.lab_light


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes: n1 is the bastion where one is asked for."""
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller's home without a key, an agent, a config or a known host."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    return tmp_path


def cluster(*lines: str) -> Cluster:
    return hosts.parse("".join(f"{line}\n" for line in lines), path=Path("rack"), name="rack")


def rack(lab: LightLab, more: str = "", user: str = "root") -> Cluster:
    """All nodes, by their addresses."""
    return cluster(*(f"{n.name} slots=1 addr={n.address} user={user} {more}" for n in lab.nodes))


def names(fleet: Fleet) -> list[str]:
    return [remote.run(("uname", "-n")).out.strip() for remote in fleet.remotes.values()]


class Person:
    """Answers what it was told to, and remembers what was asked."""

    def __init__(self, passphrase: str | None = None, password: str | None = None) -> None:
        self._passphrase, self._password = passphrase, password
        self.asked: list[str] = []

    def passphrase(self, key: str) -> str | None:
        self.asked.append(key)
        return self._passphrase

    def password(self, login: str) -> str | None:
        self.asked.append(login)
        return self._password


# -- first contact -----------------------------------------------------------------------------


def test_strangers_are_shown_never_logged_in_to_and_trusted_together(lab: LightLab, home: Path) -> None:
    pins = home / "rack" / "known_hosts"
    with Fleet(rack(lab, f"identity={lab.key}"), pins) as fleet:
        assert fleet.remotes == {} and {miss.id for miss in fleet.unreached} == {"ssh.hostkey-unknown"}
        met = {one.name: one for one in fleet.strangers}
        assert [one.nodes for one in met.values()] == [("n1",), ("n2",), ("n3",)]
        for node in lab.nodes:
            public = node.state / "ssh_host_ed25519_key.pub"
            shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True)
            assert met[node.address].key.fingerprint == shown.stdout.split()[1]
            assert "Accepted publickey" not in (node.state / "console.log").read_text()
        fleet.trust((met[lab.node("n2").address],))
        assert names(fleet) == ["n2"] and len(fleet.strangers) == 2
        fleet.trust(fleet.strangers)
        assert names(fleet) == ["n1", "n2", "n3"] and fleet.unreached == [] and fleet.strangers == ()
        assert all(key.line in pins.read_text() for key in fleet.host_keys.values()) and len(fleet.host_keys) == 3
    assert stat.S_IMODE(pins.stat().st_mode) == 0o600 and stat.S_IMODE(pins.parent.stat().st_mode) == 0o700
    with Fleet(rack(lab, f"identity={lab.key}"), pins) as again:
        assert len(again.remotes) == 3, "known ever after"


def test_a_bastion_is_met_first_and_then_those_behind_it(lab: LightLab, home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        f"Host n1\n  HostName {lab.node('n1').address}\n  User root\n  IdentityFile {lab.key}\n"
    )
    behind = cluster(*(f"{name} slots=1 user=root identity={lab.key} jump=n1" for name in ("n2", "n3")))
    with Fleet(behind, home / "pins") as fleet:
        (door,) = fleet.strangers
        assert door.bastion and door.name == lab.node("n1").address and sorted(door.nodes) == ["n2", "n3"]
        fleet.trust(fleet.strangers)
        assert [(one.name, one.bastion) for one in fleet.strangers] == [("n2", False), ("n3", False)]
        fleet.trust(fleet.strangers)
        assert names(fleet) == ["n2", "n3"]


def test_what_the_users_own_file_vouches_for_becomes_a_pin(lab: LightLab, home: Path) -> None:
    (home / ".ssh" / "known_hosts").write_text(lab.known_hosts.read_text())
    pins = home / "pins"
    with Fleet(rack(lab, f"identity={lab.key}"), pins) as fleet:
        assert len(fleet.remotes) == 3 and fleet.strangers == () and not pins.exists()
        assert fleet.adopt() and not fleet.adopt()
    (home / ".ssh" / "known_hosts").unlink()
    with Fleet(rack(lab, f"identity={lab.key}"), pins) as fleet:
        assert len(fleet.remotes) == 3 and not fleet.adopt()


def test_a_changed_key_is_refused_with_both_fingerprints_until_it_is_forgotten(home: Path) -> None:
    with LightLab.up(count=2) as lab:
        pins = home / "pins"
        pins.write_text(lab.known_hosts.read_text())
        before = hostkeys.read(pins).lookup("n2")["ssh-ed25519"].fingerprint
        lab.node("n2").swap_host_key()
        fleet = Fleet(rack(lab, f"identity={lab.key}"), pins)
        with fleet:
            (miss,) = fleet.unreached
            assert names(fleet) == ["n1"] and (miss.node, miss.id) == ("n2", "ssh.hostkey-changed")
            assert before in miss.words and miss.words.count("SHA256:") == 2 and fleet.strangers == ()
            assert "clusterft up --forget-host-key n2" in "; ".join(miss.fix)
        fresh = Fleet(rack(lab, f"identity={lab.key}"), pins)
        assert fresh.forget("n2") and not fresh.forget("n2") and not fresh.forget("nobody")
        with fresh:
            (one,) = fresh.strangers
            assert one.nodes == ("n2",) and one.key.fingerprint != before
            fresh.trust((one,))
            assert names(fresh) == ["n1", "n2"]


def test_a_host_with_several_keys_presents_the_pinned_kind(home: Path) -> None:
    with LightLab.up(count=1) as lab:
        node = lab.node("n1")
        lines = []
        for kind in ("ecdsa", "rsa"):
            key = node.state / f"ssh_host_{kind}_key"
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
            with (node.state / "sshd_config").open("r+") as file:
                text = file.read()
                file.seek(0)
                file.write(f"HostKey {key}\n{text}")
            lines.append(f"{node.address} " + " ".join(key.with_name(key.name + ".pub").read_text().split()[:2]))
        node.reboot()
        for pinned in ([lines[0]], [lines[1]], lines):
            (home / "pins").write_text("\n".join(pinned) + "\n")
            with Fleet(rack(lab, f"identity={lab.key}"), home / "pins") as fleet:
                assert fleet.unreached == []
                assert fleet.host_keys["n1"].line in " ".join(pinned)
        (home / "pins").unlink()
        with Fleet(rack(lab, f"identity={lab.key}"), home / "pins") as fleet:
            assert [one.key.kind for one in fleet.strangers] == ["ssh-ed25519"]


# -- getting in --------------------------------------------------------------------------------


def test_a_passphrase_is_asked_for_once_for_all_nodes(lab: LightLab, home: Path) -> None:
    person = Person(passphrase=lab.access.passphrase)
    with Fleet(rack(lab, f"identity={lab.access.encrypted_key}"), lab.known_hosts, asker=person) as fleet:
        assert names(fleet) == ["n1", "n2", "n3"] and person.asked == [str(lab.access.encrypted_key)]
        assert fleet.by_password == frozenset()
    with Fleet(rack(lab, f"identity={lab.access.encrypted_key}"), lab.known_hosts) as silent:
        assert {miss.id for miss in silent.unreached} == {"ssh.auth"} and silent.remotes == {}


def test_an_agent_serves_all_nodes_at_once(lab: LightLab, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", home / "agent"], stdout=subprocess.DEVNULL)
    try:
        while not (home / "agent").exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
        for number in range(3):  # others come first
            keys.make(home / f"other{number}")
            subprocess.run(["ssh-add", "-q", home / f"other{number}"], check=True)
        subprocess.run(["ssh-add", "-q", lab.key], check=True)
        with Fleet(rack(lab), lab.known_hosts) as fleet:
            assert names(fleet) == ["n1", "n2", "n3"]
        for number in range(3, 8):  # more than sshd's MaxAuthTries before the right one
            keys.make(home / f"other{number}")
            subprocess.run(["ssh-add", "-q", home / f"other{number}"], check=True)
        subprocess.run(["ssh-add", "-q", "-d", lab.key], check=True)
        with Fleet(rack(lab), lab.known_hosts, key=lab.key) as fleet:
            assert names(fleet) == ["n1", "n2", "n3"], "the cluster's own key is offered before an agent's many"
        subprocess.run(["ssh-add", "-q", lab.key], check=True)
        with Fleet(rack(lab), lab.known_hosts) as fleet:
            assert names(fleet) == ["n1", "n2", "n3"], "when sshd hangs up, the rest is offered to the next call"
    finally:
        agent.terminate()
        agent.wait(5)


def test_a_password_is_asked_for_once_and_then_a_key_does(lab: LightLab, home: Path) -> None:
    person = Person(password=lab.access.password)
    own = home / "rack" / "id_ed25519"
    with Fleet(rack(lab, user="typist"), lab.known_hosts, key=own, asker=person) as fleet:
        assert (
            names(fleet) == ["n1", "n2", "n3"] and len(person.asked) == 1 and person.asked[0].startswith("typist@")
        )
        assert fleet.by_password == {"n1", "n2", "n3"}
        public = keys.make(own)
        install = 'umask 077; mkdir -p ~/.ssh && printf "%s\\n" "$1" >> ~/.ssh/authorized_keys'
        fleet.each(lambda name, remote: remote.run(("sh", "-c", install, "sh", public)))
    with Fleet(rack(lab, user="typist"), lab.known_hosts, key=own, asker=person) as fleet:
        assert len(fleet.remotes) == 3 and fleet.by_password == frozenset() and len(person.asked) == 1
    with Fleet(rack(lab, user="typist"), lab.known_hosts, asker=Person(password="wrong")) as fleet:
        assert {miss.id for miss in fleet.unreached} == {"ssh.auth"}
        assert "password" in fleet.unreached[0].words and "wrong" not in fleet.unreached[0].words


def test_a_question_that_takes_longer_than_sshd_waits_is_no_loss(home: Path) -> None:
    with LightLab.up(count=1) as lab:
        node = lab.node("n1")
        config = node.state / "sshd_config"
        config.write_text(config.read_text().replace("LoginGraceTime 30", "LoginGraceTime 1"))
        node.reboot()

        class Slow(Person):
            def passphrase(self, key: str) -> str | None:
                time.sleep(2.5)
                return super().passphrase(key)

            def password(self, login: str) -> str | None:
                time.sleep(2.5)
                return super().password(login)

        slow = Slow(lab.access.passphrase, lab.access.password)
        with Fleet(rack(lab, f"identity={lab.access.encrypted_key}"), lab.known_hosts, asker=slow) as fleet:
            assert names(fleet) == ["n1"]
        with Fleet(rack(lab, user="typist"), lab.known_hosts, asker=slow) as fleet:
            assert names(fleet) == ["n1"] and len(slow.asked) == 2


# -- many at once, and silence -----------------------------------------------------------------


def test_all_nodes_behind_a_bastion_share_one_connection(lab: LightLab, home: Path) -> None:
    door = lab.node("n1")
    (home / ".ssh" / "config").write_text(
        f"Host n1\n  HostName {door.address}\n  User root\n  IdentityFile {lab.key}\n"
    )
    lines = (
        f"x{i} slots=1 addr={lab.node(f'n{2 + i % 2}').address} user=root identity={lab.key} jump=n1"
        for i in range(8)
    )
    pins = home / "pins"
    pins.write_text(lab.known_hosts.read_text())
    text = home / ".ssh" / "config"
    text.write_text(text.read_text() + "".join(f"Host x{i}\n  HostName n{2 + i % 2}\n" for i in range(8)))
    before = (door.state / "console.log").read_text().count("Accepted publickey")
    with Fleet(cluster(*lines), pins) as fleet:
        assert sorted(names(fleet)) == ["n2"] * 4 + ["n3"] * 4
        assert (door.state / "console.log").read_text().count("Accepted publickey") == before + 1
        broken = fleet.remotes["x0"]
        assert isinstance(broken, SshRemote)
        broken.hop.connection.gateway.client.close()
        with pytest.raises(Unreachable):
            fleet.remotes["x1"].run(("true",))
        threads = [threading.Thread(target=fleet.reconnect, args=(f"x{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(names(fleet)) == 8
        assert (door.state / "console.log").read_text().count("Accepted publickey") == before + 2


def test_an_sshd_that_turns_callers_away_is_called_again(home: Path) -> None:
    with LightLab.up(count=1, max_startups="1:100:1") as lab:
        lines = (f"x{i} slots=1 user=root identity={lab.key} addr={lab.node('n1').address}" for i in range(6))
        with Fleet(cluster(*lines), lab.known_hosts) as fleet:
            assert fleet.unreached == [] and len(fleet.remotes) == 6


def test_one_that_always_turns_away_is_named_in_time(
    lab: LightLab, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_FIRST_WAIT", 0.01)

    def refused(connection: object) -> object:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(dial, "_socket", refused)
    with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
        assert {miss.id for miss in fleet.unreached} == {"ssh.maxstartups"}


def test_channels_wait_for_their_turn(lab: LightLab, home: Path) -> None:
    """sshd allows 10 sessions on a connection."""
    with Fleet(
        cluster(f"n1 slots=1 addr={lab.node('n1').address} user=root identity={lab.key}"), lab.known_hosts
    ) as f:
        remote = f.remotes["n1"]
        held = [remote.stream(("cat",)) for _ in range(10)]
        threading.Timer(0.5, held[0].close).start()
        assert remote.run(("echo", "in")).out == "in\n"
        for stream in held:
            stream.close()


@pytest.mark.parametrize("fault", ["frozen", "unplugged"])
def test_a_node_that_falls_silent_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(dial, "PULSE", Pulse(every=0.5, patience=1.5))
    with LightLab.up(count=2) as lab, Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
        follower = fleet.remotes["n1"].lines(("sleep", "60"), silence=None)
        time.sleep(1.2)  # healthy connections outlive many beats
        lab.node("n1").pause() if fault == "frozen" else lab.node("n1").cut_link()
        began = time.monotonic()
        try:
            with pytest.raises(Unreachable, match="broke"):
                list(follower)
            assert time.monotonic() - began < 10
            assert fleet.remotes["n2"].run(("uname", "-n")).out == "n2\n"
        finally:
            if fault == "frozen":
                lab.node("n1").resume()
            else:
                lab.node("n1").restore_link()


ONCE = "[ -e ~/once ] || { touch ~/once; %s; }"
HANG_UP = "kill -9 $PPID"  # the sshd of this connection


@pytest.mark.parametrize("what", [ONCE % HANG_UP, ONCE % "exit 0"])
def test_a_connection_that_breaks_once_and_half_an_answer_are_asked_again(
    lab: LightLab, home: Path, what: str
) -> None:
    node = lab.node("n2")
    (node.home / ".bashrc").write_text(what + "\n")
    try:
        with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
            survey = fleet.survey(lambda _: ())
            assert (node.home / "once").exists()
            assert survey.unreached == () and survey.facts["n2"].hostname == "n2"
            (node.home / "once").unlink()
            looked = health.ask(fleet, Wanted(device="cpu", contained=False))
            assert {type(one) for one in looked.values()} == {Health}, looked
            assert all(remote.run(("true",)).code == 0 for remote in fleet.remotes.values())
    finally:
        (node.home / ".bashrc").unlink()
        (node.home / "once").unlink(missing_ok=True)


def test_a_connection_that_always_breaks_is_told_as_that(lab: LightLab, home: Path) -> None:
    """Also where the command had said something before; one that a signal ended is no broken connection."""
    with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
        done = fleet.remotes["n2"].run(("sh", "-c", "echo half; kill -9 $$"))
        assert done.code == -1 and done.out == "half\n"
        with pytest.raises(Broken):
            fleet.remotes["n2"].run(("sh", "-c", f"echo half; sleep 0.2; {HANG_UP}"))
    node = lab.node("n2")
    (node.home / ".bashrc").write_text(HANG_UP + "\n")
    try:
        with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
            (miss,) = fleet.survey(lambda _: ()).unreached
    finally:
        (node.home / ".bashrc").unlink()
    assert (miss.node, miss.id, miss.words) == ("n2", "ssh.timeout", "the connection broke")


def test_a_command_that_reads_nothing_is_told_by_what_it_says(lab: LightLab, home: Path) -> None:
    with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
        done = fleet.remotes["n1"].run(("sh", "-c", "echo no entry; exit 3"), stdin=bytes(1 << 23))
        assert (done.code, done.out) == (3, "no entry\n")


def test_streams_over_ssh(lab: LightLab, home: Path) -> None:
    with Fleet(rack(lab, f"identity={lab.key}"), lab.known_hosts) as fleet:
        remote = fleet.remotes["n1"]
        body = os.urandom(1 << 20) * 5
        with remote.stream(("cat",)) as stream:

            def ask() -> None:
                stream.sendall(body)
                stream.shutdown(1)

            thread = threading.Thread(target=ask)
            thread.start()
            assert b"".join(iter(lambda: stream.recv(1 << 16), b"")) == body and stream.code(5) == 0
            thread.join(5)
        flood = "i=0; while [ $i -lt 400 ]; do head -c 10000 /dev/zero >&2; i=$((i+1)); done; echo end >&2; exit 3"
        with remote.stream(("sh", "-c", flood)) as stream:
            assert stream.recv(10) == b"" and stream.code(5) == 3 and stream.complaint().endswith("end")
        with remote.stream(("sleep", "60")) as stream:
            stream.settimeout(0.2)
            with pytest.raises(TimeoutError):
                stream.recv(1)
            threading.Timer(0.2, stream.abort).start()
            stream.settimeout(None)
            assert stream.recv(1) == b""
        with remote.stream(("true",)) as stream:
            assert stream.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                for _ in range(1000):
                    stream.sendall(bytes(1 << 16))
        lines = remote.lines(("sh", "-c", "echo one; printf two; echo oh >&2; exit 4"))
        assert list(lines) == ["one", "two"] and lines.code(5) == 4 and lines.complaint() == "oh"
        broken = remote.stream(("sleep", "60"))
        remote.close()
        with pytest.raises(Unreachable, match="broke"):
            broken.recv(1)


@pytest.mark.long
def test_of_64_nodes_each_has_its_own_outcome(home: Path) -> None:
    with LightLab.up(count=64) as lab:
        pins = home / "pins"
        pins.write_text(lab.known_hosts.read_text())
        for name in ("n5", "n17"):
            lab.node(name).kill()
        lab.node("n23").block_port(22, "reject")
        (lab.node("n31").home / ".ssh" / "authorized_keys").write_text("")
        lab.node("n42").swap_host_key()
        hostkeys.forget(pins, lab.node("n50").address)
        lab.node("n60").pause()
        began = time.monotonic()
        try:
            with Fleet(rack(lab, f"identity={lab.key}"), pins) as fleet:
                seconds = time.monotonic() - began
                missed = {miss.node: miss.id for miss in fleet.unreached}
                assert (
                    missed
                    == {
                        "n5": "ssh.no-route",
                        "n17": "ssh.no-route",
                        "n23": "ssh.refused",
                        "n31": "ssh.auth",
                        "n42": "ssh.hostkey-changed",
                        "n50": "ssh.hostkey-unknown",
                        "n60": "ssh.timeout",
                    }
                    and len(fleet.remotes) == 57
                )
                assert [miss.node for miss in fleet.unreached] == sorted(missed, key=lambda name: int(name[1:]))
                survey = fleet.survey(lambda node: ())
                assert len(survey.facts) == 57 and len(survey.unreached) == 7
        finally:
            lab.node("n60").resume()
        assert seconds < 60


# -- a person's own ssh ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "bastion"])
def test_a_persons_ssh_takes_our_way(lab: LightLab, home: Path, way: str) -> None:
    (home / "my pins").write_text(lab.known_hosts.read_text())
    two = lab.node("n2").address
    line = f"n2 slots=1 addr={two} user=root"
    if way == "bastion":
        line = "n2 slots=1 user=root jump=door"
        (home / ".ssh" / "config").write_text(f"Host door\n  HostName {lab.node('n1').address}\n  User root\n")
    (node,) = cluster(line).nodes
    argv = ssh_argv(
        node, home / "my pins", lab.key, tty=False, command=("sh", "-c", 'echo "$1" on $(uname -n)', "sh", "a  b")
    )
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "a  b on n2\n"), done.stderr
    (home / "my pins").write_text("")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 255 and "verification failed" in done.stderr
