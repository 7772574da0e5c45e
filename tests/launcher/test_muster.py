"""Proves what `up` shows: the roster's arithmetic, the live table and the last lines as snapshots, the JSON."""

from __future__ import annotations

import io
import json

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clusterft.board import Muster, Roster, Standing
from clusterft.events import Progress, Settled, StageDone
from clusterft.findings import Finding
from clusterft.ui import muster as view

STAGES = ("reach", "check", "keys", "image")
SILENT = Finding(
    "ssh.timeout",
    "fail",
    ("gpu2",),
    "cannot be asked over SSH",
    evidence="gpu2: root@10.0.0.13:22: no answer within 10 s",
    fix=("power the node on; open its ssh port for this machine",),
)


def roster(*events: Progress | Settled) -> Roster:
    """Three nodes that have seen these events."""
    made = Roster(("gpu0", "gpu1", "gpu2"), STAGES)
    for event in events:
        made.see(event)
    return made


def half_way() -> Roster:
    """One node is done, one receives the image, one cannot be reached."""
    return roster(
        *(Settled(node, "reach", ()) for node in ("gpu0", "gpu1")),
        Settled("gpu2", "reach", SILENT),
        *(Settled(node, "check", ()) for node in ("gpu0", "gpu1")),
        Settled("gpu0", "keys", ("relay key made", "authorized_keys: 1 line added")),
        Settled("gpu1", "keys", ("relay key made", "authorized_keys: 1 line added")),
        Settled("gpu0", "image", ("image loaded",)),
        Progress("gpu1", "image", done=3_210_000_000, total=16_400_000_000),
    )


def muster(made: Roster, **given_: object) -> Muster:
    """The end of an `up` of these three."""
    standings = (
        Standing("gpu0", "10.0.0.11", "4 x RTX 3090", "580.65.06", "3f2a91c0", "nfs4 nas:/out"),
        Standing("gpu1", "10.0.0.12", "4 x RTX 3090", "580.65.06", "3f2a91c0", "nfs4 nas:/out", spare=True),
        Standing("gpu2"),
    )
    whole = {"findings": (), "tag": "clusterft/rack:3f2a91c0", "controller": (), "seconds": 75.25} | given_
    return Muster("rack", made, standings, **whole)  # type: ignore[arg-type]


def drawn(made: Roster) -> str:
    """The live table as 100 columns of plain text."""
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(view.screen(made))
    return out.getvalue()


def test_live_table() -> None:
    """Each node shows where it is, the one that is out says why."""
    scenes.same_as_golden(drawn(half_way()), scenes.GOLDEN / "ui" / "muster_half_way.txt")


def test_last_lines_of_a_part() -> None:
    """Two of three: the table, the reason, what changed; never `nothing to change`."""
    text = "\n".join(view.lines(muster(half_way()))) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "muster_part.txt")


def test_last_lines_of_a_second_up() -> None:
    """All up and nothing done: says so."""
    made = roster(*(Settled(node, stage, ()) for node in ("gpu0", "gpu1", "gpu2") for stage in STAGES))
    text = "\n".join(view.lines(muster(made, seconds=3.2))) + "\n"
    scenes.same_as_golden(text, scenes.GOLDEN / "ui" / "muster_again.txt")


def test_json_holds_all_of_it() -> None:
    """One document, with each node's changes and each finding once."""
    body = json.loads(json.dumps(view.to_dict(muster(half_way(), findings=(SILENT,)))))
    assert [node["up"] for node in body["nodes"]] == [True, True, False]
    assert body["nodes"][0]["changes"] == ["relay key made", "authorized_keys: 1 line added", "image loaded"]
    assert [check["id"] for check in body["checks"]] == ["ssh.timeout"]
    assert body["complete"] is False


def test_plain_lines_thin_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is quick says nothing; who takes long prints a line every few seconds; what settles is always said."""
    out = io.StringIO()
    watcher = view.PlainWatcher(out)
    made = roster()
    for second in range(12):
        monkeypatch.setattr(view.time, "monotonic", lambda now=second: float(now))
        watcher.show(Progress("gpu1", "image", done=second, total=100), made)
    watcher.show(Progress("gpu0", "keys", "looking"), made)
    watcher.show(Settled("gpu1", "image", ("image loaded",)), made)
    watcher.show(Settled("gpu1", "keys", ()), made)
    watcher.show(StageDone("3 nodes reached", 0.4), made)
    assert out.getvalue().splitlines() == [
        "  gpu1 5 B of 100 B",
        "  gpu1 10 B of 100 B",
        "  gpu1: image loaded",
        "✓ 3 nodes reached  0.4 s",
    ]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16_400_000_000, "16.4 GB")]
)
def test_sizes(count: int, said: str) -> None:
    """Bytes in the units that disks and links are sold in."""
    assert view.size(count) == said


_EVENTS = st.one_of(
    st.builds(
        Progress,
        st.sampled_from(["", "gpu0", "gpu1", "gpu2"]),
        st.sampled_from(STAGES),
        st.text(max_size=5),
        st.none() | st.integers(0, 10**12),
        st.none() | st.integers(0, 10**12),
    ),
    st.builds(
        Settled,
        st.sampled_from(["gpu0", "gpu1", "gpu2"]),
        st.sampled_from(STAGES),
        st.just(SILENT) | st.lists(st.text(max_size=5), max_size=3).map(tuple),
    ),
)


@given(st.lists(_EVENTS, max_size=20))
def test_any_order_of_events_can_be_shown(events: list[Progress | Settled]) -> None:
    """No traceback, and a node that failed stays out."""
    made = roster(*events)
    failed = {e.node for e in events if isinstance(e, Settled) and isinstance(e.outcome, Finding)}
    assert set(made.up) == {"gpu0", "gpu1", "gpu2"} - failed
    assert drawn(made)
    assert "\n".join(view.lines(muster(made)))
    json.dumps(view.to_dict(muster(made)))
