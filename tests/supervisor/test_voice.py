"""A part speaks to a file and, in a container, to a pipe that an engine in trouble does not empty."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from clusterft_trainer import stream
from clusterft_trainer.supervisor import voice
from clusterft_trainer.supervisor.voice import Voice


def test_what_is_said_is_in_the_file_and_in_the_engine_s_log(tmp_path: Path) -> None:
    out = io.StringIO()
    spoken = Voice(tmp_path / "stream.jsonl", out)
    for number in range(3):
        spoken.say(stream.Log(0, f"line {number}", 1.0))
    spoken.close()
    assert [f"rank 0 | line {number}" for number in range(3)] == out.getvalue().splitlines()
    assert len((tmp_path / "stream.jsonl").read_text().splitlines()) == 3


def test_an_engine_that_does_not_read_its_log_holds_up_nobody(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe, os.fdopen(reader) as log:
        spoken = Voice(tmp_path / "stream.jsonl", pipe)
        began = time.monotonic()
        for number in range(300):
            spoken.say(stream.Log(0, f"{number} " + "x" * 30_000, 1.0))
            spoken.flush()
        assert time.monotonic() - began < voice._LAST_WORDS
        assert len((tmp_path / "stream.jsonl").read_text().splitlines()) == 300
        # It is read again: what is there comes, what is not is counted, and the two add up to all of it.
        shown = missing = 0
        spoken_again = False
        while shown + missing < 301:
            line = log.readline()
            missing += int(line[1:].split()[0]) if line.startswith("(") else 0
            shown += line.startswith("rank 0 | ")
            if not spoken_again and shown == 10:
                spoken_again = True
                time.sleep(0.2)
                spoken.say(stream.Log(0, "the end", 1.0))
                spoken.flush()
        assert missing > 0 and line == "rank 0 | the end\n"
        spoken.close()
