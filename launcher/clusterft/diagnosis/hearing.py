"""Hearing: lines in, in any order of files; what matters of them is kept, in bounded memory. Pure.

A rank, a launcher, a kernel and a supervisor's stream of events are told apart here. Nothing is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from clusterft.diagnosis import attempts, known, lines, roll, signatures
from clusterft.diagnosis.ends import Launcher
from clusterft.diagnosis.events import Events
from clusterft.diagnosis.heard import Block, End, Heard, Quote, Recovered, Sighting, Source, Voice
from clusterft.diagnosis.lines import Line
from clusterft.diagnosis.signatures import Match
from clusterft.diagnosis.tracebacks import Tracebacks

_VOICES = 20_000
_SIGHTINGS = 40  # of one voice
_ENDS = 4_000
_QUOTED = 400  # characters
_NFS_OK = re.compile(r"nfs: server (\S+) OK")
_WORLD = re.compile(r"\b(?:world_size|nranks|WORLD_SIZE)['\"]?[ =:]{1,3}(\d{1,6})\b")
_NOISE = re.compile(r"frame #\d+: |<omitting python frames>|^\s*\^*$|^[~ ^]*$")
_SUPERVISED = ('{"schema"', '{"at"')


class Hearing:
    """Takes in one line after the other."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.events = Events(self)
        self._voices: dict[tuple[str, str, int | None, int | None, int | None], tuple[Voice, Tracebacks]] = {}
        self._launchers: dict[str, Launcher] = {}
        self._hung: dict[tuple[str, str], Sighting] = {}  # (node, server) -> its first "not responding"
        self._order = 0

    def take(self, source: Source, number: int, raw: bytes) -> None:
        """One line of a file."""
        text = lines.clean(raw)
        if text.startswith(_SUPERVISED) and self.events.take(source, number, text):
            return
        line = lines.peel(text, source.year)
        self.say(source, number, line)

    def say(self, source: Source, number: int, line: Line) -> None:
        """One line without its prefixes."""
        self._order += 1
        self.heard.lines += 1
        quote = Quote(f"{source.name}:{number}", line.text[:_QUOTED])
        node = line.node or source.node
        at = line.at if line.at is not None else self._since_boot(source, line)
        if line.kernel:
            self._kernel(source, node, at, quote)
            return
        voice, tracebacks = self._voice(source, node, line)
        voice.lines += 1
        if at is not None:
            voice.last_at = at
            voice.first_at = at if voice.first_at is None else voice.first_at
        if not line.text.strip() or _NOISE.match(line.text):
            return
        voice.tail.append(quote)
        self._world(line.text)
        roll.note(self.heard.seats, node, source.name, quote)
        block, begun = tracebacks.take(line.text, quote)
        if block is not None:
            self._block(voice, block, begun, at)
        for match in signatures.telling(line.text, known.ALL):
            self._sight(voice, match, quote, at, block)
        end = self._launcher(source).take(line.text, quote, node, at if at is not None else voice.last_at)
        if end is not None and len(self.heard.ends) < _ENDS:
            self.heard.ends.append(end)

    def skip(self, source: Source, lines_: int) -> None:
        """So many lines of a file said nothing that is known."""
        self.heard.lines += lines_
        for voice, _ in self._voices.values():
            if voice.source.name == source.name:
                voice.lines += lines_

    def kernel(self, source: Source, number: int, text: str, since: float) -> None:
        """One of a kernel's messages as a node has printed it; what is older is nothing to this run."""
        line = lines.peel(lines.tidy(text), source.year)
        at = line.at if line.at is not None else self._since_boot(source, line)
        if at is None or at >= since:
            self._order += 1
            self._kernel(source, source.node, at, Quote(f"{source.name}:{number}", line.text[:_QUOTED]))

    def voices(self) -> list[Voice]:
        """All who have spoken so far."""
        return [voice for voice, _ in self._voices.values()]

    def done(self) -> Heard:
        """All that was heard."""
        self.heard.voices = [voice for voice, _ in self._voices.values()]
        for launcher in self._launchers.values():
            self.heard.places.update(launcher.places)
        told = [voice.source.attempt for voice in self.heard.voices if voice.source.attempt is not None]
        self.heard = attempts.parted(self.heard, max([*told, self.events.attempt]))
        return self.heard

    # -- parts -----------------------------------------------------------------------------------

    def _since_boot(self, source: Source, line: Line) -> float | None:
        if line.uptime is None or source.booted is None:
            return None
        return source.booted + line.uptime

    def _voice(self, source: Source, node: str, line: Line) -> tuple[Voice, Tracebacks]:
        rank = line.rank if line.rank is not None else source.rank
        local = line.local if line.local is not None else source.local
        key = (source.name, node, source.attempt, rank, local)
        found = self._voices.get(key)
        if found is None:
            found = (Voice(source, node, rank, local), Tracebacks())
            if len(self._voices) < _VOICES:
                self._voices[key] = found
        return found

    def _launcher(self, source: Source) -> Launcher:
        found = self._launchers.get(source.name)
        if found is None or found.source.attempt != source.attempt:
            found = self._launchers[source.name] = Launcher(source)
        return found

    def _world(self, text: str) -> None:
        hit = _WORLD.search(text)
        if hit:
            self.heard.world = max(self.heard.world or 0, int(hit[1])) or None

    def _block(self, voice: Voice, block: Block, begun: bool, at: float | None) -> None:
        if begun:
            block.order = self._order
            voice.blocks.append(block)
        if block.at is None:
            block.at = at if at is not None else voice.last_at
        block.last = voice.lines

    def _sight(self, voice: Voice, match: Match, quote: Quote, at: float | None, block: Block | None) -> None:
        at = at if at is not None else voice.last_at
        if block is not None and len(block.matches) < _SIGHTINGS:
            block.matches.append((match, quote, len(block.errors)))
        key = (match.signature.pattern.pattern, match.words.get("seq", ""))
        seen = voice.sightings.get(key)
        if seen is None and len(voice.sightings) < _SIGHTINGS:
            voice.sightings[key] = Sighting(match, quote, voice.node, voice.rank, at, self._order, voice.lines)
        elif seen is not None:
            seen.line = voice.lines

    def _kernel(self, source: Source, node: str, at: float | None, quote: Quote) -> None:
        recovered = _NFS_OK.search(quote.text)
        if recovered:
            hung = self._hung.pop((node, recovered[1]), None)
            if hung is not None:
                self.heard.kernel.remove(hung)
                self.heard.recovered.append(
                    Recovered(f"NFS server {recovered[1]} did not answer for a while", node)
                )
            return
        for match in signatures.telling(quote.text, known.ALL):
            one = Sighting(match, quote, node, None, at, self._order, 0)
            server = match.words.get("server")
            if server is not None:
                if (node, server) in self._hung:
                    continue
                self._hung[node, server] = one
            if len(self.heard.kernel) < _ENDS:
                self.heard.kernel.append(one)


def hear(sources: Iterable[tuple[Source, Iterable[bytes]]]) -> Heard:
    """All lines of all sources."""
    hearing = Hearing()
    for source, rows in sources:
        hearing.heard.files += 1
        for number, raw in enumerate(rows, 1):
            hearing.take(source, number, raw)
    return hearing.done()


def inspected(text: str, source: Source) -> list[End]:
    """How containers ended, from what `docker inspect` printed; none where it is not that."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return []
    rows = body if isinstance(body, list) else [body]
    return [end for one in rows if isinstance(one, dict) for end in _container(one, source)]


def _container(body: dict[str, object], source: Source) -> list[End]:
    state = body.get("State")
    if not isinstance(state, dict) or state.get("Status") not in ("exited", "dead"):
        return []
    code, killed = state.get("ExitCode"), state.get("OOMKilled")
    if not isinstance(code, int) or (code == 0 and not killed):
        return []
    words = f"{body.get('Name') or 'container'}: ExitCode {code}, OOMKilled {killed}"
    if state.get("Error"):
        words += f", {state['Error']}"
    at = lines.peel(str(state.get("FinishedAt", "")), source.year).at
    quote = Quote(f"{source.name}:1", lines.tidy(words)[:_QUOTED])
    memory = killed if isinstance(killed, bool) else None
    return [End(code, quote, source, source.node, at=at, container=True, short_of_memory=memory)]
