"""The files of a run's containers: golden text, and what OpenSSH itself makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft.errors import UsageError
from clusterft.plan.container import Person
from clusterft.provision import worlds
from clusterft.provision.worlds import Box, KeyPair, Keys, World

ME = Person(1000, 1000, "clusterft")
BOXES = (Box("gpu0", "10.0.0.10", 8, listen="10.0.0.10"), Box("gpu1", "fd00::11", 4))
ENV = {"PATH": "/opt/venv/bin:/usr/bin", "WORDS": 'two "words" \\ #1', "EMPTY": ""}
KEYS = Keys(
    KeyPair(b"PRIVATE run\n", "ssh-ed25519 AAAArun clusterft:r"),
    {box.node: KeyPair(f"PRIVATE {box.node}\n".encode(), f"ssh-ed25519 AAAA{box.node}") for box in BOXES},
)


def world(person: Person = ME, **env: str) -> World:
    return World("rack", "astolfo-1", person, 2222, BOXES, env)


@pytest.mark.parametrize("person", [ME, Person(0, 0, "root")], ids=["worker", "root"])
def test_the_files_of_a_container(person: Person) -> None:
    made = worlds.entries(world(person, **ENV), KEYS)
    assert list(made) == ["gpu0", "gpu1"]
    shown = ""
    for entry in made["gpu0"]:
        assert (entry.mode, entry.uid, entry.gid) == (0o600, person.uid, person.gid)
        shown += f"== {entry.path}\n{entry.data.decode()}"
    scenes.same_as_golden(shown, scenes.GOLDEN / "provision" / f"container_{person.name}.txt")
    own = {entry.path.name: entry.data for entry in made["gpu1"]}
    assert own["host_ed25519"] == b"PRIVATE gpu1\n" and b"ListenAddress" not in own["sshd_config"]
    assert len({entry.path for entry in made["gpu1"]}) == len(made["gpu1"])


def test_keys_are_keys_and_are_never_shown(tmp_path: Path) -> None:
    keys = worlds.fresh_keys(["gpu0", "gpu1"], "astolfo-1")
    assert (
        "PRIVATE" not in repr(keys) and len({keys.run.public, *(one.public for one in keys.hosts.values())}) == 3
    )
    if not shutil.which("ssh-keygen"):
        pytest.skip("no ssh-keygen here")
    path = tmp_path / "key"
    path.write_bytes(keys.run.private)
    path.chmod(0o600)
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True)
    assert done.stdout.split()[:2] == keys.run.public.split()[:2] and keys.run.public.endswith(
        " clusterft:astolfo-1"
    )


@pytest.mark.parametrize(
    ("env", "named"),
    [({"A": "x\ny"}, "A holds"), ({"A": "x\0"}, "A holds"), ({"A B": "x"}, "'A B'"), ({"": ""}, "''")],
)
def test_what_sshd_cannot_hand_on_is_refused(env: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        worlds.sshd_config(world(**env), BOXES[0])


@pytest.mark.parametrize("address", ["", "a b", "-oProxyCommand=x", "10.0.0.1 10.0.0.2", "*"])
def test_an_odd_address_is_refused(address: str) -> None:
    odd = World("rack", "r", ME, 2222, (Box("gpu0", address, 1),))
    with pytest.raises(UsageError):
        worlds.config(odd)
    with pytest.raises(UsageError):
        worlds.sshd_config(odd, Box("gpu0", "10.0.0.1", 1, listen=address or "x"))


@pytest.fixture(scope="module")
def desk() -> Iterator[Path]:
    """A directory with a host key; nobody's where root runs the tests, as root's sshd asks for more."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "key").write_bytes(worlds.fresh_keys([], "x").run.private)
        (path / "key").chmod(0o600)
        if os.geteuid() == 0:
            for each in (path, path / "key"):
                os.chown(each, NOBODY, NOBODY)
        yield path


NOBODY = 65534
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
values = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs", "Cc"]), max_size=30)
nasty = st.one_of(values, st.text("\"'\\ #$`=", max_size=8))
variables = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True), nasty, min_size=1, max_size=5
)


@pytest.mark.skipif(SSHD is None, reason="no sshd here")
@settings(max_examples=60, deadline=None)
@given(env=variables)
def test_sshd_reads_the_environment_as_it_is(desk: Path, env: dict[str, str]) -> None:
    assert SSHD is not None
    text = worlds.sshd_config(world(**env), BOXES[0])
    (desk / "config").write_text(text.replace(str(worlds.SSH / "host_ed25519"), str(desk / "key")))
    as_nobody = NOBODY if os.geteuid() == 0 else None
    argv = [SSHD, "-T", "-f", str(desk / "config")]
    done = subprocess.run(argv, capture_output=True, text=True, user=as_nobody)
    assert done.returncode == 0, done.stderr
    said = {line.removeprefix("setenv ") for line in done.stdout.splitlines() if line.startswith("setenv ")}
    assert said == {f"{name}={value}" for name, value in env.items()}
    assert "port 2222" in done.stdout and "passwordauthentication no" in done.stdout


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
@pytest.mark.parametrize("name", ["gpu1", "fd00::11"])
def test_ssh_finds_a_container_by_name_and_by_address(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config"
    path.write_text(worlds.config(world()))
    done = subprocess.run(["ssh", "-G", "-F", str(path), name], capture_output=True, text=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert (said["hostname"], said["port"], said["hostkeyalias"]) == ("fd00::11", "2222", "gpu1")
    assert said["stricthostkeychecking"] == "true" and said["identityfile"] == "/run/clusterft/ssh/id_ed25519"
