"""Why an engine cannot be used: what docker's client said on the node -> a name of the catalogue. Pure."""

from __future__ import annotations

from clusterft.remote import Unreachable

OLDEST_API = (1, 41)  # engine 20.10


class NoEngine(Unreachable):
    """The node was reached, its Docker engine was not; the words are the node's own."""

    kind = "no-engine"


def refusal(code: int, words: str, command: tuple[str, ...]) -> NoEngine:
    """What ended `docker system dial-stdio`, from its exit code and its stderr."""
    said = words.strip() or f"{' '.join(command)} ended with exit code {code} and no word"
    lower = said.lower()
    if "sudo" in command and ("password is required" in lower or "not in the sudoers" in lower):
        return NoEngine("dk.perm", said, fix=_LET_IN)
    if "permission denied" in lower:
        return NoEngine("dk.perm", said, fix=_LET_IN)
    if "is not a docker command" in lower or "unknown command" in lower:
        return NoEngine("dk.old", f"its docker client is older than 18.09: {said}", fix=_INSTALL)
    if code in (126, 127) or "command not found" in lower or "no such file or directory: 'docker'" in lower:
        return NoEngine("dk.absent", said, fix=_INSTALL)
    return NoEngine("dk.down", said, fix=("sudo systemctl enable --now docker",))


def too_old(version: str, api: str) -> NoEngine:
    """An engine from before what is needed here."""
    needed = ".".join(map(str, OLDEST_API))
    return NoEngine("dk.old", f"engine {version} speaks API {api}, at least {needed} is needed", fix=_INSTALL)


_LET_IN = (
    'sudo usermod -aG docker "$USER"   (the docker group is as good as root on that machine), then log out of it',
)
_INSTALL = ("install Docker Engine 20.10 or newer: https://docs.docker.com/engine/install/",)
