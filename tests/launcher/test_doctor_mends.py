"""Proves what doctor would mend itself: the safe class alone, on the right machine, and what a pin then does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import scenes

from clusterft.apply import fixing, settings
from clusterft.checks import mends, report, suite
from clusterft.checks.engines import containers
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.ways import addresses
from clusterft.errors import UsageError
from clusterft.facts import Address, health
from clusterft.facts.desk import Desk, OwnFile, SharedLogin
from clusterft.facts.health.docker import Container, DockerHealth
from clusterft.findings import Finding
from clusterft.fleet import Fleet

TWO = scenes.cluster("a slots=1\nb slots=1\n")
RUN_LABELS = {
    "clusterft.cluster": "rack",
    "clusterft.node": "b",
    "clusterft.owner": "1000",
    "clusterft.run": "xl-20261120-1432-7f3a",
}


def healthy(node: str) -> health.Health:
    """Nothing could be read: enough for what is not about it."""
    asked = health.Asked("w")
    text = health.script(asked)
    names = [line.split()[1] for line in text.splitlines() if line.startswith("echo --clusterft-w-")]
    assert names
    answer = "".join(f"--clusterft-w-{name.removeprefix('--clusterft-w-').rstrip(';')}\n" for name in names)
    return health.parse(node, answer, asked)


def seen(*containers_: Container, desk: Desk | None = None) -> Examination:
    """Two nodes; the containers are on b."""
    surveyed = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b"))
    known = {name: healthy(name) for name in ("a", "b")}
    known["a"] = replace(known["a"], docker=DockerHealth(now=10_000.0, containers=()))
    known["b"] = replace(known["b"], docker=DockerHealth(now=10_000.0, containers=containers_))
    return Examination(Wanted("cpu"), surveyed, desk=desk or Desk(), health=known)


def planned(of: Examination) -> list[tuple[str, str, str]]:
    """Id, node and words."""
    return [(one.id, one.node, one.words) for one in mends.mends(of, report.judge(of, suite.CHECKS))]


def test_only_this_much_is_ever_mended() -> None:
    safe = {"ctl.modes", "ctl.stale-mux", "dk.leftover", "nccl.bridge", "net.public-addr", "net.wrong-nic"}
    assert set(mends._PLANS) == safe  # a new one needs a reason: see the module's words


def test_an_ended_container_of_a_run_is_harvested_and_never_just_removed() -> None:
    ended = Container("f" * 64, "clusterft-b-all", "exited", RUN_LABELS, since=9_000.0, code=1)
    (one,) = mends.mends(seen(ended), report.judge(seen(ended), suite.CHECKS))
    assert (one.id, one.node, one.harvest, one.argv) == ("dk.leftover", "b", RUN_LABELS["clusterft.run"], ())


def test_a_container_that_runs_is_left_to_a_person() -> None:
    alive = Container("f" * 64, "clusterft-b-all", "running", RUN_LABELS, since=9_000.0)
    assert planned(seen(alive)) == []


def test_doctors_own_container_goes_by_its_id() -> None:
    name = "clusterft-doctor-1234-1"
    left = Container("e" * 64, name, "exited", {containers.DOCTOR: name}, since=1_000.0)
    (one,) = mends.mends(seen(left), report.judge(seen(left), suite.CHECKS))
    assert (one.node, one.argv) == ("b", ("docker", "rm", "-f", "e" * 64))


def test_a_shared_login_with_old_groups_is_closed_here() -> None:
    desk = Desk(shared=(SharedLogin("b", "/run/mux", ("me",)),))
    surveyed = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", groups=("me", "docker")))
    of = replace(seen(desk=desk), survey=surveyed)
    assert planned(of) == [("ctl.stale-mux", "", "ssh -O stop -S /run/mux b")]


def test_own_files_get_their_modes_here() -> None:
    desk = Desk((OwnFile("/home/me/.clusterft/rack/id_ed25519", 0o644, 0o600),))
    assert planned(seen(desk=desk)) == [("ctl.modes", "", "chmod 600 /home/me/.clusterft/rack/id_ed25519")]


def on_a_bridge() -> Examination:
    """ssh reaches both by a bridge that has one address everywhere; a network of their own is there too."""
    nodes = [
        scenes.facts(name, addresses=(Address("docker0", "172.17.0.1", 16), Address("eth0", f"10.0.0.{host}", 24)))
        for host, name in enumerate(("a", "b"), 1)
    ]
    surveyed = scenes.survey(TWO, *nodes, contacts={"a": "10.0.0.1", "b": "172.17.0.1"})
    return replace(seen(), survey=surveyed)


def test_an_address_is_pinned_in_the_settings_and_used_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path / "home"))
    rack = tmp_path / "rack"
    rack.write_text("a slots=1 addr=10.9.9.9\nb slots=1\n")
    where = settings.cluster_places("rack")
    chosen = [mends.Mend("net.wrong-nic", node, "", pin=f"10.0.0.{at}") for at, node in enumerate("ab")]
    done = fixing.apply(Fleet(TWO, where.known_hosts), chosen)
    assert [one.words for one in done] == ["", ""]
    assert {node.name: node.addr for node in settings.find(rack, None).nodes} == {"a": "10.9.9.9", "b": "10.0.0.1"}
    assert [node.settled for node in settings.find(rack, None).nodes] == [False, True]
    assert settings.load(where) is None, "a cluster that was never up does not look as if it were"
    assert "addresses.json removed" in settings.forget(where)
    assert settings.find(rack, None).nodes[1].addr is None


def test_what_was_settled_wrongly_can_be_settled_anew() -> None:
    of = on_a_bridge()
    settled = tuple(replace(n, addr="172.17.0.1", settled=True) for n in TWO.nodes)
    of = replace(of, survey=replace(of.survey, cluster=replace(of.survey.cluster, nodes=settled)))
    (one,) = mends.mends(of, [Finding("nccl.bridge", "fail", ("b",), "")])
    assert (one.node, one.pin) == ("b", "10.0.0.2")


def test_addresses_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERFT_HOME", str(tmp_path / "home"))
    rack = tmp_path / "rack"
    rack.write_text("b slots=1\n")
    where = settings.cluster_places("rack")
    for damaged in ("{", '{"addresses": {"b": "not an address"}}', '{"addresses": 3}'):
        settings.write(where.addresses, damaged)
        with pytest.raises(UsageError) as refused:
            settings.find(rack, None)
        assert str(where.addresses) in refused.value.where and "rm " in refused.value.remedy


def test_what_the_hostfile_says_is_never_overruled() -> None:
    of = on_a_bridge()
    given = replace(of.survey.cluster, nodes=tuple(replace(n, addr="172.17.0.1") for n in TWO.nodes))
    of = replace(of, survey=replace(of.survey, cluster=given))
    found = Finding("nccl.bridge", "fail", ("b",), "")
    assert addresses.leading(of, ("b",)) == {"b": "10.0.0.2"}
    assert mends.mends(of, [found]) == ()
