"""The lines of a stream for a person who looks at the engine's log. Pure; empty for what is of no use there."""

from __future__ import annotations

from clusterft_trainer import progress, stream


def plain(line: stream.Line) -> str:
    """One line of text."""
    if isinstance(line, stream.Log):
        return f"launcher | {line.text}" if line.rank == stream.LAUNCHER else f"rank {line.rank} | {line.text}"
    if isinstance(line, stream.Progress):
        return f"rank {line.rank} | {_record(line.record)}"
    return _own(line)


def _record(record: progress.Record) -> str:
    if isinstance(record, progress.Step):
        return f"step {record.step}/{record.steps}  loss {record.loss:.4g}"
    if isinstance(record, progress.Saved):
        return f"saved {record.what}: {record.path}"
    if isinstance(record, progress.Phase):
        return f"phase {record.phase}"
    if isinstance(record, progress.HeldOut):
        return f"held-out loss {record.loss:.4g} at step {record.step}"
    if isinstance(record, progress.Notice):
        return record.text
    if isinstance(record, progress.Failed):
        return f"failed ({record.failure}): {record.message} {record.remedy}"
    return f"done at step {record.step}"


def _own(line: stream.Line) -> str:
    text = _news(line)
    return f"supervisor | {text}" if text else ""


def _news(line: stream.Line) -> str:
    match line:
        case stream.Started():
            return "started" if not line.incarnation else f"started again ({line.incarnation})"
        case stream.Attempt():
            return (
                f"attempt {line.attempt}: node {line.machine_rank} of {line.machines}, "
                f"ranks from {line.first_rank} of {line.world}, meeting at {line.address}:{line.port}"
            )
        case stream.RankDied():
            return f"rank {line.rank} (pid {line.pid}) ended with {line.code}"
        case stream.AttemptEnded():
            return f"attempt {line.attempt} ended here: {line.end}, code {line.code}" + _because(line.why)
        case stream.Found():
            return f"{line.id}: {line.status}: {line.summary}"
        case stream.Waiting():
            return _waiting(line)
        case stream.Hang():
            return f"hang: no step for {line.seconds:.0f} s; stacks in {line.stacks}"
        case stream.Decided():
            what = "another attempt" if line.again else "no other attempt"
            return f"attempt {line.attempt} is over: {line.cause or 'no failure'}; {what}: {line.why}"
        case stream.Ended():
            return f"over: {line.end}" + _because(line.why) + (f" [{line.problem}]" if line.problem else "")
    return ""


def _waiting(line: stream.Waiting) -> str:
    given_up = f"{', '.join(line.lost)} given up; " if line.lost else ""
    if line.nodes:
        return f"{given_up}waiting for {', '.join(line.nodes)}"
    return f"{given_up}nobody is waited for" if given_up else "all members are in reach"


def _because(why: str) -> str:
    return f" ({why})" if why else ""
