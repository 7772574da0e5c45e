"""Values that look like secrets, taken out of text that people pass on. Pure.

run.json masks the secrets that a job names; this is for those that somebody typed into `env`, an argument or a
log line. A word too many is masked rather than one too few. Owns the signs by which they are known.
"""

from __future__ import annotations

import re

MASK = "***"
_NAME = (
    r"[\w.-]*(?:token|secret|passwd|password|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|credential)"
    r"(?![a-z])[\w.-]*"  # `tokens`, `tokenizers` and `secrets` name no secret
)
_KEYED = re.compile(rf"(?i)(?<![\w.-])({_NAME}[\"']?\s*[:=]\s*|--{_NAME}\s+)(\"[^\"]*\"|'[^']*'|[^\s,;}}\]]+)")
_SECRET_NAME = re.compile(rf"(?i)^(?:{_NAME}|.*(?:_key|_auth))$")
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|"
    r"glpat-[\w-]{16,}|xox[bap]-[\w-]{10,})"
)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[\w.~+/-]{8,}=*")
_PRIVATE = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)


def mask(text: str) -> str:
    """The text with every value masked that looks like a secret."""
    text = _PRIVATE.sub(rf"\1{MASK}\2", text)
    text = _KEYED.sub(rf"\1{MASK}", text)
    text = _IN_URL.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    return _KNOWN.sub(MASK, text)


def mask_value(name: str, value: str) -> str:
    """The value of a variable of that name."""
    return MASK if _SECRET_NAME.match(name) else mask(value)


def mask_argv(argv: list[str]) -> list[str]:
    """A command whose options may carry a secret in the word that follows."""
    shown: list[str] = []
    hide = False
    for word in argv:
        shown.append(MASK if hide and not word.startswith("-") else mask(word))
        hide = word.startswith("-") and "=" not in word and bool(_SECRET_NAME.match(word.lstrip("-")))
    return shown
