"""Proves what doctor says of places that are shut, few files, a forced command and a context: found blind."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import scenes

from clusterft import fleet
from clusterft.checks import Survey, Unreached, docker, occupants, report
from clusterft.checks.examination import Examination, Wanted
from clusterft.checks.layers import ours
from clusterft.checks.layers.ssh import unreached
from clusterft.checks.occupants import Occupant
from clusterft.facts import Limits, health
from clusterft.facts.frames import framed
from clusterft.findings import Finding
from clusterft.remote import Completed, Partial
from clusterft.remote.account import Login, closed
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


def test_a_run_holds_a_node_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    """A lock that nobody holds was left by a run that is over."""
    asked = health.Asked("w", cluster="rack")
    home = tmp_path / "a home"
    locks = [home / ".clusterft" / cluster / "nodes" / "b" / "active.lock" for cluster in ("rack", "other")]
    for lock, run in zip(locks, ("moon-1", "sun-2"), strict=True):
        lock.parent.mkdir(parents=True)
        lock.write_text(run + "\n")

    def look() -> tuple[health.ours.Held, ...] | None:
        done = subprocess.run(["sh"], input=health.script(asked), env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
                              text=True, capture_output=True, timeout=60)  # fmt: skip
        return health.parse("b", done.stdout, asked).ours.runs

    assert look() == ()
    with locks[0].open("a"), locks[1].open("a"):
        assert look() == (health.ours.Held("other", "b", "sun-2"), health.ours.Held("rack", "b", "moon-1"))
    assert look() == ()


def holding(**runs: tuple[health.ours.Held, ...]) -> Examination:
    """Nodes whose locks are held."""
    of = seen()
    known = {
        name: replace(one, ours=health.OursHealth(runs=runs.get(name, ()))) for name, one in of.health.items()
    }
    return replace(of, health=known)


def test_a_lock_counts_for_its_own_node_where_nodes_share_a_home() -> None:
    both = tuple(health.ours.Held("rack", name, "moon-1") for name in ("a", "b"))
    assert occupants.found(holding(a=both, b=both[1:])) == (Occupant("moon-1", ("a", "b")),)
    assert occupants.found(holding(a=both[1:])) == ()


def test_a_run_of_another_cluster_is_told_with_its_clusters_name() -> None:
    foreign = health.ours.Held("other", "x", "sun-2")
    assert occupants.found(holding(b=(foreign,))) == (Occupant("sun-2", ("b",), "other"),)


CLOUD = 'Please login as the user "ubuntu" rather than the user "root".'


@pytest.mark.parametrize(
    ("out", "identity", "words", "fix"),
    [
        (CLOUD + "\n", "ssh.auth", CLOUD, "user=ubuntu"),
        (CLOUD.replace('"', "\\"), "ssh.auth", "Please login", "user=ubuntu"),
        ("This account is for rsync.\n", "ssh.noisy-shell", "for rsync", "authorized_keys"),
        ("--clusterft-w-clock\n1.0\n", "ssh.noisy-shell", "ends after section 'clock'", ""),
        ("", "ssh.auth", "ends at once without a word, exit 0", "sudo chsh -s /bin/bash USER"),
    ],
)
def test_who_answers_in_place_of_a_shell(out: str, identity: str, words: str, fix: str) -> None:
    section = "'clock'" if "clock" in out else None
    done = Completed(0, out, "")
    said = fleet._unread(f"the probe's answer ends after section {section}", done, "w", Login())
    assert said.id == identity and words in said.what and fix in " ".join(said.fix)


@pytest.mark.parametrize(
    ("code", "identity"), [(1, "ssh.auth"), (-9, "ssh.noisy-shell"), (137, "ssh.noisy-shell")]
)
def test_a_login_that_ends_without_a_word_is_asked_twice_and_a_killed_one_is_no_account(
    code: int, identity: str
) -> None:
    """/bin/false as a shell, or an exit in a startup file; it was a noisy shell without a remedy."""
    said = fleet._unread("the probe's answer ends after section None", Completed(code, "", ""), "w", Login())
    assert said.id == identity and isinstance(said, Partial)


@pytest.mark.parametrize(
    ("code", "words", "fix", "cause"),
    [
        (1, "WARNING: Your password has expired.\nPassword change required but no TTY available.\n",
         "ssh -t -p 2222 me@n2 passwd", "has to be changed"),
        (1, "You are required to change your password immediately (administrator enforced).\n",
         "sudo chage -d $(date +%F) me", "has to be changed"),
        (254, "Maintenance until noon.\n", "sudo rm -f /etc/nologin", "nobody but root"),
        (1, '"System is going down. Unprivileged users are not permitted to log in anymore."\n',
         "sudo shutdown -c", "nobody but root"),
        (1, "This account is currently not available.\n", "sudo chsh -s /bin/bash me", "no shell"),
        (1, "Your account has expired; please contact your system administrator.\n",
         "sudo chage -E -1 me", "has an end"),
        (1, "The account is locked due to 3 failed logins.\n", "sudo faillock --user me --reset", "is locked"),
    ],
)  # fmt: skip
def test_an_account_that_lets_nobody_work_is_no_echo_of_a_startup_file(
    code: int, words: str, fix: str, cause: str
) -> None:
    """In sshd's and PAM's own words; found blind as `ssh.noisy-shell`, with a startup file for its cause."""
    for done in (Completed(code, words, ""), Completed(code, "", words)):
        said = fleet._unread("it ends after section None", done, "5e0f", Login("me", "-p 2222 me@n2"))
        assert said.id == "ssh.auth" and cause in said.cause and fix in "\n".join(said.fix), said
        assert words.split()[0].strip('"') in said.what and "{" not in "".join((said.cause, *said.fix))


def test_what_a_shell_says_beside_its_answer_closes_no_account() -> None:
    """A motd may speak of passwords; as long as the probe has begun to answer, the account works."""
    done = Completed(0, "Your password has expired.\n--clusterft-5e0f-clock\n1.0\n", "")
    assert fleet._unread("ends after section 'clock'", done, "5e0f", Login()).id == "ssh.noisy-shell"
    assert closed("Your account manager is Eve. Logins are recorded.", Login()) is None


def test_causes_that_differ_are_told_apart_and_no_startup_file_is_blamed() -> None:
    missed = (
        Unreached("a", "ssh.auth", "no key fits", ("ssh-copy-id",)),
        Unreached("b", "ssh.auth", "the password must be changed", ("ssh -t b passwd",), "its password is old"),
        Unreached("c", "ssh.noisy-shell", "ends after section None"),
    )
    survey = Survey(scenes.cluster("a slots=1\nb slots=1\nc slots=1\n"), {}, missed, {})
    found = {one.nodes: one for one in unreached(Examination(Wanted(), survey)) if one.status == "fail"}
    assert found["b",].cause == "its password is old" and "authorized_keys" in found["a",].cause
    assert found["c",].cause == ""


def test_a_docker_context_that_is_gone_is_not_an_engine_that_is_down() -> None:
    words = (
        'Failed to initialize: unable to resolve docker endpoint: context "lab": context not found: open meta.json'
    )
    engine = scenes.docker(state="down", words=words)
    survey = scenes.survey(TWO, scenes.facts("a"), scenes.facts("b", docker=engine))
    (one,) = docker.usable(survey, cuda=False)
    assert one.nodes == ("b",) and one.fix[0] == "on b: docker context use default"


@pytest.mark.parametrize(
    ("err", "file", "line", "fix"),
    [
        ("/lab/n2/home/.bashrc: line 5: exec: zsh: not found\n", "/lab/n2/home/.bashrc", 5,
         "install zsh, or put this before line 5 of /lab/n2/home/.bashrc: [[ $- == *i* ]] || return"),
        ("hi\n/etc/profile.d/x.sh: line 3: module: command not found\n", "/etc/profile.d/x.sh", 3,
         "case $- in *i*)"),
        ("/home/me/.profile: 2: exec: fish: not found\n", "/home/me/.profile", 2, "install fish, or"),
        ("/home/me/.zshenv:1: command not found: tmux\n", "/home/me/.zshenv", 1, "[[ -o interactive ]] || return"),
        ("fish: Unknown command: tmux\n~/.config/fish/config.fish (line 4): \nexec tmux\n^~~~~~~~^\n",
         "~/.config/fish/config.fish", 4, "status is-interactive; and"),
    ],
)  # fmt: skip
def test_a_startup_file_that_ends_every_command_is_named_and_no_forced_command(
    err: str, file: str, line: int, fix: str
) -> None:
    """Found blind as a command of the node's own, to be looked for in authorized_keys and sshd_config."""
    said = fleet._unread("it ends after section None", Completed(127, "", err), "5e0f", Login("me", "-p 22 me@n2"))
    told = "\n".join((said.what, said.cause, *said.fix))
    assert said.id == "ssh.noisy-shell" and f"line {line} of {file}" in said.cause and fix in said.fix[0]
    assert "authorized_keys" not in told and "ForceCommand" not in told
    assert "sftp -P 22 me@n2" in said.fix[1] and "~" not in said.fix[1]


@pytest.mark.parametrize(
    ("code", "err"),
    [
        (127, "/usr/local/bin/wrapper.sh: line 3: rrsync: command not found\n"),  # of a key's own command
        (127, "bash: line 1: rrsync: command not found\n"),
        (0, "/home/me/.bashrc: line 3: module: command not found\n"),
        (127, "/home/me/.bashrc: line 3: module: command not found\nThis account is for rsync.\n"),
    ],
)
def test_a_startup_file_that_complains_is_not_known_to_be_the_end(code: int, err: str) -> None:
    said = fleet._unread("it ends after section None", Completed(code, "", err), "5e0f", Login())
    assert said.id == "ssh.noisy-shell" and "authorized_keys" in said.fix[0]
