"""The sshd of a node: what it reads, and how it takes another host key.

Owns the settings, which every weight of lab shares. Refuses passwords to all but the
one user who has nothing else.
"""

from __future__ import annotations

from pathlib import Path

# The user who has a password and no key.
TYPIST = "typist"
# Patience for many logins at once; a real machine has 10:30:100.
PATIENT = "100:30:200"

_SETTINGS = """\
Port 22
HostKey {state}/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
X11Forwarding no
MaxStartups {max_startups}
LoginGraceTime 30
Subsystem sftp internal-sftp
Match User {typist}
  PasswordAuthentication yes
"""
# sshd opens authorized_keys with the user's rights in part only (its real uid stays root),
# which NFS accepts and FUSE does not; a command it runs has them in full.
_SQUASHED = """\
Match User worker
  AuthorizedKeysFile none
  AuthorizedKeysCommand /usr/bin/cat %h/.ssh/authorized_keys
  AuthorizedKeysCommandUser worker
"""

# Lets the sshd of a node read its new host key, and waits until it presents it, without
# a network that may be cut. To be followed by the path of the public key.
TAKE_NEW_KEY = (
    'kill -HUP "$(cat /run/sshd.pid)"; until ssh-keyscan -T 5 -t ed25519 127.0.0.1 2>/dev/null | '
    "cut -d' ' -f3 | grep -qFf - {public}; do sleep 0.1; done"
)


def settings(state: Path | str, max_startups: str = PATIENT, *, squashed: bool = False) -> str:
    """An sshd_config; `state` holds the host key."""
    text = _SETTINGS.format(state=state, max_startups=max_startups, typist=TYPIST)
    return text + _SQUASHED if squashed else text
