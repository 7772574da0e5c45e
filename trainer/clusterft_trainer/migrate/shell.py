"""Shell text -> words with their lines.

Owns quoting, line continuations (of bash, cmd and PowerShell), comments, redirections and variables. Refuses to
run anything: a variable that the text does not assign stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clusterft_trainer.errors import ConfigError

ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*)|[0-9@#?*])|\$")
_LINE_END = re.compile(r"[ \t\r]*\n")
_SEVERAL = re.compile(r"[^\\$`'\"\n;&|<>#]*\s[^\\$`'\"\n;&|<>#]*")
_LONGEST = 10_000  # letters of a variable; values of values grow by powers
_OPTION = re.compile(r"--?[^\W\d]")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command, without its quotes."""

    text: str
    line: int
    quoted: bool = False  # its first letter was
    variable: str = ""  # the first shell variable in it that has no value here

    @property
    def option(self) -> bool:
        """Whether it begins a flag."""
        return not self.quoted and _OPTION.match(self.text) is not None


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a command ends: hard at ; & |, soft at the end of a line."""

    hard: bool


class Scanner:
    """Cuts shell text into words; `values` fills up with what the text assigns."""

    def __init__(self, text: str, name: str) -> None:
        self._text = re.sub(r"(?m)^[ \t]*```.*$", "", text)  # fences of Markdown
        self._name = name
        self._at, self._line = 0, 1
        self._letters: list[str] = []
        self._begun: Word | None = None  # place and quoting of the word that is being read
        self._variable = ""
        self._skip = False  # the next word is the file of a redirection
        self.values: dict[str, str] = {}

    def words(self) -> Iterator[Word | Stop]:
        """All words and stops in order."""
        while self._at < len(self._text):
            letter = self._text[self._at]
            if letter in "\n;&|":
                yield from self._end(letter)
            elif letter in " \t\r":
                self._at += 1
                yield from self._word()
            elif letter in "<>" and self._redirects(letter):
                yield from self._redirection()
            elif letter == "#" and self._begun is None:
                self._at = self._find("\n", self._at, len(self._text))
            elif letter in "\\^`" and (end := _LINE_END.match(self._text, self._at + 1)):
                self._at, self._line = end.end(), self._line + 1
                yield from self._word()
            else:
                self._letter(letter)
        yield from self._word()

    def _end(self, letter: str) -> Iterator[Word | Stop]:
        if letter == "&" and self._text.startswith("&>", self._at):
            self._at += 1
            return
        yield from self._word()
        self._at += 1
        self._line += letter == "\n"
        yield Stop(hard=letter != "\n")

    def _word(self) -> Iterator[Word]:
        begun, self._begun = self._begun, None
        text, self._letters = "".join(self._letters), []
        variable, self._variable = self._variable, ""
        if begun is None:
            return
        if self._skip:
            self._skip = False
            return
        word = Word(text, begun.line, begun.quoted, variable)
        assigned = ASSIGNED.fullmatch(text)
        if assigned and not variable and len(text) < _LONGEST:
            self.values[assigned[1]] = assigned[2]
        yield word

    def _add(self, text: str, *, quoted: bool = False) -> None:
        if self._begun is None:
            self._begun = Word("", self._line, quoted)
        self._letters.append(text)

    def _letter(self, letter: str) -> None:
        if letter in "'\"":
            self._quotation(letter)
        elif letter == "\\":
            # A letter after it means a path of Windows rather than an escape.
            following = self._text[self._at + 1 : self._at + 2]
            keeps = following.isalnum() or not following
            self._add(letter if keeps else following)
            self._at += 1 if keeps else 2
        elif letter in "$`":
            self._value()
        else:
            self._add(letter)
            self._at += 1

    def _quotation(self, mark: str) -> None:
        opened = self._line
        self._add("", quoted=True)
        self._at += 1
        while (letter := self._text[self._at : self._at + 1]) != mark:
            if not letter:
                raise ConfigError(
                    f"{self._name}:{opened} a quotation begins here and does not end.", "Add the mark."
                )
            if letter == "\\" and mark == '"' and self._text[self._at + 1 : self._at + 2] in tuple('"\\$`'):
                self._add(self._text[self._at + 1])
                self._at += 2
            elif letter in "$`" and mark == '"':
                self._value(quoted=True)
            else:
                self._line += letter == "\n"
                self._add(letter)
                self._at += 1
        self._at += 1

    def _value(self, *, quoted: bool = False) -> None:
        """A variable, or the output of a command."""
        start = self._at
        if self._text.startswith("$(", start) or self._text[start] == "`":
            closing = ")" if self._text[start] == "$" else "`"
            end = self._find(closing, start + 1, start)
            raw = self._text[start : end + 1]
            self._keep(raw, raw)
            return
        found = _VARIABLE.match(self._text, start)
        assert found is not None  # it matches a lone $ as well
        self._at = found.end()
        name = found[1] or found[2] or ""
        value = self.values.get(name)
        if value is not None and not quoted and _SEVERAL.fullmatch(value):
            # The shell cuts it into words; so does reading it in place of the variable.
            self._text = f"{self._text[:start]}{value}{self._text[self._at :]}"
            self._at = start
        elif value is not None:
            self._add(value)
        else:
            self._keep(found[0], found[0] if len(found[0]) > 1 else "", at=found.end())

    def _keep(self, raw: str, variable: str, at: int | None = None) -> None:
        self._add(raw)
        self._line += raw.count("\n")
        self._variable = self._variable or variable
        self._at = self._at + len(raw) if at is None else at

    def _find(self, what: str, start: int, otherwise: int) -> int:
        found = self._text.find(what, start)
        return otherwise if found < 0 else found

    def _redirects(self, letter: str) -> bool:
        """A `<` or `>` inside a word or before one is a placeholder of some manual."""
        alone = self._begun is None or (letter == ">" and "".join(self._letters).isdigit())
        return alone and (letter == ">" or self._text[self._at + 1 : self._at + 2] in (" ", "<"))

    def _redirection(self) -> Iterator[Word | Stop]:
        if not "".join(self._letters).isdigit():
            yield from self._word()
        self._begun, self._letters = None, []
        while self._text[self._at : self._at + 1] in tuple("<>&"):
            self._at += 1
        self._skip = True
