"""Pins, keys and logins, without a network: files, threads, and paramiko's own server on a socket pair."""

from __future__ import annotations

import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft.hosts import Node
from clusterft.remote import Unreachable, hostkeys, keys, way
from clusterft.remote.hostkeys import HostKey
from clusterft.remote.interactive import ssh_argv
from clusterft.remote.login import Keyring, Login

ECDSA = [paramiko.ECDSAKey.generate() for _ in "ab"]
RSA = paramiko.RSAKey.generate(2048)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


# -- pins -------------------------------------------------------------------------------


def test_pins_are_added_once_and_are_nobody_elses_business(tmp_path: Path) -> None:
    pins = tmp_path / "new" / "known_hosts"
    key = HostKey.of(ECDSA[0])
    assert hostkeys.pin(pins, [("gpu0", key), ("[gpu1]:2222", key)])
    assert not hostkeys.pin(pins, [("gpu0", HostKey.of(ECDSA[1]))]), "a pin is never replaced"
    assert hostkeys.pin(pins, [("gpu0", HostKey.of(RSA))]), "another kind of key is another pin"
    assert mode(pins) == 0o600 and mode(pins.parent) == 0o700 and [*pins.parent.iterdir()] == [pins]
    found = hostkeys.read(pins)
    assert found.lookup("gpu0") == {ECDSA[0].get_name(): ECDSA[0], "ssh-rsa": RSA}
    assert found.lookup("[gpu1]:2222") and not found.lookup("gpu1")


def test_what_is_forgotten_is_one_host_alone(tmp_path: Path) -> None:
    pins = tmp_path / "known_hosts"
    line = f"{ECDSA[0].get_name()} {ECDSA[0].get_base64()}"
    hidden = paramiko.HostKeys.hash_host("gpu0")
    kept = ["# mine\n", f"@revoked gpu0 {line}\n", f"gpu1 {line}", "\n"]
    pins.write_text(f"gpu0,10.0.0.1 {line}\n{hidden} {line}\n" + "".join(kept))
    assert hostkeys.forget(pins, "gpu0") and pins.read_text() == "".join(kept) and mode(pins) == 0o600
    assert not hostkeys.forget(pins, "gpu0") and not hostkeys.forget(tmp_path / "none", "gpu0")
    assert not hostkeys.forget(pins, "gpu1", 2222) and hostkeys.forget(pins, "gpu1", 22)
    pins.write_text("broken\n")
    with pytest.raises(Unreachable, match="known_hosts:1:"):
        hostkeys.forget(pins, "gpu0")


def test_many_hashed_lines_cost_little(tmp_path: Path) -> None:
    line = f"{ECDSA[0].get_name()} {ECDSA[0].get_base64()}"
    text = "".join(f"{paramiko.HostKeys.hash_host(f'host{i}')} {line}\n" for i in range(1500))
    (tmp_path / "known_hosts").write_text(text)
    found = hostkeys.read(tmp_path / "known_hosts")
    assert found.lookup("host1499") and not found.lookup("host1500")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_known_hosts"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        hostkeys.read(path)
    except Unreachable as error:
        assert error.id == "ssh.known-hosts"


# -- key pairs ----------------------------------------------------------------------------


def test_a_key_pair_is_made_once_and_ssh_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "rack" / "id_ed25519"
    public = keys.make(path, "clusterft rack")
    assert keys.make(path) == public and public.endswith(" clusterft rack")
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    derived = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == public.split()[:2]


# -- secrets ------------------------------------------------------------------------------


class Person:
    """Answers from a list, and remembers what was asked."""

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def passphrase(self, key: str) -> str | None:
        self.asked.append(key)
        return self.answers.pop(0)

    def password(self, login: str) -> str | None:
        self.asked.append(login)
        return self.answers.pop(0)


@pytest.fixture
def locked(tmp_path: Path) -> str:
    path = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-a", "1", "-N", "open", "-f", path], check=True)
    return str(path)


def test_a_passphrase_is_asked_for_once_by_all_threads_together(locked: str) -> None:
    person = Person("wrong", "open")
    ring = Keyring(person)
    assert ring.key(locked) is None and ring.locked(locked)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(ring.unlock(locked))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8 and None not in found and person.asked == [locked, locked]


def test_a_key_that_is_given_up_is_not_asked_for_again(locked: str) -> None:
    person = Person(None)
    ring = Keyring(person)
    assert ring.unlock(locked) is None and ring.unlock(locked) is None and person.asked == [locked]
    assert Keyring(None).unlock(locked) is None, "without an asker nothing is asked"


def test_a_password_is_asked_for_once_a_user() -> None:
    person = Person("secret", None)
    ring = Keyring(person)
    assert [ring.password("ubuntu", host) for host in ("a", "b")] == ["secret", "secret"]
    assert [ring.password("root", host) for host in ("a", "b")] == [None, None]
    assert person.asked == ["ubuntu@a", "root@a"]


class Sshd(paramiko.ServerInterface):
    """A server that wants what a test says."""

    def __init__(
        self, *, public: bytes = b"", typed: str = "", second: str = "", kinds: str = "publickey"
    ) -> None:
        self.public, self.typed, self.second, self.kinds = public, typed, second, kinds
        self.tries = 0

    def get_allowed_auths(self, username: str) -> str:
        return self.kinds

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.tries += 1
        if key.asbytes() != self.public:
            return paramiko.AUTH_FAILED
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self.second else paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        self.tries += 1
        right = "password" in self.kinds and password in (self.typed, self.second) and password
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> object:
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return paramiko.AUTH_SUCCESSFUL if responses == [self.typed] else paramiko.AUTH_FAILED


def logged_in(sshd: Sshd, ring: Keyring, files: list[str]) -> tuple[bool, Login]:
    """Log in to such a server; whether it let us in."""
    ours, theirs = socket.socketpair()
    server = paramiko.Transport(theirs)
    server.add_server_key(ECDSA[0])
    server.start_server(server=sshd, event=threading.Event())
    client = paramiko.Transport(ours)
    client.start_client(timeout=10)
    login = Login("user", "host", ring, files=files, only_files=False)
    try:
        login.authenticate(client)
        return client.is_authenticated(), login
    except paramiko.SSHException:
        return False, login
    finally:
        client.close()
        server.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def made(path: Path) -> tuple[str, bytes]:
    """A key file, and its public half as a server compares it."""
    public = keys.make(path)
    return str(path), paramiko.Ed25519Key.from_private_key_file(str(path)).asbytes() if public else b""


def test_the_named_key_goes_first_then_the_clusters_then_the_standard_ones(home: Path) -> None:
    named, _ = made(home / "named")
    own, _ = made(home / "own")
    standard, public = made(home / ".ssh" / "id_ed25519")
    inside, login = logged_in(Sshd(public=public), Keyring(None, Path(own)), [named])
    assert inside and login.tried == [named, own, standard] and not login.by_password


def test_an_encrypted_key_is_asked_for_only_when_the_others_fail(home: Path, locked: str) -> None:
    public = paramiko.Ed25519Key.from_private_key_file(locked, "open").asbytes()
    standard, other = made(home / ".ssh" / "id_ed25519")
    person = Person("open")
    assert logged_in(Sshd(public=other), Keyring(person), [locked])[0] and person.asked == []
    inside, login = logged_in(Sshd(public=public), Keyring(person), [locked])
    assert inside and person.asked == [locked] and login.tried == [standard, locked]


@pytest.mark.parametrize("kinds", ["publickey,password", "publickey,keyboard-interactive"])
def test_a_password_comes_last_and_either_way(home: Path, kinds: str) -> None:
    named, _ = made(home / "named")
    person = Person("secret")
    inside, login = logged_in(Sshd(typed="secret", kinds=kinds), Keyring(person), [named])
    assert inside and login.by_password and login.tried == [named, "password"] and person.asked == ["user@host"]


def test_no_password_is_asked_for_where_none_is_taken_or_nobody_asks(home: Path) -> None:
    person = Person("secret")
    assert not logged_in(Sshd(typed="secret"), Keyring(person), [])[0] and person.asked == []
    assert not logged_in(Sshd(typed="secret", kinds="password"), Keyring(None), [])[0]


def test_a_key_and_then_a_password(home: Path) -> None:
    named, public = made(home / "named")
    sshd = Sshd(public=public, second="secret", kinds="publickey,password")
    inside, login = logged_in(sshd, Keyring(Person("secret")), [named])
    assert inside and login.by_password
    assert not logged_in(sshd, Keyring(None), [named])[0]


# -- a person's own ssh ------------------------------------------------------------------------


def test_a_persons_ssh_believes_the_pins_alone_and_takes_no_other_way(home: Path) -> None:
    pins, key = home / "100% mine" / "known hosts", home / "own"
    keys.make(key)
    node = Node("gpu0", 8, user="ubuntu", port=2222, addr="10.0.0.1", jump="me@door:2200")
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh" / "config").write_text("Host gpu0\n  ProxyCommand nc evil 1\n")
    argv = ssh_argv(node, pins, key, command=("echo", "two words", "$HOME; `id`"))
    options = [value for flag, value in zip(argv, argv[1:], strict=False) if flag == "-o"]
    assert argv[:2] == ("ssh", "-t") and argv[-3:] == ("--", "gpu0", "echo 'two words' '$HOME; `id`'")
    assert {"Port=2222", "User=ubuntu", "StrictHostKeyChecking=yes", "GlobalKnownHostsFile=/dev/null"} <= {
        *options
    }
    assert f'UserKnownHostsFile="{home}/100%% mine/known hosts"' in options
    (through,) = [value for value in options if value.startswith("ProxyCommand=")]
    assert "100%%%% mine" in through and through.endswith(" -W '[%h]:%p' -- door")
    assert "StrictHostKeyChecking=yes" in through and "User=me" in through and "ProxyJump=none" in through


def test_a_node_that_is_reached_directly_stays_so(home: Path) -> None:
    argv = ssh_argv(Node("gpu0", 8, addr="10.0.0.1"), home / "pins", None, tty=False)
    assert argv[:2] == ("ssh", "-T") and "ProxyJump=none" in argv and argv[-1] == "gpu0"
    assert "HostName=10.0.0.1" in argv


def test_a_name_server_that_does_not_answer_is_waited_for_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def silent(host: str) -> bool:
        asked.append(host)
        time.sleep(5)
        return True

    monkeypatch.setattr(way, "_is_name", silent)
    monkeypatch.setattr(way, "_NAME_SECONDS", 0.1)
    ways = way.Ways()
    began = time.monotonic()
    hosts = [ways.to(Node(f"gpu{i}", 8, addr=f"10.0.0.{i}")).host for i in range(4)]
    assert hosts == [f"10.0.0.{i}" for i in range(4)] and asked == ["gpu0"]
    assert time.monotonic() - began < 2
