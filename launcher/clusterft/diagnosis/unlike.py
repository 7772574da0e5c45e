"""Whose model is another one, when torch has compared them all: the ranks that are fewer, and their nodes. Pure.

Of numbers of params each rank names its own and those of the first rank that has others, so that all before that
one have as many as itself. Of sizes a rank is compared with rank 0 alone, and who is like that one says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from clusterft.diagnosis.candidate import Candidate
from clusterft.diagnosis.heard import Heard, Quote
from clusterft.diagnosis.suspects import seated

_LIKE_ZERO = ""  # which sizes rank 0 has, nobody says
_SUMS = "on every node: sha256sum SCRIPT CONFIG; PYTHON -m pip freeze | sha256sum   tells what differs"


def odd_models(heard: Heard, chosen: Candidate, found: Iterable[Candidate]) -> Candidate:
    """With the nodes of the ranks that are fewer; where neither side is, or too few have spoken, with none."""
    said = [one for one in found if one.built]
    # Numbers are compared before sizes, so those of one run are all of one kind.
    what = "params" if (chosen.built or {}).get("peer") else f"sizes of param {(chosen.built or {}).get('place')}"
    seats = seated(heard)
    models = _numbers(said) if what == "params" else _sizes(said, spoke(heard))
    sides: dict[str, list[int]] = {}
    for rank, model in sorted(models.items()):
        sides.setdefault(model, []).append(rank)
    parts = sorted(sides.items(), key=lambda side: (len(side[1]), side[1]))
    told = "; ".join(f"{_ranks(ranks)}: {_model(what, model)}" for model, ranks in parts)
    unknown = max(0, max(heard.world or 0, len(seats)) - len(models))
    if len(parts) < 2 or len(parts[-1][1]) <= len(parts[-2][1]) + unknown:
        return replace(
            chosen, node="", rank=None, summary=f"not all ranks have the same model: {told}",
            quotes=_quotes(said, (), chosen), fix=("the same config, script and packages on all nodes", _SUMS),
        )  # fmt: skip
    usual, odd = parts[-1][1], [rank for _, ranks in parts[:-1] for rank in ranks]
    nodes = list(dict.fromkeys(seats.get(rank, "") for rank in odd if seats.get(rank)))
    split = any(seats.get(rank) in nodes for rank in usual)
    good = next((seats[rank] for rank in usual if seats.get(rank) and seats[rank] not in nodes), "the others")
    who, at = ", ".join(nodes) or _ranks(odd), "on" if nodes else "for"
    return replace(
        chosen,
        node=", ".join(nodes),
        rank=odd[0] if len(odd) == 1 else None,
        summary=f"{who}: another model than that of the other ranks ({told})",
        cause=_cause(odd, split=split),
        fix=(f"the same config, script and packages {at} {who} as on {good}", _SUMS),
        quotes=_quotes(said, odd, chosen),
    )


def spoke(heard: Heard) -> set[int]:
    """Ranks that have said anything, or whose end was told."""
    ranks = {voice.rank for voice in heard.voices} | {end.rank for end in heard.ends}
    return {rank for rank in ranks if rank is not None}


def _numbers(said: Iterable[Candidate]) -> dict[int, str]:
    """What each says of itself counts more than what others say or leave out."""
    own: dict[int, str] = {}
    others: dict[int, str] = {}
    for words in (one.built for one in said if one.built and one.built.get("peer")):
        mine, peer = int(words["mine"]), int(words["peer"])
        own[mine] = words["has"]
        others[peer] = words["theirs"]
        for rank in range(min(peer, 100_000)):
            others.setdefault(rank, words["has"])
    return {**others, **own}


def _sizes(said: Iterable[Candidate], heard: set[int]) -> dict[int, str]:
    """Who was heard and has not complained has what rank 0 has."""
    own = {int(one.built["mine"]): one.built["has"] for one in said if one.built and not one.built.get("peer")}
    return {**dict.fromkeys({0, *heard}, _LIKE_ZERO), **own}


def _cause(odd: list[int], *, split: bool) -> str:
    where = "where it is another one, so mostly is a config, a script, a checkpoint or the version of a package"
    alone = "the program builds another model on these ranks: a branch on the rank, or arguments of their own"
    if split:
        return f"all ranks must build the same model; ranks of one node differ, so {alone}"
    if odd == [0]:
        return f"all ranks must build the same model; {where}, or the program does on rank 0 what all must do"
    return f"all ranks must build the same model; {where}"


def _quotes(said: Iterable[Candidate], odd: Iterable[int], chosen: Candidate) -> tuple[Quote, ...]:
    """The words of those that are fewer first, then of others; of each its sentence alone."""
    few = set(odd)
    ones = sorted(said, key=lambda one: int((one.built or {}).get("mine", "0")) not in few)
    sentences = (quote for one in ones for quote in one.quotes if _compares(quote, one.built))
    return tuple(dict.fromkeys(sentences)) or chosen.quotes


def _compares(quote: Quote, words: Mapping[str, str] | None) -> bool:
    return words is not None and ("expects same model" in quote.text or "appears not to match" in quote.text)


def _model(what: str, model: str) -> str:
    return f"{model} params" if what == "params" else f"{what} {model}" if model else f"other {what}"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}"
