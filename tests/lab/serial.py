"""A line into a virtual machine that no fault of its network can cut.

Owns talking to the command loop that a machine runs on its second serial port.
Refuses to be a terminal: one command, its output, its status.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from .errors import LabError


def tell(path: Path, command: str, timeout: float = 30) -> str:
    """Run a command in the machine; what it prints. The machine answers once it is up."""
    assert "\n" not in command
    with _dial(path, timeout) as wire:
        wire.sendall(command.encode() + b"\n")
        heard = _hear(wire, timeout, command)
    words, _, status = heard.strip().rpartition("@@")
    if status != "0":
        raise LabError(f"exit {status} in the machine: {command}\n{words.strip()}")
    return words.strip()


def answers(path: Path) -> bool:
    """Whether the machine's command loop is there; older half answers are thrown away."""
    try:
        with _dial(path, 2) as wire:
            mark = f"{time.monotonic_ns()}"
            wire.sendall(f"\necho {mark}\n".encode())
            deadline = time.monotonic() + 2
            heard = b""
            while time.monotonic() < deadline:
                heard += wire.recv(4096)
                if f"{mark}\n\n@@0\n".encode() in heard:
                    return True
    except OSError:
        return False
    return False


def _dial(path: Path, timeout: float) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX)
    wire.settimeout(timeout)
    wire.connect(str(path))
    return wire


def _hear(wire: socket.socket, timeout: float, command: str) -> str:
    deadline = time.monotonic() + timeout
    heard = b""
    while time.monotonic() < deadline:
        try:
            heard += wire.recv(4096)
        except TimeoutError:
            break
        tail = heard.rpartition(b"\n@@")[2]
        if b"\n@@" in heard and tail.endswith(b"\n"):
            return heard.decode(errors="replace")
    raise LabError(f"no answer from the machine in {timeout:.0f} s to: {command}")
