"""Provisioning's scripts as a shell runs them, here and now; no name, path or address ever becomes shell text."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft import places, provision
from clusterft.findings import Finding
from clusterft.places import NodePlaces
from clusterft.provision import Member, Order, admission, scripts, wire
from clusterft.provision.seen import Refused
from clusterft.remote import Completed, Unreachable

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIkey"
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
SCRIPTS = {text for name, text in vars(scripts).items() if name.isupper() and not name.startswith("_")}


class Recorder:
    """A node that notes every command and answers as one that has nothing."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.public = KEY
        self.written = b""

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        self.commands.append(argv)
        self.written += stdin
        word = argv[4]
        lines = ("user me", "own " + "0" * 32, f"public {self.public}", "absent", "end")
        return Completed(0, "".join(f"{word} {line}\n" for line in lines), "")


class Rack:
    """A fleet of recorders."""

    def __init__(self, *names: str) -> None:
        self.cluster = replace(scenes.cluster("".join(f"{name} slots=1\n" for name in names)), name="rack")
        self.remotes = {name: Recorder() for name in names}

    def each(self, work: Callable[[str, Any], Any]) -> dict[str, Any]:
        found = {}
        for name, remote in self.remotes.items():
            try:
                found[name] = work(name, remote)
            except Unreachable as error:
                found[name] = error
        return found


homes = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(deadline=None)
@given(homes, st.lists(names, min_size=2, max_size=3, unique=True), st.lists(addresses, min_size=2, max_size=2))
def test_shell_text_is_constant(home: str, nodes: list[str], given_addresses: list[str]) -> None:
    fleet: Any = Rack(*nodes)
    members = {
        name: Member(
            name,
            NodePlaces(PurePosixPath("/" + home) / ".clusterft", "rack", name),
            given_addresses[0],
            sources=tuple(given_addresses),
            host_keys=(KEY,),
        )
        for name in nodes
    }
    done = provision.apply(fleet, Order(members, accept_nat=lambda caller, peer: True), lambda event: None)
    provision.take_back(fleet, lambda event: None)
    assert not any(isinstance(outcome, Finding) for outcome in done.outcomes.values())
    commands = [argv for remote in fleet.remotes.values() for argv in remote.commands]
    assert {argv[:2] for argv in commands} == {("sh", "-c")} and {argv[3] for argv in commands} == {"sh"}
    assert {argv[2] for argv in commands} == SCRIPTS, "every script was used, and nothing else"


def test_one_node_s_damaged_key_is_that_node_s_trouble_alone() -> None:
    fleet: Any = Rack("n1", "n2", "n3")
    fleet.remotes["n2"].public = "\ufffd\ufffd garbage"
    members = {
        name: Member(
            name,
            NodePlaces(PurePosixPath("/home/me/.clusterft"), "rack", name),
            f"10.0.0.{number}",
            sources=(f"10.0.0.{number}",),
            host_keys=(KEY,),
        )
        for number, name in enumerate(("n1", "n2", "n3"), 1)
    }
    done = provision.apply(fleet, Order(members), lambda event: None)
    finding = done.outcomes["n2"]
    assert isinstance(finding, Finding) and finding.id == "ssh.relay" and "relay_ed25519.pub" in finding.evidence
    assert not isinstance(done.outcomes["n1"], Finding) and not isinstance(done.outcomes["n3"], Finding)
    assert set(done.proof.refused) == {("n1", "n3"), ("n3", "n1")}, "these two went on to the proof"
    written = fleet.remotes["n1"].written + fleet.remotes["n3"].written
    assert b"clusterft:rack:n3" in written and b"clusterft:rack:n1" in written
    assert b"clusterft:rack:n2" not in written and b"garbage" not in written


# -- really run ------------------------------------------------------------------------------------------------

SHELLS = [("sh",), ("bash",), ("busybox", "sh")]


class Home:
    """A node that is a directory of this machine: what runs there has it as its home."""

    def __init__(self, home: Path, shell: tuple[str, ...] = ("sh",)) -> None:
        self.home, self.shell = home, shell
        self.before: dict[str, Callable[[], object]] = {}  # script -> what happens just before it

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        self.before.pop(argv[2], lambda: None)()
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        done = subprocess.run(
            [*self.shell, *argv[1:]], input=stdin, env=environment, capture_output=True, timeout=seconds
        )
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(params=SHELLS, ids=" ".join)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A home with an authorized_keys, under each shell that is here."""
    if not shutil.which(request.param[0]):
        pytest.skip(f"no {request.param[0]} here")
    home = tmp_path / 'it\'s \\n "$x"'
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "authorized_keys").write_bytes(b"ssh-rsa AAAA me\xff")
    return Home(home, request.param)


def member(node: Home) -> Member:
    """The one node."""
    return Member("n1", NodePlaces(PurePosixPath(node.home) / ".clusterft", "rack", "n1"), "10.0.0.1")


def keys(node: Home) -> Path:
    """Its authorized_keys."""
    return node.home / ".ssh" / "authorized_keys"


LINE = f"restrict,x {KEY} clusterft:rack:n2"


def admit(node: Home, wanted: dict[str, str]) -> str:
    """Edit it; what changed."""
    one = member(node)
    words, more = admission.admit(node, one.places, wire.look(node, one, (), "key"), wanted, ())
    return " ".join((words.words, *more))


def test_a_node_is_looked_at_written_and_left_as_it_was(node: Any) -> None:
    one = member(node)
    known = wire.look(node, one, (), "key")
    assert (
        known.made == ("directory made", "relay key made") and known.fresh and known.keys == b"ssh-rsa AAAA me\xff"
    )
    assert wire.look(node, one, (), "key").made == ()
    file = provision.hostworld.File(one.places.hostfile, "n1 slots=1\n", 0o600)
    assert wire.look(node, one, (file,)).lacks(0, file)
    wire.put(node, one, (file,))
    assert not wire.look(node, one, (file,)).lacks(0, file)
    assert admit(node, {"n2": LINE}) == "authorized_keys: 1 line added"
    assert keys(node).read_bytes() == LINE.encode() + b"\nssh-rsa AAAA me\xff"
    assert admit(node, {}) == "authorized_keys: 1 line removed"
    word, out = wire.run(node, scripts.TAKE, ("rack", "n1"))
    assert (f"{word} removed 0\n" in out) and not (node.home / ".clusterft").exists()
    assert keys(node).read_bytes() == b"ssh-rsa AAAA me\xff"


GARBAGE = [
    b"\xff\0{garbage}\n",
    b"ssh-ed25519 AAAA\n",
    b"-o x\nmore",
    b"ssh-rsa AAAA me\n",
    f"{KEY} me\n".encode(),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_damaged_public_half_is_made_from_the_private_one(node: Any, garbage: bytes) -> None:
    one = member(node)
    good = wire.look(node, one, (), "key")
    private = Path(one.places.relay_key)
    before = private.read_bytes()
    Path(f"{private}.pub").write_bytes(garbage)
    known = wire.look(node, one, (), "key")
    assert known.made == ("relay key: public half made anew",) and private.read_bytes() == before
    assert good.public and known.public and known.public.split()[:2] == good.public.split()[:2]
    assert wire.look(node, one, (), "key").made == ()


def test_a_damaged_public_half_without_a_private_one_makes_both_anew(node: Any) -> None:
    one = member(node)
    good = wire.look(node, one, (), "key")
    Path(one.places.relay_key).unlink()
    Path(f"{one.places.relay_key}.pub").write_bytes(b"garbage")
    known = wire.look(node, one, (), "key")
    assert known.made == ("relay key made",) and known.public and known.public != good.public


def test_a_damaged_private_half_is_told_and_left(node: Any) -> None:
    one = member(node)
    wire.look(node, one, (), "key")
    private = Path(one.places.relay_key)
    private.write_bytes(b"garbage\n")
    with pytest.raises(Refused, match="relay_ed25519 is damaged"):
        wire.look(node, one, (), "key")
    assert private.read_bytes() == b"garbage\n"
    # It does not stand in the way of leaving.
    assert wire.look_home(node, one.places).public
    private.unlink()
    assert wire.look(node, one, (), "key").made == ("relay key made",)


def test_somebody_else_s_edit_at_the_same_moment_is_kept(node: Any) -> None:
    node.before[scripts.KEYS] = lambda: keys(node).write_text("ssh-rsa BBBB other\n")
    assert admit(node, {"n2": LINE}) == "authorized_keys: 1 line added"
    assert keys(node).read_text() == f"{LINE}\nssh-rsa BBBB other\n"


def test_half_of_the_new_content_is_never_written(node: Any) -> None:
    one = member(node)
    known = wire.look(node, one, (), "key")
    given_words = (str(one.places.root), known.keys_sum, "0" * 64)
    _, out = wire.run(node, scripts.KEYS, given_words, b"half a li")
    assert "did not arrive whole" in out and keys(node).read_bytes() == b"ssh-rsa AAAA me\xff"
    assert sorted(path.name for path in keys(node).parent.iterdir()) == ["authorized_keys"]
    assert not (node.home / ".clusterft" / "authorized_keys.lock").exists()


def test_half_of_a_file_is_never_written(node: Any) -> None:
    one = member(node)
    wire.look(node, one, (), "key")
    with pytest.raises(Refused):
        word, out = wire.run(node, scripts.PUT, (str(one.places.root), str(one.places.hostfile)), b"\0" * 100)
        provision.seen.answers(out, word)
    assert not Path(one.places.hostfile).exists() and not list(Path(one.places.root).glob(".new*"))


def test_a_dead_one_s_lock_is_broken(node: Any, tmp_path: Path) -> None:
    """A sleep that does not sleep stands for the 20 s."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sleep").write_text("#!/bin/sh\n")
    (tools / "sleep").chmod(0o755)
    wire.look(node, member(node), (), "key")
    (node.home / ".clusterft" / "authorized_keys.lock").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        assert admit(node, {"n2": LINE}) == "authorized_keys: 1 line added"


def test_many_edit_one_file_at_once(tmp_path: Path) -> None:
    """As clusters do that have one user on one machine: no line is lost."""
    (tmp_path / ".ssh").mkdir()
    before = b"ssh-rsa AAAA me"
    (tmp_path / ".ssh" / "authorized_keys").write_bytes(before)
    clusters = [f"c{number}" for number in range(3)]

    def one(cluster: str) -> None:
        node = Home(tmp_path)
        where = NodePlaces(PurePosixPath(tmp_path) / ".clusterft", cluster, "n1")
        known = wire.look(node, Member("n1", where), (), "key")
        admission.admit(node, where, known, {"n2": LINE.replace("rack", cluster)}, ())

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, clusters))
    content = (tmp_path / ".ssh" / "authorized_keys").read_bytes()
    assert all(f"clusterft:{cluster}:n2".encode() in content for cluster in clusters) and content.endswith(before)


def test_scratch_is_where_places_says() -> None:
    assert "mine=/var/tmp/clusterft-$(id -u)\n" in scripts.TAKE
    assert str(places.scratch(7, "rack")) == "/var/tmp/clusterft-7/rack"
