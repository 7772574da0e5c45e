"""Checks of what each card says of itself, and the kernel of it: limits, throttling, memory, the bus, Xids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from clusterft.checks import job
from clusterft.checks.engines.containers import ours
from clusterft.checks.examination import Examination
from clusterft.checks.survey import Survey
from clusterft.checks.system import upkeep
from clusterft.checks.work import pace
from clusterft.facts import NodeFacts
from clusterft.facts.gpu import Gpu
from clusterft.facts.health.gpu import Card, GpuHealth
from clusterft.findings import Finding

_IDLE = 0x1  # NVML's bits of why a clock is low: nothing runs
_HELD = {0x8: "hardware slowdown", 0x20: "too hot", 0x40: "too hot, by hardware", 0x80: "power brake"}
_BRAKE = 0x88
_LOWER = 0.97  # of what its equals may draw
_LIMIT_WATTS = 2.0  # limits that are nearer to each other are equal


@dataclass(frozen=True, slots=True)
class _Used:
    """A card of the run on a node, as both looks saw it."""

    node: str
    plain: Gpu
    card: Card


def power_limit(seen: Examination) -> Iterator[Finding]:
    """gpu.power-limit: equal cards that may not draw equally much, because somebody has set it so."""
    yield from _unread(seen, "gpu.power-limit")
    kinds: dict[str, list[_Used]] = defaultdict(list)
    for one in _used(seen):
        if one.card.limit is not None and one.card.default_limit:
            kinds[one.card.name].append(one)
    for kind in kinds.values():
        shares = {id(one): (one.card.limit or 0.0) / (one.card.default_limit or 1.0) for one in kind}
        # Boards of one model differ by their makers' defaults: what counts is what was set on some alone.
        usual = Counter(round(share, 2) for share in shares.values()).most_common(1)[0][0]
        for one in kind:
            most = (one.card.default_limit or 0.0) * usual
            odd = abs(shares[id(one)] - usual) > 1 - _LOWER and abs((one.card.limit or 0.0) - most) > _LIMIT_WATTS
            if odd:
                yield _limited(one, most, [each for each in kind if each is not one])


def _limited(one: _Used, watts: float, others: list[_Used]) -> Finding:
    keep = "" if one.card.persistence is not False else "sudo nvidia-smi -pm 1; "
    rest = "\n".join(f"{each.node} card {each.card.index}: {each.card.limit:.0f} W" for each in others[:8])
    lower = (one.card.limit or 0.0) < watts
    return Finding(
        id="gpu.power-limit",
        status="warn",
        nodes=(one.node,),
        summary=f"card {one.card.index} may draw {one.card.limit:.0f} W, its equals {watts:.0f} W",
        evidence=f"{one.node} card {one.card.index}: {one.card.limit:.0f} W of {one.card.default_limit:.0f} W by "
        f"default, persistence mode {_word(one.card.persistence)}\n{rest}",
        cause="nvidia-smi -pl was used on some cards; without persistence mode it is forgotten between programs",
        fix=(
            f"on {one.node}: {keep}sudo nvidia-smi -i {one.card.index} -pl {watts:.0f}"
            + ("" if lower else "   (or the same limit on all)"),
        ),
        needs_root=True,
        blast_radius="how much this card draws",
    )


def throttle(seen: Examination) -> Iterator[Finding]:
    """gpu.throttle: a card at work whose clocks are held down by heat or power."""
    yield from _unread(seen, "gpu.throttle")
    for one in _used(seen):
        reasons = one.card.reasons or 0
        held = [words for bit, words in _HELD.items() if reasons & bit]
        if not held or reasons & _IDLE:
            continue
        heat = "" if one.card.temperature is None else f", {one.card.temperature} °C"
        power = bool(reasons & _BRAKE) and not reasons & 0x60
        yield Finding(
            id="gpu.throttle",
            status="warn",
            nodes=(one.node,),
            summary=f"card {one.card.index} is slowed down: {', '.join(held)}",
            evidence=f"{one.card.name}: clocks held by 0x{reasons:x}{heat}",
            cause="its power supply or cabling" if power else "its cooling",
            fix=(
                f"on {one.node}: nvidia-smi -q -i {one.card.index} -d PERFORMANCE,TEMPERATURE,POWER   (why)",
                "check the power cables and the power supply"
                if power
                else "clean the fans, or let more air through",
            ),
            blast_radius="the machine's hardware",
        )


def ecc(seen: Examination) -> Iterator[Finding]:
    """gpu.ecc: memory that is broken, or waits for a reset to be mended."""
    yield from _unread(seen, "gpu.ecc")
    for one in _used(seen):
        remapped = (seen.health[one.node].gpu.remapped or {}).get(one.card.uuid)
        where = f"card {one.card.index}"
        reset = (
            f"on {one.node}: sudo nvidia-smi --gpu-reset -i {one.card.index}   (with nothing on it; else reboot)",
        )
        if remapped and remapped.failure:
            yield Finding(
                "gpu.ecc",
                "fail",
                (one.node,),
                f"{where} has broken memory and no spare rows left",
                evidence=f"{one.card.name}: row remapping failed, {remapped.rows or 'some'} rows remapped before",
                fix=("replace the card", "until then leave it out: gpus= in the hostfile"),
                blast_radius="the hostfile",
            )
        elif remapped and remapped.pending:
            yield Finding(
                "gpu.ecc",
                "fail",
                (one.node,),
                f"{where} waits for a reset to take broken memory out of use",
                evidence=f"{one.card.name}: row remapping pending",
                fix=reset,
                needs_root=True,
                blast_radius="programs on that card",
            )
        elif one.card.uncorrected:
            yield Finding(
                "gpu.ecc",
                "warn",
                (one.node,),
                f"{where} had {one.card.uncorrected} memory errors that could not be corrected",
                evidence=f"{one.card.name}: ecc.errors.uncorrected.volatile.total {one.card.uncorrected}",
                fix=reset,
                needs_root=True,
                blast_radius="programs on that card",
            )


def _older_slot(seen: Examination) -> Iterator[Finding]:
    """gpu.pcie: a slot of an older generation than its equals' on that node. A card that rests uses less."""
    kinds: dict[tuple[str, str], list[Gpu]] = defaultdict(list)
    for node, card in _plain(seen):
        if card.pcie_gen:
            kinds[node, card.name].append(card)
    for (node, _), kind in kinds.items():
        most = {card.index: (card.pcie_gen or (0, 0))[1] for card in kind}
        best = max(most.values())
        for index, generation in most.items():
            if generation < best:
                yield Finding(
                    id="gpu.pcie",
                    status="warn",
                    nodes=(node,),
                    summary=f"card {index} has PCIe {generation} at most, its equals there {best}",
                    evidence="\n".join(f"card {each}: pcie.link.gen.max {one}" for each, one in most.items()),
                    cause="its slot is an older one, is set to an older generation, or has a riser in between",
                    fix=(
                        f"on {node}: in the machine's setup (BIOS), PCIe of that slot to Auto or Gen{best}",
                        f"with the power off, move card {index} to another slot, or leave out its riser",
                    ),
                    blast_radius="the machine's hardware",
                )


def pcie(seen: Examination) -> Iterator[Finding]:
    """gpu.pcie: a card with fewer lanes than its equals, of those that it could have."""
    yield from _older_slot(seen)
    kinds: dict[str, list[tuple[str, Gpu]]] = defaultdict(list)
    for node, card in _plain(seen):
        if card.pcie_width:
            kinds[card.name].append((node, card))
    for kind in kinds.values():
        best = max((card.pcie_width or (0, 0))[0] for _, card in kind)
        for node, card in kind:
            now, most = card.pcie_width or (0, 0)
            if now < most and now < best:  # where all are alike it is how the board is made
                yield Finding(
                    id="gpu.pcie",
                    status="warn",
                    nodes=(node,),
                    summary=f"card {card.index} has {now} PCIe lanes of {most}, its equals {best}",
                    evidence="\n".join(
                        f"{where} card {other.index} ({other.name}): x{(other.pcie_width or (0, 0))[0]}"
                        for where, other in kind[:8]
                    ),
                    cause="it sits loosely, in a slot with fewer lanes, or on a bad riser",
                    fix=(
                        f"on {node}: with the power off, seat card {card.index} anew, or move it to another slot",
                    ),
                    blast_radius="the machine's hardware",
                )


def bf16(seen: Examination) -> Iterator[Finding]:
    """gpu.bf16: cards before Ampere, on which a job is to compute in bf16."""
    train = seen.wanted.job.train if seen.wanted.job else None
    if train is None or train.precision != "bf16":
        return
    for node, card in _plain(seen):
        if card.compute_cap is not None and int(card.compute_cap.split(".")[0]) < 8:
            yield Finding(
                id="gpu.bf16",
                status="fail",
                nodes=(node,),
                summary=f"{card.name} does not compute in bf16, which the job asks for",
                evidence=f"compute capability {card.compute_cap}; bf16 needs 8.0",
                cause="bf16 came with Ampere; older cards refuse it or imitate it slowly",
                fix=("in job.yaml: train: {precision: fp16}", "or other cards: gpus= in the hostfile"),
                blast_radius="job.yaml",
            )


def old_driver(seen: Examination) -> Iterator[Finding]:
    """gpu.old-driver: what the image asks of the driver, against what it can do."""
    for name, health in seen.health.items():
        facts, can = seen.survey.facts.get(name), health.gpu.cuda
        asks = health.docker.requires
        if facts is None or not facts.gpus or can is None or not asks:
            continue
        card = facts.gpus[0]
        if not any(_may(group, can, card) for group in asks.split()):
            evidence = f"driver {card.driver}, CUDA {can[0]}.{can[1]} at most; the image asks for {asks[:200]}"
            yield too_old(name, evidence)


def too_old(node: str, evidence: str) -> Finding:
    """gpu.old-driver, however it came to light."""
    return Finding(
        id="gpu.old-driver",
        status="fail",
        nodes=(node,),
        summary="the NVIDIA driver is older than the image's CUDA needs",
        evidence=evidence,
        fix=(
            "install a newer NVIDIA driver: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
            "sudo reboot",
            "or build the image for an older CUDA: image: in job.yaml, then clusterft up",
        ),
        needs_root=True,
        blast_radius="the whole machine",
    )


def _may(group: str, can: tuple[int, int], card: Gpu) -> bool:
    """Whether one of the image's alternatives, conditions with commas between, may be met; unknown ones are."""
    return all(_met(condition, can, card) for condition in group.split(","))


def _met(condition: str, can: tuple[int, int], card: Gpu) -> bool:
    name, sign, value = "", "", ""
    for sign in (">=", "<=", "!=", ">", "<", "="):
        name, found, value = condition.partition(sign)
        if found:
            break
    if name == "brand":
        # GeForce cards are never data-centre ones; of others the brand is not told here.
        return "geforce" in value.lower() or "geforce" not in card.name.lower()
    theirs = can if name == "cuda" else _version(card.driver) if name == "driver" else None
    wants = _version(value)
    if theirs is None or wants is None:
        return True
    mine = theirs[: len(wants)] + (0,) * (len(wants) - len(theirs))
    return {
        ">=": mine >= wants,
        "<=": mine <= wants,
        "!=": mine != wants,
        ">": mine > wants,
        "<": mine < wants,
        "=": mine == wants,
    }[sign]


def _version(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(p.isascii() and p.isdecimal() for p in parts) else None


def fabric(seen: Examination) -> Iterator[Finding]:
    """gpu.fabric: switches between cards that nobody sets up."""
    for name, health in seen.health.items():
        told = health.gpu.fabric
        if told is None or not told.switches:
            continue
        if told.running is None:
            words = "whether the fabric manager runs could not be read: systemctl status nvidia-fabricmanager"
            yield Finding("gpu.fabric", "unknown", (name,), words)
        elif not told.running:
            facts = seen.survey.facts.get(name)
            module = facts.nvidia.module if facts and facts.nvidia else None
            skew = told.version and module and told.version != module
            package = module.split(".")[0] if module else "VERSION"
            yield Finding(
                id="gpu.fabric",
                status="fail",
                nodes=(name,),
                summary="the fabric manager does not run, without which the cards' NVLink switches do not work",
                evidence=f"{told.switches} switches; nvidia-fabricmanager is {told.service or 'absent'}; its "
                f"version {told.version or 'unknown'}, the driver's {module or 'unknown'}",
                cause="its version is not the driver's" if skew else "",
                fix=(
                    *((f"sudo apt-get install nvidia-fabricmanager-{package}={module}*",) if skew else ()),
                    "sudo systemctl enable --now nvidia-fabricmanager",
                ),
                needs_root=True,
                blast_radius="a system service",
            )


def busy(seen: Examination) -> Iterator[Finding]:
    """gpu.busy, gpu.display: what holds a card of the run and is no run of ours."""
    containers = ours({name: health.docker for name, health in seen.health.items()})
    facts = {
        name: _without_ours(each, seen.health[name].gpu, containers) if name in seen.health else each
        for name, each in seen.survey.facts.items()
    }
    survey = Survey(seen.survey.cluster, facts, seen.survey.unreached, seen.survey.contacts)
    return job.busy(survey)


def _without_ours(facts: NodeFacts, health: GpuHealth, containers: frozenset[str]) -> NodeFacts:
    """Programs of ours are no strangers, and what such a card holds is not the desktop's."""
    mine = {pid for pid, user in (health.users or {}).items() if user.ours or user.container in containers}
    cards = []
    for card in facts.gpus:
        left = tuple(one for one in card.processes or () if one.pid not in mine)
        at_work = len(left) < len(card.processes or ())
        cards.append(replace(card, processes=left, display=False) if at_work else card)
    return replace(facts, gpus=tuple(cards))


def host_bound(seen: Examination) -> Iterator[Finding]:
    """run.host-bound: cards of a run of ours, at work all the time and far below their power, on a slow host."""
    containers = ours({name: health.docker for name, health in seen.health.items()})
    for name, health in seen.health.items():
        facts = seen.survey.facts.get(name)
        mine = any(user.ours or user.container in containers for user in (health.gpu.users or {}).values())
        slow = health.host.governor is not None and upkeep.held_low(health.host.governor)
        if facts is None or not mine or not slow:
            continue
        starved = [one for one in _used(seen) if one.node == name and _starved(one.card)]
        if starved and len(starved) == len([one for one in _used(seen) if one.node == name]):
            yield Finding(
                id="run.host-bound",
                status="warn",
                nodes=(name,),
                summary="cards are at work all the time and far below their power limit: the host holds them back",
                evidence="\n".join(
                    f"card {one.card.index}: {one.card.load} %, {one.card.draw:.0f} W of {one.card.limit:.0f} W"
                    for one in starved
                ),
                cause="the processor is saving power while cards wait for it",
                fix=(
                    upkeep.PERFORMANCE,
                    "in job.yaml: fewer loader workers, more accumulation",
                ),
                needs_root=True,
                blast_radius="how much the processor draws",
            )


def _starved(card: Card) -> bool:
    """In both looks, a second apart."""
    if card.limit is None or None in (card.load, card.draw, card.load_again, card.draw_again):
        return False
    looks = ((card.load, card.draw), (card.load_again, card.draw_again))
    return all(pace.underfed(load or 0, draw or 0.0, card.limit) for load, draw in looks)


def _used(seen: Examination) -> Iterator[_Used]:
    """Of all nodes; by UUID, as numbers may change between two looks."""
    for node, plain in _plain(seen):
        health = seen.health.get(node)
        for card in health.gpu.cards if health else ():
            if card.uuid == plain.uuid:
                yield _Used(node, plain, card)


def _unread(seen: Examination, identity: str) -> Iterator[Finding]:
    """Nodes with cards of which nvidia-smi told the one look and not the other."""
    for name, health in seen.health.items():
        facts = seen.survey.facts.get(name)
        if facts and facts.gpus and not health.gpu.cards:
            yield Finding(identity, "unknown", (name,), "nvidia-smi did not tell in time, or refused the question")


def _plain(seen: Examination) -> Iterator[tuple[str, Gpu]]:
    for node in seen.survey.cluster.active:
        facts = seen.survey.facts.get(node.name)
        for card in job.used(node, facts) if facts else ():
            yield node.name, card


def _word(on: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[on]
