"""`clusterft up`: from a hostfile to identical, trusted, reachable nodes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from clusterft import commands, spec
from clusterft.apply import settings
from clusterft.apply.bringup import Bringup, Wants
from clusterft.board import Muster
from clusterft.cli.ask import Terminal
from clusterft.errors import Blocked, UsageError
from clusterft.hosts import Cluster
from clusterft.spec import ImageSpec, JobSpec
from clusterft.ui import muster as view
from clusterft.ui.watch import notes, say


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of this verb."""

    hosts: Path | None
    cluster: str | None
    job: Path | None
    no_image: bool
    accept_host_keys: bool
    accept_nat: bool
    forget: tuple[str, ...]
    as_json: bool


def run(options: Options) -> int:
    """Bring all nodes up; 3 when one of them is not, the others are all the same."""
    job = spec.load(options.job) if options.job else None
    cluster = settings.find(options.hosts or (job.hosts if job else None), options.cluster)
    wants = _wants(options, job, cluster)
    note = notes(quiet=options.as_json)
    if not wants.with_image and not options.no_image:
        note("no image is brought: the job runs processes, and Docker is not asked for (runtime: process)")
    for line in cluster.notes:
        note(line)
    person = Terminal(accept_host_keys=options.accept_host_keys, accept_nat=options.accept_nat)
    with view.watcher(quiet=options.as_json) as watcher:
        person.pause = watcher.pause
        muster = Bringup(cluster, wants, person, watcher.show).run()
    _print(muster, wants, options)
    return 0 if muster.complete else Blocked.exit_code


def _wants(options: Options, job: JobSpec | None, cluster: Cluster) -> Wants:
    """What the job says; without one, what the last `up` was told; at first, the image for CUDA."""
    if job:
        image = job.image.model_dump(mode="json")
        device, shared = job.resources.device, str(job.shared)
        told = settings.Settings(image=image, device=device, shared=shared, with_image=_needs_image(job))
    else:
        told = settings.load_if_sound(settings.cluster_places(cluster.name)) or settings.Settings()
    leave_out = options.no_image or not told.with_image
    wanted = None if leave_out else ImageSpec.model_validate(told.image or {})
    if wanted:
        _there(wanted)
    return Wants(wanted, told.device, told.shared, options.forget, told.with_image)


def _needs_image(job: JobSpec) -> bool:
    """Processes need none; one that is described all the same is meant for something else, such as `open`."""
    return job.runtime == "docker" or bool(job.image.model_fields_set - {"variant"})


def _there(image: ImageSpec) -> None:
    """Before any node is touched: what the build will read."""
    for key in ("dockerfile", "ca_bundle", "wheelhouse"):
        path: Path | None = getattr(image, key)
        if path is not None and not path.exists():
            raise UsageError(
                f"image.{key} does not exist", where=str(path), remedy="paths are relative to the job file"
            )


def _print(muster: Muster, wants: Wants, options: Options) -> None:
    if options.as_json:
        say(sys.stdout, json.dumps(view.to_dict(muster)))
        return
    for line in view.lines(muster):
        say(sys.stdout, line)
    if muster.complete:
        commands.meant(None, None)  # this is the last cluster now: what comes next need not name it
        train = f"clusterft train {options.job or 'job.yaml'}"
        say(sys.stdout, commands.shown(f"next: clusterft open, or {train}" if muster.tag else f"next: {train}"))
    elif muster.roster.up:
        say(sys.stdout, f"next: mend what is named above, then the same command again; {_kept(muster)}")


def _kept(muster: Muster) -> str:
    up = muster.roster.up
    return f"{', '.join(up)} {'is' if len(up) == 1 else 'are'} up and stay{'s' * (len(up) == 1)} so"
