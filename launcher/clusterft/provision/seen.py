"""Seen: what is on a node before anything is done, read from one answer of `scripts.LOOK`. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clusterft.provision.hostworld import File
from clusterft.provision.keyring import public_key

_TOKEN = re.compile(r"[0-9a-f]{32}\Z")
ABSENT = "absent"


class Unreadable(ValueError):
    """The answer is not whole."""


class Refused(ValueError):
    """The node could not do it; the words are its own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One node's answer."""

    user: str
    sshd: tuple[str, int] | None  # its own end of this login
    files: tuple[tuple[str, str] | None, ...]  # (mode, sum) of those asked for; None where there is none
    public: str | None  # its relay key's public half; None if there is none, or something else in its place
    token: str | None  # its own
    tokens: frozenset[str]  # of all nodes whose directories it sees, its own included
    nat: tuple[tuple[str, str], ...]  # (peer, address it was seen to come from)
    keys: bytes | None  # authorized_keys; None if there is none
    odd: str  # what authorized_keys is instead of a file
    made: tuple[str, ...]  # sentences: what was made while looking
    fresh: bool  # the token is new: nobody can have seen it yet

    @property
    def keys_sum(self) -> str:
        """What `scripts.KEYS` expects to find."""
        return ABSENT if self.keys is None else digest(self.keys)

    def lacks(self, index: int, file: File) -> bool:
        """Whether the file is not there as it is to be; `index` is its place among those asked for."""
        return self.files[index] != (f"{file.mode:o}", digest(file.text.encode()))


def digest(content: bytes) -> str:
    """As sha256sum prints it."""
    return hashlib.sha256(content).hexdigest()


def answers(out: str, word: str) -> list[tuple[str, str]]:
    """(kind, rest) of each line of ours; Refused or Unreadable where it does not end well."""
    found = list(_lines(out, word))
    for kind, rest in found:
        if kind == "refused":
            raise Refused(rest)
    if ("end", "") not in found and ("moved", "") not in found:
        raise Unreadable("the answer is not whole")
    return found


def parse(out: str, word: str, count: int) -> Seen:
    """Read one answer about `count` files."""
    found = answers(out, word)
    one: Mapping[str, str] = dict(found)
    files: list[tuple[str, str] | None] = [None] * count
    for kind, rest in found:
        words = rest.split()
        if kind == "file" and len(words) == 3 and words[0].isdecimal() and int(words[0]) < count:
            files[int(words[0])] = (words[1], words[2])
    login = one.get("login", "").split()
    try:
        keys = base64.b64decode(one["keys"], validate=True) if "keys" in one else None
    except binascii.Error as error:
        raise Unreadable(f"authorized_keys: {error}") from None
    return Seen(
        user=one.get("user", ""),
        sshd=(login[2], int(login[3])) if len(login) == 4 and login[3].isdecimal() else None,
        files=tuple(files),
        public=public if public_key(public := one.get("public", "")) else None,
        token=_token(one.get("own", "")),
        tokens=frozenset(filter(None, (_token(rest) for kind, rest in found if kind == "token"))),
        nat=tuple(_pair(rest) for kind, rest in found if kind == "nat" and len(rest.split()) == 2),
        keys=keys,
        odd=one.get("odd", ""),
        made=tuple(rest for kind, rest in found if kind == "made"),
        fresh="fresh" in one,
    )


def filesystems(seen: Mapping[str, Seen]) -> tuple[tuple[str, ...], ...]:
    """The nodes, those that see each other's tokens together: their home is one directory."""
    groups: list[list[str]] = []
    for node, own in seen.items():
        for group in groups:
            other = seen[group[0]]
            if own.token in other.tokens and other.token in own.tokens and own.token and other.token:
                group.append(node)
                break
        else:
            groups.append([node])
    return tuple(tuple(group) for group in groups)


def _lines(out: str, word: str) -> Iterator[tuple[str, str]]:
    for line in out.split("\n"):
        _, mark, rest = line.partition(f"{word} ")
        if mark:
            kind, _, words = rest.partition(" ")
            yield kind, words.rstrip("\r")


def _token(text: str) -> str | None:
    return text if _TOKEN.match(text) else None


def _pair(rest: str) -> tuple[str, str]:
    peer, address = rest.split()
    return peer, address
