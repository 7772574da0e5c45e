"""The verbs and their options, and nothing else: each hands over to the module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from clusterft import commands

_app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multi-node SDXL fine-tuning over SSH, without a scheduler.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
_Hosts = Annotated[Path | None, typer.Option("--hosts", help="Hostfile; wins over hosts: in the job.")]


class _Verb(TyperCommand):
    """A verb that says how it was called, for the commands that are printed while it is at work."""

    def invoke(self, ctx: Any) -> Any:
        commands.asked(ctx.params)
        return super().invoke(ctx)


def command() -> Any:
    """The whole command line as one command object; its class is typer's affair."""
    return typer.main.get_command(_app)


def _version(wanted: bool) -> None:
    if wanted:
        from clusterft import __version__

        typer.echo(f"clusterft {__version__}")
        raise typer.Exit


@_app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every verb; `cli.run` looks for --debug itself, since it reports errors."""


_LastHosts = Annotated[Path | None, typer.Option("--hosts", help="Hostfile; default: the last one.")]
_Cluster = Annotated[str | None, typer.Option(help="Cluster name; default: the hostfile's stem.")]


@_app.command(cls=_Verb)
def up(
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    job: Annotated[
        Path | None, typer.Option("--job", help="job.yaml: its hosts:, image: and shared: are taken.")
    ] = None,
    no_image: Annotated[bool, typer.Option("--no-image", help="Connect and give keys; no image.")] = False,
    accept_host_keys: Annotated[
        bool, typer.Option("--accept-new-host-keys", help="Trust machines never met before; their keys are shown.")
    ] = False,
    accept_nat: Annotated[
        bool, typer.Option("--accept-nat", help="Let nodes in from the address of a NAT gateway.")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option("--forget-host-key", help="Node whose host key has changed for a good reason."),
    ] = None,
    as_json: _Json = False,
) -> int:
    """Make all nodes reachable, trusted and equal."""
    from clusterft.cli import up as verb

    return verb.run(
        verb.Options(
            hosts,
            cluster,
            job,
            no_image=no_image,
            accept_host_keys=accept_host_keys,
            accept_nat=accept_nat,
            forget=tuple(forget or ()),
            as_json=as_json,
        )
    )


@_app.command(cls=_Verb)
def down(
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    now: Annotated[bool, typer.Option("--now", help="End runs that are under way.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; logs that nodes keep go too.")] = False,
    as_json: _Json = False,
) -> int:
    """Take back all that up brought."""
    from clusterft.cli import down as verb

    return verb.run(hosts, cluster, now=now, yes=yes, as_json=as_json)


@_app.command("open", cls=_Verb)
def open_(
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    mount: Annotated[
        list[str] | None, typer.Option("--mount", help="Directory of the nodes, the same path inside; repeatable.")
    ] = None,
    as_json: _Json = False,
) -> int:
    """Open a container on every node, with SSH between them, to work in by hand."""
    from clusterft.cli import open as verb

    return verb.run(hosts, cluster, tuple(mount or ()), as_json=as_json)


@_app.command(cls=_Verb, context_settings={"ignore_unknown_options": True})
def ssh(
    node: Annotated[str, typer.Argument(help="node of the cluster")],
    command: Annotated[
        list[str] | None,
        typer.Argument(help="command (after --), or one quoted line for the shell; default: a shell"),
    ] = None,
    container: Annotated[str | None, typer.Option("--container", help="Run whose container is meant.")] = None,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
) -> int:
    """Open a shell on a node, or in a run's container there."""
    from clusterft.cli import ssh as verb

    return verb.run(node, tuple(command or ()), container=container, hosts=hosts, cluster=cluster)


@_app.command(cls=_Verb)
def push(
    path: Annotated[Path, typer.Argument(help="file or directory of this machine")],
    to: Annotated[str | None, typer.Option("--to", help="Path on the nodes; default: the same one.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare every byte, not samples.")] = False,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: _Json = False,
) -> int:
    """Bring a file or a directory to all nodes, as it is here; deletes nothing there."""
    from clusterft.cli import push as verb

    return verb.run(path, to, full=full, hosts=hosts, cluster=cluster, as_json=as_json)


@_app.command(cls=_Verb)
def train(
    job: Annotated[Path, typer.Argument(help="job.yaml; `clusterft init` writes one")],
    hosts: _Hosts = None,
    cluster: _Cluster = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; touch nothing.")] = False,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Start in spite of failed checks.")] = False,
    no_prep: Annotated[bool, typer.Option("--no-prep", help="Do not prepare what the cache lacks.")] = False,
    as_json: _Json = False,
) -> int:
    """Check the nodes, train on all of them, watch; what the job's cache lacks is prepared first."""
    from clusterft.cli import train as verb

    options = verb.Options(
        job, hosts, cluster, dry_run=dry_run, preflight=not no_preflight, as_json=as_json, prepare=not no_prep
    )
    return verb.run(options)


@_app.command(cls=_Verb)
def prep(
    job: Annotated[Path, typer.Argument(help="job.yaml with a train: block")],
    hosts: _Hosts = None,
    cluster: _Cluster = None,
    only: Annotated[str | None, typer.Option("--only", help="One stage alone: ingest, latents or text.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Show what is prepared; start nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; touch nothing.")] = False,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Start in spite of failed checks.")] = False,
    as_json: _Json = False,
) -> int:
    """Prepare the job's data on all nodes: index, latents, text states; goes on where it was."""
    from clusterft.cli import prep as verb

    return verb.run(
        verb.Options(
            job,
            hosts,
            cluster,
            only,
            status=status,
            dry_run=dry_run,
            preflight=not no_preflight,
            as_json=as_json,
        )
    )


@_app.command(cls=_Verb)
def resume(
    run: Annotated[str, typer.Argument(help="run id")],
    job: Annotated[
        Path | None, typer.Option("--job", help="job.yaml with other settings; default: those it had.")
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Go on although the settings differ.")] = False,
    new_data: Annotated[
        bool,
        typer.Option("--new-data", help="Take pictures and captions as they are now, from the next epoch on."),
    ] = False,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    no_preflight: Annotated[bool, typer.Option("--no-preflight", help="Start in spite of failed checks.")] = False,
    as_json: _Json = False,
) -> int:
    """Go on with a run that is over, from its newest checkpoint, on the nodes there are now."""
    from clusterft.cli import resume as verb

    return verb.run(verb.Options(run, job, hosts, cluster, changed, not no_preflight, as_json, new_data))


@_app.command(cls=_Verb)
def attach(
    run: Annotated[str | None, typer.Argument(help="run id; default: the one under way")] = None,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: _Json = False,
) -> int:
    """Watch a run that goes on, from any machine that reaches its nodes."""
    from clusterft.cli import attach as verb

    return verb.run(run, hosts, cluster, as_json=as_json)


@_app.command(cls=_Verb)
def stop(
    run: Annotated[str, typer.Argument(help="run id")],
    now: Annotated[bool, typer.Option("--now", help="Do not wait for a checkpoint.")] = False,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: _Json = False,
) -> int:
    """Stop a run, after a checkpoint; what is over is cleared away."""
    from clusterft.cli import stop as verb

    return verb.run(run, hosts, cluster, now=now, as_json=as_json)


@_app.command(cls=_Verb)
def status(
    run: Annotated[str | None, typer.Argument(help="run id; default: all runs that are alive")] = None,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: _Json = False,
) -> int:
    """Show what runs, or one run as it is now; take away what is over."""
    from clusterft.cli import status as verb

    return verb.run(run, hosts, cluster, as_json=as_json)


@_app.command(cls=_Verb)
def logs(
    run: Annotated[str | None, typer.Argument(help="run id; default: the one under way, else the newest")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="Of this rank alone; -1 is the launcher.")] = None,
    node: Annotated[str | None, typer.Option("--node", help="Of this node alone.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Of this attempt alone, from 0.")] = None,
    grep: Annotated[str | None, typer.Option("--grep", help="Lines that this regular expression finds.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Not older than this, such as 10min.")] = None,
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each line.")] = False,
) -> int:
    """Print what the ranks of a run have written, each line with its owner."""
    from clusterft.cli import logs as verb

    return verb.run(verb.Options(run, hosts, cluster, follow, node, rank, attempt, grep, since, as_json))


@_app.command(cls=_Verb)
def runs(
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    as_json: _Json = False,
) -> int:
    """List the runs of the shared dir: when, how long, how they ended and why."""
    from clusterft.cli import runs as verb

    return verb.run(hosts, cluster, as_json=as_json)


@_app.command(cls=_Verb)
def doctor(
    hosts: _LastHosts = None,
    cluster: _Cluster = None,
    job: Annotated[
        Path | None, typer.Option("--job", help="job.yaml: what it asks of the nodes is checked too.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Ids or layers, separated by commas; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only look; try no ports, files or containers.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also put links and cards to work; takes minutes.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 when there are warnings.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend, after asking.")] = False,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="Name all checks; touch nothing.")] = False,
    explain: Annotated[str | None, typer.Option("--explain", help="Tell more of one check id.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Say why this run failed.")] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option("--log", help="Say why a run with this log (file or folder) failed; repeatable."),
    ] = None,
    as_json: _Json = False,
) -> int:
    """Say what is wrong, on which node, why, and the command that mends it."""
    if run or log:
        from clusterft.cli import diagnose

        return diagnose.run(diagnose.Options(run, tuple(log or ()), hosts, cluster, as_json=as_json))
    from clusterft.cli import doctor as verb

    if list_checks:
        return verb.list_checks(as_json=as_json)
    if explain:
        return verb.explain(explain, as_json=as_json)
    if quick and deep:
        raise typer.BadParameter("--quick and --deep exclude each other")
    if fix and as_json:
        raise typer.BadParameter("--fix asks, and --json prints one document: they exclude each other")
    words = tuple(word.strip() for one in only or () for word in one.split(",") if word.strip())
    depth = verb.depth(quick=quick, deep=deep)
    return verb.run(verb.Options(hosts, cluster, job, words, depth, strict=strict, as_json=as_json, fix=fix))


@_app.command(cls=_Verb)
def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("job.yaml"),
) -> int:
    """Write a commented job.yaml."""
    from clusterft.cli import init as verb

    return verb.run(path)


@_app.command(cls=_Verb)
def migrate(
    file: Annotated[Path, typer.Argument(help="shell script or text with the command, TOML, accelerate's YAML")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="job.yaml to write; default: stdout.")] = None,
    as_json: _Json = False,
) -> int:
    """Turn kohya's or accelerate's settings into a job, naming what does not come along."""
    from clusterft.cli import migrate as verb

    return verb.run(file, out, as_json=as_json)


@_app.command(cls=_Verb)
def settings(
    job: Annotated[Path, typer.Argument(help="job.yaml")],
) -> int:
    """Check a job without its nodes; print its train: block as the trainer's commands read it."""
    from clusterft.cli import settings as verb

    return verb.run(job)


@_app.command(cls=_Verb)
def schema() -> int:
    """Print the JSON Schema of job.yaml, for editors."""
    import json

    from clusterft.spec import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
    return 0
