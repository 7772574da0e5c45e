"""Proves how the storage layer judges: what a look and the proof say of a share, and the lines that mend it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenes

from clusterft import agent, spec
from clusterft.checks import highlights, report, suite
from clusterft.checks.examination import Examination, Wanted
from clusterft.facts import Mount, NodeFacts, frames, health, probe, storage
from clusterft.facts.docker import Docker
from clusterft.facts.health import Asked, Health
from clusterft.facts.health.storage import (
    Calls,
    Dialled,
    FstabLine,
    Look,
    Served,
    StorageHealth,
    _calls,
    exports,
    look,
    sections,
)
from clusterft.facts.mounted import Mounted, over
from clusterft.facts.network import Address
from clusterft.facts.share import Share, Sight, Trial, Trouble, sights
from clusterft.findings import Finding
from clusterft.plan.container import Fittings
from clusterft.probing import share
from clusterft.probing.crew import Crew, Silent, Way
from clusterft.probing.hands import take

NAMES = ("a", "b", "c")
ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
CLUSTER = scenes.cluster("".join(f"{name} slots=1 addr={at}\n" for name, at in ADDRESSES.items()))
ROOT = Mount("/dev/sda2", "/", "ext4", "rw,relatime")
NFS = Mount("10.0.0.1:/export", "/mnt/out", "nfs4", "rw,relatime,vers=4.2,hard,proto=tcp,addr=10.0.0.1")
HERE = Look("ok", "", "/mnt/out", "drwxr-xr-x", (1000, 1000))
EXPORTED = exports("/export 10.0.0.2(rw,sync,no_subtree_check) 10.0.0.3(rw,sync,no_subtree_check)\n")
SERVED = Served(8, frozenset({"3", "4", "4.1", "4.2"}), EXPORTED, EXPORTED)


def facts(name: str, *mounts: Mount, **changes: Any) -> NodeFacts:
    """A node with these mounts over its root."""
    own = (Address("eth0", ADDRESSES[name], 24),)
    disk = scenes.disk("/mnt/out", **changes.pop("disk", {}))
    return scenes.facts(
        name, mounts=(ROOT, *mounts), addresses=own, boot_id=f"boot-{name}", disks=(disk,), **changes
    )


def healthy(name: str, **changes: Any) -> Health:
    """Doctor's own look, of which only the storage part matters here."""
    said = StorageHealth(**{"look": HERE, "fstab": (), "nfs_client": True, "systemd": True, **changes})
    asked = Asked("w")
    empty = {section: "" for section in frames_of(asked)}
    whole = health.parse(name, "".join(f"--clusterft-w-{each}\n" for each in [*empty, "end"]), asked)
    return replace(whole, storage=said)


def frames_of(asked: Asked) -> list[str]:
    """All sections of doctor's look."""
    return [
        line.split("-w-")[1].split(";")[0].strip() for line in health.script(asked).splitlines() if "-w-" in line
    ]


def seen(**changes: Any) -> Examination:
    """a serves /export, which b and c have mounted; process runs as 1000."""
    nodes = (facts("a", listening=frozenset({22, 2049})), facts("b", NFS), facts("c", NFS))
    whole = Examination(
        wanted=Wanted("cpu", contained=False, shared="/mnt/out"),
        survey=scenes.survey(CLUSTER, *nodes),
        health={"a": healthy("a", served=SERVED), "b": healthy("b"), "c": healthy("c")},
        share=proof(),
    )
    return replace(whole, **changes)


def proof(**trials: Trial) -> Share:
    """All see each other, but for the trials that are given."""
    usual = {name: trial(name) for name in NAMES}
    return Share("/mnt/out", {**usual, **trials}, writers=3, holder="a")


def trial(name: str, **changes: Any) -> Trial:
    """One node's part, as it is where all is well."""
    others = tuple(other for other in NAMES if other != name)
    soon = {other: Sight(0.01) for other in others}
    kinds = ("fcntl", "flock")
    usual: dict[str, Any] = {
        "uid": 1000,
        "gid": 1000,
        "owner": (1000, 1000),
        "fsync": 0.01,
        "rate": 50e6,
        "wanted": others,
        "seen": soon,
        "renewed": soon,
        "locks": dict.fromkeys(kinds, "had" if name == "a" else "refused"),
    }
    return Trial(name, "python", **{**usual, **changes})


def judged(whole: Examination) -> list[Finding]:
    """What the storage layer finds above info, and whether it broke."""
    found = report.judge(whole, suite.CHECKS)
    assert not report.broke(found), [one.evidence for one in found if "broke" in one.summary]
    return [one for one in found if one.status in ("fail", "warn") and one.id.startswith(("fs.", "os.disk"))]


def only(whole: Examination, identity: str, *nodes: str) -> Finding:
    """The one finding of the storage layer."""
    found = judged(whole)
    assert [(one.id, one.nodes) for one in found] == [(identity, nodes)], found
    return found[0]


MOUNTSTATS = """\
device proc mounted on /proc with fstype proc
device 10.0.0.9:/pub mounted on /mnt/my\\040pub with fstype nfs statvers=1.1
\topts:\trw,vers=3
\txprt:\ttcp 0 0 1 0 0 9 9 0 9 0 2 0 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
device 10.0.0.1:/export mounted on /mnt/out with fstype nfs4 statvers=1.1
\tage:\t86400
\tevents:\t1 2 3
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t       WRITE: 1500 1530 2 44 24 0 0 0 0
\t     GETATTR: 499 499 0 44 24 0 0 0 0
device tmpfs mounted on /tmp with fstype tmpfs
"""


def test_calls_of_nfs_mounts_are_counted(tmp_path: Path) -> None:
    stats = tmp_path / "mountstats"
    stats.write_text(MOUNTSTATS)
    script = sections(Asked("w"))["storage.calls"].replace("/proc/self/mountstats", str(stats))
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert _calls(said) == {"/mnt/my pub": (1, 0), "/mnt/out": (2000, 30)}
    assert _calls("") is None and _calls("seen\n") == {}


def test_calls_that_are_sent_again_too_often_are_told() -> None:
    told = only(with_health(b=healthy("b", calls={"/mnt/out": Calls(2000, 30)})), "fs.retrans", "b")
    assert told.status == "warn" and "calls to 10.0.0.1" in told.summary
    assert "30 of 2000 (1.5%)" in told.evidence and told.fix and told.cause
    for made, again in ((2000, 19), (999, 500), (0, 0)):
        calm = healthy("b", calls={"/mnt/out": Calls(made, again)})
        assert judged(with_health(b=calm)) == [], (made, again)
    elsewhere = healthy("b", calls={"/mnt/else": Calls(2000, 30)})
    assert judged(with_health(b=elsewhere)) == []


def with_health(**changed: Health) -> Examination:
    """The usual cluster but for these nodes' look; not tried, as with --quick."""
    usual = seen(share=None, unasked={"share": "not with --quick"})
    return replace(usual, health={**usual.health, **changed})


def with_facts(whole: Examination, *changed: NodeFacts) -> Examination:
    known = {**whole.survey.facts, **{one.node: one for one in changed}}
    return replace(whole, survey=replace(whole.survey, facts=known))


# -- well --------------------------------------------------------------------------


def test_nothing_is_found_where_all_is_well() -> None:
    assert judged(seen()) == []
    assert judged(with_health()) == []
    assert highlights.of(seen())["storage"] == "nfs4.2 10.0.0.1:/export, 10 ms to be seen"


@pytest.mark.parametrize(
    "fstype", ["ext4", "xfs", "btrfs", "zfs", "overlay", "9p", "fuse.bindfs", "ceph", "lustre", "virtiofs"]
)
def test_any_honest_filesystem_is_well(fstype: str) -> None:
    own = Mount("source", "/mnt/out", fstype, "rw")
    whole = seen(survey=scenes.survey(CLUSTER, *(facts(name, own) for name in NAMES)))
    assert judged(replace(whole, health={name: healthy(name) for name in NAMES})) == []


def test_one_machine_needs_no_share_and_no_directory_before_the_first_run() -> None:
    alone = scenes.cluster("a slots=1 addr=10.0.0.1\n")
    missing = {"a": healthy("a", look=Look("missing", "ls: /mnt/out: No such file or directory"))}
    whole = replace(with_health(), survey=scenes.survey(alone, facts("a")), health=missing)
    assert judged(whole) == []


def test_a_directory_below_a_share_that_nobody_has_made_yet_is_well() -> None:
    above = Mount("10.0.0.9:/all", "/mnt", "nfs4", "rw,vers=4.2")
    missing = {name: healthy(name, look=Look("missing", "No such file or directory")) for name in NAMES}
    whole = replace(with_health(), survey=scenes.survey(CLUSTER, *(facts(name, above) for name in NAMES)))
    assert judged(replace(whole, health=missing)) == []


def test_a_directory_that_is_on_no_node_is_first_of_all_a_name_to_correct(tmp_path: Path) -> None:
    missing = {name: healthy(name, look=Look("missing", "No such file or directory")) for name in NAMES}
    lacks = {"above": "/mnt", "beside": ("backup", "ouf", "web")}
    nodes = [facts(name, disk=lacks) for name in NAMES]
    whole = replace(with_health(), survey=scenes.survey(CLUSTER, *nodes), health=missing, share=None)
    file = tmp_path / "job.yaml"
    file.write_text(scenes.JOB)
    told = only(replace(whole, wanted=replace(whole.wanted, job=spec.load(file))), "fs.not-shared", *NAMES)
    assert told.fix[0] == f"correct shared: at {file}:2:9   did you mean /mnt/ouf?"
    assert told.summary == "/mnt/out does not exist" and "lend" in told.fix[1] and "exports" in "\n".join(told.fix)
    assert only(whole, "fs.not-shared", *NAMES).fix[0] == "correct shared: in the job   did you mean /mnt/ouf?"
    line = FstabLine("10.0.0.9:/all", "/mnt/out", "nfs4", "rw")  # what is to be mounted there is not mistyped
    meant = replace(whole, health={**missing, "b": healthy("b", look=missing["b"].storage.look, fstab=(line,))})
    assert judged(meant) and not any("correct" in step for one in judged(meant) for step in one.fix)


def test_a_server_whom_the_others_call_by_another_name_is_not_said_to_lack_a_mount() -> None:
    by_name = replace_mount(NFS, source="storage.lan:/export")
    whole = with_facts(with_health(), facts("b", by_name), facts("c", by_name))
    assert judged(whole) == []


SAMBA = Mount("//10.0.0.1/out", "/mnt/out", "cifs", "rw,vers=3.1.1")
SSHFS = Mount("train@10.0.0.1:/srv/out", "/mnt/out", "fuse.sshfs", "rw")


@pytest.mark.parametrize(
    "mount", [SAMBA, SSHFS, replace(SAMBA, source="//a.lan/out"), replace(NFS, fstype="glusterfs")]
)
def test_the_server_itself_needs_no_mount_of_what_it_lends_whatever_the_kind(mount: Mount) -> None:
    own = facts("a", listening=frozenset({22}), hostname="a")
    assert judged(with_facts(with_health(), own, facts("b", mount), facts("c", mount))) == []


def test_a_samba_server_that_the_others_call_by_another_name_is_known_by_its_port() -> None:
    mount = replace(SAMBA, source="//storage/out")
    whole = with_facts(with_health(), facts("b", mount), facts("c", mount))
    assert judged(with_facts(whole, facts("a", listening=frozenset({22, 445})))) == []
    assert only(with_facts(whole, facts("a", listening=frozenset({22}))), "fs.not-shared", "a")


def test_who_sees_the_others_files_has_the_same_directory_whatever_it_lies_on() -> None:
    mount = replace(SSHFS, source="storage:/out")
    clients = (facts("b", mount), facts("c", mount))
    assert judged(with_facts(seen(), facts("a", listening=frozenset({22})), *clients)) == []
    blind = {name: trial(name, wanted=NAMES, seen={}, renewed={}, locks={}) for name in NAMES}
    found = judged(with_facts(seen(share=proof(**blind)), facts("a", listening=frozenset({22})), *clients))
    assert ("fs.not-shared", ("a",)) in [(one.id, one.nodes) for one in found]


@pytest.mark.parametrize("fstype", ["virtiofs", "fuse.juicefs", "wekafs", "fuse.anything"])
def test_a_kind_that_may_be_shared_is_not_said_to_be_the_nodes_own(fstype: str) -> None:
    assert judged(with_facts(with_health(), facts("b", Mount("out", "/mnt/out", fstype, "rw")))) == []


def replace_mount(mount: Mount, **changes: Any) -> Mount:
    return replace(mount, **changes)


# -- it hangs -------------------------------------------------------------------------


def test_a_share_that_hangs_makes_the_rest_moot_on_that_node() -> None:
    stuck = Trial("b", "python", hung="look")
    whole = seen(share=proof(b=stuck))
    one = only(whole, "fs.hung", "b")
    assert one.needs_root and "umount -f -l /mnt/out" in one.fix[-1]
    told = {each.id: each.status for each in report.judge(whole, suite.CHECKS) if "b" in each.nodes}
    assert {told[each] for each in ("fs.squash", "fs.lock", "fs.not-shared", "fs.stale")} == {"skipped"}


def test_a_look_that_hung_counts_only_if_the_later_try_hung_too() -> None:
    slow = {"b": healthy("b", look=Look("hung"))}
    assert judged(replace(seen(), health={**seen().health, **slow})) == []
    assert only(with_health(**slow), "fs.hung", "b")


def test_a_node_that_is_too_slow_for_a_look_is_unknown_and_not_hung() -> None:
    whole = with_health(b=healthy("b", look=None))
    assert judged(whole) == []
    found = report.judge(whole, suite.CHECKS)
    assert [(one.status, one.nodes) for one in found if one.id == "fs.hung" and one.status != "ok"] == [
        ("unknown", ("b",))
    ]


def test_a_server_that_is_a_node_and_stopped_is_started_there() -> None:
    stopped = facts("a", listening=frozenset({22}))
    dialled = (Dialled("10.0.0.1", "refused", "connect: Connection refused"),)
    stuck = {name: healthy(name, look=Look("hung"), dialled=dialled) for name in ("b", "c")}
    own = {"a": healthy("a", served=replace(SERVED, threads=0))}
    one = only(with_facts(with_health(**stuck, **own), stopped), "fs.hung", "b", "c")
    assert one.fix[0] == "on a: sudo systemctl enable --now nfs-server" and "stopped" in one.cause
    bare = {"a": healthy("a", served=replace(SERVED, threads=0), systemd=False)}
    one = only(with_facts(with_health(**stuck, **bare), stopped), "fs.hung", "b", "c")
    assert one.fix[0] == "on a: sudo exportfs -ra && sudo rpc.nfsd 8"


def test_a_port_that_is_blocked_is_opened_in_the_firewalls_own_words() -> None:
    stuck = {"b": healthy("b", look=Look("hung"), dialled=(Dialled("10.0.0.1", "silent", ""),))}
    one = only(with_health(**stuck), "fs.hung", "b")
    assert one.fix[0] == "on a: sudo iptables -I INPUT -p tcp -s 10.0.0.0/24 --dport 2049 -j ACCEPT"
    assert "port 2049 of 10.0.0.1: no answer" in one.evidence


def test_a_server_elsewhere_that_is_off_is_named() -> None:
    far = replace_mount(NFS, source="nas:/volume1/out")
    whole = with_facts(with_health(), *(facts(name, far) for name in NAMES))
    stuck = {name: healthy(name, look=Look("hung"), dialled=(Dialled("nas", "silent", ""),)) for name in NAMES}
    one = only(replace(whole, health=stuck), "fs.hung", *NAMES)
    assert "nas is off, or a firewall" in one.cause and "ping nas" in one.fix[0]


# -- it is not the same one -----------------------------------------------------------------


def test_a_node_without_the_others_mount_gets_the_very_lines() -> None:
    whole = with_facts(with_health(b=healthy("b", look=replace(HERE, holds=True))), facts("b"))
    one = only(whole, "fs.not-shared", "b")
    assert one.fix == (
        "ls -A /mnt/out   (a mount hides what lies there: move it away first if it is needed)",
        "sudo mkdir -p /mnt/out && sudo mount -t nfs -o vers=4.2 10.0.0.1:/export /mnt/out",
        "echo '10.0.0.1:/export /mnt/out nfs vers=4.2,_netdev 0 0' | sudo tee -a /etc/fstab",
    )
    assert "c: 10.0.0.1:/export on /mnt/out type nfs4" in one.evidence


def test_what_is_mounted_once_it_is_touched_is_mounted() -> None:
    line = FstabLine("10.0.0.1:/export", "/mnt/out", "nfs", "noauto,x-systemd.automount")
    touched = {name: healthy(name, fstab=(line,), mounts=(ROOT, NFS)) for name in ("b", "c")}
    whole = with_facts(with_health(**touched), facts("b"), facts("c"))  # the first look at the mounts came before
    assert judged(whole) == []
    before = {name: healthy(name, fstab=(line,), mounts=(ROOT,)) for name in ("b", "c")}
    assert only(replace(whole, health={**whole.health, **before}), "fs.not-shared", "b", "c")


def test_the_client_is_installed_first_where_it_is_missing() -> None:
    whole = with_facts(with_health(b=healthy("b", nfs_client=False)), facts("b"))
    assert only(whole, "fs.not-shared", "b").fix[0] == "sudo apt-get install -y nfs-common"


def test_what_stands_in_fstab_and_is_not_mounted_is_mounted_from_there() -> None:
    line = FstabLine("10.0.0.1:/export", "/mnt/out", "nfs", "vers=4.2,_netdev")
    one = only(with_facts(with_health(b=healthy("b", fstab=(line,))), facts("b")), "fs.not-shared", "b")
    assert one.fix == ("sudo mkdir -p /mnt/out && sudo mount /mnt/out   (its line is in /etc/fstab)",)
    assert "it is in /etc/fstab, and was not mounted" in one.cause


def test_a_version_that_the_server_does_not_speak_is_changed_in_fstab() -> None:
    line = FstabLine("10.0.0.1:/export", "/mnt/out", "nfs", "vers=3,_netdev")
    own = healthy("a", served=replace(SERVED, versions=frozenset({"4", "4.1", "4.2"})))
    one = only(with_facts(with_health(a=own, b=healthy("b", fstab=(line,))), facts("b")), "fs.not-shared", "b")
    assert one.cause == "/etc/fstab asks for NFS 3; a speaks 4, 4.1, 4.2"
    assert one.fix[0] == "sudo sed -i '\\|^10.0.0.1:/export[[:space:]]|s/vers=3/vers=4.2/' /etc/fstab"
    assert one.fix[1] == "sudo mkdir -p /mnt/out && sudo mount /mnt/out"


def test_the_odd_one_by_proof_is_the_one_that_no_other_sees() -> None:
    apart = trial("c", wanted=("a", "b"), seen={}, renewed={}, locks={})
    others = {name: trial(name, seen={other: Sight(0.01)}, renewed={}) for name, other in (("a", "b"), ("b", "a"))}
    local = with_facts(seen(share=proof(c=apart, **others)), *(facts(name) for name in NAMES))
    whole = replace(local, health={name: healthy(name) for name in NAMES})
    one = only(whole, "fs.not-shared", "c")
    assert one.fix[1] == (
        "on a: echo '/mnt/out 10.0.0.3(rw,sync,no_subtree_check)' | sudo tee -a /etc/exports && sudo exportfs -ra"
    )


def test_where_no_two_nodes_share_the_head_lends_its_own() -> None:
    alone = {name: trial(name, seen={}, renewed={}, locks={}) for name in NAMES}
    local = with_facts(seen(share=proof(**alone)), *(facts(name) for name in NAMES))
    one = only(replace(local, health={name: healthy(name) for name in NAMES}), "fs.not-shared", *NAMES)
    assert "10.0.0.2(rw,sync,no_subtree_check) 10.0.0.3(rw,sync,no_subtree_check)" in "\n".join(one.fix)
    assert "on c: sudo mkdir -p /mnt/out && sudo mount -t nfs 10.0.0.1:/mnt/out /mnt/out" in one.fix


# -- it is not lent, stale, squashed ----------------------------------------------------------


def test_a_client_that_the_exports_do_not_name_is_added_with_their_options() -> None:
    lent = exports("/export 10.0.0.3(rw,sync,fsid=7)\n")
    own = healthy("a", served=replace(SERVED, written=lent, loaded=lent))
    one = only(with_facts(with_health(a=own), facts("b")), "fs.export", "b")
    assert one.fix == (
        "on a: echo '/export 10.0.0.2(rw,sync,fsid=7)' | sudo tee -a /etc/exports && sudo exportfs -ra",
        "on b: sudo mkdir -p /mnt/out && sudo mount -t nfs -o vers=4.2 10.0.0.1:/export /mnt/out",
        "on b: echo '10.0.0.1:/export /mnt/out nfs vers=4.2,_netdev 0 0' | sudo tee -a /etc/fstab",
    )


def test_exports_that_were_written_and_not_read_are_read() -> None:
    own = healthy("a", served=replace(SERVED, loaded=exports("/export 10.0.0.3(rw)\n")))
    one = only(with_facts(with_health(a=own), facts("b")), "fs.export", "b")
    assert one.fix[0] == "on a: sudo exportfs -ra" and "not read again" in one.cause


@pytest.mark.parametrize("name", ["*", "10.0.0.0/24", "10.0.0.0/255.255.255.0", "*.lan", "@rack", "b.lan"])
def test_who_may_be_meant_by_the_exports_is_not_said_to_be_left_out(name: str) -> None:
    lent = exports(f"/export {name}(rw)\n")
    own = healthy("a", served=replace(SERVED, written=lent, loaded=lent))
    assert {one.id for one in judged(with_facts(with_health(a=own), facts("b")))} == {"fs.not-shared"}


WILD = "/mnt/my data's $HOME"


def test_every_line_can_be_pasted_whatever_the_paths_hold(tmp_path: Path) -> None:
    mount = replace(NFS, source=f"10.0.0.1:{WILD}", target=WILD)
    lent = exports("/mnt/my\\040data's\\040$HOME 10.0.0.3(rw)\n")
    assert lent[0].path == WILD
    own = healthy("a", served=replace(SERVED, written=lent, loaded=lent), look=replace(HERE, real=WILD))
    whole = with_health(a=own, b=healthy("b", look=replace(HERE, real=WILD, holds=True)))
    whole = replace(whole, wanted=Wanted("cpu", contained=False, shared=WILD))
    whole = with_facts(whole, facts("b"), facts("c", mount))
    whole = replace(whole, health={**whole.health, "c": healthy("c", look=replace(HERE, real=WILD))})
    fix = only(whole, "fs.export", "b").fix
    assert pasted(fix[0].partition(": ")[2], tmp_path)["tee"] == [
        "-a /etc/exports",
        "/mnt/my\\040data's\\040$HOME 10.0.0.2(rw)",
    ]
    assert pasted(fix[1].partition(": ")[2].partition("   (")[0], tmp_path)["ls"] == ["-A", WILD]
    lines = pasted(fix[2].partition(": ")[2], tmp_path)
    assert lines["mkdir"] == ["-p", WILD]
    assert lines["mount"] == ["-t", "nfs", "-o", "vers=4.2", f"10.0.0.1:{WILD}", WILD]
    said = pasted(fix[3].partition(": ")[2], tmp_path)["tee"][1]
    place = "/mnt/my\\040data's\\040$HOME"
    assert said == f"10.0.0.1:{place} {place} nfs vers=4.2,_netdev 0 0"


def pasted(line: str, room: Path) -> dict[str, list[str]]:
    """What the programs of a line are given by a shell; of tee also what it reads."""
    for name in ("mount", "umount", "mkdir", "ls", "exportfs", "sed"):
        (room / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{room}/{name}.said\n')
    (room / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (room / "tee").write_text(f'#!/bin/sh\n{{ echo "$*"; cat; }} >{room}/tee.said\n')
    for each in room.iterdir():
        each.chmod(0o755)
    subprocess.run(["sh", "-c", f"PATH={room}:$PATH; {line}"], check=True, capture_output=True)
    return {one.stem: one.read_text().splitlines() for one in room.glob("*.said")}


def test_paths_are_quoted_in_every_line_of_the_storage_layer() -> None:
    mount = replace(NFS, source=f"10.0.0.1:{WILD}", target=WILD)
    wanted = Wanted("cpu", contained=False, shared=WILD)
    nodes = tuple(facts(name, mount) for name in NAMES)
    look = replace(HERE, real=WILD)
    denied = trial("a", trouble=Trouble("make", 13, "Permission denied"), wanted=())
    gone = trial("b", trouble=Trouble("write", 107, "Transport endpoint is not connected"), wanted=())
    late = trial("c", seen={"a": Sight(4.2, listed=True)}, locks={"fcntl": "had"})
    whole = with_facts(seen(wanted=wanted, share=proof(a=denied, b=gone, c=late)), *nodes)
    found = judged(replace(whole, health={name: healthy(name, look=look) for name in NAMES}))
    stale = judged(replace(whole, share=None, health={name: healthy(name, look=Look("stale")) for name in NAMES}))
    hung = judged(replace(whole, share=None, health={name: healthy(name, look=Look("hung")) for name in NAMES}))
    told = [step for one in (*found, *stale, *hung) for step in one.fix]
    assert {one.id for one in (*found, *stale, *hung)} >= {
        "fs.squash",
        "fs.not-writable",
        "fs.lock",
        "fs.attrcache",
    }
    for step in told:
        bare = step.replace(shlex.quote(WILD), "").replace(shlex.quote(f"10.0.0.1:{WILD}"), "")
        assert WILD not in bare or bare.startswith("and the same options"), step


def test_fstab_is_read_with_its_blanks() -> None:
    asked = Asked("w")
    said = {
        **dict.fromkeys(storage_sections(asked), ""),
        "storage.fstab": "seen\nnas:/a\\040b /mnt/a\\040b nfs rw\n",
    }
    assert health.storage.parse(said, asked).fstab == (FstabLine("nas:/a b", "/mnt/a b", "nfs", "rw"),)


def storage_sections(asked: Asked) -> list[str]:
    """Those of the storage layer."""
    return [*health.storage.sections(asked), *health.storage.stages(asked)]


def test_who_is_mounted_and_works_is_not_told_of_the_exports() -> None:
    lent = exports("/export 192.168.7.0/24(rw)\n")
    own = healthy("a", served=replace(SERVED, written=lent, loaded=lent))
    assert judged(with_health(a=own)) == []


def test_a_stale_handle_is_let_go_and_mounted_again() -> None:
    old = {"b": healthy("b", look=Look("stale", "ls: cannot access '/mnt/out': Stale file handle"))}
    one = only(with_health(**old), "fs.stale", "b")
    assert one.fix == ("sudo umount -f -l /mnt/out && sudo mount -t nfs -o vers=4.2 10.0.0.1:/export /mnt/out",)
    tried = Trial("b", "python", trouble=Trouble("look", 116, "Stale file handle"))
    assert only(replace(seen(share=proof(b=tried)), health={**seen().health, **old}), "fs.stale", "b")


def test_root_that_the_server_takes_for_nobody_is_told_so() -> None:
    denied = trial(
        "b", uid=0, gid=0, trouble=Trouble("make", 13, "Permission denied: /mnt/out/.clusterft"), wanted=()
    )
    one = only(seen(share=proof(b=denied)), "fs.squash", "b")
    assert "root_squash" in one.cause and "user= in rack" in one.fix[0]
    assert one.fix[1].startswith("on a: sudo chown UID:GID /export")


def test_another_users_directory_is_given_to_the_runs_user() -> None:
    denied = {name: trial(name, trouble=Trouble("make", 13, "Permission denied"), wanted=()) for name in NAMES}
    whole = with_facts(seen(share=proof(**denied)), *(facts(name) for name in NAMES))
    one = only(replace(whole, health={name: healthy(name) for name in NAMES}), "fs.squash", *NAMES)
    assert one.fix == ("on any node: sudo chown 1000:1000 /mnt/out",)
    assert "drwxr-xr-x 1000:1000 /mnt/out" in one.evidence


def test_the_ssh_user_is_no_proof_where_runs_work_as_somebody_else() -> None:
    denied = trial("b", uid=1001, gid=1001, trouble=Trouble("make", 13, "Permission denied"), wanted=())
    engine = Docker("ok", path="/usr/bin/docker", command=("docker",))
    contained = Wanted("cpu", contained=True, shared="/mnt/out", owner=(1000, 1000))
    whole = seen(share=proof(b=denied), wanted=contained)
    whole = with_facts(whole, *(replace(one, docker=engine) for one in whole.survey.facts.values()))
    found = report.judge(whole, suite.CHECKS)
    assert [one.status for one in found if one.id == "fs.squash" and "b" in one.nodes] == ["unknown"]


# -- it does not do what is asked of it ----------------------------------------------------------


def test_locks_that_two_nodes_have_at_once() -> None:
    both = trial("b", locks={"fcntl": "refused", "flock": "had"})
    one = only(seen(share=proof(b=both)), "fs.lock", "b")
    assert one.status == "warn" and one.evidence.startswith("flock: given to a and b at once")
    assert "vers=4.2 10.0.0.1:/export" in one.fix[0]


def test_locks_that_nobody_gives() -> None:
    none = {name: trial(name, locks={"fcntl": "37 No locks available"}) for name in ("b", "c")}
    one = only(seen(share=proof(**none)), "fs.lock", "b", "c")
    assert "No locks available" in one.evidence and "cannot be had" in one.summary


def test_what_is_seen_late_although_its_directory_was_listed() -> None:
    late = trial("b", seen={"a": Sight(4.2, listed=True), "c": Sight(0.01)})
    one = only(seen(share=proof(b=late)), "fs.attrcache", "b")
    assert "after 4.2 s" in one.evidence and "actimeo=1" in one.fix[0]
    slack = with_facts(with_health(), facts("b", replace_mount(NFS, options=f"{NFS.options},soft,actimeo=600")))
    fix = only(slack, "fs.attrcache", "b").fix[0]
    assert "soft,actimeo=1 " in fix and "600" not in fix, "what else it was mounted with stays"
    soon = trial("b", seen={"a": Sight(1.6, listed=True), "c": Sight(1.6, listed=True)})
    assert judged(seen(share=proof(b=soon))) == [], "NFS as it is by itself"


def test_a_replaced_file_that_is_never_seen() -> None:
    old = trial("b", renewed={"c": Sight(0.01)})
    assert "a replaced was seen as it was" in only(seen(share=proof(b=old)), "fs.attrcache", "b").evidence


@pytest.mark.parametrize(
    ("option", "told"), [("nocto", 1), ("acdirmax=600", 1), ("acregmin=3", 0), ("actimeo=60", 0)]
)
def test_a_mount_that_is_told_to_remember_for_long(option: str, told: int) -> None:
    kept = replace_mount(NFS, options=f"{NFS.options},{option}")
    found = judged(with_facts(with_health(), facts("b", kept)))
    assert [one.id for one in found] == ["fs.attrcache"] * told


def test_filesystems_without_permissions_or_renames() -> None:
    ntfs = Mount("/dev/sdb1", "/mnt/out", "ntfs3", "rw")
    one = only(with_facts(with_health(), facts("b", ntfs), facts("c", ntfs), facts("a", ntfs)), "fs.type", *NAMES)
    assert one.status == "warn" and "ntfs3" in one.summary


def test_only_an_absurd_speed_is_slow_and_each_had_a_part_of_it() -> None:
    share = {name: trial(name, rate=4e6) for name in NAMES}
    assert judged(seen(share=proof(**share))) == [], "3 nodes at 4 MB/s are 12 MB/s"
    worse = {name: trial(name, rate=1e6, fsync=2.5) for name in NAMES}
    found = judged(seen(share=proof(**worse)))
    assert [(one.id, one.status, one.nodes) for one in found] == [
        ("fs.slow", "warn", ("a",)),
        ("fs.slow", "warn", ("b", "c")),
    ]
    assert (
        "3.0 MB/s" in found[1].evidence and "2.5 s" in found[1].evidence and "10.0.0.1:/export" in found[1].fix[0]
    )


def test_a_directory_of_runs_that_is_a_colleagues_is_told_though_the_share_can_be_written() -> None:
    share = {name: trial(name, closed=(2000, 2000, "drwxr-xr-x")) for name in NAMES}
    one = only(seen(share=proof(**share)), "fs.squash", *NAMES)
    assert one.status == "fail" and "/mnt/out/.clusterft cannot be written" in one.summary
    assert "shared: /mnt/out/" in one.fix[0] and "chown -R" in one.fix[1]


def test_a_file_as_large_as_a_model_may_not_be_made() -> None:
    share = {name: trial(name, too_large=7 << 30) for name in ("b",)}
    one = only(seen(share=proof(**share)), "fs.file-size", "b")
    assert one.status == "fail" and "7 GiB" in one.summary and "ulimit -f" in one.fix[0]
    stick = Mount("/dev/sdb1", "/mnt/out", "vfat", "rw,relatime")
    whole = with_facts(seen(share=proof(**share)), facts("b", stick))
    told = [one for one in judged(whole) if one.id == "fs.file-size"]
    assert told[0].cause == "vfat has no files of 4 GiB and more" and "shared:" in told[0].fix[0]


def test_errors_of_the_filesystem_itself() -> None:
    lent = {
        name: trial(name, trouble=Trouble("make", 30, "Read-only file system"), wanted=()) for name in ("b", "c")
    }
    one = only(seen(share=proof(**lent)), "fs.not-writable", "b", "c")
    assert one.fix == ("on a: change ro to rw for /export in /etc/exports, then: sudo exportfs -ra",)
    ro = replace_mount(NFS, options="ro,vers=4.2")
    whole = with_facts(seen(share=proof(**lent)), facts("b", ro), facts("c", ro))
    assert judged(whole) == [], "os.ro-fs tells it"


def test_a_quota_is_told_where_the_disk_has_room() -> None:
    full = trial("b", trouble=Trouble("write", 122, "Disk quota exceeded"), wanted=())
    one = only(seen(share=proof(b=full)), "os.disk-full", "b")
    assert "1000:1000" in one.summary and "quota" in one.fix[0]


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("began\ndrwxr-xr-x 2 0 0 40 May 1 10:00 /mnt/out\nreal /mnt/out\nholds\nended\n", "ok"),
        (
            "ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded\nbegan\n"
            "drwxr-xr-x 2 0 0 40 May 1 10:00 /mnt/out\nreal /mnt/out\nholds\nended\n",
            "ok",
        ),
        ("began\n", "hung"),
        ("began\ndrwxr-xr-x 2 0 0 40 May 1 10:00 /mnt/out\n", "hung"),
        ("began\nls: cannot access '/mnt/out': Stale file handle\nended\n", "stale"),
        ("began\nls: /mnt/out: No such file or directory\nended\n", "missing"),
        ("began\nls: cannot access '/mnt/out': Transport endpoint is not connected\nended\n", "broken"),
        (
            "began\ndrwx------ 2 5 5 40 May 1 10:00 /m\nsh: 1: cd: can't cd to /m: Permission denied\nended\n",
            "denied",
        ),
    ],
)
def test_a_look_at_a_directory(text: str, state: str) -> None:
    found = look(text)
    assert found and found.state == state
    assert state != "ok" or (found.holds and found.owner == (0, 0) and found.real == "/mnt/out")


@pytest.mark.parametrize("text", ["", "Welcome!\n", "began", "\0\0", "began\nended\n" * 3])
def test_nonsense_is_no_look_or_no_crash(text: str) -> None:
    look(text)
    assert look("") is None


def test_exports_as_people_write_them() -> None:
    text = (
        "# lent\n/export  10.0.0.2(rw,sync) \\\n  10.0.0.3(ro)\n"
        '"/with space" *(rw)\n/all -rw,sync 10.0.0.4\n/open\n/data@x (ro)\n'
    )
    found = {one.path: one.clients for one in exports(text)}
    assert found["/export"] == (("10.0.0.2", "rw,sync"), ("10.0.0.3", "ro"))
    assert found["/with space"] == (("*", "rw"),) and found["/all"] == (("10.0.0.4", "rw,sync"),)
    assert found["/open"] == (("*", ""),)


def test_only_sights_that_are_whole_count() -> None:
    assert sights({"n1": [0.1, False], "n2": "soon", "n3": [True, 1]}) == {"n1": Sight(0.1, False)}
    assert sights([1]) == {}


def test_the_mount_over_a_directory_is_not_that_of_a_namesake() -> None:
    mounts = (ROOT, Mount("x", "/mnt/out2", "xfs", "rw"), Mount("y", "/mnt", "ext4", "rw"))
    assert storage.over(mounts, "/mnt/out") == mounts[2] and storage.over(mounts, "/srv") == ROOT


def test_the_look_works_in_a_real_shell(tmp_path: Path) -> None:
    place = tmp_path / "it's a -share"
    place.mkdir()
    for text, state in ((str(place), "ok"), (str(place / "none"), "missing"), ("/proc/self/cmdline/x", "missing")):
        asked = Asked("w0rd", shared=text)
        said = subprocess.run(
            ["sh"], input=health.script(asked), capture_output=True, text=True, timeout=60
        ).stdout
        found = health.parse("a", said, asked).storage.look
        assert found and found.state == state, said[-800:]
        mounted = health.parse("a", said, asked).storage.mounts
        assert mounted and any(one.target == "/" for one in mounted)
    assert frames and probe


# -- the program -------------------------------------------------------------------------------------


def program(directory: Path, word: str, *asked: dict[str, Any], name: str = "n0") -> list[dict[str, Any]]:
    """Its answers, as it is started on a node."""
    boot = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), sys.argv[2], 'exec'))"
    source = agent.text("share").encode()
    lines = "".join(json.dumps({"seconds": 5, **one}) + "\n" for one in asked).encode()
    argv = [sys.executable, "-u", "-c", boot, str(len(source)), "share", str(directory), word, name]
    done = subprocess.run(argv, input=source + lines, capture_output=True, timeout=60)
    assert done.stderr == b"", done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_program_does_its_steps_and_leaves_nothing(tmp_path: Path) -> None:
    _, made, wrote, saw, again, held, tried, *_ = program(
        tmp_path,
        "w",
        {"do": "make", "names": ["n1"]},
        {"do": "write", "nonce": "one", "bytes": 1 << 20},
        {"do": "see", "wanted": {"n0": "one", "n1": "two"}, "within": 0.3},
        {"do": "write", "nonce": "three"},
        {"do": "hold"},
        {"do": "try", "holder": "n0"},
        {"do": "release"},
    )
    assert made["made"] and made["free"] > 0
    assert wrote["rate"] > 0 and wrote["fsync"] < 5 and "rate" not in again
    assert list(saw["seen"]) == ["n0"]
    assert held["locks"] == {"fcntl": "had", "flock": "had"}
    assert tried["locks"] == {"fcntl": "refused", "flock": "refused"}
    assert list(tmp_path.iterdir()) == []


def test_a_proof_at_work_is_not_swept_away_by_a_node_whose_clock_is_ahead(tmp_path: Path) -> None:
    import os

    ages = {"w": 2, "other": 2, "old": 4}  # days by this machine's clock; the server's is two days behind
    for word, days in ages.items():
        (tmp_path / ".clusterft" / f"doctor-{word}").mkdir(parents=True)
        then = time.time() - days * 86400 - 60
        os.utime(tmp_path / ".clusterft" / f"doctor-{word}", (then, then))
    _, made, wrote = program(tmp_path, "w", {"do": "make", "names": []}, {"do": "write", "nonce": "one"})
    assert made["place"].endswith("doctor-w") and wrote["owner"]
    assert [one.name for one in (tmp_path / ".clusterft").iterdir()] == ["doctor-other"]


def test_the_program_names_the_error_of_a_step(tmp_path: Path) -> None:
    (tmp_path / ".clusterft").write_text("in the way")
    _, made, *_ = program(tmp_path, "w", {"do": "make", "names": []})
    assert made["errno"] in (20, 17) and str(tmp_path) in made["words"]
    assert (tmp_path / ".clusterft").read_text() == "in the way"


def test_a_step_that_hangs_costs_its_own_seconds_and_the_program_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".clusterft" / "doctor-w").mkdir(parents=True)
    import os

    os.mkfifo(tmp_path / ".clusterft" / "doctor-w" / "n1")  # who opens it to read waits for a writer
    answers = program(
        tmp_path,
        "w",
        {"do": "make", "names": []},
        {"do": "see", "wanted": {"n1": "two"}, "within": 1, "seconds": 1},
        {"do": "write", "nonce": "one"},
    )
    assert answers[2] == {"hung": 1.0} and answers[3]["owner"]


# -- the proof ---------------------------------------------------------------------------------------


class Hands:
    """Of one node: what it was asked for, and what it says to a step that is not answered well."""

    hello: dict[str, Any] = {"uid": 1000, "gid": 1000}

    def __init__(self, way: str, **said: dict[str, Any]) -> None:
        self.way: Any = way
        self.said = said
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, step: str, seconds: float, **details: Any) -> dict[str, Any]:
        """Well, unless told otherwise; a write with bytes is `speed`."""
        self.asked.append((step, details))
        usual: dict[str, dict[str, Any]] = {
            "write": {"owner": [1000, 1000]},
            "speed": {"owner": [1000, 1000], "rate": 5e7, "fsync": 0.01},
            "see": {"seen": {name: [0.01, False] for name in details.get("wanted", ())}},
            "hold": {"locks": {"fcntl": "had", "flock": "had"}},
            "try": {"locks": {"fcntl": "refused", "flock": "refused"}},
        }
        name = "speed" if details.get("bytes") else step
        return self.said.get(name, usual.get(name, {}))


class Everywhere:
    """A fleet that does the work on all nodes, one after the other."""

    def __init__(self, *names: str) -> None:
        self.remotes: dict[str, Any] = dict.fromkeys(names)

    def each(self, work: Any) -> dict[str, Any]:
        """As the real one."""
        return {name: work(name, remote) for name, remote in self.remotes.items()}


def proved(hands: dict[str, Hands], *, seconds: float = 60.0, busy: bool = False) -> Share:
    """What the proof makes of these hands, given so many seconds."""
    ways, inside = dict.fromkeys(hands, Way("none")), dict.fromkeys(hands, Fittings())
    made = share._Proof(Crew(Everywhere(*hands), ways), Wanted(shared="/mnt/out"), inside)  # type: ignore[arg-type]
    made._until, made._busy = time.monotonic() + seconds, busy
    for name, hand in hands.items():
        made._hands[name] = hand
        made._greet(name, hand)
        made._in.append(name)
    made.try_all()
    return made.told()


def answers(found: Share, identity: str) -> dict[str, str]:
    """Node -> what is said of an id."""
    whole = seen(share=found)
    told = report.judge(whole, suite.CHECKS)
    return {node: one.status for one in told if one.id == identity for node in one.nodes}


def test_the_speed_is_measured_on_four_nodes_and_told_of_no_other() -> None:
    hands = {name: Hands("python") for name in (*NAMES, "d", "e", "f")}
    found = proved(hands)
    timed = [name for name, hand in hands.items() if any(details.get("bytes") for _, details in hand.asked)]
    assert timed == ["a", "b", "c", "d"] and found.writers == 4
    assert found.trials["e"].untried["speed"] == ("measured on a b c d alone", True)
    assert found.trials["a"].rate == 5e7 and not found.trials["a"].untried


def test_beside_a_run_no_speed_is_measured() -> None:
    hands = {name: Hands("python") for name in NAMES}
    found = proved(hands, busy=True)
    assert not any(details.get("bytes") for hand in hands.values() for _, details in hand.asked)
    assert answers(found, "fs.slow") == dict.fromkeys(NAMES, "skipped")
    assert answers(found, "fs.lock") == dict.fromkeys(NAMES, "ok")


def test_what_there_was_no_time_for_is_not_tried_and_not_known() -> None:
    hands = {name: Hands("python") for name in NAMES}
    found = proved(hands, seconds=4.5)  # less than a step takes at most
    assert [hand.asked for hand in hands.values()] == [[], [], []]
    for identity in ("fs.lock", "fs.slow", "fs.attrcache", "fs.not-writable"):
        assert answers(found, identity) == dict.fromkeys(NAMES, "unknown"), identity
    assert answers(found, "fs.hung") == dict.fromkeys(NAMES, "ok")


def test_a_step_gets_all_of_its_seconds_or_none() -> None:
    hands = {name: Hands("python") for name in NAMES}
    proved(hands, seconds=6.5)
    assert {step for step, _ in hands["a"].asked} == {"make", "write"}, "a look for files takes seven"
    assert "see" in answers_of(proved(hands, seconds=60.0), hands)


def answers_of(_: Share, hands: dict[str, Hands]) -> set[str]:
    """The steps that were asked for."""
    return {step for hand in hands.values() for step, _ in hand.asked}


def test_a_shell_knows_of_no_locks_and_no_speed() -> None:
    found = proved({"a": Hands("python"), "b": Hands("sh"), "c": Hands("python")})
    for identity in ("fs.lock", "fs.slow"):
        assert answers(found, identity) == {"a": "ok", "b": "unknown", "c": "ok"}, identity


def test_a_disk_that_takes_too_long_for_the_speed_is_slow_and_not_hung() -> None:
    found = proved({"a": Hands("python", speed={"hung": 5.0}), "b": Hands("python"), "c": Hands("python")})
    assert not found.trials["a"].hung
    assert only(seen(share=found), "fs.slow", "a").status == "warn"


@pytest.mark.parametrize("number", [2, 20])
def test_a_directory_that_is_there_and_cannot_be_written_into_is_told(number: int) -> None:
    said = {"errno": number, "words": "Not a directory: /mnt/out/.clusterft/doctor-w"}
    found = proved({"a": Hands("python"), "b": Hands("python", make=said), "c": Hands("python")})
    one = only(seen(share=found), "fs.not-writable", "b")
    assert "/mnt/out/.clusterft" in one.fix[0]
    assert answers(found, "fs.lock") == {"a": "ok", "b": "skipped", "c": "ok"}


def level(source: str, fstype: str, root: str = "/") -> Mounted:
    """What is mounted on /mnt/out."""
    return Mounted("8:1", Mount(source, "/mnt/out", fstype, "rw,relatime,vers=4.2"), root)


@pytest.mark.parametrize(
    ("theirs", "mine", "there"),
    [
        (level("/dev/vda", "ext4", "/srv/out"), level("/dev/vda", "ext4", "/srv/out/team"),
         "where that is not enough, mount there what a has: directory /srv/out of /dev/vda"),
        (level("10.0.0.9:/export", "nfs4"), level("10.0.0.9:/export/team", "nfs4"),
         "mount -t nfs -o vers=4.2 10.0.0.9:/export /mnt/out"),
    ],
)  # fmt: skip
def test_another_directory_of_one_source_is_unmounted_and_no_new_server_made(
    theirs: Mounted, mine: Mounted, there: str
) -> None:
    """Found blind with a fix that shares anew what the others share already."""
    places = {"a": theirs, "b": mine, "c": theirs}
    apart = replace(trial("b"), seen={}, renewed={})
    of = seen(
        survey=scenes.survey(CLUSTER, *(facts(name, places[name].mount) for name in NAMES)),
        health={name: healthy(name, place=places[name]) for name in NAMES},
        share=proof(b=apart, **{
            name: replace(trial(name), seen={other: Sight(0.01)}, renewed={other: Sight(0.01)})
            for name, other in (("a", "c"), ("c", "a"))
        }),
    )  # fmt: skip
    one = only(of, "fs.not-shared", "b")
    assert one.fix[0] == "on b: sudo umount /mnt/out" and there in "\n".join(one.fix)
    assert "team" in one.cause and "nfs-kernel-server" not in "\n".join(one.fix)
    head = seen(survey=of.survey, health={**of.health, "a": of.health["b"], "b": of.health["a"]}, share=proof(
        a=replace(trial("a"), seen={}, renewed={}),
        b=replace(trial("b"), seen={"c": Sight(0.01)}, renewed={"c": Sight(0.01)}),
        c=replace(trial("c"), seen={"b": Sight(0.01)}, renewed={"b": Sight(0.01)}),
    ))  # fmt: skip
    assert [one.nodes for one in judged(head) if one.id == "fs.not-shared"] == [("a",)]


def test_the_directory_that_is_mounted_is_read_with_the_mount() -> None:
    line = "90 80 254:0 /srv/out/te\\040am /mnt/out rw,relatime shared:1 - ext4 /dev/vda rw"
    root = "80 1 254:0 / / rw shared:1 - ext4 /dev/vda rw"
    found = over([root, line])
    assert found and (found.root, found.mount.target, found.mount.source) == (
        "/srv/out/te am",
        "/mnt/out",
        "/dev/vda",
    )
    done = subprocess.run(["sh"], input=sections(Asked("w", "/tmp"))["storage.place"], text=True,
                          capture_output=True, timeout=20, check=True)  # fmt: skip
    assert over(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("mode", "owner", "contained", "step"),
    [
        ("drwxrws---", (0, 3000), True, "in job.yaml: user: 1000:3000"),
        ("drwxrwx---", (0, 3000), False, "on b: sudo usermod -aG $(getent group 3000 | cut -d: -f1) me"),
        ("drwxr-s---", (0, 3000), True, "on any node: sudo chown 1000:1000 /mnt/out"),
        ("drwxrws---", (0, 1000), True, "on any node: sudo chown 1000:1000 /mnt/out"),
        ("drwxrwx---", (0, 0), True, "on any node: sudo chown 1000:1000 /mnt/out"),
    ],
)
def test_a_groups_directory_is_joined_and_not_taken_from_it(
    mode: str, owner: tuple[int, int], contained: bool, step: str
) -> None:
    """Found blind: a chown mends it for the run, and takes it from everybody else in the group."""
    words = "[Errno 13] Permission denied: '/mnt/out/.clusterft'"
    trials = {name: replace(trial(name, trouble=Trouble("make", 13, words)), way="image") for name in NAMES}
    known = [facts(name, user="me") for name in NAMES]
    of = seen(
        wanted=Wanted("cpu", contained=contained, shared="/mnt/out", owner=(1000, 1000)),
        survey=scenes.survey(CLUSTER, *known),
        health={name: healthy(name, look=Look("ok", "", "/mnt/out", mode, owner)) for name in NAMES},
        share=proof(**trials),
    )
    found = [one for one in judged(of) if one.id == "fs.squash" and "b" in one.nodes]
    assert found and found[0].status == "fail" and any(step in one for one in found[0].fix), found
    assert ("chown" in found[0].fix[0]) is ("chown" in step)


def test_what_belongs_to_another_user_on_one_side_alone_is_squashed() -> None:
    nobody = trial("b", owner=(65534, 65534))
    one = only(seen(share=proof(b=nobody)), "fs.squash", "b")
    assert (
        one.status == "warn"
        and "65534" in one.summary
        and one.fix[1].startswith("on a: in /etc/exports, for /export")
    )
    same = {name: trial(name, owner=(1024, 100)) for name in NAMES}
    assert judged(seen(share=proof(**same))) == [], "all are one user there, which works"
    own = with_facts(seen(share=proof(b=nobody)), facts("b", replace(NFS, fstype="cifs")))
    assert not [each for each in judged(own) if each.id == "fs.squash"], (
        "a mount of that kind has an owner of its own"
    )


class Here:
    """This machine's sh in place of a node's."""

    def run(self, argv: tuple[str, ...], stdin: bytes = b"", seconds: float = 9.0) -> Any:
        """As a remote does."""
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=seconds)
        return SimpleNamespace(out=done.stdout.decode(), err="", code=done.returncode)


def test_a_shell_leaves_nothing_when_doctor_is_interrupted(tmp_path: Path) -> None:
    fleet = Everywhere("a")
    fleet.remotes["a"] = Here()
    with pytest.raises(KeyboardInterrupt), Crew(fleet, {"a": Way("none")}) as crew:  # type: ignore[arg-type]
        hand = take(crew, Wanted(shared=str(tmp_path)), "a", "w", "n0", Fittings())
        assert hand.ask("make", 5)["made"] and hand.ask("write", 5, nonce="one")
        assert (tmp_path / ".clusterft" / "doctor-w" / "n0").read_text() == "one"
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Silent):
        hand.ask("write", 5, nonce="two")
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_of_another_kind_that_is_mounted_on_the_others_alone() -> None:
    """As with a bind mount or a disk of a cloud that several machines have: found when injected blind."""
    bound = Mount("/dev/vdb", "/mnt/out", "ext4", "rw")
    bare = Mount("/dev/vda1", "/", "ext4", "rw")
    denied = trial("b", trouble=Trouble("make", 1, "Operation not permitted"), wanted=(), seen={}, renewed={})
    one, other = trial("a", seen={"c": Sight(0.01)}), trial("c", seen={"a": Sight(0.01)})
    nodes = (facts("a", bound), facts("b", bare), facts("c", bound))
    whole = seen(share=proof(a=one, b=denied, c=other), survey=scenes.survey(CLUSTER, *nodes))
    found = judged(whole)
    assert [(one.id, one.nodes) for one in found] == [("fs.not-shared", ("b",))]
    assert any("mount" in step for step in found[0].fix)
    alone = trial("b", seen={}, renewed={})  # it may write there, and is told once even so
    again = judged(replace(whole, share=proof(a=one, b=alone, c=other)))
    assert [(one.id, one.nodes) for one in again] == [("fs.not-shared", ("b",))]


DATA = over(["40 1 0:52 / /data rw,nosuid - fuse /dev/fuse rw,user_id=0"])


def test_a_mount_of_the_jobs_data_that_hangs_is_named_with_its_node_and_its_mount() -> None:
    """Of the fourth blind round: /data of one node was FUSE whose server had been stopped."""
    well = {name: healthy(name, paths={"/data/pics": "there"}) for name in ("a", "c")}
    stuck = healthy("b", paths={"/data/pics": "waits"}, under={"/data/pics": DATA})
    one = only(with_health(**well, b=stuck), "fs.hung", "b")
    assert one.summary == "/data/pics, which the job names, does not answer on b: whatever touches it waits"
    assert "/data/pics answers on a c" in one.evidence and "mounted on /data" in one.evidence
    assert "device 0:52" in one.evidence and any("sudo umount -f -l /data" in step for step in one.fix)


def test_a_link_of_the_roots_disk_that_hangs_is_not_put_on_that_disk() -> None:
    stuck = healthy("b", paths={"/pics": "waits"}, under={"/pics": over(["1 0 8:2 / / rw - ext4 /dev/sda2 rw"])})
    one = only(with_health(b=stuck), "fs.hung", "b")
    assert "sda2" not in one.evidence and "/proc/self/mountinfo" in one.fix[0]


def test_each_path_is_looked_into_by_itself_and_what_hangs_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a b").mkdir()
    (tmp_path / "file").write_text("x")
    paths = tuple(str(tmp_path / name) for name in ("a b", "file", "gone", "fifo"))
    asked = Asked("w", paths=paths)
    text = health.storage.stages(asked)["storage.paths"]
    whole = probe.framed("w", {"begin": ":"}, {"storage.paths": text}, within=8)
    done = subprocess.run(["sh"], input=whole, capture_output=True, text=True, timeout=30)
    said = health.storage.answers(done.stdout, paths)
    assert [said[path] for path in paths] == ["there", "there", "absent", "there"], "a pipe is not waited for"


def test_what_began_and_did_not_end_waits_and_what_did_not_begin_is_not_known() -> None:
    found = health.storage.answers("began 0\nbegan 1\nthere 1\n", ("/a", "/b", "/c"))
    assert found == {"/a": "waits", "/b": "there"}


def test_the_mount_under_each_path_is_read() -> None:
    asked = Asked("w", paths=("/proc/self", "/"))
    done = subprocess.run(["sh", "-c", sections(asked)["storage.under"]], capture_output=True, text=True)
    found = health.storage._under(done.stdout, asked.paths)
    assert found["/proc/self"].mount.target == "/proc" and found["/"].mount.target == "/"
