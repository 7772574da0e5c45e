"""A whole `up` over hostfiles that nobody would write, and facts that no machine would tell.

What reaches a node is run by this machine's own sh, as sshd would hand it to a login shell: in a home of the
test's own, with an ssh that reaches nobody. A word that sh took for more than a word would leave the canary.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scenes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterft import checks, facts, hosts, provision
from clusterft.apply.bringup import Bringup, Wants
from clusterft.apply.teardown import Teardown
from clusterft.checks import UpDemand
from clusterft.errors import ClusterftError, UsageError
from clusterft.fleet import Fleet
from clusterft.hosts import Node
from clusterft.plan import container, network
from clusterft.remote import Completed, Lines, Stream, Unreachable
from clusterft.remote.hostkeys import HostKey

CANARY = "canary"
_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
_EVIL = [
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f";touch {CANARY};",
    f"'; touch {CANARY}; '",
    f'"; touch {CANARY}; "',
    f"|touch {CANARY}",
    f"&&touch {CANARY}",
    "-oProxyCommand=touch",
    "$HOME",
    "*",
    "~root",
    "a b",
    "\\",
    "%d",
    "\u00e9\u2028",
]
_KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIEMP1eVJLVCHJjAqo0MlROWcCchd/Ndd5IbPLmHLN1ib", "SHA256:x")


class Shell:
    """A node: whatever is asked of it goes through a shell once, as on a real one."""

    address = "10.0.0.9"

    def __init__(self, home: Path, path: str) -> None:
        self.home = home
        self._env = {"HOME": str(home), "PATH": path, "SSH_CONNECTION": "10.0.0.1 5000 10.0.0.9 22"}

    def run(self, argv: tuple[str, ...], *, stdin: bytes = b"", seconds: float = 30.0) -> Completed:
        """sshd gives the words, joined, to the login shell."""
        done = subprocess.run(
            ["sh", "-c", shlex.join(argv)],
            input=stdin,
            capture_output=True,
            env=self._env,
            cwd=self.home,
            timeout=seconds,
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        own = str(uuid.uuid5(uuid.NAMESPACE_URL, str(self.home)))  # each node is a machine of its own
        return Completed(done.returncode, out.replace(_BOOT, own), err)

    def lines(self, argv: tuple[str, ...], *, silence: float | None = None) -> Lines:
        """Nothing here follows a command."""
        raise Unreachable("ssh.timeout", "not in this test")

    def stream(self, argv: tuple[str, ...]) -> Stream:
        """Nor talks with one."""
        raise Unreachable("ssh.timeout", "not in this test")

    def close(self) -> None:
        """Nothing is held open."""


class Yes:
    """Says yes to everything, so that all of it is done."""

    def host_keys(self, shown: Any) -> bool:
        """Trusts."""
        return True

    def nat(self, node: str, peer: str) -> bool:
        """Lets in."""
        return True

    def passphrase(self, key: str) -> str | None:
        """Has none."""
        return None

    def password(self, user: str) -> str | None:
        """Has none."""
        return None


@pytest.fixture(scope="module")
def tools() -> Iterator[str]:
    """A PATH with an ssh that reaches nobody and says so at once."""
    with tempfile.TemporaryDirectory() as directory:
        ssh = Path(directory) / "ssh"
        ssh.write_text("#!/bin/sh\necho 'ssh: not in this test' >&2; exit 255\n")
        ssh.chmod(0o755)
        yield f"{directory}:{os.environ['PATH']}"


_NAMES = st.sampled_from(["gpu0", "gpu1", "rig", "a.b-c_d"]) | st.text("aZ0._-$;`'\" é", min_size=1, max_size=8)
_VALUES = st.sampled_from(_EVIL) | st.text(max_size=12)
_PAIRS = st.lists(
    # Whatever is plain is taken, so that what is not plain gets further than the first refusal.
    st.tuples(st.just("identity"), _VALUES)
    | st.sampled_from(
        [("addr", "10.0.0.7"), ("addr", "fd00::7"), ("user", "ann"), ("spare", "true"), ("port", "2222")]
    )
    | st.tuples(st.sampled_from(["addr", "user", "jump", "port", "gpus", "colour"]), _VALUES),
    max_size=2,
    unique_by=lambda pair: pair[0],
)
_LINES = st.tuples(_NAMES, st.integers(1, 9), _PAIRS).map(
    lambda line: f"{line[0]} slots={line[1]} " + " ".join(f'{key}="{value}"' for key, value in line[2])
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_LINES, min_size=1, max_size=3).map("\n".join), st.sampled_from(["home", *_EVIL]))
def test_no_word_of_a_hostfile_reaches_a_shell(
    tools: str, monkeypatch: pytest.MonkeyPatch, text: str, home: str
) -> None:
    """Either the hostfile is refused by name, or a whole up and down leave the canary alone."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        monkeypatch.setenv("CLUSTERFT_HOME", str(root / "controller"))
        path = root / "rack"
        path.write_text(text, encoding="utf-8")
        try:
            cluster = hosts.load(path)
        except UsageError as refused:
            assert refused.where and refused.what
            return
        homes = {node.name: root / f"{home.replace('/', '')}-{index}" for index, node in enumerate(cluster.nodes)}
        for one in homes.values():
            one.mkdir()
        monkeypatch.setattr(Fleet, "_connect", lambda _, node: Shell(homes[node.name], tools))
        monkeypatch.setattr(Fleet, "host_keys", property(lambda fleet: dict.fromkeys(fleet.remotes, _KEY)))
        muster = Bringup(cluster, Wants(device="cpu"), Yes(), lambda *_: None).run()
        assert {row.node for row in muster.roster.rows.values()} == {node.name for node in cluster.nodes}
        assert all(row.passed == ["reach", "check", "keys"] for row in muster.roster.rows.values()), (
            muster.all_findings
        )
        Teardown(cluster, lambda *_: None, Yes(), now=True, yes=True).run()
        assert not list(root.rglob(CANARY)) and not Path(CANARY).exists()


_RECORDED = sorted((scenes.GOLDEN / "probe").glob("*.txt"))
_WORD = "5eed5eed5eed5eed"
_ASKED = facts.Asked(_WORD, ("10.0.0.11",), ("/mnt/out",), sent=1699999999.0, received=1700000001.0)


@st.composite
def _told(draw: st.DrawFn) -> str:
    """A recorded answer with some words replaced by worse ones; the frames stay."""
    lines = draw(st.sampled_from(_RECORDED)).read_text(encoding="utf-8").splitlines(keepends=True)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        if "--clusterft-" not in lines[at]:
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from([*_EVIL, "0", "-1", "9" * 30, ""]))
            lines[at] = " ".join(words)
    return "".join(lines)


@settings(max_examples=200, deadline=None)
@given(st.lists(_told(), min_size=1, max_size=3), st.booleans())
def test_no_fact_of_a_host_breaks_a_judgement(answers: list[str], with_docker: bool) -> None:
    """Facts of any kind are judged, or the refusal is ours; what is planned from them holds plain words alone."""
    nodes = tuple(Node(f"n{index}", 1, line=index) for index in range(len(answers)))
    cluster = replace(scenes.cluster("n0 slots=1\n"), nodes=nodes)
    known = {}
    for node, answer in zip(nodes, answers, strict=True):
        try:
            known[node.name] = facts.parse(node.name, answer, _ASKED)
        except facts.Unreadable:
            continue
    survey = checks.Survey(cluster, known, (), {})
    for finding in checks.judge_up(survey, UpDemand("cuda", with_docker, "/mnt/out")):
        assert finding.id and finding.summary and set(finding.nodes) <= {node.name for node in nodes}
    for member in provision.members(survey, {}).values():
        assert all(set(source) <= set("0123456789abcdef.:") for source in member.sources)
    try:
        network.solve(replace(survey, cluster=replace(cluster, nodes=tuple(n for n in nodes if n.name in known))))
    except (ClusterftError, KeyError) as refused:
        assert isinstance(refused, UsageError) or not known
    for node in nodes:
        if node.name in known:
            assert container.cards(node, known[node.name]) in ((), ("all",))
