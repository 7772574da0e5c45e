"""Doctor names what is wrong with an engine, an image or a container, on real engines of three versions.

Every fault is made by hand as it happens to people, named with node and fix, and mended as the fix says; then
doctor has nothing more to say. The image is small: it has a python, and no torch.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctoring import (
    JOB,
    SCRIPT_JOB,
    Answer,
    AnyLab,
    Desk,
    Fault,
    above_info,
    beside,
    clean,
    finding,
    node_of,
    on,
    statuses,
    told,
)

from e2e.smi import Smi
from lab import FullLab

pytestmark = [pytest.mark.lab_full, pytest.mark.long]

# Built once by the engine of this machine; little more than what a python needs.
DOCKERFILE = """\
FROM debian:bookworm-slim
RUN apt-get -q update && apt-get -q install -y --no-install-recommends python3 openssh-server openssh-client \\
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
"""
QUIET = ("--quick",)
RUN = "docker run -d --network=host"  # not every engine can make a network within a container


class Rack(Desk):
    """A desk from which `up` has brought the image to three nodes."""

    def up(self) -> str:
        """Returns what the image is called."""
        words = ("up", "--hosts", str(self.hosts), "--job", str(self.job), "--accept-new-host-keys", "--json")
        done = self.run(*words, seconds=240)
        assert done.returncode == 0, done.stdout + done.stderr
        said: dict[str, Any] = json.loads(next(self.root.rglob("settings.json")).read_text())
        return str(said["tag"])

    def mend(self, answer: Answer, identity: str) -> None:
        """Do what the finding's fix says, where that is one of our own commands."""
        words = shlex.split(finding(answer, identity)["fix"][0])
        assert words[0] == "clusterft"
        done = self.run(*words[1:], seconds=240)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def module_rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FullLab, Rack, str]]:
    """Brought up once."""
    with FullLab.up(3, engine=("20.10", "26.1", "28.5")) as lab:
        on(lab, "n1", f"chmod 1777 {lab.shared}")
        rack = Rack(
            lab, tmp_path_factory.mktemp("doctor"), hosts=_hosts(lab), job=SCRIPT_JOB.format(shared="/shared")
        )
        beside(rack.root, DOCKERFILE)
        yield lab, rack, rack.up()


@pytest.fixture
def rack(module_rack: tuple[FullLab, Rack, str]) -> Iterator[Rack]:
    """The desk; nothing of doctor's is left on a node after a test."""
    lab, rack, _ = module_rack
    rack.hosts.write_text(_hosts(lab))
    yield rack
    for node in lab.nodes:
        assert _containers(lab, node.name, "label=clusterft.doctor") == [], node


@pytest.fixture
def lab(module_rack: tuple[FullLab, Rack, str]) -> FullLab:
    """Its nodes."""
    return module_rack[0]


@pytest.fixture
def tag(module_rack: tuple[FullLab, Rack, str]) -> str:
    """What every node calls the image."""
    return module_rack[2]


def _hosts(lab: FullLab) -> str:
    return lab.access.hostfile_for("worker").read_text()


def _containers(lab: AnyLab, node: str, what: str) -> list[str]:
    return on(lab, node, f"docker ps -aq --filter {what}").split()


def labels(**changes: str) -> str:
    """What a container of a run carries, as words for `docker run`."""
    whole = {
        "cluster": "rack",
        "run": "tiny-1",
        "node": "n2",
        "machine-rank": "1",
        "owner": "1000",
        "attempt": "0",
        "config-digest": "aa",
        **changes,
    }
    return " ".join(f"--label clusterft.{key}={value}" for key, value in whole.items())


def own(lab: AnyLab) -> str:
    """The UID of the user that a run belongs to."""
    return on(lab, "n2", "id -u worker").strip()


def subnet_of(lab: AnyLab) -> str:
    """A network that holds n3, and none of those that are needed to get there."""
    address = node_of(lab, "n3").address
    network = ipaddress.ip_network(f"{address}/30", strict=False)
    others = [ipaddress.ip_address(node_of(lab, name).address) for name in ("n1", "n2")]
    if any(one in network for one in others):
        network = ipaddress.ip_network(f"{address}/31", strict=False)
    return str(network)


def no_docker_group(lab: AnyLab, _: Desk) -> None:
    """As on a node where nobody has been let in."""
    on(lab, "n2", "gpasswd -d worker docker")


def in_docker_group(lab: AnyLab, _: Desk) -> None:
    """As the fix says."""
    on(lab, "n2", "usermod -aG docker worker")


def by_default(lab: AnyLab, _: Desk) -> None:
    """Of the toolkit only the engine's settings are left."""
    _set(lab, {"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}}})


def forbidden(lab: AnyLab, _: Desk) -> None:
    """A profile of a time that did not know clone3."""
    call = {"names": ["clone3"], "action": "SCMP_ACT_ERRNO"}
    profile = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]})
    on(lab, "n2", f"mkdir -p /etc/docker; printf '%s' {shlex.quote(profile)} >/etc/docker/seccomp-2020.json")
    _set(lab, {"seccomp-profile": "/etc/docker/seccomp-2020.json"})


def _set(lab: AnyLab, added: dict[str, object]) -> None:
    """More in n2's daemon.json; `not_by_default` puts it back."""
    path = "/etc/docker/daemon.json"
    known = on(lab, "n2", f"mkdir -p /etc/docker; [ ! -e {path} ] || cp {path} {path}.kept; cat {path}.kept || :")
    written = shlex.quote(json.dumps({**json.loads(known or "{}"), **added}))
    on(lab, "n2", f"printf '%s' {written} >{path}")
    _restarted(lab)


def not_by_default(lab: AnyLab, _: Desk) -> None:
    """As the fix says."""
    path = "/etc/docker/daemon.json"
    on(lab, "n2", f"if [ -e {path}.kept ]; then mv {path}.kept {path}; else rm {path}; fi")
    _restarted(lab)


def _restarted(lab: AnyLab) -> None:
    node = node_of(lab, "n2")
    node.stop_engine()  # type: ignore[attr-defined]
    node.start_engine()  # type: ignore[attr-defined]


def snap(lab: AnyLab, _: Desk) -> None:
    """The command leads into a snap."""
    node_of(lab, "n2").snap_docker()  # type: ignore[attr-defined]


def no_snap(lab: AnyLab, _: Desk) -> None:
    """The engine of a package again."""
    on(lab, "n2", "rm /usr/bin/docker /snap/bin/docker; mv /snap/docker/current/bin/docker /usr/bin/; rm -r /snap")


FAULTS = [
    Fault("engine stopped", "dk.down",
          lambda lab, _: node_of(lab, "n2").stop_engine(),  # type: ignore[attr-defined]
          lambda lab, _: node_of(lab, "n2").start_engine(),  # type: ignore[attr-defined]
          ("sudo systemctl enable --now docker",), evidence=("Cannot connect to the Docker daemon",)),
    Fault("engine hangs", "dk.down",
          lambda lab, _: on(lab, "n2", "pkill -STOP -x dockerd"),
          lambda lab, _: on(lab, "n2", "pkill -CONT -x dockerd"),
          ("sudo systemctl restart docker",), evidence=("does not answer",)),
    Fault("no docker at all", "dk.absent",
          lambda lab, _: node_of(lab, "n2").remove_docker(),  # type: ignore[attr-defined]
          lambda lab, _: node_of(lab, "n2").install_docker(),  # type: ignore[attr-defined]
          ("sudo apt-get update && sudo apt-get install -y docker.io",)),
    Fault("user not in the docker group", "dk.perm", no_docker_group, in_docker_group,
          ("sudo usermod -aG docker worker",), evidence=("permission denied",)),
    Fault("docker from a snap", "dk.snap", snap, no_snap,
          ("sudo snap remove docker",), evidence=("/snap/",), status="warn"),
    Fault("a bridge of the engine has taken a peer", "dk.subnet",
          lambda lab, _: on(lab, "n2", f"docker network create --subnet {subnet_of(lab)} clash"),
          lambda lab, _: on(lab, "n2", "docker network prune -f"),
          ("docker network prune", "default-address-pools"), evidence=("br-",)),
    Fault("a container of another time", "dk.leftover",
          lambda lab, _: on(lab, "n2", f"{RUN} --name old --label clusterft.run=tiny-0 "
                            "--entrypoint true $(docker images -q | head -n 1); sleep 62", timeout=90),
          lambda lab, _: on(lab, "n2", "docker rm -f old"),
          ("on n2: docker rm -f ",), evidence=("old", "exited"), status="warn"),
    Fault("a container of a doctor that was killed", "dk.leftover",
          lambda lab, _: on(lab, "n2", "docker create --name left --label clusterft.doctor=left "
                            "$(docker images -q | head -n 1) true; sleep 62", timeout=90),
          lambda lab, _: on(lab, "n2", "docker rm -f left"),
          ("on n2: docker rm -f ",), evidence=("created",), status="warn"),
    Fault("the runtime of containers is gone", "dk.box",
          lambda lab, _: on(lab, "n2", "mv $(command -v runc) /root/runc && command -v dockerd"),
          lambda lab, _: on(lab, "n2", "mv /root/runc $(dirname $(command -v dockerd))/runc"),
          ("--reinstall runc",), evidence=("the program of it is missing: runc",), options=()),
    Fault("a default runtime that was removed", "dk.runtime", by_default, not_by_default,
          ('remove "default-runtime": "nvidia"', "sudo systemctl restart docker"),
          evidence=("the program of it is missing: /usr/bin/nvidia-container-runtime", "is the default"),
          options=()),
    Fault("a seccomp profile that forbids threads", "dk.box", forbidden, not_by_default,
          ('take "seccomp-profile": "/etc/docker/seccomp-2020.json" out of', "sudo systemctl restart docker"),
          evidence=("clone3 ends with EPERM", "seccomp profile /etc/docker/seccomp-2020.json"), options=()),
    Fault("a /run that is full", "os.disk-full",
          lambda lab, _: on(lab, "n2", "for size in 64k 512; do dd if=/dev/zero bs=$size oflag=append "
                            "conv=notrunc of=/run/exporter.log || :; done", timeout=60),
          lambda lab, _: on(lab, "n2", "rm /run/exporter.log"),
          ("sudo du -xah /run",), evidence=("no space left on device",), options=()),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_named_with_node_and_fix_and_mended_by_it(lab: FullLab, rack: Rack, fault: Fault) -> None:
    clean(rack.doctor(*fault.options))
    fault.inject(lab, rack)
    try:
        answer = rack.doctor(*fault.options)
        told(fault, answer)
    finally:
        fault.mend(lab, rack)
    clean(rack.doctor(*fault.options))


def test_a_healthy_rack_of_three_engines_is_clean_with_a_container_of_the_image(rack: Rack) -> None:
    answer = rack.doctor()
    clean(answer)
    said = {one["id"]: one["status"] for one in answer["checks"]}
    assert said["dk.box"] == said["dk.image-drift"] == said["dk.early-mount"] == said["dk.leftover"] == "ok"


def test_a_default_log_driver_that_runs_do_not_use_blocks_nothing(rack: Rack, lab: FullLab) -> None:
    """A run's containers have a log driver of their own, and so have doctor's."""
    _set(lab, {"log-driver": "fluentd"})
    try:
        clean(rack.doctor())
    finally:
        not_by_default(lab, rack)


def test_a_share_whose_mount_spreads_nothing_is_mounted_all_the_same(rack: Rack, lab: FullLab, tag: str) -> None:
    """As without systemd, where an engine refuses a container that is to follow the node's mounts."""
    follows = f"type=bind,source={lab.shared},target=/x,bind-propagation=rslave"
    on(lab, "n2", f"mount --make-private {lab.shared}")
    try:
        said = on(lab, "n2", f"docker run --rm --mount {follows} --entrypoint true {tag} 2>&1 || true")
        clean(rack.doctor())
    finally:
        on(lab, "n2", f"mount --make-shared {lab.shared}")
    assert "not a shared or slave mount" in said, said


def test_an_image_that_is_missing_is_brought_by_the_fix(rack: Rack, lab: FullLab, tag: str) -> None:
    on(lab, "n3", f"docker rmi -f {tag}")
    answer = rack.doctor(*QUIET)
    rack.mend(answer, "dk.image-missing")
    assert finding(answer, "dk.image-missing", "n3")["fix"][0].startswith("clusterft up --hosts ")
    assert [one["id"] for one in above_info(answer)] == ["dk.image-missing"]
    clean(rack.doctor(*QUIET))


def test_another_image_under_the_name_is_replaced_by_the_fix(rack: Rack, lab: FullLab, tag: str) -> None:
    on(lab, "n2", f"c=$(docker create {tag}); docker commit -c 'ENV A=b' $c {tag}; docker rm $c")
    answer = rack.doctor(*QUIET)
    rack.mend(answer, "dk.image-drift")
    one = finding(answer, "dk.image-drift", "n2")
    assert "configuration" in one["evidence"] and [each["id"] for each in above_info(answer)] == ["dk.image-drift"]
    clean(rack.doctor(*QUIET))


def test_a_container_from_before_the_mount_is_told_and_a_restart_mends_it(
    rack: Rack, lab: FullLab, tag: str
) -> None:
    """The share is mounted on n2 after a run's container was started there; the other nodes see it as it was."""
    run = f"{RUN} --name blind {labels(owner=own(lab))} -v /shared:/shared --entrypoint sleep {tag} 600"
    on(lab, "n2", run)
    try:
        clean(rack.doctor(*QUIET))
        on(lab, "n2", "mount -t tmpfs -o mode=1777 late /shared")
        one = finding(rack.doctor(*QUIET), "dk.early-mount", "n2")
        assert "late" in one["evidence"] and (
            one["fix"][0]
            == f"clusterft stop --hosts {rack.hosts} tiny-1, then clusterft resume --hosts {rack.hosts} tiny-1"
        )
        assert one["fix"][1].startswith("or on n2: docker restart ")
        on(lab, "n2", one["fix"][1].removeprefix("or on n2: ") + " -t 0")
        assert "dk.early-mount" not in {each["id"] for each in above_info(rack.doctor(*QUIET))}
        on(lab, "n2", "umount /shared")
        on(lab, "n2", "docker restart -t 0 blind")
        clean(rack.doctor(*QUIET))
    finally:
        on(lab, "n2", "docker rm -f blind; ! grep -q '^late ' /proc/mounts || umount /shared")


def test_a_run_under_way_is_no_leftover_and_one_that_is_over_is(rack: Rack, lab: FullLab, tag: str) -> None:
    """A minute after its end; nobody has taken it away by then."""
    on(
        lab,
        "n2",
        f"{RUN} --name moon {labels(owner=own(lab))} --entrypoint sleep {tag} 600",
    )
    try:
        clean(rack.doctor(*QUIET))
        on(lab, "n2", "docker kill moon")
        began = time.monotonic()
        clean(rack.doctor(*QUIET))  # its controller may be about to
        time.sleep(max(0.0, 63 - (time.monotonic() - began)))
        one = finding(rack.doctor(*QUIET), "dk.leftover", "n2")
        assert (
            one["fix"][0].startswith(f"clusterft stop --hosts {rack.hosts} tiny-1 --now")
            and "exit code 137" in one["evidence"]
        )
        on(lab, "n2", one["fix"][1].removeprefix("or on n2: "))
        clean(rack.doctor(*QUIET))
    finally:
        on(lab, "n2", "docker rm -f moon || :")


SLOW_RUNC = """\
r=$(command -v runc); cp $r /root/runc.real; cp $r /root/runc.kept
printf '#!/bin/sh\\ncase "$*" in *version*) exec /root/runc.real "$@" ;; esac\\nexec sleep 299\\n' >/root/runc.slow
chmod 755 /root/runc.slow; mv /root/runc.slow $r
"""


def test_an_engine_that_starts_no_container_is_found_by_the_deadline(rack: Rack, lab: FullLab) -> None:
    """It answers every question, and whatever it starts hangs."""
    on(lab, "n2", SLOW_RUNC)
    try:
        answer = rack.doctor()
        one = finding(answer, "dk.box", "n2")
        assert one["status"] == "fail" and "restart containerd docker" in one["fix"][0]
        assert answer["took"] < 60
    finally:
        on(lab, "n2", "mv /root/runc.kept $(command -v runc); pkill -f 'sleep 29[9]' || :")
    _cleared(lab, "n2")
    clean(rack.doctor())


def test_a_containerd_that_hangs_is_told_as_an_engine_that_does(rack: Rack, lab: FullLab) -> None:
    on(lab, "n2", "pkill -STOP -x containerd")
    try:
        answer = rack.doctor()
        found = [
            one for one in above_info(answer) if one["id"] in ("dk.down", "dk.box") and one["nodes"] == ["n2"]
        ]
        assert len(found) == 1 and "restart containerd docker" in "\n".join(found[0]["fix"]), above_info(answer)
        assert answer["took"] < 60
    finally:
        on(lab, "n2", "pkill -CONT -x containerd")
    _cleared(lab, "n2")
    clean(rack.doctor())


def _cleared(lab: FullLab, node: str) -> None:
    """What an engine still had to do for a doctor that is gone, it does once it can."""
    deadline = time.monotonic() + 30
    while _containers(lab, node, "label=clusterft.doctor"):
        assert time.monotonic() < deadline, "a container of doctor's is left"
        time.sleep(0.5)


def test_a_node_with_cards_and_no_toolkit_is_told_before_a_run_fails(rack: Rack, lab: FullLab) -> None:
    """With a nvidia-smi that is none (tests/e2e/smi.py): the engine's refusal is real."""
    program = Smi().program()
    for node in lab.nodes:
        on(
            lab,
            node.name,
            f"cat >/usr/local/bin/nvidia-smi <<'EOF'\n{program}EOF\nchmod 755 /usr/local/bin/nvidia-smi",
        )
    job = rack.job.read_text()
    rack.job.write_text(job.replace("device: cpu", "device: cuda"))
    try:
        answer = rack.doctor()
        one = finding(answer, "dk.nogpu", "n1", "n2", "n3")
        assert one["status"] == "fail" and "nvidia-ctk runtime configure" in "\n".join(one["fix"])
    finally:
        rack.job.write_text(job)
        for node in lab.nodes:
            on(lab, node.name, "rm /usr/local/bin/nvidia-smi")


def test_a_doctor_that_is_interrupted_leaves_no_container(rack: Rack, lab: FullLab) -> None:
    words = [sys.executable, "-m", "clusterft", "doctor", "--hosts", str(rack.hosts), "--job", str(rack.job)]
    with subprocess.Popen(words, env=rack.env, cwd=rack.root, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not _containers(lab, "n1", "label=clusterft.doctor"):
            assert time.monotonic() < deadline and process.poll() is None, "there was no container to leave"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    for node in lab.nodes:
        _cleared(lab, node.name)


def test_the_answer_is_the_same_whoever_asks(lab: FullLab, tmp_path: Path) -> None:
    """`sudoer` reaches the engine by sudo alone."""
    desk = Desk(
        lab,
        tmp_path,
        hosts=lab.access.hostfile_for("sudoer").read_text(),
        job=JOB.format(shared="/shared", runtime="docker"),
    )
    on(lab, "n2", f"{RUN} --name old --label clusterft.run=tiny-0 "
       "--entrypoint true $(docker images -q | head -n 1); sleep 62", timeout=90)  # fmt: skip
    try:
        answer = desk.doctor(*QUIET)
        told = [
            one for one in answer["checks"] if one["id"] in ("dk.leftover", "dk.down", "dk.perm", "dk.image-drift")
        ]
        assert statuses(answer, "dk.leftover") == {"n1": "ok", "n2": "warn", "n3": "ok"}, told
    finally:
        on(lab, "n2", "docker rm -f old")
