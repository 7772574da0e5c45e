"""A node's part, planned for another gang, made a part of one that is there already. Pure.

What the gang has in common (who is in it, how its supervisors meet and know each other, what it survives) is its
own; what is the node's (interface, cards, threads, directories) stays as it was planned.
"""

from __future__ import annotations

from dataclasses import replace

from clusterft.plan.launch import NodePlan
from clusterft_trainer.assignment import Assignment, Member


def stand_in(mine: NodePlan, gang: Assignment, member: Member) -> NodePlan:
    """`gang` is the assignment of any of its members; `member` has the rank of the one that is lost."""
    rank = member.machine_rank
    others = [one for one in gang.members if one.machine_rank != rank]
    told = replace(
        mine.assignment,
        machine_rank=rank,
        members=tuple(sorted((*others, member), key=lambda one: one.machine_rank)),
        gang_port=gang.gang_port,
        token=gang.token,
        first_port=gang.first_port,
        ports=gang.ports,
        env=mine.assignment.env | {"CLUSTERFT_MACHINE_RANK": str(rank)},
        preflight=False,  # the others have theirs behind them
        first_attempt=gang.first_attempt,
        survival=gang.survival,
    )
    files = tuple(
        replace(file, text=told.to_json()) if file.path.name == "assignment.json" else file for file in mine.files
    )
    box = mine.container and replace(mine.container, labels=replace(mine.container.labels, machine_rank=rank))
    return replace(mine, machine_rank=rank, assignment=told, files=files, container=box)
