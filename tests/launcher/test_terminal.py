"""Proves on a real pseudo-terminal that a Ctrl-C amid a redraw costs no line above the screen."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import termios
import time
from pathlib import Path

_WATCH = """
import signal, sys, time
sys.path.insert(0, sys.argv[1])
import spoken
from clusterft.ui import watch
signal.signal(signal.SIGINT, lambda *_: None)
board = spoken.board()
with watch.LiveWatcher() as watcher:
    for number, event in enumerate([*spoken.begun(0), *(spoken.told(spoken.step(n)) for n in range(1, 400))]):
        board.see(event)
        watcher.show(event, board)
        if number == 5:
            watcher.show(spoken.told(spoken.saved(3)), board)
        time.sleep(0.01)
print("back")
"""


def test_a_ctrl_c_amid_a_redraw_costs_no_line_and_keys_are_not_shown(tmp_path: Path) -> None:
    script = tmp_path / "watching.py"
    script.write_text(_WATCH)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, str(script), str(Path(__file__).parent)])
    os.set_blocking(terminal, False)
    seen, presses, quiet_until = b"", 0, 0.0
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if b"step 2" in seen and presses < 5 and time.monotonic() > quiet_until:
            time.sleep(0.3)  # nobody reads: what is written waits in the terminal, as on a slow line
            seen += os.read(terminal, 700)  # and a screen is half shown
            os.write(terminal, b"x\x03")
            presses, quiet_until = presses + 1, time.monotonic() + 0.2
        if not select.select([terminal], [], [], 0.05)[0]:
            continue
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.waitpid(child, 0)
    os.close(terminal)
    assert presses > 3 and b"back" in seen
    assert b"^C" not in seen and b"x\r" not in seen
    lines = shown(seen.decode(errors="replace"))
    assert any(line.startswith("  checkpoint /mnt") for line in lines), lines
    assert lines[lines.index("back") - 1].startswith("  checkpoint"), "nothing of the screen is left"


def shown(text: str) -> list[str]:
    """What a terminal shows after all this: the few sequences that the screen uses, carried out."""
    screen, row, column = [""], 0, 0
    for found in re.finditer(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+", text):
        if found[2] == "A":
            row = max(0, row - int(found[1] or 1))
        elif found[2] == "K":
            screen[row] = ""
        elif found[0] == "\r":
            column = 0
        elif found[0] == "\n":
            row += 1
            screen += [""] * (row + 1 - len(screen))
        elif not found[2]:
            line = screen[row].ljust(column)
            screen[row] = line[:column] + found[0] + line[column + len(found[0]) :]
            column += len(found[0])
    return [line.rstrip() if line.strip() else "" for line in screen if line.strip()]


def test_what_is_no_terminal_is_left_alone_and_a_terminal_is_as_before() -> None:
    from clusterft.ui.terminal import Still

    reader, writer = os.pipe()
    Still(writer).restore()
    os.close(reader), os.close(writer)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    still = Still(theirs)
    during = termios.tcgetattr(theirs)
    assert during[3] & termios.NOFLSH and not during[3] & termios.ECHO
    still.restore()
    assert termios.tcgetattr(theirs) == before
    os.close(ours), os.close(theirs)
