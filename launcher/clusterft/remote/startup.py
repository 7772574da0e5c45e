"""What a shell says when one of its own startup files ends it, before any command: its remedy. Pure.

Knows the sentences of bash, dash, zsh and fish, which name file and line. A shell does answer there: neither a
key's command= nor ForceCommand is to be looked at.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clusterft.remote.account import Login
from clusterft.remote.unreachable import Unreachable

_NOT_RUN = (126, 127)  # of a shell whose last act was to run what cannot be run
_SENTENCES = (
    re.compile(r"^(?P<file>/[^:\n]+): line (?P<line>\d{1,6}): (?P<words>.+)$"),  # bash
    re.compile(r"^(?P<file>/[^:\n]+):(?:exec:)? ?(?P<line>\d{1,6}): (?P<words>.+)$"),  # zsh, dash
)
_FISH = re.compile(r"^(?P<file>[~/][^\n]*\.fish) \(line (?P<line>\d{1,6})\):", re.MULTILINE)
_FISH_WORDS = re.compile(r"^(?:fish: )?(Unknown command[^\n]*|The file [^\n]*|exec: [^\n]*)$", re.MULTILINE)
# The program, in the order of bash's exec, bash and dash, zsh, fish.
_PROGRAM = re.compile(
    r"exec: ([^\s:]+): |^([^\s:]+): (?:command )?not found|command not found: ([^\s:]+)|"
    r"[Uu]nknown command:? '?([^\s:']+)"
)
# Only what a shell reads of its own: a command of a key's may be a script that ends with the same sentence.
_READ = re.compile(r"/\.[^/]+$|/\.config/|^~/|^/etc/(?:profile|bash|bashrc$|zsh|zprofile|zlogin|fish/|kshrc)")
_GUARDS = {
    "zsh": "[[ -o interactive ]] || return",
    "zprofile": "[[ -o interactive ]] || return",
    "bash": "[[ $- == *i* ]] || return",
    "": "case $- in *i*) ;; *) return ;; esac",
}


class Ended(NamedTuple):
    """Where a shell ended."""

    file: str
    line: int
    words: str

    @property
    def program(self) -> str:
        """What could not be run; empty where the words are of something else."""
        found = _PROGRAM.search(self.words)
        return next((one for one in found.groups() if one), "") if found else ""

    @property
    def mend(self) -> str:
        """What keeps commands from coming as far, in the language of the file's own shell."""
        name = self.file.rpartition("/")[2]
        if name.endswith(".fish"):  # in which a return at the top is not known to every version
            return f"begin line {self.line} of {self.file} with this: status is-interactive; and"
        guard = next(guard for kind, guard in _GUARDS.items() if kind in name)
        return f"put this before line {self.line} of {self.file}: {guard}"


def ended(out: str, err: str, code: int, login: Login) -> Unreachable | None:
    """None where no startup file is known to be the end: what it complained of may have been harmless.

    It is known by the exit code of a program that cannot be run, with the shell's own words on that as its last.
    """
    said = err.strip() or out.strip()
    last = _last(said)
    if code not in _NOT_RUN or last is None:
        return None
    where = f"at or after line {last.line} of {last.file}"
    cause = f"a startup file of the shell's ends it before any command, {where}"
    install = f"install {last.program}, or " if last.program and "/" not in last.program else ""
    fix = (
        f"on the node, as another user, as root or at its console: {install}{last.mend}",
        f"no command of {login.user} gets through until then, scp and rsync included; where sshd has "
        f"internal-sftp: {_sftp(login, last.file)}",
        *(
            (f"or try: ssh {login.way}   (a login without a command may read another file than {last.file})",)
            * ("bashrc" in last.file)
        ),
    )
    what = f"its shell ends in {last.file}, line {last.line}: {last.words}"
    return Unreachable("ssh.noisy-shell", what, fix=fix, cause=cause)


def _last(said: str) -> Ended | None:
    """The last sentence that names file and line, if nothing else follows that is not of the shell's."""
    if told := list(_FISH.finditer(said)):
        words = _FISH_WORDS.findall(said)
        return Ended(told[-1]["file"], int(told[-1]["line"]), words[-1] if words else "a command of it failed")
    line = said.rpartition("\n")[2]
    end = next((match for match in (one.match(line) for one in _SENTENCES) if match), None)
    if end is None or not _READ.search(end["file"]):
        return None
    return Ended(end["file"], int(end["line"]), end["words"].strip())


def _sftp(login: Login, file: str) -> str:
    way = re.sub(r"(^| )-p (\d)", r"\1-P \2", login.way)  # sftp has another letter for the port
    name, there = file.rpartition("/")[2], file.removeprefix("~/")  # where it begins
    return f"sftp {way}, then: get {there}, mend it, put {name} {there}"
