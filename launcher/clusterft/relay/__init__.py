"""What one node asks of another: the forced command of the relay keys, and the requests it answers. Pure text.

Owns both ends of the words: who changes a request changes the script beside it. Refuses to know who installs the
script, or how a request travels (`ssh -F <NodePlaces.ssh_config> <peer> '<request>'`).
"""

from __future__ import annotations

from typing import NamedTuple

from clusterft.relay.script import SCRIPT, VERSION

__all__ = ["SCRIPT", "VERSION", "Heard", "heard", "hello", "serve", "serve_around", "serving", "serving_before"]


class Heard(NamedTuple):
    """How a peer saw the caller: $SSH_CONNECTION at its end, the truth about NAT and several cards."""

    client: str
    client_port: int
    server: str
    server_port: int


def hello() -> str:
    """The request that proves a way: the peer answers with what it saw."""
    return "hello"


def heard(out: str) -> Heard | None:
    """The answer to `hello` in a peer's stdout, whatever its .bashrc wrote before; None if there is none."""
    for line in reversed(out.splitlines()):
        words = line.split(" ")
        if words[:2] == ["clusterft-relay", str(VERSION)] and len(words) == 6 and words[3].isdecimal():
            return Heard(words[2], int(words[3]), words[4], int(words[5])) if words[5].isdecimal() else None
    return None


def serve(session: str, digest: str, offset: int, total: int) -> str:
    """The request for a blob's bytes from an offset on; they come as they arrive there, `total` is the whole."""
    return f"serve {session} {digest} {offset} {total}"


def serving(digest: str, offset: int) -> str:
    """The line after which the bytes begin."""
    return f"clusterft-relay {VERSION} blob {digest} {offset}"


def serve_around(session: str, digest: str, total: int) -> tuple[str, str]:
    """The same request before and after its offset, which only the node that asks knows."""
    before, after = serve(session, digest, 0, total).rsplit(" 0 ", 1)
    return before, after


def serving_before(digest: str) -> str:
    """The line that leads the bytes, but for the offset at its end."""
    return serving(digest, 0).removesuffix(" 0")
