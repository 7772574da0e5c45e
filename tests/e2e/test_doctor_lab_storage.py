"""doctor on shared directories that are wrong: missing, not shared, hung, full, read-only, another user's."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctoring import JOB, SCRIPT_JOB, Answer, Desk, above_info, beside, clean, finding, on, statuses

from e2e.upping import DOCKERFILE
from lab import FullLab, LightLab
from lab.proc import until

ASKED = ("--only", "ssh,host,storage")  # what ports and engines do is for other tests to say


@pytest.fixture(scope="module")
def light() -> Iterator[LightLab]:
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture(scope="module")
def hanging() -> Iterator[FullLab]:
    with FullLab.up(count=4, engine="26.1", hangs=True) as made:
        yield made


@pytest.fixture(scope="module")
def small() -> Iterator[FullLab]:
    with FullLab.up(count=2, engine="26.1", shared_mib=200) as made:
        yield made


def other_disk(lab: LightLab, *nodes: str) -> None:
    """An empty disk of their own over the shared directory, as where a mount is missing."""
    for node in nodes:
        on(lab, node, f"mount -t tmpfs -o size=30g own {lab.shared}")


def mounted_again(lab: LightLab, *nodes: str) -> None:
    """The shared directory is what it was."""
    for node in nodes:
        on(lab, node, f"umount {lab.shared}")


def alone(answer: Answer, identity: str, *nodes: str) -> dict[str, str]:
    """The finding, as the only one above info."""
    one = finding(answer, identity, *nodes)
    others = [(each["id"], each["nodes"], each["summary"]) for each in above_info(answer) if each is not one]
    assert not others, others
    assert answer["code"] == (3 if one["status"] == "fail" else 0)
    return one


def nothing_left(lab: LightLab | FullLab, *nodes: str, shared: str | None = None) -> None:
    """No file of the proof, and no process of it."""
    for node in nodes or [each.name for each in lab.nodes]:
        assert on(lab, node, f"find {shared or lab.shared} -name 'doctor-*' -o -name '.clusterft*'") == ""
        assert "doctor-" not in on(lab, node, "ps -eo args= | grep -v grep | grep doctor- || true")


@pytest.mark.lab_light
def test_a_shared_directory_that_is_well_is_tried_and_left_as_it_was(light: LightLab, tmp_path: Path) -> None:
    desk = Desk(light, tmp_path)
    for _ in range(3):
        answer = desk.doctor()
        clean(answer)
        for identity in ("fs.not-shared", "fs.lock", "fs.attrcache", "fs.slow", "fs.squash", "fs.hung"):
            assert set(statuses(answer, identity).values()) == {"ok"}, identity
    nothing_left(light)


@pytest.mark.lab_light
def test_a_directory_that_one_node_lacks(light: LightLab, tmp_path: Path) -> None:
    out = f"{light.shared}/out"
    desk = Desk(light, tmp_path, job=JOB.format(shared=out, runtime="process"))
    on(light, "n1", f"mkdir -p {out}")
    other_disk(light, "n2")
    try:
        one = alone(desk.doctor(), "fs.not-shared", "n2")
        steps, address = "\n".join(one["fix"]), light.node("n1").address
        assert "does not exist" in one["summary"] and "No such file" in one["evidence"]
        assert f"on n2: sudo mkdir -p {out} && sudo mount -t nfs {address}:{out} {out}" in steps
        assert f"{light.node('n2').address}(rw,sync,no_subtree_check)' | sudo tee -a /etc/exports" in steps
        assert f"{address}:{out} {out} nfs _netdev 0 0" in steps
        alone(desk.doctor("--quick"), "fs.not-shared", "n2")
    finally:
        mounted_again(light, "n2")
    clean(desk.doctor())
    nothing_left(light)
    on(light, "n1", f"rmdir {out}")


@pytest.mark.lab_light
@pytest.mark.long
def test_a_node_that_has_mounted_another_level_of_the_share(light: LightLab, tmp_path: Path) -> None:
    """As after a wrong line in its fstab: what the others share is not to be shared anew."""
    shared, desk = light.shared, Desk(light, tmp_path)
    on(light, "n1", f"mkdir {shared}/team")
    on(light, "n2", f"mount --bind {shared}/team {shared}")
    try:
        one = alone(desk.doctor(), "fs.not-shared", "n2")
        steps = "\n".join(one["fix"])
        assert f"on n2: sudo umount {shared}" in one["fix"] and "nfs" not in steps, one["fix"]
        assert "/team of " in one["cause"] and "another directory than the others'" in one["summary"]
        assert "its directory " in one["evidence"]
    finally:
        mounted_again(light, "n2")
        on(light, "n1", f"rmdir {shared}/team")
    clean(desk.doctor())
    nothing_left(light)


def model_file(path: Path) -> Path:
    """A file with SDXL's numbers of weights in its head, and a hole where they would be."""
    counts = {"model.diffusion_model.a": 2_567_463_684, "conditioner.embedders.0.a": 123_060_480,
              "conditioner.embedders.1.a": 694_659_840, "first_stage_model.a": 83_653_863}  # fmt: skip
    head, at = {}, 0
    for name, count in counts.items():
        head[name] = {"dtype": "F16", "shape": [count], "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


@pytest.mark.lab_light
def test_a_share_without_room_for_the_checkpoints_of_the_job(light: LightLab, tmp_path: Path) -> None:
    tiny = JOB.format(shared=light.shared, runtime="process")
    model = model_file(tmp_path / "base.safetensors")
    full = tiny.replace("builtin:tiny", str(model)).replace("steps: 3", "steps: 3000")
    lines = light.hostfile.read_text().splitlines(keepends=True)
    alone_there = "".join(line for line in lines if not line.startswith(("n2 ", "n3 ")))
    desk = Desk(light, tmp_path, hosts=alone_there, job=full)
    for options, status, words in (
        ("size=40g", "fail", "no room for one checkpoint beside the one before it"),
        ("size=60g", "fail", "no room for all that this run keeps"),
        ("size=100g", "warn", "no room for all that this run keeps"),
    ):
        on(light, "n1", f"mount -t tmpfs -o {options} own {light.shared}")
        try:
            one = alone(desk.doctor("--quick"), "os.disk-full", "n1")
            assert one["status"] == status and words in one["summary"]
            assert "2 kept + 1 last + 1 being written, of 31 GB each" in one["evidence"]
            assert f"GB are free on {light.shared}" in one["evidence"] and "full-size" not in one["evidence"]
            assert "train.checkpoints.keep: 1 needs 31 GB less" in one["fix"]
            assert ("train.checkpoints.keep: 1 fits into 107 GB" in one["fix"]) == (status == "warn")
            started = desk.run("train", str(desk.job), "--hosts", str(desk.hosts), "--dry-run")
            assert started.returncode == (3 if status == "fail" else 0), started.stdout + started.stderr
            assert words in started.stdout + started.stderr
            desk.job.write_text(tiny)
            clean(desk.doctor("--quick"))
        finally:
            desk.job.write_text(full)
            mounted_again(light, "n1")


@pytest.mark.lab_light
def test_a_folder_for_copies_of_the_cache_that_one_node_has_no_room_for(light: LightLab, tmp_path: Path) -> None:
    near = f"{tmp_path}/near"
    shapes = "[{builtin: shapes}]"
    kept = f"{shapes}, cache: {{local: {near}, local_gigabytes: 1}}"
    job = JOB.format(shared=light.shared, runtime="process").replace(shapes, kept)
    desk = Desk(light, tmp_path / "desk", job=job)
    (tmp_path / "near").mkdir()
    clean(desk.doctor("--quick"))
    on(light, "n2", f"mount -t tmpfs -o size=64m own {near}")
    try:
        one = alone(desk.doctor("--quick"), "data.local-cache", "n2")
        assert one["status"] == "warn" and f"67 MB free on n2:{near}" in one["evidence"]
        started = desk.run("train", str(desk.job), "--hosts", str(desk.hosts), "--dry-run")
        assert started.returncode == 0 and "data.local-cache" in started.stdout + started.stderr
    finally:
        on(light, "n2", f"umount {near}")
    (tmp_path / "near").rmdir()
    (tmp_path / "near").write_text("")
    one = alone(desk.doctor("--quick"), "data.local-cache", "n1", "n2", "n3")
    assert one["status"] == "fail" and "is no directory" in one["summary"]
    assert desk.run("train", str(desk.job), "--hosts", str(desk.hosts), "--dry-run").returncode == 3


@pytest.mark.lab_light
@pytest.mark.long
def test_a_directory_that_is_another_one_on_one_node(light: LightLab, tmp_path: Path) -> None:
    desk = Desk(light, tmp_path)
    other_disk(light, "n2")
    on(light, "n2", f"echo precious >{light.shared}/file")
    try:
        one = alone(desk.doctor(), "fs.not-shared", "n2")
        steps = "\n".join(one["fix"])
        assert "n1 n3: " in one["evidence"] and "n2: tmpfs own" in one["evidence"]
        assert f"on n2: ls -A {light.shared}   (a mount hides what lies there" in steps
        assert f"sudo mount -t nfs {light.node('n1').address}:{light.shared} {light.shared}" in steps
        assert on(light, "n2", f"ls -A {light.shared}") == "file\n"
    finally:
        mounted_again(light, "n2")
    clean(desk.doctor())
    nothing_left(light)


@pytest.mark.lab_light
@pytest.mark.long
def test_directories_of_which_no_two_are_one(light: LightLab, tmp_path: Path) -> None:
    other_disk(light, "n2", "n3")
    try:
        one = alone(Desk(light, tmp_path).doctor(), "fs.not-shared", "n1", "n2", "n3")
        assert "each node has a directory of its own" in one["summary"]
        steps = "\n".join(one["fix"])
        assert "on n1: " in steps and "on n2: sudo mkdir" in steps and "on n3: sudo mkdir" in steps
        assert "on n1: sudo mkdir -p" not in steps, "the head lends its own"
    finally:
        mounted_again(light, "n2", "n3")
    clean(Desk(light, tmp_path).doctor())


@pytest.mark.lab_light
@pytest.mark.long
def test_a_share_that_one_node_may_only_read(light: LightLab, tmp_path: Path) -> None:
    desk = Desk(light, tmp_path)
    on(light, "n2", f"mount -o remount,bind,ro {light.shared}")
    try:
        one = alone(desk.doctor(), "os.ro-fs", "n2")
        assert f"sudo mount -o remount,rw {light.shared}" in "\n".join(one["fix"])
    finally:
        on(light, "n2", f"mount -o remount,bind,rw {light.shared}")
    clean(desk.doctor())
    nothing_left(light)


@pytest.mark.lab_light
@pytest.mark.long
def test_what_an_earlier_doctor_left_is_cleared_away_after_a_day(light: LightLab, tmp_path: Path) -> None:
    left, fresh = (f"{light.shared}/.clusterft/doctor-{word}" for word in ("0ld", "n3w"))
    on(light, "n1", f"mkdir -p {left} {fresh}; touch {left}/n0; touch -d '2 days ago' {left}; touch {fresh}/n0")
    try:
        clean(Desk(light, tmp_path).doctor())
        assert on(light, "n1", f"ls {light.shared}/.clusterft") == "doctor-n3w\n"
    finally:
        on(light, "n1", f"rm -r {light.shared}/.clusterft")


@pytest.mark.lab_light
@pytest.mark.long
def test_a_doctor_that_is_killed_half_way_leaves_nothing(light: LightLab, tmp_path: Path) -> None:
    desk = Desk(light, tmp_path)
    other_disk(light, "n2")  # the others look for its file for seconds
    argv = [sys.executable, "-m", "clusterft", "doctor", "--hosts", str(desk.hosts), "--job", str(desk.job)]
    try:
        running = subprocess.Popen(argv, env=desk.env, cwd=desk.root, stdout=subprocess.DEVNULL)
        begun = f"ls -d {light.shared}/.clusterft/doctor-*/n0 2>/dev/null || true"
        until(lambda: on(light, "n1", begun) != "", 30, "the proof to begin")
        running.kill()
        running.wait()
        left = f"find {light.shared} -mindepth 1"
        until(lambda: not any(on(light, node, left) for node in ("n1", "n2")), 20, "all files to go")
        nothing_left(light)
    finally:
        mounted_again(light, "n2")


@pytest.mark.lab_full
@pytest.mark.long
def test_a_share_that_hangs_on_one_node(hanging: FullLab, tmp_path: Path) -> None:
    desk = Desk(hanging, tmp_path)
    clean(desk.doctor(*ASKED))
    hanging.node("n2").freeze_shared()
    try:
        answer = desk.doctor(*ASKED)
        one = alone(answer, "fs.hung", "n2")
        assert answer["took"] < 40
        assert "umount -f -l /shared" in "\n".join(one["fix"])
        assert statuses(answer, "fs.squash")["n2"] == "skipped" and statuses(answer, "fs.squash")["n1"] == "ok"
        quick = desk.doctor(*ASKED, "--quick")
        alone(quick, "fs.hung", "n2")
    finally:
        hanging.node("n2").thaw_shared()
    clean(desk.doctor(*ASKED))
    nothing_left(hanging)


@pytest.mark.lab_full
@pytest.mark.long
def test_a_hung_share_a_paused_node_and_a_full_disk_at_once(hanging: FullLab, tmp_path: Path) -> None:
    desk = Desk(hanging, tmp_path)
    hanging.node("n2").freeze_shared()
    hanging.node("n3").pause()
    hanging.node("n4").fill_disk(leave_kb=100)
    try:
        answer = desk.doctor(*ASKED)
        finding(answer, "fs.hung", "n2")
        assert [one["id"] for one in above_info(answer) if one["nodes"] == ["n3"]][0].startswith("ssh.")
        finding(answer, "os.disk-full", "n4")
        assert answer["took"] < 60, answer["took"]
        assert set(statuses(answer, "fs.squash").values()) <= {"ok", "skipped"}
    finally:
        hanging.node("n4").free_disk()
        hanging.node("n3").resume()
        hanging.node("n2").thaw_shared()
    clean(desk.doctor(*ASKED))
    nothing_left(hanging)


@pytest.mark.lab_full
@pytest.mark.long
def test_a_full_share_by_nodes_without_python(small: FullLab, tmp_path: Path) -> None:
    desk = Desk(small, tmp_path)
    answer = desk.doctor(*ASKED)
    clean(answer)
    assert any("n1 n2 has no Python" in note for note in answer["notes"])
    on(small, "n1", f"head -c 190000000 /dev/zero >{small.shared}/filler")
    try:
        one = alone(desk.doctor(*ASKED), "os.disk-full", "n1", "n2")
        assert small.shared in "\n".join(one["fix"])
        on(small, "n1", f"cat /dev/zero >{small.shared}/more 2>/dev/null || true")
        alone(desk.doctor(*ASKED), "os.disk-full", "n1", "n2")
    finally:
        on(small, "n1", f"rm -f {small.shared}/filler {small.shared}/more")
    clean(desk.doctor(*ASKED))
    nothing_left(small)


@pytest.mark.lab_full
@pytest.mark.long
def test_a_share_that_belongs_to_another_user(small: FullLab, tmp_path: Path) -> None:
    desk = Desk(small, tmp_path, hosts=small.access.hostfile_for("worker").read_text())
    own = on(small, "n1", "id -u; id -g", user="worker").split()
    on(small, "n1", f"chown root:root {small.shared}; chmod 755 {small.shared}")
    try:
        for depth in ((), ("--quick",)):
            one = alone(desk.doctor(*ASKED, *depth), "fs.squash", "n1", "n2")
            assert f"on any node: sudo chown {own[0]}:{own[1]} {small.shared}" in one["fix"]
        on(small, "n1", f"chown {own[0]}:{own[1]} {small.shared}")
        clean(desk.doctor(*ASKED))
    finally:
        on(small, "n1", f"chown root:root {small.shared}; chmod 1777 {small.shared}")


CONTAINED = SCRIPT_JOB.format(shared="/shared")
USED = ("--only", "fs.hung,fs.squash,fs.not-shared,fs.not-writable,fs.attrcache")


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Two nodes with a small image that has a Python; the directory is FUSE, where each locks for itself."""
    with FullLab.up(count=2, engine="26.1", hangs=True) as lab:
        on(lab, "n1", f"chmod 1777 {lab.shared}")
        hosts = lab.access.hostfile_for("worker").read_text()
        desk = Desk(
            lab, tmp_path_factory.mktemp("contained"), hosts=hosts, job=SCRIPT_JOB.format(shared="/shared")
        )
        beside(desk.root, DOCKERFILE)
        words = ("up", "--hosts", str(desk.hosts), "--job", str(desk.job), "--accept-new-host-keys")
        done = desk.run(*words, seconds=400)
        assert done.returncode == 0, done.stdout + done.stderr
        yield desk


def no_container(desk: Desk) -> None:
    """None of doctor's is left."""
    for node in desk.lab.nodes:
        assert on(desk.lab, node.name, "docker ps -aq --filter label=clusterft.doctor", user="worker") == ""


@pytest.mark.lab_full
@pytest.mark.long
def test_in_containers_locks_that_reach_no_other_node_are_told(contained: Desk) -> None:
    answer = contained.doctor("--only", "storage")
    one = alone(answer, "fs.lock", "n2")
    assert one["status"] == "warn" and "given to n1 and n2 at once" in one["evidence"]
    assert not any("no Python" in note for note in answer["notes"]), "it was tried in the image"
    nothing_left(contained.lab)
    no_container(contained)


@pytest.mark.lab_full
@pytest.mark.long
def test_the_proof_works_as_the_runs_own_user(contained: Desk) -> None:
    shared = contained.lab.shared
    contained.job.write_text(CONTAINED + "user: '4321:4321'\n")
    on(contained.lab, "n1", f"chmod 755 {shared}; chown 1234 {shared}")
    try:
        one = alone(contained.doctor(*USED), "fs.squash", "n1", "n2")
        assert one["status"] == "fail" and "4321:4321" in one["summary"]
        assert f"on any node: sudo chown 4321:4321 {shared}" in one["fix"]
        on(contained.lab, "n1", f"chown 4321:4321 {shared}")
        clean(contained.doctor(*USED))
    finally:
        on(contained.lab, "n1", f"chown root:root {shared}; chmod 1777 {shared}")
        contained.job.write_text(CONTAINED)
    no_container(contained)


@pytest.mark.lab_full
@pytest.mark.long
def test_a_directory_of_a_group_that_the_ssh_user_is_in(contained: Desk) -> None:
    """2770 and a group, as teams have it; the run's container has none of the groups that worker has."""
    shared, nodes = contained.lab.shared, ("n1", "n2")
    for node in nodes:
        on(contained.lab, node, "groupadd -g 3000 mlteam; usermod -aG mlteam worker")
    uid = on(contained.lab, "n1", "id -u worker").strip()
    on(contained.lab, "n1", f"chown root:mlteam {shared}; chmod 2770 {shared}")
    try:
        one = alone(contained.doctor(*USED), "fs.squash", *nodes)
        assert f"in job.yaml: user: {uid}:3000" in one["fix"][0] and "none of the node's groups" in one["cause"]
        contained.job.write_text(CONTAINED + f"user: '{uid}:3000'\n")
        clean(contained.doctor(*USED))
    finally:
        contained.job.write_text(CONTAINED)
        on(contained.lab, "n1", f"chown root:root {shared}; chmod 1777 {shared}")
        for node in nodes:
            on(contained.lab, node, "gpasswd -d worker mlteam; groupdel mlteam")
    no_container(contained)


@pytest.mark.lab_full
@pytest.mark.long
def test_no_container_is_made_where_the_share_hangs(contained: Desk) -> None:
    contained.lab.node("n2").freeze_shared()
    try:
        answer = contained.doctor(*USED)
        alone(answer, "fs.hung", "n2")
        assert answer["took"] < 60
        no_container(contained)
    finally:
        contained.lab.node("n2").thaw_shared()
    clean(contained.doctor(*USED))
