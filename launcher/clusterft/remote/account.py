"""What sshd, PAM or a shell say where the account itself lets nobody work -> what it is, and its remedy. Pure.

Knows sentences, not exit codes alone: what nobody here has heard of is shown as it came, and not guessed at.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clusterft.remote.unreachable import Partial, Unreachable

_NOLOGIN_EXIT = 254  # of sshd itself, once it has printed /etc/nologin; no shell was begun
_BY_A_SIGNAL = 126  # and above: a shell that could not run the command, or that a signal has ended
_SHOWN = 300


class Login(NamedTuple):
    """As whom, and what ssh is given to get there."""

    user: str = "USER"
    way: str = "USER@NODE"


class _Kind(NamedTuple):
    words: re.Pattern[str]
    cause: str
    fix: tuple[str, ...]


_PASSWORD = _Kind(
    re.compile(
        r"[Yy]our password has expired|required to change your password|Password change required|"
        r"password must be changed",
    ),
    "the password of {user} has to be changed before anything else, as on machines that were just rented",
    (
        "ssh -t {way} passwd   (asks for the old password, then for a new one)",
        "or as root on the node: sudo chage -d $(date +%F) {user}   (the password stays, and counts as new)",
    ),
)
_EXPIRED = _Kind(
    re.compile(r"account has expired|account is expired|Account expired"),
    "the account {user} has an end, which has passed",
    ("as another user or root on the node: sudo chage -E -1 {user}",),
)
_LOCKED = _Kind(
    re.compile(r"account (?:is|has been) (?:temporarily )?locked|account is disabled"),
    "the account {user} is locked, by somebody or after too many wrong passwords",
    (
        "as another user or root on the node: sudo usermod -U {user}",
        "after too many wrong passwords: sudo faillock --user {user} --reset",
    ),
)
_NO_SHELL = _Kind(
    re.compile(r"[Tt]his account is (?:currently )?not available"),
    "{user} has no shell to log in with (/usr/sbin/nologin)",
    (
        "as another user or root on the node: sudo chsh -s /bin/bash {user}",
        "or log in as another user: user= in the hostfile",
    ),
)
_CLOSED = _Kind(
    re.compile(r"pam_nologin|System is (?:going down|booting up)|not permitted to log in"),
    "the node lets nobody but root log in: /etc/nologin is there, as before a shutdown or during an upgrade",
    (
        "if it is not going down, as root on the node: sudo rm -f /etc/nologin /run/nologin",
        "a shutdown that is planned is called off with: sudo shutdown -c",
    ),
)
_KINDS = (_PASSWORD, _EXPIRED, _LOCKED, _NO_SHELL, _CLOSED)


def mute(login: Login, code: int) -> Partial | None:
    """Where a login ends of its own at once, and nothing is said of it; None where a signal ended it.

    It may have been a moment without memory on the node, so it counts as less than an answer, and is asked again.
    """
    if not 0 <= code < _BY_A_SIGNAL:
        return None
    steps = (
        "as another user or root on the node: getent passwd {user} | cut -d: -f7",
        "if that is no shell: sudo chsh -s /bin/bash {user}   or log in as another user: user= in the hostfile",
        "if it is one, a file that it reads ends it; on the node: grep -n exit ~{user}/.bashrc ~{user}/.zshenv",
    )
    return Partial(
        f"every login ends at once without a word, exit {code}",
        "ssh.auth",
        fix=tuple(step.format(**login._asdict()) for step in steps),
        cause=f"the shell of {login.user} is no shell (/bin/false), or a startup file ends it before any command",
    )


def closed(said: str, login: Login, code: int | None = None) -> Unreachable | None:
    """Why this account cannot be worked with, by the words that came in place of an answer; None for others."""
    kind = next((one for one in _KINDS if one.words.search(said)), None)
    if kind is None and code == _NOLOGIN_EXIT and said.strip():
        kind = _CLOSED
    if kind is None:
        return None
    words = " ".join(line.strip() for line in said.splitlines() if line.strip())[:_SHOWN]
    cause, *fix = (text.format(**login._asdict()) for text in (kind.cause, *kind.fix))
    return Unreachable("ssh.auth", f"the account is not let in to work: {words}", fix=tuple(fix), cause=cause)
