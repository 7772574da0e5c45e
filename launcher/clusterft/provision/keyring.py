"""Our lines in somebody's authorized_keys: bytes in, bytes out. Pure.

Every byte that is not a line of ours stays as it is, also a missing newline at the end: new lines go to the top.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

# Ours by the comment, and by how the line begins: a node may well be named "controller".
_OURS = re.compile(
    rb"(?P<relay>restrict,\S.* )?ssh-ed25519 [A-Za-z0-9+/=]+ "
    rb"clusterft:(?P<cluster>[A-Za-z0-9._-]+):(?P<who>[A-Za-z0-9._-]+)\s*\Z"
)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+\Z")  # nothing but a newline ends one for sshd
_PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}(?=\s|\Z)")
CONTROLLER = ""  # as a name among nodes, which are never empty


class Edited(NamedTuple):
    """What became of the file."""

    content: bytes
    added: int = 0
    changed: int = 0
    removed: int = 0

    @property
    def words(self) -> str:
        """The change as a sentence; empty if there is none."""
        counts = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        parts = [f"{count} {'line' if count == 1 else 'lines'} {what}" for what, count in counts if count]
        return f"authorized_keys: {', '.join(parts)}" if parts else ""


def relay_line(cluster: str, caller: str, public: str, sources: Collection[str]) -> str:
    """What lets a peer's relay key ask for the relay script, and for nothing else.

    $HOME is left to the shell that runs the command: it may hold anything, and on a shared home each node may have
    its own idea of it. It stands in double quotes, which sh, csh and fish all understand alike.
    """
    origin = f'from="{",".join(sources)}",' if sources else ""
    command = f'command="exec sh \\"$HOME\\"/.clusterft/{cluster}/relay.sh"'
    return f"restrict,{command},{origin}".rstrip(",") + f" {_key(public)} clusterft:{cluster}:{caller}"


def controller_line(cluster: str, public: str) -> str:
    """What lets the controller in where a password opened the node first."""
    return f"{_key(public)} clusterft:{cluster}:controller"


def public_key(text: str) -> str | None:
    """The key in a public line, without its comment; None where there is none of the kind of relay keys."""
    found = _PUBLIC.match(text)
    return found.group() if found else None


def holds(content: bytes, cluster: str, who: str) -> bool:
    """Whether there is a line of this cluster by which `who` may come in."""
    return any(owner(line, cluster) == who for line in _LINE.findall(content))


def edit(old: bytes, cluster: str, wanted: Mapping[str, str], keep: Collection[str] = ()) -> Edited:
    """Make the lines of one cluster these, by who may come in; those of `keep` stay where they are not wanted."""
    todo = dict(wanted)
    kept, changed, removed = [], 0, 0
    for line in _LINE.findall(old):
        who = owner(line, cluster)
        if who is None:
            kept.append(line)
        elif who in todo:
            fresh = todo.pop(who).encode() + (b"\n" if line.endswith(b"\n") else b"")
            changed += fresh != line
            kept.append(fresh)
        elif who in keep and who not in wanted:
            kept.append(line)
        else:
            removed += 1
    top = "".join(f"{line}\n" for line in todo.values()).encode()
    return Edited(top + b"".join(kept), len(todo), changed, removed)


def owner(line: bytes, cluster: str) -> str | None:
    """Who may come in by a line of this cluster: a node, or CONTROLLER; None where the line is not of ours."""
    found = _OURS.match(line)
    if not found or found["cluster"] != cluster.encode():
        return None
    if found["relay"]:
        return found["who"].decode()
    return CONTROLLER if found["who"] == b"controller" else None


def _key(public: str) -> str:
    found = public_key(public)
    if found is None:
        raise ValueError(f"not an ed25519 public key: {public!r}")
    return found
