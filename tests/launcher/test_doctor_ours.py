"""Proves what doctor says of places that are shut, few files, a forced command and a context: found blind."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import scenes

from clusterft import fleet
from clusterft.checks import docker, report
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import ours
from clusterft.facts import Limits, health
from clusterft.facts.frames import framed
from clusterft.findings import Finding
from clusterft.remote import Completed
from launcher.test_doctor_mends import healthy

TWO = scenes.cluster("a slots=1\nb slots=1\n")


def seen(barred: tuple[str, ...] | None = None, *, contained: bool = False, nofile: int = 1024) -> Examination:
    """Two nodes; b has places that its user may not write."""
    limits = Limits(nofile, None, None)
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", limits=limits))
    known = {name: healthy(name) for name in ("a", "b")}
    known["b"] = replace(known["b"], ours=health.OursHealth(barred=barred))
    return Examination(Wanted("cpu", contained=contained), survey, health=known)


def loud(of: Examination) -> list[Finding]:
    """What blocks or warns."""
    return [one for one in report.judge(of, ours.CHECKS) if one.status in ("fail", "warn")]


def test_a_folder_of_ours_that_root_made() -> None:
    (one,) = loud(seen(("/home/me/.clusterft",)))
    assert (one.id, one.nodes, one.fix) == (
        "fs.home",
        ("b",),
        ("on b: sudo chown -R 1000:1000 /home/me/.clusterft",),
    )


def test_a_home_keeps_what_others_put_into_it() -> None:
    (one,) = loud(seen(("/home/me",)))
    assert one.fix == ("on b: sudo chown 1000:1000 /home/me",)


def test_a_path_with_a_space_is_pasted_whole() -> None:
    (one,) = loud(seen(("/home/my me/.clusterft",)))
    assert one.fix == ("on b: sudo chown -R 1000:1000 '/home/my me/.clusterft'",)


def test_shared_memory_that_is_shut() -> None:
    (one,) = loud(seen(("/dev/shm",)))
    assert (one.id, one.status, one.fix) == ("os.shm", "fail", ("on b: sudo chmod 1777 /dev/shm",))


def test_few_files_matter_where_no_container_has_limits_of_its_own() -> None:
    (one,) = loud(seen((), nofile=100))
    assert (one.id, one.nodes) == ("os.nofile", ("b",)) and "100" in one.summary
    assert loud(seen((), nofile=100, contained=True)) == loud(seen((), nofile=1024)) == []


def test_nothing_shut_is_no_finding_and_neither_is_what_could_not_be_read() -> None:
    assert loud(seen(())) == loud(seen(None)) == []


def test_the_script_itself_on_this_machine(tmp_path: Path) -> None:
    asked = health.Asked("w", cluster="rack")
    home = tmp_path / "a home"
    nodes = home / ".clusterft" / "rack" / "nodes" / "b"
    nodes.mkdir(parents=True)
    key = nodes / "relay_ed25519"
    key.write_text("x")
    for mode, place in ((0o700, nodes), (0o600, key)):
        place.chmod(mode)

    def look() -> health.OursHealth:
        text = health.script(asked)
        done = subprocess.run(["sh"], input=text, env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, text=True,
                              capture_output=True, timeout=60)  # fmt: skip
        names = [line.split("--clusterft-w-")[1] for line in done.stdout.splitlines() if "--clusterft-w-" in line]
        assert "ours" in names and framed(done.stdout, "w", names[:-1])
        return health.parse("b", done.stdout, asked).ours

    assert look().open_keys == () and look().open_places == ()
    key.chmod(0o644)
    nodes.chmod(0o755)
    found = look()
    assert found.open_keys == (".clusterft/rack/nodes/b/relay_ed25519",)
    assert found.open_places == (".clusterft/rack/nodes/b",)


CLOUD = 'Please login as the user "ubuntu" rather than the user "root".'


@pytest.mark.parametrize(
    ("out", "identity", "words", "fix"),
    [
        (CLOUD + "\n", "ssh.auth", CLOUD, "user=ubuntu"),
        (CLOUD.replace('"', "\\"), "ssh.auth", "Please login", "user=ubuntu"),
        ("This account is for rsync.\n", "ssh.noisy-shell", "for rsync", "authorized_keys"),
        ("--clusterft-w-clock\n1.0\n", "ssh.noisy-shell", "ends after section 'clock'", ""),
        ("", "ssh.noisy-shell", "ends after section None", ""),
    ],
)
def test_who_answers_in_place_of_a_shell(out: str, identity: str, words: str, fix: str) -> None:
    section = "'clock'" if "clock" in out else None
    done = Completed(0, out, "")
    said = fleet._unread(f"the probe's answer ends after section {section}", done, "w")
    assert said.id == identity and words in said.what and fix in " ".join(said.fix)


def test_a_docker_context_that_is_gone_is_not_an_engine_that_is_down() -> None:
    words = (
        'Failed to initialize: unable to resolve docker endpoint: context "lab": context not found: open meta.json'
    )
    engine = scenes.docker(state="down", words=words)
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", docker=engine))
    (one,) = docker.usable(survey, cuda=False)
    assert one.nodes == ("b",) and one.fix[0] == "on b: docker context use default"
