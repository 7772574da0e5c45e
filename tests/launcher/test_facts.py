"""Proves that the probe survives every shell and every name, and that its answers are read or honestly unknown."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import scenes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clusterft import facts
from clusterft.facts import Asked, Disk, Mount, NodeFacts, Unreadable

WORD = "5eed5eed5eed5eed"
ASKED = Asked(WORD, ("10.0.0.11",), ("/mnt/out",), sent=1699999999.0, received=1700000001.0)
ANSWERS = sorted((scenes.GOLDEN / "probe").glob("*.txt"))
SHELLS = [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")]


def read(name: str) -> NodeFacts:
    """One recorded answer."""
    return facts.parse("gpu1", (scenes.GOLDEN / "probe" / f"{name}.txt").read_text(encoding="utf-8"), ASKED)


def as_json(found: NodeFacts) -> str:
    """All facts, sets in order."""
    return json.dumps(dataclasses.asdict(found), indent=1, default=sorted) + "\n"


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.stem)
def test_a_recorded_answer_is_read_as_before(path: Path) -> None:
    scenes.same_as_golden(as_json(read(path.stem)), path.with_suffix(".json"))


def test_a_healthy_answer_is_read_whole() -> None:
    found = read("ubuntu")
    assert found.clock_offset == 0.25 and found.listening == {22, 631, 29500}
    assert (found.uid, found.user, found.home, found.cores) == (1000, "ubuntu", "/home/ubuntu", 32)
    assert found.memory == 131890232 * 1024 and found.shm == 65945116 * 1024
    assert [(card.index, card.memory, card.used) for card in found.gpus] == [(0, 24576, 312), (1, 24576, 4)]
    root = Mount("/dev/nvme0n1p2", "/", "ext4", "rw,relatime")
    assert found.disks == (Disk("/mnt/out", "/dev/nvme0n1p2", "/", 857902096 * 1024, 60515923, True, root),)
    assert found.routes == (("10.0.0.11", "enp65s0", "10.0.0.12"),)
    assert found.controller_route == ("eno1", "10.0.0.12") and found.login_address == "10.0.0.12"


def test_noise_before_and_between_the_frames_changes_no_later_answer() -> None:
    noisy, clean = read("noisy"), read("ubuntu")
    assert dataclasses.replace(noisy, home=clean.home) == clean


def test_what_a_bare_node_cannot_tell_is_unknown_and_never_a_default() -> None:
    known = {name: value for name, value in dataclasses.asdict(read("bare")).items() if value not in (None, ())}
    kernel = "Linux 6.8.0-48-generic x86_64"
    assert known == {"node": "gpu1", "hostname": "gpu1", "kernel": kernel, "arch": "x86_64"}


def test_filesystems_without_a_count_of_inodes_are_not_full() -> None:
    assert [read(name).disks[0].free_inodes for name in ("btrfs", "busybox")] == [None, None]
    assert read("quota_full").disks[0].free_inodes == 0
    assert read("quota_full").disks[0].free_bytes == -1424 * 1024


def test_shares_with_spaces_in_their_names_are_read() -> None:
    (share,) = read("nas_with_spaces").disks
    assert (share.device, share.mounted_on, share.writable) == ("//nas/my share", "/mnt/my share", False)


def test_a_card_that_hides_its_memory_is_still_a_card() -> None:
    assert [(card.memory, card.used) for card in read("unified_memory").gpus] == [(None, None)]
    assert [(card.memory, card.used) for card in read("mig").gpus] == [(81559, None), (81559, 120)]
    assert read("driver_broken").gpus == ()


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("203.0.113.9 50122 10.0.0.12 22", "10.0.0.12"),
        ("2001:db8::9 50122 2001:db8::12 22", "2001:db8::12"),
        ("fe80::9%eth0 50122 fe80::12%eth0 22", None),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("203.0.113.9 50122 10.0.0.12", None),
        ("", None),
    ],
)
def test_only_an_ip_that_others_can_use_is_an_address(said: str, address: str | None) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    changed = whole.replace("10.0.0.2 50122 10.0.0.12 22", said)
    assert facts.parse("gpu1", changed, ASKED).login_address == address


@pytest.mark.parametrize("share", range(1, 20))
def test_an_answer_cut_short_is_no_answer(share: int) -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    with pytest.raises(Unreadable, match="ends after section"):
        facts.parse("gpu1", whole[: len(whole) * share // 20], ASKED)


def test_an_answer_with_a_hole_is_no_answer() -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    for name in ("boot", "route.0", "disk.0"):
        with pytest.raises(Unreadable, match=f"lacks {name}"):
            facts.parse("gpu1", whole.replace(f"-{WORD}-{name}\n", f"-lost-{name}\n"), ASKED)


def test_another_runs_answer_is_no_answer() -> None:
    whole = (scenes.GOLDEN / "probe" / "ubuntu.txt").read_text(encoding="utf-8")
    with pytest.raises(Unreadable):
        facts.parse("gpu1", whole, dataclasses.replace(ASKED, word="0" * 16))


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(facts.probe.section_names(("a",), ("b",))), st.text() | st.just("² ² ²\n")))
def test_no_content_of_a_section_breaks_the_reader(said: dict[str, str]) -> None:
    names = facts.probe.section_names(("10.0.0.11",), ("/mnt/out",))
    whole = "".join(f"--clusterft-{WORD}-{name}\n{said.get(name, '')}\n" for name in names)
    assert facts.parse("gpu1", f"{whole}--clusterft-{WORD}-end\n", ASKED).node == "gpu1"


def ask(shell: tuple[str, ...], peers: tuple[str, ...], disks: tuple[str, ...], home: Path) -> NodeFacts:
    """Run the probe of this very version here, with as little around it as a login over SSH gives."""
    text = facts.script(WORD, peers=peers, disks=disks)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    sent = time.time()
    done = subprocess.run(shell, input=text.encode(), capture_output=True, env=environment, cwd=home, timeout=20)
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
