"""The forced command, in the shells it meets: what it gives, what it refuses."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft import relay

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell[0]), reason=f"{shell[0]} is not here"))
    for shell in (("dash",), ("bash", "--posix"), ("busybox", "sh"))
]
SESSION = "0123456789abcdef"


class Peer:
    """A node's end: the script where `up` puts it, and a session in /var/tmp."""

    def __init__(self, home: Path, shell: tuple[str, ...]) -> None:
        self.cluster = f"test relay-{secrets.token_hex(4)}"
        self.shell = shell
        self.script = home / ".clusterft" / self.cluster / "relay.sh"
        self.script.parent.mkdir(parents=True)
        self.script.write_text(relay.SCRIPT)
        self.top = Path(f"/var/tmp/clusterft-{os.getuid()}")
        self.blobs = self.top / self.cluster / SESSION / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, mode=0o700)

    def asked(self, request: str) -> subprocess.Popen[bytes]:
        """What sshd would start for that request."""
        environ = {
            "PATH": os.environ["PATH"],
            "SSH_ORIGINAL_COMMAND": request,
            "SSH_CONNECTION": "198.18.0.1 40000 198.18.0.2 22",
        }
        argv = [*self.shell, str(self.script)]
        return subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def answer(self, request: str) -> tuple[int, bytes, bytes]:
        """(exit code, stdout, stderr)."""
        process = self.asked(request)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err


@pytest.fixture(params=SHELLS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path, request.param)
    yield made
    shutil.rmtree(made.top / made.cluster)
    with contextlib.suppress(OSError):  # others may be using it
        made.top.rmdir()


def named(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lead(digest: str, offset: int) -> bytes:
    return f"\n{relay.serving(digest, offset)}\n".encode()


def test_hello_says_how_the_caller_was_seen(peer: Peer) -> None:
    code, out, _ = peer.answer(relay.hello())
    assert code == 0
    noisy = "motd without a line's end" + out.decode()
    assert relay.heard(noisy) == relay.Heard("198.18.0.1", 40000, "198.18.0.2", 22)
    assert relay.heard("clusterft-relay 2 a 1 b 2\nclusterft-relay 1 a x b 2\n") is None


@pytest.mark.parametrize("offset", [0, 1, 70_000, 200_000])
def test_a_whole_blob_from_an_offset(peer: Peer, offset: int) -> None:
    data = os.urandom(200_000)
    (peer.blobs / named(data)).write_bytes(data)
    code, out, err = peer.answer(relay.serve(SESSION, named(data), offset, len(data)))
    assert (code, err) == (0, b"")
    assert out == lead(named(data), offset) + data[offset:]


def test_a_blob_that_grows_and_gets_its_name(peer: Peer) -> None:
    data = os.urandom(3_000_000)
    final = peer.blobs / named(data)
    part = final.with_name(final.name + ".part")

    def grow() -> None:
        time.sleep(0.3)  # it is not even there when the request comes
        with part.open("wb", buffering=0) as out:
            for start in range(0, len(data), 500_000):
                out.write(data[start : start + 500_000])
                time.sleep(0.15)
        part.rename(final)

    grower = threading.Thread(target=grow)
    grower.start()
    # From beyond what is there at first: a node that already has more than its source.
    code, out, err = peer.answer(relay.serve(SESSION, named(data), 1_200_000, len(data)))
    grower.join()
    assert (code, err) == (0, b"")
    assert out == lead(named(data), 1_200_000) + data[1_200_000:]


def test_it_ends_when_its_client_is_gone(peer: Peer) -> None:
    data = os.urandom(1_000_000)
    (peer.blobs / (named(data) + ".part")).write_bytes(data)
    process = peer.asked(relay.serve(SESSION, named(data), 0, len(data) + 1))
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    process.wait(timeout=5)
    process.communicate()


BAD = [
    "",
    "sh",
    "hello there",
    "serve",
    f"serve {SESSION} {'a' * 64} 0",
    f"serve {SESSION} {'a' * 64} 0 1 2",
    f"serve {SESSION} {'A' * 64} 0 1",
    f"serve {SESSION} {'a' * 63} 0 1",
    f"serve {SESSION} {'a' * 64} 00 1",
    f"serve {SESSION} {'a' * 64} -1 1",
    f"serve {SESSION} {'a' * 64} 0 9999999999999999",
    f"serve {SESSION} {'a' * 64} 0x1 1",
    f"serve {SESSION} {'../' * 21}a 0 1",
    f"serve {'../' * 5}a {'a' * 64} 0 1",
    f"serve {SESSION} {'a' * 64} 0 1; id",
    f"serve {SESSION} {'a' * 64} 0 1\nid",
    f"serve {SESSION} {'a' * 64} 0 $(id)",
    f"serve {SESSION} {'a' * 64} 0 *",
    f"serve ffffffffffffffff {'a' * 64} 0 1",
]


@pytest.mark.parametrize("request_", BAD)
def test_it_refuses_everything_else(peer: Peer, request_: str) -> None:
    code, out, err = peer.answer(request_)
    assert code == 65 and out == b"" and err.startswith(b"clusterft-relay: "), (code, out, err)


@pytest.mark.parametrize("place", ["session", "blobs", "blob"])
def test_it_follows_no_link(peer: Peer, tmp_path: Path, place: str) -> None:
    data = b"somebody else's"
    outside = tmp_path / "outside"
    outside.mkdir()
    moved = {"session": peer.blobs.parent.parent, "blobs": peer.blobs, "blob": peer.blobs / named(data)}[place]
    (peer.blobs / named(data)).write_bytes(data)
    moved.rename(outside / "it")
    moved.symlink_to(outside / "it")
    process = peer.asked(relay.serve(SESSION, named(data), 0, len(data)))
    if place == "blob":  # as if it were not there; it would wait half a minute
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        process.kill()
        out, _ = process.communicate()
    else:
        out, _ = process.communicate(timeout=10)
        assert process.returncode == 65
    assert out == b""


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=120))
def test_no_request_becomes_a_command(text: str) -> None:
    """Whatever is asked, nothing but the two answers ever comes out."""
    environ = {"PATH": os.environ["PATH"], "SSH_ORIGINAL_COMMAND": f"serve {text}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["sh", "-c", relay.SCRIPT, "/nowhere/none/relay.sh"], env=environ, capture_output=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (65, b"")
    assert done.stderr.startswith(b"clusterft-relay: ")
