"""Proves that the probe survives every shell, every name and whatever hangs, and leaves nothing on the node."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterft import facts
from clusterft.facts import Asked, NodeFacts

WORD = "5eed5eed5eed5eed"
SHELLS = [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")]


def ask(
    shell: tuple[str, ...], peers: tuple[str, ...], disks: tuple[str, ...], home: Path, path: str = ""
) -> NodeFacts:
    """Run the probe of this very version here, with as little around it as a login over SSH gives."""
    text = facts.script(WORD, peers=peers, disks=disks)
    environment = {"PATH": path or os.environ["PATH"], "HOME": str(home)}
    sent = time.time()
    done = subprocess.run(shell, input=text.encode(), capture_output=True, env=environment, cwd=home, timeout=30)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return facts.parse("here", done.stdout.decode(), Asked(WORD, peers, disks, sent, time.time()))


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_posix_shell_gives_the_same_answer(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    found = ask(shell, ("127.0.0.1",), (str(tmp_path / "not" / "yet"), "."), tmp_path)
    assert found.uid == os.getuid() and found.home == str(tmp_path) and found.hostname == os.uname().nodename
    assert found.cores and found.memory and found.boot_id
    assert found.clock_offset is not None and abs(found.clock_offset) < 5
    assert [disk.directory for disk in found.disks] == [str(tmp_path / "not" / "yet"), "."]
    assert all(disk.writable and disk.free_bytes > 0 for disk in found.disks)


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
nasty = st.sampled_from(
    [
        "",
        "-",
        "--",
        "!",
        "(",
        ")",
        "=",
        "-d",
        "~",
        "$HOME",
        "`touch broken`",
        "$(touch broken)",
        "'; touch broken; '",
    ]
    + ['"; touch broken; "', "a\nb", "\n", "x\n\n", "a'b", "\\", "*", "//", "./-n", "&& touch broken", "\r", "\t"]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(names | nasty, max_size=3), st.lists(names | nasty, max_size=4))
@example(["$(touch broken)", "';touch broken;'"], ["a/$(touch broken)/b", 'it\'s "here"/\n/x', "-rf"])
def test_no_name_breaks_out_of_its_quotes(
    tmp_path_factory: pytest.TempPathFactory, peers: list[str], disks: list[str]
) -> None:
    home = tmp_path_factory.mktemp("home")
    found = ask(("sh",), tuple(peers), tuple(disks), home)
    assert [disk.directory for disk in found.disks] == disks  # each has a nearest parent
    assert list(home.iterdir()) == [], "a name was run as a command"


TOOLS = "awk cat date df dirname getent grep id ip ls nproc readlink sed sleep timeout uname".split()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A PATH of one's own, with the usual tools in it."""
    return Desk(tmp_path)


class Desk:
    """A machine whose commands are what a test says."""

    def __init__(self, home: Path) -> None:
        self.home, self.bin = home, home / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)

    def put(self, name: str, body: str) -> None:
        """A command in place of the real one."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def ask(self, shell: tuple[str, ...] = ("sh",)) -> tuple[NodeFacts, float]:
        """The facts, and how long they took; nothing of the probe may be left running."""
        full = shutil.which(shell[0])
        if full is None:
            pytest.skip(f"{shell[0]} is not installed")
        begun = time.monotonic()
        found = ask((full, *shell[1:]), (), (), self.home, str(self.bin))
        took = time.monotonic() - begun
        deadline = time.monotonic() + 5
        while left := self._left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)
        return found, took

    def _left(self) -> list[str]:
        """Processes that still run with the home of this test."""
        mine, left = f"HOME={self.home}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (process / "environ").read_bytes().split(b"\0"):
                    left.append((process / "cmdline").read_text())
            except OSError:
                continue
        return left


SERVER = '{"Version":"26.1.5","ApiVersion":"1.45","Arch":"amd64"}'
INFO = (
    '{"DockerRootDir":"/","Driver":"overlay2","DriverStatus":[["Supports d_type","true"]],"Runtimes":{"runc":{}}}'
)
WORKS = f"""case $1 in version) echo '{SERVER}' ;; info) echo '{INFO}' ;; esac"""
DENIES = "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1"
# The engine lets in whom the fake sudo has let through.
ROOT_ONLY = f'if [ "$AS_ROOT" ]; then {WORKS}; else {DENIES}; fi'
HANGS = "exec sleep 60"
ESCAPES = "exec setsid sleep 9"  # and keeps the answer open, as one asleep in the kernel would
DEAF = "trap '' TERM; sleep 60"


def test_an_old_driver_is_asked_again_without_what_it_does_not_know(desk: Desk) -> None:
    desk.put(
        "nvidia-smi",
        """case "$*" in
        *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; echo; exit 2 ;;
        *query-gpu*) echo '0, GPU-a, Tesla K80, 11441, 0, 470.256.02, 00000000:00:1E.0, Disabled, 1, 3, 16, 16' ;;
        esac""",
    )
    (card,) = desk.ask()[0].gpus
    assert (card.name, card.memory, card.compute_cap, card.processes) == ("Tesla K80", 11441, None, None)


def test_a_new_driver_is_asked_once(desk: Desk) -> None:
    row = "0, GPU-a, NVIDIA L4, 23034, 0, 580.65.06, 00000000:00:1E.0, Disabled, 1, 4, 16, 16, 8.9"
    desk.put("nvidia-smi", f"""echo "$*" >>"$HOME/asked"; case "$*" in *query-gpu*) echo '{row}' ;; esac""")
    (card,) = desk.ask()[0].gpus
    assert card.compute_cap == "8.9" and len((desk.home / "asked").read_text().splitlines()) == 2


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(
    ("docker", "sudo", "state", "command", "words"),
    [
        (WORKS, None, "ok", ("docker",), ""),
        (
            f"echo 'WARNING: bad config' >&2; {WORKS}",
            None,
            "ok",
            ("docker",),
            "WARNING: bad config\nWARNING: bad config",
        ),
        (f"echo 'WARNING: config.json: permission denied' >&2; {WORKS}", "exit 1", "ok", ("docker",), "WARNING"),
        (DENIES, None, "denied", (), "permission denied"),
        (DENIES, "echo 'sudo: a password is required' >&2; exit 1", "denied", (), "permission denied"),
        (DENIES, "echo 'Sorry, user me may not run sudo on gpu1.' >&2; exit 1", "denied", (), "permission denied"),
        (ROOT_ONLY, 'shift; AS_ROOT=1 exec "$@"', "ok", ("sudo", "-n", "docker"), ""),
        (
            f'[ "$AS_ROOT" ] || {{ {DENIES}; }}; echo "Cannot connect to the Docker daemon"; exit 1',
            'shift; AS_ROOT=1 exec "$@"',
            "down",
            (),
            "Cannot connect",
        ),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", None, "down", (), "Cannot connect"),
        (None, None, "absent", (), "there is no docker command"),
    ],
    ids="works warns warns-of-denial denied sudo-asks sudo-refuses sudo sudo-down down absent".split(),
)
def test_every_shell_finds_the_way_to_the_engine(  # noqa: PLR0913 - one row of the table above
    desk: Desk,
    shell: tuple[str, ...],
    docker: str | None,
    sudo: str | None,
    state: str,
    command: tuple[str, ...],
    words: str,
) -> None:
    for name, body in (("docker", docker), ("sudo", sudo)):
        if body:
            desk.put(name, body)
    found = desk.ask(shell)[0].docker
    assert found and (found.state, found.command) == (state, command), found
    assert words in found.words and bool(words) == bool(found.words)
    if state == "ok":
        assert (found.root, found.mounted_on, found.runtimes) == ("/", "/", ("runc",)) and found.free_bytes


@pytest.mark.parametrize(
    ("shell", "tool"),
    [
        (("sh",), "timeout"),
        pytest.param(("busybox", "sh"), "timeout", marks=pytest.mark.long),
        (("sh",), "no timeout"),
        pytest.param(("bash", "--posix"), "no timeout", marks=pytest.mark.long),
        pytest.param(("busybox", "sh"), "old timeout", marks=pytest.mark.long),
    ],
)
def test_an_engine_that_hangs_costs_its_own_section_and_leaves_nothing(
    desk: Desk, shell: tuple[str, ...], tool: str
) -> None:
    desk.put("docker", DEAF if tool == "timeout" else HANGS)  # some engines' commands take no notice of a TERM
    if tool == "no timeout":
        (desk.bin / "timeout").unlink()
    elif tool == "old timeout":
        desk.put("timeout", "echo 'Usage: timeout [-t SECS] [-s SIG] PROG ARGS' >&2; exit 1")
    found, took = desk.ask(shell)
    assert found.docker and (found.docker.state, found.docker.words) == (
        "down",
        "no answer to `docker version` within 4 s",
    )
    assert found.cores and found.memory and found.home_room and took < 10


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_of_a_directory_that_is_not_there_it_is_told_what_is_beside_its_place(
    shell: tuple[str, ...], tmp_path: Path
) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    for name in ("shared", "a b", "deep/er"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("shared")
    (tmp_path / "file").touch()
    there, lacking = str(tmp_path / "shared"), str(tmp_path / "sharde" / "out")
    found = {disk.directory: disk for disk in ask(shell, (), (there, lacking), tmp_path).disks}
    assert (found[there].above, found[there].beside) == (None, ())
    assert found[lacking].above == str(tmp_path)
    assert set(found[lacking].beside) == {"a b", "deep", "link", "shared"}


def test_a_share_that_hangs_costs_its_own_section(desk: Desk) -> None:
    desk.put("dirname", "exec sleep 9")
    nowhere = str(desk.home / "not" / "yet")
    found = ask(("sh",), (), (nowhere, "/"), desk.home, f"{desk.bin}:{os.environ['PATH']}")
    assert [disk.directory for disk in found.disks] == ["/"] and found.cores and found.home_room


@pytest.mark.parametrize(
    "shell", [("sh",), pytest.param(("bash", "--posix"), marks=pytest.mark.long)], ids=" ".join
)
def test_what_cannot_be_killed_does_not_hold_up_the_answer(desk: Desk, shell: tuple[str, ...]) -> None:
    (desk.bin / "setsid").symlink_to(shutil.which("setsid") or "setsid")
    desk.put("docker", ESCAPES)
    full = shutil.which(shell[0]) or shell[0]
    began = time.monotonic()
    found = ask((full, *shell[1:]), (), (), desk.home, str(desk.bin))
    assert time.monotonic() - began < 8.5
    assert found.docker and found.docker.words == "no answer to `docker version` within 4 s" and found.home_room


def test_an_engine_that_hangs_for_root_alone_is_ended_by_root(desk: Desk) -> None:
    desk.put("docker", f'if [ "$AS_ROOT" ]; then {HANGS}; else {DENIES}; fi')
    desk.put("sudo", 'shift; AS_ROOT=1 exec "$@"')
    desk.put("kill", 'echo "$*" >>"$HOME/killed"; kill "$@"')
    found, took = desk.ask()
    assert found.docker and found.docker.state == "down" and took < 10
    assert (desk.home / "killed").exists()


def test_what_a_daemon_says_of_its_root_is_never_run(desk: Desk) -> None:
    info = INFO.replace('"/"', '"/nowhere/$(touch broken)`touch broken`; touch broken"')
    desk.put("docker", f"""case $1 in version) echo '{SERVER}' ;; info) echo '{info}' ;; esac""")
    found = desk.ask()[0].docker
    assert found and found.state == "ok" and found.mounted_on == "/" and not (desk.home / "broken").exists()
