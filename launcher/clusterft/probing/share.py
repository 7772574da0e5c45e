"""The storage proof: what each node can do in the shared directory, as the run's user, and see of the others.

Owns the steps, their order and their deadlines. A node that hangs, or refuses, drops out of what comes after;
the others go on. What was written is taken away at the end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from clusterft.checks import Survey
from clusterft.checks.examination import Wanted
from clusterft.facts import frames, probe
from clusterft.facts.health import network, storage
from clusterft.facts.mounted import over
from clusterft.facts.share import Share, Trial, Trouble, Untried, number, sights
from clusterft.plan import container
from clusterft.plan.container import Fittings
from clusterft.probing import hands
from clusterft.probing.crew import Crew, Silent
from clusterft.probing.hands import Hand
from clusterft.remote import Remote, Unreachable
from clusterft.spec import Mount

_ALL = 21.0  # seconds for everything; examining gives up at 25
_STEP = 5.0
_LOCK = 3.0
_WITHIN = 6.0  # seconds for a file to be seen
_BYTES = 8 << 20  # written by a node whose speed is measured
_LARGE = 7 << 30  # SDXL as it is exported; a checkpoint has files of that size too
_TIMED = 4  # of them: they stand for the others, and many syncs at once would be slow on any disk
_EVERYBODY = 32  # above so many nodes each looks for some of the others alone
_LOOK = 5
_SECONDS = {"see": _WITHIN + 1.0}  # of a step, else _STEP; it gets all of them, or it is not tried
_SHORT = Untried("not tried: what came before took too long")
_SHELL = Untried("not tried: no Python and no image there yet")
_NOBODY = Untried("not tried: no other node could try for them")
_BESIDE = Untried("not measured beside a run", meant=True)


def prove(crew: Crew, survey: Survey, wanted: Wanted) -> Share:
    """All of it."""
    binds = (Mount(wanted.shared or ""),)
    inside = {
        node.name: Fittings(binds=binds, propagation=container.propagation(survey.facts[node.name], binds))
        for node in survey.cluster.active
        if node.name in survey.facts
    }
    proof = _Proof(crew, wanted, inside)
    proof.reach()
    try:
        proof.try_all()
    finally:
        proof.end()
    return proof.told()


class _Proof:
    def __init__(self, crew: Crew, wanted: Wanted, inside: Mapping[str, Fittings]) -> None:
        self._crew = crew
        self._inside = inside
        self._wanted = wanted
        self._directory = wanted.shared or ""
        self._names = names = list(inside)
        self._word = secrets.token_hex(4)
        self._until = time.monotonic() + _ALL
        self._files = {name: f"n{index}" for index, name in enumerate(names)}
        self._hands: dict[str, Hand] = {}
        self._in: list[str] = []  # who takes part in the next step
        self._trials: dict[str, Trial] = {}
        self._missing: dict[str, str] = {}
        self._nonces: dict[str, str] = {}
        self._writers = 0
        self._holder = ""
        self._makers: set[str] = set()  # who made .clusterft itself
        self._busy = False  # a run is at work on one of the nodes

    # -- beginning and end -----------------------------------------------------

    def reach(self) -> None:
        """A look at the directory, then a hand on each node where that has come back."""
        looks = self._fan(self._names, self._looks)
        for name in self._names:
            said = looks.get(name)
            if isinstance(said, tuple):
                self._busy = self._busy or said[1]
                self._judge_look(name, said[0])
            else:
                self._missing[name] = str(said or "the node was too slow to look at it")
        taken = self._fan(self._in, self._take)
        for name in list(self._in):
            hand = taken.get(name)
            if isinstance(hand, (hands.ProgramHand, hands.ShellHand)):
                self._hands[name] = hand
                self._greet(name, hand)
            else:
                self._in.remove(name)
                self._missing[name] = str(hand)

    def end(self) -> None:
        """Who made the directory goes last, as only an empty one goes."""
        makers = [name for name, hand in self._hands.items() if name in self._makers]
        others = [name for name in self._hands if name not in makers]
        for group in (others, makers):
            self._fan(group, lambda name: self._hands[name].ask("end", _LOCK))

    def told(self) -> Share:
        """What was seen."""
        by_shell = [name for name, trial in self._trials.items() if trial.way == "sh"]
        notes = []
        if by_shell:
            nodes = " ".join(by_shell)
            notes.append(
                f"storage proof: {nodes} has no Python and no image yet: locks and speed were not tried there"
            )
        if len(self._names) > _EVERYBODY:
            notes.append(
                f"storage proof: each of {len(self._names)} nodes looked for the files of some of the others"
            )
        return Share(self._directory, self._trials, self._writers, self._holder, self._missing, tuple(notes))

    # -- the steps ---------------------------------------------------------------

    def try_all(self) -> None:
        """In order; each step asks those that are still in."""
        head, rest = self._in[:1], self._in[1:]
        for group in (head, rest):  # as in a run, the head makes what the others write in
            self._step("make", group, self._make_words, self._make_told, "write")
        for turn, (write, see) in enumerate((("write", "see"), ("renew", "renew"))):
            for name in self._in:
                self._nonces[name] = f"{secrets.token_hex(8)}-{turn}"
            self._step("write", list(self._in), self._write_words, self._write_told, write)
            seen = self._see_told if turn == 0 else self._renewed_told
            self._step("see", list(self._in), self._see_words, seen, see)
        able = [name for name in self._in if self._trials[name].way != "sh"]
        for what in ("lock", "speed"):
            self._skip((name for name in self._in if name not in able), what, _SHELL)
        self._locks(able)
        self._speed([name for name in able if name in self._in])

    def _locks(self, able: list[str]) -> None:
        if len(able) < 2:
            self._skip(() if len(self._names) < 2 else able, "lock", _NOBODY)
            return
        if not self._enough(3 * _LOCK, able, "lock"):
            return
        holder = able[0]
        others = [name for name in able[1:] if holder in self._trials[name].seen]
        apart = [name for name in able[1:] if name not in others]
        self._skip(apart, "lock", Untried(f"not tried: it has seen no file of {holder}, which held them"))
        if not others:
            self._skip((holder,), "lock", _NOBODY)
            return
        said = self._fan([holder], lambda name: self._hands[name].ask("hold", _LOCK)).get(holder)
        if not self._took(holder, "lock", said):
            self._skip(others, "lock", Untried(f"not tried: {holder}, which was to hold them, could not"))
            return
        self._holder = holder
        self._change(holder, locks=_words(said))
        asked = self._files[holder]
        answers = self._fan(others, lambda name: self._hands[name].ask("try", _LOCK, holder=asked))
        for name in others:
            if self._took(name, "lock", answers.get(name)):
                self._change(name, locks=_words(answers[name]))
        self._fan([holder], lambda name: self._hands[name].ask("release", _LOCK))

    def _speed(self, able: list[str]) -> None:
        """What a few write at once; one that is not done in time is slow, as it has just answered."""
        timed = [] if self._busy else able[:_TIMED]
        rest = _BESIDE if self._busy else Untried(f"measured on {' '.join(timed)} alone", meant=True)
        self._skip(able[len(timed) :], "speed", rest)
        if not timed or not self._enough(_STEP, timed, "speed"):
            return
        self._writers = len(timed)
        answers = self._fan(
            timed, lambda name: self._hands[name].ask("write", _STEP, nonce=self._nonces[name], bytes=_BYTES)
        )
        for name in timed:
            said = answers.get(name)
            if isinstance(said, dict) and "hung" in said:
                self._change(name, rate=_BYTES / _STEP)
            elif self._took(name, "write", said):
                had = answers[name]
                self._change(name, rate=number(had.get("rate")), fsync=number(had.get("fsync")))

    def _enough(self, seconds: float, names: Iterable[str], what: str) -> bool:
        """Whether there is time for it; a step that is cut short would be said to hang."""
        if self._left() >= seconds:
            return True
        self._skip(names, what, _SHORT)
        return False

    def _skip(self, names: Iterable[str], what: str, why: Untried) -> None:
        for name in names:
            self._change(name, untried={what: why, **self._trials[name].untried})

    def _step(
        self,
        step: str,
        names: list[str],
        words: Callable[[str], dict[str, object]],
        told: Callable[[str, Mapping[str, Any]], None],
        what: str,
    ) -> None:
        seconds = _SECONDS.get(step, _STEP)
        if not self._enough(seconds, names, what):
            return
        answers = self._fan(names, lambda name: self._hands[name].ask(step, seconds, **words(name)))
        for name in names:
            if self._took(name, step, answers.get(name)):
                told(name, answers[name])

    def _make_words(self, name: str) -> dict[str, object]:
        return {"names": [self._files[other] for other in self._names if other != name]}

    def _make_told(self, name: str, said: Mapping[str, Any]) -> None:
        if said.get("made"):
            self._makers.add(name)
        closed = said.get("closed")
        if isinstance(closed, list) and len(closed) == 3:
            self._change(name, closed=(int(closed[0]), int(closed[1]), str(closed[2])))
        free = number(said.get("free"))
        self._change(name, free_bytes=None if free is None else int(free))

    def _write_words(self, name: str) -> dict[str, object]:
        large = {} if self._trials[name].owner else {"large": _LARGE}
        return {"nonce": self._nonces[name], **large}

    def _write_told(self, name: str, said: Mapping[str, Any]) -> None:
        owner = said.get("owner")
        if isinstance(owner, list) and len(owner) == 2:
            self._change(name, owner=(int(owner[0]), int(owner[1])))
        if said.get("too_large") is True:
            self._change(name, too_large=_LARGE)

    def _see_words(self, name: str) -> dict[str, object]:
        """In the second round, nobody waits again for what was not seen in the first."""
        first = not self._trials[name].wanted
        others = self._others(name) if first else self._trials[name].seen
        wanted = {self._files[other]: self._nonces[other] for other in others if other in self._in}
        if first:
            self._change(name, wanted=tuple(other for other in others if other in self._in))
        return {"wanted": wanted, "within": _WITHIN}

    def _see_told(self, name: str, said: Mapping[str, Any]) -> None:
        self._change(name, seen=self._named(said))

    def _renewed_told(self, name: str, said: Mapping[str, Any]) -> None:
        self._change(name, renewed=self._named(said))

    # -- what they stand on --------------------------------------------------------

    def _looks(self, name: str) -> tuple[storage.Look, bool] | None:
        """A look, and whether a run is at work there."""
        word = secrets.token_hex(8)
        asked = {"look": storage.look_text(self._directory, _LOOK), "running": network.RUNNING}
        script = probe.framed(word, asked, {})
        done = self._crew.fleet.remotes[name].run(("sh",), stdin=script.encode(), seconds=_LOOK + 6.0)
        said = frames.framed(done.out, word, tuple(asked))
        look = storage.look(said["look"])
        return (look, bool(said["running"].strip())) if look else None

    def _judge_look(self, name: str, seen: storage.Look) -> None:
        way = self._crew.ways[name].kind
        trial = Trial(name, "sh" if way == "none" else way)
        if seen.state == "hung":
            self._trials[name] = replace(trial, hung="look")
        elif seen.state in ("missing", "stale", "broken"):
            self._trials[name] = replace(
                trial, trouble=Trouble("look", hands.error_number(seen.words), seen.words)
            )
        else:
            self._in.append(name)

    def _take(self, name: str) -> Hand:
        return hands.take(self._crew, self._wanted, name, self._word, self._files[name], self._inside[name])

    def _greet(self, name: str, hand: Hand) -> None:
        uid, gid = number(hand.hello.get("uid")), number(hand.hello.get("gid"))
        inside = over(hand.hello.get("mounts"))
        self._trials[name] = Trial(
            node=name,
            way=hand.way,
            uid=None if uid is None else int(uid),
            gid=None if gid is None else int(gid),
            mount=inside.mount if inside else None,
        )

    def _others(self, name: str) -> Iterable[str]:
        """Whose files a node looks for: all, or of many the head's and those at distances of powers of two."""
        if len(self._names) <= _EVERYBODY:
            return [other for other in self._names if other != name]
        place, count = self._names.index(name), len(self._names)
        near = [self._names[(place + 2**power) % count] for power in range(count.bit_length())]
        return [other for other in dict.fromkeys((self._names[0], *near)) if other != name]

    def _took(self, name: str, step: str, said: object) -> bool:
        """Whether a node is still in; if not, its trial says why."""
        if isinstance(said, dict) and "hung" in said:
            self._change(name, hung=step)
        elif isinstance(said, dict) and "words" in said:
            self._change(name, trouble=Trouble(step, said.get("errno"), str(said["words"])))
        elif isinstance(said, dict):
            return True
        else:
            self._missing.setdefault(name, f"the storage proof stopped there: {said}")
        if name in self._in:
            self._in.remove(name)
        trial = self._trials[name]
        done = {"see": trial.wanted, "renew": trial.renewed, "lock": trial.locks, "speed": trial.rate}
        for what in (each for each, had in done.items() if not had):
            self._skip((name,), what, Untried(f"not tried: the storage proof stopped at: {step}"))
        return False

    def _change(self, name: str, **changes: Any) -> None:
        self._trials[name] = replace(self._trials[name], **changes)

    def _named(self, said: Mapping[str, Any]) -> dict[str, Any]:
        names = {file: name for name, file in self._files.items()}
        return {names[file]: sight for file, sight in sights(said.get("seen")).items() if file in names}

    def _left(self) -> float:
        return self._until - time.monotonic()

    def _fan(self, names: Iterable[str], work: Callable[[str], Any]) -> dict[str, Any]:
        """The same on some nodes at once; what kept one silent is its outcome."""
        asked = set(names)

        def one(name: str, _: Remote) -> Any:
            if name not in asked:
                return None
            try:
                return work(name)
            except (Silent, frames.Unreadable) as error:
                return str(error)

        found = self._crew.fleet.each(one) if asked else {}
        return {
            name: said.what if isinstance(said, Unreachable) else said
            for name, said in found.items()
            if name in asked
        }


def _words(said: Any) -> dict[str, str]:
    return {str(kind): str(words) for kind, words in dict(said.get("locks") or {}).items()}
