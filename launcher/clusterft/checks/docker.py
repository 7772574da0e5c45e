"""Checks of the Docker engine of each node: is there one, may we use it, does it fit."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from clusterft.checks.survey import Survey
from clusterft.facts import Address, Docker, NodeFacts
from clusterft.findings import Finding

_OLDEST_API = (1, 41)  # Engine 20.10
_POOLS = ("10.222.0.0/16", "192.168.224.0/19", "10.111.0.0/16", "172.28.0.0/14", "100.100.0.0/16")
_BRIDGE = re.compile(r"docker\d+|br-[0-9a-f]{12}|docker_gwbridge")  # the names that the engine gives
_INSTALL = {
    "debian": "sudo apt-get update && sudo apt-get install -y docker.io",
    "fedora": "sudo dnf install -y moby-engine",
    "suse": "sudo zypper install -y docker",
    "arch": "sudo pacman -S --noconfirm docker",
    "alpine": "sudo apk add docker && sudo rc-update add docker && sudo service docker start",
}
_START = "sudo systemctl enable --now docker"
TOOLKIT = (
    "install the NVIDIA container toolkit: "
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
CONFIGURE = ("sudo nvidia-ctk runtime configure --runtime=docker", "sudo systemctl restart docker")
RESTARTS = "all containers of the node, which stop when Docker restarts"


def usable(survey: Survey, *, cuda: bool) -> Iterator[Finding]:
    """dk.absent, .down, .perm, .old, .snap, .rootless, .userns: whether the engine takes work at all."""
    for name, facts in survey.facts.items():
        docker = facts.docker
        if docker is None:
            yield Finding("dk.down", "unknown", (name,), "the state of Docker could not be read")
            continue
        if docker.state == "absent":
            yield _absent(name, facts)
        elif docker.state == "down":
            yield _down(name, docker)
        elif docker.state == "denied":
            yield _denied(name, facts, docker)
        else:
            yield from _fit(name, docker)
        if docker.snap:
            yield _snap(name, facts, docker, cuda=cuda)


def cards(survey: Survey) -> Iterator[Finding]:
    """dk.nogpu, dk.runtime: cards that a container could not be given."""
    for name, facts in survey.facts.items():
        docker = facts.docker
        if not facts.gpus or docker is None or docker.state != "ok":
            continue
        if "nvidia" in (docker.runtimes or ()) or any(
            each.startswith("nvidia.com/gpu") for each in docker.cdi or ()
        ):
            continue
        evidence = f"runtimes: {', '.join(docker.runtimes or ()) or 'unknown'}"
        if facts.tools is None:
            yield Finding(
                "dk.nogpu", "unknown", (name,), "no NVIDIA runtime in Docker, its toolkit unknown", evidence
            )
        elif not facts.tools & {"nvidia-ctk", "nvidia-container-runtime-hook", "nvidia-container-cli"}:
            yield no_toolkit(name, f"{evidence}; no nvidia-ctk on the PATH")
        else:
            # With the hook on its PATH the engine gives out cards even so, if it was started after the hook came.
            hooked = "nvidia-container-runtime-hook" in facts.tools
            yield Finding(
                id="dk.runtime",
                status="warn" if hooked else "fail",
                nodes=(name,),
                summary="the NVIDIA container toolkit is there, but Docker does not know it",
                evidence=evidence,
                fix=CONFIGURE,
                needs_root=True,
                blast_radius=RESTARTS,
            )


def no_toolkit(node: str, evidence: str) -> Finding:
    """dk.nogpu: nothing on the node can hand cards to a container."""
    return Finding(
        id="dk.nogpu",
        status="fail",
        nodes=(node,),
        summary="Docker cannot give cards to containers: the NVIDIA container toolkit is missing",
        evidence=evidence,
        fix=(TOOLKIT, *CONFIGURE),
        needs_root=True,
        blast_radius=RESTARTS,
    )


def arch(survey: Survey, wanted: str | None) -> Iterator[Finding]:
    """dk.arch: one image serves one architecture; without an image yet, the head's is the measure."""
    known = {name: facts.docker.arch for name, facts in survey.facts.items() if facts.docker and facts.docker.arch}
    head = next((node.name for node in survey.cluster.active if node.name in known), None)
    if head is None:
        return
    measure, whose = (wanted, "the image is") if wanted else (known[head], f"{head} is")
    for name, has in known.items():
        if has != measure:
            yield Finding(
                id="dk.arch",
                status="fail",
                nodes=(name,),
                summary=f"runs another architecture than the image: {whose} {measure}",
                evidence=f"Docker says {has}",
                fix=(f"put nodes of one architecture into {survey.cluster.path}",),
                blast_radius="the hostfile",
            )


def subnet(survey: Survey) -> Iterator[Finding]:
    """dk.subnet: a bridge of the engine that has taken the addresses of a peer, so that packets never leave."""
    taken = [address for facts in survey.facts.values() for address in facts.addresses or ()]
    for node in survey.cluster.active:
        facts = survey.facts.get(node.name)
        if facts is None or node.transport == "local":
            continue  # here, peers behind a bridge are containers, and they have answered
        lost = [(peer, bridge) for peer, bridge, _ in facts.routes if _BRIDGE.fullmatch(bridge)]
        if lost:
            pool = _free_pool(taken)
            yield Finding(
                id="dk.subnet",
                status="fail",
                nodes=(node.name,),
                summary="sends what is meant for other nodes into a bridge of its own Docker",
                evidence="; ".join(f"the route to {peer} goes through {bridge}" for peer, bridge in lost),
                cause="Docker has given a bridge a subnet that the nodes' own network uses",
                fix=(
                    f'in /etc/docker/daemon.json set "bip": "{_first(pool)}", '
                    f'"default-address-pools": [{{"base": "{pool}", "size": 24}}]',
                    "docker network prune",
                    "sudo systemctl restart docker",
                ),
                needs_root=True,
                blast_radius="networks and containers of the node's Docker",
            )


def _absent(name: str, facts: NodeFacts) -> Finding:
    family = facts.system.family if facts.system else ()
    known = next((_INSTALL[each] for each in (_kin(word) for word in family) if each in _INSTALL), None)
    return Finding(
        id="dk.absent",
        status="fail",
        nodes=(name,),
        summary="has no Docker",
        evidence=f"no docker command on {facts.os_name or 'a system that does not tell its name'}",
        fix=(known or "install Docker Engine 20.10 or later: https://docs.docker.com/engine/install/", _START),
        needs_root=True,
        blast_radius="a system service",
    )


def _kin(word: str) -> str:
    return {"ubuntu": "debian", "opensuse": "suse", "sles": "suse", "archlinux": "arch"}.get(word, word)


def _down(name: str, docker: Docker) -> Finding:
    silent = docker.words.startswith("no answer")
    if re.search(r"context .*(not found|does not exist)", docker.words):
        return Finding(
            id="dk.down",
            status="fail",
            nodes=(name,),
            summary="the docker command is set to a context that is not there",
            evidence=docker.words,
            cause="currentContext in ~/.docker/config.json, or $DOCKER_CONTEXT in the shell's start files",
            fix=(f"on {name}: docker context use default", f"on {name}: unset DOCKER_CONTEXT, where it is set"),
            blast_radius="which engine this user talks to",
        )
    return Finding(
        id="dk.down",
        status="fail",
        nodes=(name,),
        summary="Docker does not answer" if silent else "Docker is not running",
        evidence=docker.words,
        fix=(
            "sudo systemctl restart docker" if silent else _START,
            *(("if it hangs again: sudo systemctl restart containerd docker",) if silent else ()),
            "sudo journalctl -u docker -n 50",
        ),
        needs_root=True,
        blast_radius=RESTARTS if silent else "a system service",
    )


def _denied(name: str, facts: NodeFacts, docker: Docker) -> Finding:
    user, group = facts.user or "this user", facts.docker_group
    if group and group.listed and not group.held:
        return Finding(
            id="dk.perm",
            status="fail",
            nodes=(name,),
            summary=f"{user} may not use Docker yet: this login is older than the membership in the docker group",
            evidence=docker.words,
            cause="a login keeps the groups that it began with",
            fix=("log in again; a shared SSH connection is closed with: ssh -O stop NODE",),
            blast_radius="open sessions of this user",
        )
    return Finding(
        id="dk.perm",
        status="fail",
        nodes=(name,),
        summary=f"{user} may not use Docker",
        evidence=docker.words,
        cause=f"{user} is not in the docker group, and sudo wants a password",
        fix=(
            f"sudo usermod -aG docker {user}   (members of the docker group are root on the node: anyone who can "
            "start a container can read and change all its files)",
            "log in again; a shared SSH connection is closed with: ssh -O stop NODE",
        ),
        needs_root=True,
        blast_radius=f"{user} becomes as good as root on the node",
    )


def _fit(name: str, docker: Docker) -> Iterator[Finding]:
    api = re.match(r"(\d{1,4})\.(\d{1,4})", docker.api or "")
    if api and (int(api.group(1)), int(api.group(2))) < _OLDEST_API:
        yield Finding(
            id="dk.old",
            status="fail",
            nodes=(name,),
            summary="Docker is older than 20.10",
            evidence=f"version {docker.version}, API {docker.api}; API 1.41 is needed",
            fix=("install Docker Engine 20.10 or later: https://docs.docker.com/engine/install/",),
            needs_root=True,
            blast_radius=RESTARTS,
        )
    if docker.remapped:
        yield Finding(
            id="dk.userns",
            status="fail",
            nodes=(name,),
            summary="Docker gives containers other users (userns-remap): a run could not use its files",
            evidence="name=userns in docker info",
            cause="UID 1000 in a container is 101000 or so on the node, and gets no network of the node's",
            fix=(
                "take userns-remap out of /etc/docker/daemon.json, then: sudo systemctl restart docker",
                "images and containers from before it was set are there again",
            ),
            needs_root=True,
            blast_radius=RESTARTS,
        )
    if docker.rootless:
        yield Finding(
            id="dk.rootless",
            status="warn",
            nodes=(name,),
            summary="Docker runs rootless: the host's network in a container is not the node's own",
            evidence="name=rootless in docker info",
            fix=("docker context use default   (with an engine that runs as root)",),
            blast_radius="which engine this user talks to",
        )


def _snap(name: str, facts: NodeFacts, docker: Docker, *, cuda: bool) -> Finding:
    family = facts.system.family if facts.system else ()
    known = next((_INSTALL[each] for each in (_kin(word) for word in family) if each in _INSTALL), None)
    return Finding(
        id="dk.snap",
        status="fail" if cuda else "warn",
        nodes=(name,),
        summary="Docker comes from a snap: it sees neither the NVIDIA runtime nor most directories",
        evidence=f"docker is {docker.path}",
        fix=(
            "sudo snap remove docker",
            known or "install docker-ce: https://docs.docker.com/engine/install/",
            _START,
        ),
        needs_root=True,
        blast_radius="the snap's images and containers are lost",
    )


def _free_pool(taken: list[Address]) -> str:
    used = [address.network for address in taken if address.network.version == 4]
    for pool in _POOLS:
        network = ipaddress.ip_network(pool)
        if not any(network.overlaps(each) for each in used):
            return pool
    return _POOLS[0]


def _first(pool: str) -> str:
    network = ipaddress.ip_network(pool)
    return f"{network[1]}/24"
