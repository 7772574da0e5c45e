"""Provisioning, its pure half: lines, files, answers, findings; and that no name ever becomes shell text."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import scenes
from glimpses import glimpse, key
from hypothesis import given
from hypothesis import strategies as st

from clusterft import relay
from clusterft.findings import Finding
from clusterft.places import NodePlaces
from clusterft.provision import Member, hostworld, keyring, proof, seen, wire
from clusterft.provision.hostworld import Peer
from clusterft.provision.keyring import CONTROLLER, edit, owner, relay_line
from clusterft.provision.seen import Refused, Seen, Unreadable
from clusterft.remote import Remote, Unreachable

GOLDEN = scenes.GOLDEN / "provision"


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
# What else may stand in the file: anything, with what looks like a line of ours now and then.
noise = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\n", b"\r\n", b"ssh-rsa AAAA me\n", b"# clusterft:rack:n1\n", b"clusterft:rack:n1\n"]),
        st.just(b"ssh-ed25519 AAAA clusterft:rack:n1\n"),
        st.just(b"ssh-ed25519 AAAA clusterft:other:controller\n"),
        st.just(relay_line("other", "n1", key("x"), ["10.0.0.1"]).encode() + b"\n"),
    ),
    max_size=8,
).map(b"".join)


def line(who: str, *sources: str) -> str:
    return relay_line("rack", who, key(who), sources or ("10.0.0.1",))


# -- lines --------------------------------------------------------------------------------------------------------


def test_a_relay_line() -> None:
    assert line("n1", "10.0.0.1", "fd00::1") == (
        'restrict,command="exec sh \\"$HOME\\"/.clusterft/rack/relay.sh",from="10.0.0.1,fd00::1" '
        f"{key('n1')} clusterft:rack:n1"
    )


@pytest.mark.parametrize("public", ["", "ssh-rsa AAAA x", 'ssh-ed25519 AA"A x', "ssh-ed25519", "-o x"])
def test_what_is_no_key_becomes_no_line(public: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        relay_line("rack", "n1", public, ("10.0.0.1",))


def test_a_node_named_controller_is_not_the_controller() -> None:
    wanted = {"controller": line("controller"), CONTROLLER: keyring.controller_line("rack", key("c") + " me@desk")}
    content = edit(b"", "rack", wanted).content
    assert [owner(one, "rack") for one in content.splitlines()] == ["controller", CONTROLLER]
    assert edit(content, "rack", wanted).words == ""
    assert edit(content, "rack", {"controller": line("controller")}, [CONTROLLER]).content == content
    assert edit(content, "rack", {CONTROLLER: wanted[CONTROLLER]}).content == f"{wanted[CONTROLLER]}\n".encode()


@given(noise, st.dictionaries(names, st.lists(addresses, min_size=1, max_size=3), max_size=4))
def test_lines_come_and_go_without_a_trace(before: bytes, peers: dict[str, list[str]]) -> None:
    wanted = {who: line(who, *sources) for who, sources in peers.items()}
    made = edit(before, "rack", wanted)
    assert made.added == len(wanted) and made.content.endswith(before)
    assert edit(made.content, "rack", wanted) == keyring.Edited(made.content)
    gone = edit(made.content, "rack", {})
    assert gone.content == before and gone.removed == len(wanted)


@given(noise, noise, st.permutations(["n1", "n2", "n3"]), st.sets(st.sampled_from(["n1", "n2", "n3"])))
def test_only_what_differs_is_touched(before: bytes, after: bytes, order: list[str], keep: set[str]) -> None:
    """Lines of ours amid others: one is right, one has changed, one is no longer wanted."""
    start = before + b"\n" + b"".join(f"{line(who)}\n".encode() + after + b"\n" for who in order)
    wanted = {"n1": line("n1"), "n2": line("n2", "10.9.9.9")}
    made = edit(start, "rack", wanted, keep)
    gone = b"" if "n3" not in keep else f"{line('n3')}\n".encode()
    expected = start.replace(f"{line('n2')}\n".encode(), f"{line('n2', '10.9.9.9')}\n".encode())
    assert made.content == expected.replace(f"{line('n3')}\n".encode(), gone)
    assert (made.added, made.changed, made.removed) == (0, 1, 0 if "n3" in keep else 1)


def test_the_same_line_twice_becomes_one() -> None:
    assert (
        edit(f"{line('n1')}\n{line('n1')}".encode(), "rack", {"n1": line("n1")}).content
        == f"{line('n1')}\n".encode()
    )


def test_what_changed_is_a_sentence() -> None:
    assert keyring.Edited(b"", 2, 1, 0).words == "authorized_keys: 2 lines added, 1 line changed"
    assert keyring.Edited(b"").words == ""


# -- members ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"address": "a b"},
        {"address": "-oProxyCommand=x"},
        {"address": "fe80::1%eth0"},
        {"sources": ("10.0.0.0/8",)},
        {"sources": ('10.0.0.1"',)},
        {"host_keys": ("ssh-ed25519 AAAA x",)},
        {"host_keys": ("n2 ssh-ed25519 AAAA",)},
    ],
)
def test_nothing_odd_becomes_a_member(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Member("n1", PLACES, **broken)


# -- files --------------------------------------------------------------------------------------------------------

PLACES = NodePlaces(PurePosixPath("/home/me/.clusterft"), "rack", "n1")
PEERS = {
    "n1": Peer("n1", "10.0.0.1", 22, "me"),
    "n2": Peer("n2", "fd00::2", 2222, "CORP\\me"),
    "n3": Peer("n3", "gpu3.lan", 22, "me"),
}


def test_the_files_of_a_node() -> None:
    keys = {name: (key(name), "ecdsa-sha2-nistp256 AAAA") for name in PEERS}
    files = hostworld.wanted(Member("n1", PLACES), PEERS, keys, "n1 slots=1\nn2 slots=2\n")
    shown = "".join(f"== {file.path} {file.mode:o}\n{file.text}" for file in files if file.text != relay.SCRIPT)
    scenes.same_as_golden(shown, GOLDEN / "files.txt")
    assert [file.path for file in files if file.text == relay.SCRIPT] == [PLACES.relay]


HOMES = [
    "/home/me",
    "/home/me too",
    "/home/50%",
    "/home/${X}",
    '/home/a"b',
    "/home/a'b",
    "/home/a\\n",
    "/home/é",
    "/",
]


@pytest.mark.parametrize("home", HOMES)
def test_ssh_reads_its_config_whatever_the_home_is_called(tmp_path: Path, home: str) -> None:
    """As OpenSSH itself says; what ~ and %d stand for is the business of the account, in the tests on the lab."""
    if not shutil.which("ssh"):
        pytest.skip("no ssh here")
    places = replace(PLACES, root=PurePosixPath(home) / ".clusterft")
    path = tmp_path / "config"
    path.write_text(hostworld.ssh_config(places, tuple(PEERS.values())))
    done = subprocess.run(["ssh", "-G", "-F", str(path), "n2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(one.split(" ", 1) for one in done.stdout.splitlines())
    assert (said["hostname"], said["port"], said["user"]) == ("fd00::2", "2222", "CORP\\me")
    assert (said["hostkeyalias"], said["stricthostkeychecking"], said["batchmode"]) == ("n2", "true", "yes")
    plain = home in ("/home/me", "/")
    assert said["identityfile"] == (
        str(places.relay_key) if plain else "%d/.clusterft/rack/nodes/n1/relay_ed25519"
    )
    assert said["userknownhostsfile"].endswith("/.clusterft/rack/nodes/n1/known_hosts")


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", "a\nb", 'a"b', "a%h", "${HOME}", "#a", "a\\"])
def test_a_login_name_that_would_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="login name"):
        hostworld.user(name)


# -- answers ------------------------------------------------------------------------------------------------------


def answer(*lines: str, word: str = "w0rd") -> str:
    return "noise" + "".join(f"\n{word} {one}\n" for one in lines)


def test_what_is_seen() -> None:
    keys = base64.b64encode(b"ssh-rsa \xff").decode()
    token = "0" * 32
    told = ("made relay key made", "user me", "login 10.0.0.9 5000 10.0.0.1 22", f"public {key('p')} c")
    there = ("file 1 600 abc", "file 2 link -", f"token {token}", f"own {token}", "nat n2 10.9.9.9")
    out = answer(*told, *there, f"keys {keys}", "end")
    known = seen.parse(out, "w0rd", 3)
    assert known.user == "me" and known.sshd == ("10.0.0.1", 22) and known.public == f"{key('p')} c"
    assert known.files == (None, ("600", "abc"), ("link", "-"))
    assert known.keys == b"ssh-rsa \xff" and known.token == token and known.tokens == {token}
    assert known.nat == (("n2", "10.9.9.9"),) and known.made == ("relay key made",) and not known.fresh


@pytest.mark.parametrize("garbage", ["", "\ufffd\0x", "ssh-rsa AAAA me", "ssh-ed25519", "ssh-ed25519 A{A"])
def test_what_is_no_public_key_is_none(garbage: str) -> None:
    assert seen.parse(answer("user me", f"public {garbage}", "end"), "w0rd", 0).public is None


def test_half_an_answer_is_none() -> None:
    with pytest.raises(Unreadable):
        seen.parse(answer("user me", "keys AAAA"), "w0rd", 0)
    with pytest.raises(Refused, match="no room"):
        seen.parse(answer("refused no room"), "w0rd", 0)
    with pytest.raises(Unreadable, match="authorized_keys"):
        seen.parse(answer("keys A!", "end"), "w0rd", 0)


@given(st.text())
def test_any_answer_is_read_or_refused(text: str) -> None:
    for out in (text, answer(*text.split("\n"), "end")):
        try:
            seen.parse(out, "w0rd", 2)
        except (Unreadable, Refused):
            pass


@pytest.mark.parametrize(
    ("nodes", "groups"),
    [
        ({"a": glimpse("1"), "b": glimpse("2")}, (("a",), ("b",))),
        ({"a": glimpse("1", "2"), "b": glimpse("2", "1"), "c": glimpse("3")}, (("a", "b"), ("c",))),
        (
            {"a": glimpse("1", "2"), "b": glimpse("2")},
            (("a",), ("b",)),
        ),  # a copy of b's home, made before b knew a
        ({"a": glimpse(None), "b": glimpse(None)}, (("a",), ("b",))),
        ({}, ()),
    ],
)
def test_who_shares_a_home(nodes: dict[str, Seen], groups: tuple[tuple[str, ...], ...]) -> None:
    assert seen.filesystems(nodes) == groups


# -- findings -----------------------------------------------------------------------------------------------------

WORDS = {
    "denied": "me@10.0.0.2: Permission denied (publickey).",
    "refused": "ssh: connect to host 10.0.0.2 port 22: Connection refused",
    "silent": "ssh: connect to host 10.0.0.2 port 22: Connection timed out",
    "killed": "ssh ended with exit code 124: timed out",
    "no_route": "ssh: connect to host 10.0.0.2 port 22: No route to host",
    "name": "ssh: Could not resolve hostname far: Name or service not known",
    "changed": "@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
    "unknown": "No ED25519 host key is known for n2 and you have requested strict checking.\nHost key verif...",
    "busy": "kex_exchange_identification: Connection closed by remote host",
    "odd": "clusterft-relay: this key reads blobs of a ship session, no more",
}


def test_each_reason_has_its_finding() -> None:
    shown = ""
    for name, words in WORDS.items():
        for opened in ((), {("n1", "n2")}) if name == "denied" else ((),):
            (finding,) = proof.findings(proof.Proof({}, {("n1", "n2"): words}), opened)
            shown += f"== {name}\n" + "".join(
                f"{key}: {value}\n" for key, value in finding.to_dict().items() if value
            )
    scenes.same_as_golden(shown, GOLDEN / "findings.txt")


def test_many_pairs_make_one_finding() -> None:
    refused = {(f"n{i}", f"n{j}"): WORDS["silent"] for i in range(8) for j in range(8) if i != j}
    (finding,) = proof.findings(proof.Proof({}, refused))
    assert finding.status == "warn" and len(finding.nodes) == 8 and finding.summary.startswith("56 pairs")
    assert finding.evidence.count("\n") == 6 and finding.evidence.endswith("and 50 more pairs")


class Five:
    """A fleet of nodes that nobody is connected to."""

    def each(self, work: Callable[[str, Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in "abcde":
            try:
                found[name] = work(name, None)
            except Unreachable as error:
                found[name] = error
        return found


def test_what_a_node_says_becomes_its_finding() -> None:
    said = {
        "a": Refused("tar: ./0: Cannot write: No space left on device"),
        "b": Refused("ssh-keygen is not there"),
        "c": Unreadable("the answer is not whole"),
        "d": Unreachable("ssh.timeout", "gone", fix=("wait",)),
        "e": ValueError("the login name 'x y' cannot be written into ssh_config"),
    }

    def fail(name: str, remote: Remote) -> None:
        raise said[name]

    found = wire.each(Five(), tuple(said), fail)
    ids = {name: finding.id for name, finding in found.items() if isinstance(finding, Finding)}
    assert ids == {"a": "os.disk-full", "b": "ssh.client", "c": "fs.home", "d": "ssh.timeout", "e": "fs.home"}
