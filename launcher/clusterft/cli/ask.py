"""Questions at the terminal: host keys, NAT, passphrases, passwords. Without a terminal all is no.

Owns the words of the questions. Refuses to keep an answer: a secret goes back to who asked and nowhere else.
"""

from __future__ import annotations

import atexit
import getpass
import sys
import termios
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

_YES = ("y", "yes")


class Terminal:
    """The person at the keyboard. `pause` takes a live view away while a question stands."""

    def __init__(self, *, accept_host_keys: bool = False, accept_nat: bool = False) -> None:
        self._accept_host_keys = accept_host_keys
        self._accept_nat = accept_nat
        if self.present:
            # A secret is asked for in a thread of the fleet, and a Ctrl-C ends the process in the middle of it.
            atexit.register(termios.tcsetattr, 0, termios.TCSANOW, termios.tcgetattr(0))
        self._nat: dict[str, bool] = {}
        self.pause: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def present(self) -> bool:
        """Whether somebody can answer."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def host_keys(self, shown: Iterable[str]) -> bool:
        """Machines that were never met: their keys are shown in any case, trusted only when that was said."""
        lines = [
            "Never met before. Compare with what each machine shows on its own console:",
            "  for f in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $f; done",
            *(f"    {line}" for line in shown),
        ]
        if self._accept_host_keys:
            self._say([lines[0].partition(".")[0] + ", accepted as --accept-new-host-keys says:", *lines[2:]])
            return True
        return self._agreed(lines, "Trust these keys from now on?")

    def nat(self, node: str, peer: str) -> bool:
        """A node whose connections come from an address that is none of its own; asked once for each node."""
        if self._accept_nat:
            return True
        if node not in self._nat:
            lines = [
                f"{node} reaches {peer} from another address than its own: there is a NAT gateway between.",
                "  Its relay key would be let in from that address, and so from all that is behind that gateway.",
            ]
            self._nat[node] = self._agreed(lines, "Let it in? Without it, this controller serves the node itself.")
        return self._nat[node]

    def mends(self, shown: Iterable[str]) -> bool:
        """Whether what doctor would mend may be done."""
        return self._agreed(shown, "Do it?")

    def goes(self, shown: Iterable[str]) -> bool:
        """Whether what is shown may be taken from the nodes."""
        return self._agreed(shown, "Take it away?")

    def passphrase(self, key: str) -> str | None:
        """For an encrypted key file; None to do without."""
        return self._secret(f"Passphrase for {key} (empty: do without): ")

    def password(self, login: str) -> str | None:
        """When no key opened a node; None to do without."""
        return self._secret(f"No key opens {login}. Password (empty: do without): ")

    def _agreed(self, lines: Iterable[str], question: str) -> bool:
        with self.pause():
            self._say(lines)
            if not self.present:
                return False
            sys.stderr.write(f"{question} [y/N] ")
            sys.stderr.flush()
            return sys.stdin.readline().strip().lower() in _YES

    def _secret(self, prompt: str) -> str | None:
        if not self.present:
            return None
        with self.pause():
            return getpass.getpass(prompt, stream=sys.stderr) or None

    @staticmethod
    def _say(lines: Iterable[str]) -> None:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
