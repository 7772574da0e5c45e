"""docker's SDK over our channels, on real engines: what it can do, who may, and what is said when it cannot."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from clusterft import hosts
from clusterft.engine import Engine, NoEngine
from clusterft.engine.refusal import refusal
from clusterft.fleet import Fleet
from clusterft.remote import Remote
from clusterft.remote.local import LocalRemote
from lab import FullLab

pytestmark = pytest.mark.lab_full

SUDO = ("sudo", "-n", "docker")
ENGINES = ("20.10", "28.5")
TAG = "clusterft-test-engine:latest"


@pytest.fixture(scope="module")
def lab() -> Iterator[FullLab]:
    with FullLab.up(count=2, engine=ENGINES) as made:
        yield made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def fleet(lab: FullLab, user: str = "root") -> Fleet:
    """Both nodes, as one user."""
    lines = "".join(f"{n.name} slots=1 addr={n.address} user={user} identity={lab.key}\n" for n in lab.nodes)
    return Fleet(hosts.parse(lines, path=Path("rack"), name="rack"), lab.known_hosts)


def an_image(engine: Engine) -> None:
    """An image from nothing but a static program: this machine's own busybox, or its shell's libraries."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted({*_libraries("/bin/sh"), *_libraries("/bin/cat"), *_libraries("/bin/sleep")}):
            tar.add(os.path.realpath(path), arcname=path)
    engine.api.import_image_from_data(packed.getvalue(), repository=TAG.split(":")[0], tag="latest")


def contain(engine: Engine, *command: str) -> str:
    """A container without a network, which engines of some lab nodes cannot make."""
    alone = engine.api.create_host_config(network_mode="none")
    return str(engine.api.create_container(TAG, list(command), host_config=alone)["Id"])


def _libraries(program: str) -> list[str]:
    words = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split()
    return [program, *(word for word in words if word.startswith("/"))]


def _seconds_of(engine: Engine) -> float:
    began = time.monotonic()
    engine.api.ping()
    return time.monotonic() - began


def exercise(remote: Remote, command: tuple[str, ...] = ("docker",)) -> None:
    """What the rooms above need of an engine."""
    with Engine(remote, command) as engine:
        api = engine.api
        assert api.api_version == "1.41" and engine.about["Version"] == api.version()["Version"]
        assert api.info()["DockerRootDir"]
        an_image(engine)
        made = contain(engine, "/bin/sh", "-c", "echo one; echo two >&2; read x </in && echo $x; exit 3")
        try:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                entry = tarfile.TarInfo("in")
                entry.size = 6
                tar.addfile(entry, io.BytesIO(b"three\n"))
            assert api.put_archive(made, "/", packed.getvalue())
            parts, stat = api.get_archive(made, "/in")
            with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
                read = tar.extractfile("in")
                assert stat["name"] == "in" and read is not None and read.read() == b"three\n"
            api.start(made)
            assert api.wait(made)["StatusCode"] == 3
            assert sorted(api.logs(made, stream=True, follow=True)) == [b"one\n", b"three\n", b"two\n"]
        finally:
            api.remove_container(made, force=True)
        with pytest.raises(docker.errors.NotFound):
            api.inspect_container("no-such-container")
        _executes(engine)
        _builds(engine)


def _executes(engine: Engine) -> None:
    api = engine.api
    made = contain(engine, "/bin/sleep", "60")
    try:
        api.start(made)
        for _ in range(20):  # an answer that comes together with the headers must not be lost
            run = api.exec_create(made, ["/bin/sh", "-c", "echo out; echo err >&2; exit 5"])
            assert api.exec_start(run, demux=True) == (b"out\n", b"err\n")
            assert api.exec_inspect(run)["ExitCode"] == 5
        talk = api.exec_start(api.exec_create(made, ["/bin/cat"], stdin=True, tty=True), tty=True, socket=True)
        talk.sendall(b"hello\n")
        heard = b""
        while b"hello\r\n" not in heard:
            heard += talk.recv(100)
        talk.close()
    finally:
        api.remove_container(made, force=True)


def _builds(engine: Engine) -> None:
    api = engine.api
    said = list(api.build(fileobj=io.BytesIO(f"FROM {TAG}\nLABEL a=b\n".encode()), tag=TAG, decode=True, rm=True))
    assert any("Successfully built" in line.get("stream", "") for line in said), said
    fails = io.BytesIO(f"FROM {TAG}\nRUN exit 9\n".encode())
    wrong = list(api.build(fileobj=fails, decode=True, forcerm=True, network_mode="host"))
    assert any("returned a non-zero code: 9" in line.get("error", "") for line in wrong), wrong
    saved = b"".join(api.get_image(TAG))
    api.remove_image(TAG, force=True)
    with pytest.raises(docker.errors.ImageNotFound):
        api.inspect_image(TAG)
    pieces = (saved[start : start + 100_000] for start in range(0, len(saved), 100_000))
    assert any("Loaded image" in line.get("stream", "") for line in api.load_image(pieces))
    assert api.inspect_image(TAG)["Config"]["Labels"]["a"] == "b"
    api.remove_image(TAG, force=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_everything_over_ssh_as_root(lab: FullLab, engine: str) -> None:
    with fleet(lab) as connected:
        exercise(connected.remotes[f"n{1 + ENGINES.index(engine)}"])


def test_everything_on_this_machine() -> None:
    exercise(LocalRemote())


@pytest.mark.parametrize(
    ("user", "command", "refused"),
    [
        ("worker", ("docker",), ""),
        ("sudoer", SUDO, ""),
        ("sudoer", ("docker",), "dk.perm"),
        ("guest", ("docker",), "dk.perm"),
        ("guest", SUDO, "dk.perm"),
        ("worker", ("no-such-docker",), "dk.absent"),
        ("worker", ("docker", "-H", "unix:///run/nobody.sock"), "dk.down"),
        ("worker", ("sh", "-c", "echo Welcome to this machine", "sh"), "ssh.noisy-shell"),
    ],
)
def test_who_may_and_what_is_said_to_the_others(
    lab: FullLab, user: str, command: tuple[str, ...], refused: str
) -> None:
    with fleet(lab, user) as connected:
        assert connected.unreached == []
        for remote in connected.remotes.values():
            if not refused:
                with Engine(remote, command) as engine:
                    assert engine.api.info()["ServerVersion"] == engine.about["Version"]
                continue
            with pytest.raises(NoEngine) as problem:
                Engine(remote, command)
            assert problem.value.id == refused and problem.value.fix is not None and problem.value.what


def test_an_engine_that_goes_down_is_named_and_can_be_used_again(lab: FullLab) -> None:
    with fleet(lab) as connected:
        node = lab.node("n1")
        with Engine(connected.remotes["n1"]) as engine:
            node.stop_engine()
            try:
                with pytest.raises(NoEngine) as problem:
                    engine.api.info()
                assert problem.value.id == "dk.down"
                assert problem.value.finding("n1").nodes == ("n1",)
            finally:
                node.start_engine()
            assert engine.api.ping()


def test_many_at_once_share_a_few_channels(lab: FullLab) -> None:
    """sshd would refuse the eleventh session."""
    with fleet(lab) as connected, Engine(connected.remotes["n2"]) as engine:
        seen: list[str] = []
        threads = [
            threading.Thread(target=lambda: seen.append(engine.api.version()["Version"])) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(seen) == 30 and len(set(seen)) == 1
        assert connected.remotes["n2"].run(("true",)).code == 0
        assert min(_seconds_of(engine) for _ in range(5)) < 0.5


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_gigabytes_pass_without_memory(lab: FullLab, engine: str) -> None:
    """An image of one large layer: loaded from a generator, saved into a digest."""
    size = 600 << 20
    with fleet(lab) as connected, Engine(connected.remotes[f"n{1 + ENGINES.index(engine)}"]) as one:
        before = _peak()
        one.api.import_image_from_stream(_layer(size), repository="clusterft-test-big", tag="latest")
        try:
            digest, count = hashlib.sha256(), 0
            for chunk in one.api.get_image("clusterft-test-big:latest"):
                digest.update(chunk)
                count += len(chunk)
            assert count > size
        finally:
            one.api.remove_image("clusterft-test-big:latest", force=True)
        assert _peak() - before < 60 << 20


def _layer(size: int) -> Iterator[bytes]:
    """A tar with one file that does not shrink."""
    entry = tarfile.TarInfo("big")
    entry.size = size
    yield entry.tobuf()
    block = os.urandom(1 << 20)
    for _ in range(size >> 20):
        yield block
    yield bytes(1024)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    ("code", "words", "identity"),
    [
        (1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?", "dk.down"),
        (
            1,
            "Got permission denied while trying to connect to the Docker daemon socket at unix:///",
            "dk.perm",
        ),
        (1, "dial unix /var/run/docker.sock: connect: permission denied", "dk.perm"),
        (1, "sudo: a password is required", "dk.perm"),
        (1, "guest is not in the sudoers file.", "dk.perm"),
        (127, "sh: 1: docker: not found", "dk.absent"),
        (127, "bash: line 1: docker: command not found", "dk.absent"),
        (1, "sudo: docker: command not found", "dk.absent"),
        (1, "docker: 'dial-stdio' is not a docker command.\nSee 'docker --help'", "dk.old"),
        (1, "", "dk.down"),
        (1, "dial unix /nowhere: connect: no such file or directory", "dk.down"),
    ],
)
def test_the_words_of_dockers_client_have_names(code: int, words: str, identity: str) -> None:
    found = refusal(code, words, SUDO if "sudo" in words else ("docker",))
    assert found.id == identity and found.fix and (words in found.what or not words)
