"""What was to run, where, and with which versions: the plan of run.json, and the job as it was given. Pure.

Refuses to show the whole environment or a value that looks like a secret.
"""

from __future__ import annotations

import re
import shlex

from clusterft_trainer.report import loose, words
from clusterft_trainer.report.judged import Judged
from clusterft_trainer.report.markup import Child, Markup, el, table
from clusterft_trainer.report.masking import mask, mask_argv, mask_value
from clusterft_trainer.report.sections import section

# What decides how the ranks meet and compute; everything else of the environment stays in run.json.
_SHOWN = re.compile(r"(NCCL|GLOO|OMP|CUDA|DS|UCX|FI|TORCH|PYTORCH)_[A-Z0-9_]+|MASTER_(ADDR|PORT)|CLUSTERFT_DEVICE")
_MOST_JOB = 60_000  # characters
_DIGEST = 16  # characters of one that are enough to tell two apart


def plan(judged: Judged, libraries: dict[str, str]) -> Markup | None:
    """The whole section; `libraries` are those of the Python that makes this page."""
    body = loose.at(judged.account.record, "plan")
    found = [
        _facts(judged, body),
        _nodes(body),
        _command(body),
        _environment(body),
        _job(judged),
        _libraries(libraries),
    ]
    shown = [one for one in found if one is not None]
    return section("plan", "Plan and versions", *shown) if shown else None


def _facts(judged: Judged, body: object) -> Markup | None:
    record = judged.account.record
    head = (loose.words(body, "master", "address"), loose.words(body, "master", "port"))
    nodes = loose.many(body, "nodes")
    pairs = {
        "Job": loose.words(body, "job"),
        "clusterft": loose.words(record, "clusterft"),
        "Started by": loose.words(record, "controller"),
        "Runtime": loose.words(body, "runtime"),
        "Launcher": ", ".join(filter(None, (loose.words(body, "launcher"), loose.words(body, "rendezvous")))),
        "Head": ":".join(filter(None, head)),
        "World size": loose.words(body, "world_size"),
        "Image": loose.words(nodes[0], "container", "request", "Image") if nodes else "",
        "Settings, by digest": loose.words(body, "config_digest")[:_DIGEST],
        "Code, by digest": loose.words(record, "code")[:_DIGEST],
        "Preflight": "left out, as asked" if loose.at(body, "preflight") is False else "",
        "Run directory": loose.words(body, "run_dir"),
        "Secrets, by name": ", ".join(loose.pairs(body, "secrets")),
    }
    known = [el("div", el("dt", name), el("dd", mask(value))) for name, value in pairs.items() if value]
    return el("dl", *known, class_="facts") if known else None


def _nodes(body: object) -> Markup | None:
    rows: list[tuple[Child, ...]] = []
    for node in loose.many(body, "nodes"):
        container = loose.words(node, "container", "name")
        rows.append(
            (
                loose.words(node, "machine_rank"),
                loose.words(node, "node"),
                loose.words(node, "slots"),
                loose.words(node, "address"),
                loose.words(node, "interface"),
                container or loose.words(node, "directory"),
            )
        )
    if not rows:
        return None
    head = ["Rank", "Node", "Slots", "Address", "Interface", "Container or directory"]
    empty = [i for i in range(len(head)) if not any(row[i] for row in rows)]
    kept = [[cell for i, cell in enumerate(row) if i not in empty] for row in rows]
    return table([name for i, name in enumerate(head) if i not in empty], kept, "plan")


def _command(body: object) -> Markup | None:
    nodes = loose.many(body, "nodes")
    argv = loose.texts(nodes[0], "argv") if nodes else []
    if not argv:
        return None
    name = loose.words(nodes[0], "node")
    return el("div", el("h3", f"Command on {name}"), el("pre", shlex.join(mask_argv(argv)), class_="wrapped"))


def _environment(body: object) -> Markup | None:
    nodes = loose.many(body, "nodes")
    env = loose.pairs(nodes[0], "env") if nodes else {}
    shown = {k: str(v) for k, v in sorted(env.items()) if _SHOWN.fullmatch(k) and isinstance(v, str | int)}
    if not shown:
        return None
    lines = "\n".join(f"{name}={mask_value(name, value)}" for name, value in shown.items())
    rest = len(env) - len(shown)
    note = f"{words.plural(rest, 'other variable')} in run.json."
    title = f"Environment that decides how ranks meet, on {loose.words(nodes[0], 'node')}"
    return el("details", el("summary", title), el("pre", lines), el("p", note, class_="note") if rest else None)


def _job(judged: Judged) -> Markup | None:
    text = judged.account.job_text
    if not text.strip():
        return None
    shown = text if len(text) <= _MOST_JOB else text[:_MOST_JOB] + "\n… the rest is in job.yaml"
    return el("details", el("summary", "The job, as it was given (job.yaml)"), el("pre", mask(shown)))


def _libraries(libraries: dict[str, str]) -> Markup | None:
    if not libraries:
        return None
    named = " · ".join(f"{name} {version}" for name, version in libraries.items())
    return el("p", "Libraries where this page was made: ", named, class_="note")
