"""Proving who we are: agent, key files, the cluster's own key, and a password if nothing else works.

A key file is read once for the whole fleet, and its passphrase asked for once; a password once for each user name.
They are held in memory, for one command. Without an asker nothing is ever asked.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

import paramiko
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    PasswordRequiredException,
    SSHException,
)

from clusterft.remote.protocol import Asker
from clusterft.remote.stream import text

STANDARD_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_KINDS: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
_PROMPTS = 3  # as ssh does
_BY_PASSWORD = {"password", "keyboard-interactive"}


class Keyring:
    """The keys and secrets of one fleet; several threads may ask at once."""

    def __init__(self, asker: Asker | None = None, own: Path | None = None) -> None:
        self._asker = asker
        self._own = own
        self._turn = threading.RLock()
        self._keys: dict[str, paramiko.PKey | None] = {}
        self._locked: set[str] = set()
        self._asked: set[str] = set()
        self._passwords: dict[str, str | None] = {}

    @property
    def own(self) -> str | None:
        """The cluster's own key, once `up` has made it."""
        return str(self._own) if self._own and self._own.is_file() else None

    @property
    def may_ask(self) -> bool:
        """Whether there is anybody to ask."""
        return self._asker is not None

    def key(self, path: str) -> paramiko.PKey | None:
        """The key in a file; None if it is locked or no key."""
        with self._turn:
            if path not in self._keys:
                self._keys[path] = self._load(path)
            return self._keys[path]

    def locked(self, path: str) -> bool:
        """Whether the file is a key that needs a passphrase nobody has given."""
        return self.key(path) is None and path in self._locked

    def unlock(self, path: str) -> paramiko.PKey | None:
        """The key in an encrypted file; whoever comes first asks for its passphrase, for all."""
        with self._turn:
            if self._asker and path not in self._asked and self.locked(path):
                self._asked.add(path)
                for _ in range(_PROMPTS):
                    words = self._asker.passphrase(path)
                    if words is None:
                        break
                    self._keys[path] = self._load(path, words)
                    if self._keys[path]:
                        break
            return self.key(path)

    def password(self, user: str, host: str) -> str | None:
        """The password of a user name, which is asked for once."""
        with self._turn:
            if user not in self._passwords:
                self._passwords[user] = self._asker.password(f"{user}@{host}") if self._asker else None
            return self._passwords[user]

    def _load(self, path: str, passphrase: str | None = None) -> paramiko.PKey | None:
        for kind in _KINDS:
            try:
                key = kind.from_private_key_file(path, passphrase)
            except PasswordRequiredException:
                self._locked.add(path)
                return None
            except (SSHException, OSError, ValueError):
                continue  # another kind of key, or none; what could not be used is told when nothing else fits
            certificate = Path(f"{path}-cert.pub")
            if certificate.is_file():
                key.load_certificate(str(certificate))
            return key
        return None


class Login:
    """One user at one host. It can go on after sshd has hung up, with what it had not tried yet."""

    def __init__(self, user: str, host: str, keyring: Keyring, *, files: list[str], only_files: bool) -> None:
        self.user, self.host = user, host
        self.by_password = False
        self.cut_off = False  # the connection ended between two tries: sshd allows MaxAuthTries on each
        self.tried: list[str] = []
        self.told = ""  # by sshd between two tries: PAM's words on an account, before it hangs up
        self._keyring = keyring
        self._files = files
        self._only_files = only_files and bool(files)
        self._agent: paramiko.Agent | None = None
        self._left: Iterator[tuple[str, paramiko.PKey]] = self._candidates()
        self._last: Exception | None = None
        self._asked = False

    @property
    def locked(self) -> list[str]:
        """Key files that would have been tried, had somebody unlocked them."""
        return [path for path in self._paths() if self._keyring.locked(path)]

    def authenticate(self, transport: paramiko.Transport) -> list[str]:
        """Log in, as paramiko's AuthStrategy does; AuthenticationException when nothing is accepted."""
        self.cut_off = False
        try:
            for name, key in self._left:
                if not transport.is_active():  # sshd did not wait for the passphrase
                    self._left = chain([(name, key)], self._left)
                    self._hung_up()
                self.tried.append(name)
                if self._tries(transport, partial(transport.auth_publickey, self.user, key)):
                    return []
            if self._tries_password(transport):
                return []
        finally:
            if self._agent and not self.cut_off:
                self._agent.close()
        raise self._last or AuthenticationException("no key and no agent is at hand")

    def _tries(self, transport: paramiko.Transport, attempt: Callable[[], list[str]]) -> bool:
        """Whether an attempt let us in; one that ended the connection is raised."""
        try:
            missing = attempt()
        except (SSHException, EOFError, OSError) as error:
            self._last = error
            self.told += _banner(transport)
            if not transport.is_active():
                self.cut_off = True
                raise
            return False
        if missing:  # accepted, and something else is wanted too
            self._last = AuthenticationException(f"wanted besides: {', '.join(missing)}")
            return self._tries_password(transport, missing)
        return transport.is_authenticated()

    def _tries_password(self, transport: paramiko.Transport, wanted: list[str] | None = None) -> bool:
        if self._asked or not self._keyring.may_ask:
            return False
        if not _BY_PASSWORD & set(wanted or self._welcome(transport)):
            return transport.is_authenticated()
        password = self._keyring.password(self.user, self.host)
        if password and not transport.is_active():  # nor for the password, which is known when it is called again
            self._hung_up()
        self._asked = True
        if password is None:
            return False
        self.tried.append("password")
        self.by_password = True
        return self._tries(transport, partial(transport.auth_password, self.user, password))

    def _hung_up(self) -> NoReturn:
        self.cut_off = True
        raise AuthenticationException("sshd hung up before the login was over")

    def _welcome(self, transport: paramiko.Transport) -> list[str]:
        """What kinds of login the host offers; it may also want none at all."""
        try:
            transport.auth_none(self.user)
        except BadAuthenticationType as error:
            return list(error.allowed_types)
        except (SSHException, EOFError, OSError) as error:
            self._last, self.cut_off = error, not transport.is_active()
            raise
        return []

    def _candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Keys in the order in which they are offered; each once.

        What the hostfile and ~/.ssh/config name comes first, then the cluster's own key: an agent may hold more
        keys than sshd's MaxAuthTries. What must be unlocked comes last.
        """
        seen: set[bytes] = set()
        for name, key in self._in_order():
            if key.asbytes() not in seen:
                seen.add(key.asbytes())
                yield name, key

    def _in_order(self) -> Iterator[tuple[str, paramiko.PKey]]:
        offered = self._from_agent()
        named = {blob: path for path in self._files if (blob := _public_half(path))}
        for blob, key in offered.items():
            if blob in named:
                yield f"agent: {named[blob]}", key
        yield from self._unlocked(self._files)
        if own := self._keyring.own:
            yield from self._unlocked([own])
        if not self._only_files:
            for blob, key in offered.items():
                if blob not in named:
                    yield f"agent: {key.comment or key.get_name()}", key
            yield from self._unlocked(self._paths())
        for path in self._paths():
            if self._keyring.locked(path):
                unlocked = self._keyring.unlock(path)
                if unlocked:
                    yield path, unlocked

    def _unlocked(self, paths: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
        for path in paths:
            key = self._keyring.key(path)
            if key:
                yield path, key

    def _paths(self) -> list[str]:
        standard = [str(Path("~/.ssh").expanduser() / name) for name in STANDARD_KEYS]
        return list(dict.fromkeys((*self._files, *(() if self._only_files else standard))))

    def _from_agent(self) -> dict[bytes, paramiko.AgentKey]:
        try:
            self._agent = paramiko.Agent()
            return {key.asbytes(): key for key in self._agent.get_keys()}
        except (SSHException, OSError) as error:
            self.tried.append(f"agent: {error}")
            return {}


def _banner(transport: paramiko.Transport) -> str:
    """What came with the last try; paramiko gives it out only while the way is open."""
    said = getattr(transport.auth_handler, "banner", None)
    return text(said) if isinstance(said, bytes) else ""


def _public_half(path: str) -> bytes | None:
    """The key that a .pub file beside a key names, so that an agent's copy is found without a passphrase."""
    try:
        fields = Path(f"{path}.pub").read_text(encoding="utf-8", errors="replace").split()
        return base64.b64decode(fields[1], validate=True)
    except (OSError, ValueError, IndexError):
        return None
