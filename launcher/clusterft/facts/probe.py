"""The text of the probe: plain POSIX sh, one round trip, nothing changed on the node.

Every section is framed by a line with a random word, so that a noisy .bashrc cannot be taken for an answer. A
section that cannot be read stays empty and becomes unknown; it is never guessed.
"""

from __future__ import annotations

import shlex

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
    "gpus": (
        "command -v nvidia-smi >/dev/null && nvidia-smi --format=csv,noheader,nounits "
        "--query-gpu=index,uuid,name,memory.total,memory.used,driver_version"
    ),
}


def script(word: str, *, peers: tuple[str, ...] = (), disks: tuple[str, ...] = ()) -> str:
    """The probe for one node. `peers` are addresses to route to, `disks` directories whose room matters."""
    sections = dict(_SECTIONS)
    # Numbers, not values, name these sections: a path may hold anything.
    for index, peer in enumerate(peers):
        sections[f"route.{index}"] = f"ip -o route get {shlex.quote(peer)}"
    for index, disk in enumerate(disks):
        sections[f"disk.{index}"] = _disk(disk)
    frame = FRAME.format(word=word)
    body = "".join(f"echo {frame}{name}; ( {text} ) 2>/dev/null\n" for name, text in sections.items())
    return f"LC_ALL=C; export LC_ALL\n{body}echo {frame}end\n"


def _disk(directory: str) -> str:
    """Room where a directory is, or will be: the nearest parent that exists answers for it."""
    return (
        f"d={shlex.quote(directory)}; "
        'while [ ! -d "$d" ] && [ "$d" != / ] && [ "$d" != . ]; do d=$(dirname -- "$d"); done; '
        '[ -w "$d" ] && echo yes || echo no; df -Pk -- "$d"; df -Pi -- "$d"'
    )
