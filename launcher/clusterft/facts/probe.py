"""The text of the probe: plain POSIX sh, one round trip, nothing changed on the node.

Every section is framed by a line with a random word, so that a noisy .bashrc cannot be taken for an answer. A
section that cannot be read stays empty and becomes unknown; it is never guessed.
"""

from __future__ import annotations

import shlex

HOME = "~"  # as a directory to look at: the login directory of whoever the probe runs as
FRAME = "--clusterft-{word}-"

# Section -> commands. Each runs in its own subshell, so that one failure leaves the others alone.
_SECTIONS = {
    "clock": "date +%s.%N",
    "boot": "cat /proc/sys/kernel/random/boot_id",
    "hostname": "uname -n",
    "kernel": "uname -srm",
    "user": "id -u; id -g; id -un",
    "home": 'printf "%s\\n" "$HOME"',
    "cpu": "nproc",
    "memory": "grep -E '^(MemTotal|MemAvailable):' /proc/meminfo",
    "shm": "df -Pk /dev/shm",
    "listening": "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" {print $2}'",
    # The address that this very SSH connection came from is how the node reaches the controller.
    "controller": '[ -n "$SSH_CONNECTION" ] && ip -o route get "${SSH_CONNECTION%% *}"',
    # Its third word is the node's own side of this connection; behind a bastion nothing else tells an address.
    "login": 'printf "%s\\n" "$SSH_CONNECTION"',
    "gpus": (
        "command -v nvidia-smi >/dev/null && nvidia-smi --format=csv,noheader,nounits "
        "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version"
    ),
}


def script(word: str, *, peers: tuple[str, ...] = (), disks: tuple[str, ...] = ()) -> str:
    """The probe for one node. `peers` are addresses to route to, `disks` directories whose room matters."""
    texts = (
        *_SECTIONS.values(),
        *(f"ip -o route get {shlex.quote(peer)}" for peer in peers),
        *(_disk(disk) for disk in disks),
    )
    frame = FRAME.format(word=word)
    named = zip(section_names(peers, disks), texts, strict=True)
    body = "".join(f"echo {frame}{name}; ( {text} ) 2>/dev/null\n" for name, text in named)
    return f"LC_ALL=C; export LC_ALL\n{body}echo {frame}end\n"


def section_names(peers: tuple[str, ...], disks: tuple[str, ...]) -> tuple[str, ...]:
    """What every complete answer holds. Numbers, not values, name the last ones: a path may hold anything."""
    routes = (f"route.{index}" for index in range(len(peers)))
    return (*_SECTIONS, *routes, *(f"disk.{index}" for index in range(len(disks))))


def _disk(directory: str) -> str:
    """Room where a directory is, or will be: the nearest parent that exists answers for it."""
    given = '"$HOME"' if directory == HOME else shlex.quote(directory)
    return (
        f"d={given}; "
        'while [ ! -d "$d" ] && [ "$d" != / ] && [ "$d" != . ]; do d=$(dirname -- "$d"); done; '
        '[ -w "$d" ] && echo yes || echo no; df -Pk -- "$d"; df -Pi -- "$d"'
    )
