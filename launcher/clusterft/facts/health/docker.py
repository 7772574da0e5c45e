"""The docker layer of doctor's look at a node: the run's image, our containers, and what they see. Pure.

Asked are only containers with a label of ours. In one that runs, the table of its mounts is read, and, where it
has cards, `nvidia-smi -L` is run: it says within a moment whether the cards can still be had there.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from clusterft.facts.frames import whole
from clusterft.facts.health.asked import Asked
from clusterft.facts.image import Identity, from_inspect
from clusterft.facts.mounted import Mounted, over
from clusterft.facts.probe import ASK

_FORMAT = (
    '{"id":{{json .Id}},"name":{{json .Name}},"created":{{json .Created}},"state":{{json .State}},'
    '"labels":{{json .Config.Labels}},"cards":{{json .HostConfig.DeviceRequests}},"runtime":{{json '
    '.HostConfig.Runtime}},"mounts":{{json .Mounts}}}'
)
_KEPT = 40  # containers of ours that are looked at; nobody has more
_INSIDE = 3  # running ones that are looked into

# A stage of its own: everything behind the first answer is asked only of an engine that gives one.
_STAGE = """\
with=docker; tag={tag}; S={shared}; W={within}; export S W
{ask}
command -v docker >/dev/null || exit 0
v=$(ask 6 docker version -f '{{{{.Server.Version}}}}')
case $v in *'permission denied'*)
  command -v sudo >/dev/null && with=sudo && v=$(ask 3 docker version -f '{{{{.Server.Version}}}}') ;;
esac
case $v in [0-9]*) ;; *) exit 0 ;; esac
date +%s
echo {{frame}}docker.image
[ "$tag" ] && ask 4 docker image inspect -f '{{{{json .}}}}' "$tag"
echo {{frame}}docker.containers
# Its heading is there even where there is no container: without it nothing was answered.
l=$(ask 4 docker ps -a --no-trunc --format 'table {{{{.ID}}}} {{{{.State}}}} {{{{.Labels}}}}')
c=$(printf '%s\\n' "$l" | grep -E '^[0-9a-f]{{64}} .*clusterft\\.(run|doctor)=' | head -n {kept})
i=$(printf '%s\\n' "$c" | cut -d' ' -f1)
case $l in *'CONTAINER ID'*) set -- $i; echo "asked $#" ;; esac
[ "$i" ] && ask 5 docker inspect --type container -f {format} $i
echo {{frame}}docker.here
mine() {{ awk 'BEGIN {{ s = ENVIRON["W"] "/" }} $5 == "/" || index(s, $5 "/") == 1'; }}
[ "$S" ] && {{ r=$(hear 2 readlink -f -- "$S"); [ "$r" ] && W=$r; }}
[ "$S" ] && mine </proc/self/mountinfo
W={within}
echo {{frame}}docker.inside
for i in $(printf '%s\\n' "$c" | awk '$2 == "running" {{ print $1 }}' | head -n {inside}); do
  echo "container $i"
  [ "$S" ] && {{
    p=$(ask 2 docker inspect -f '{{{{.State.Pid}}}}' "$i")
    if grep -q "$i" "/proc/$p/cgroup" && [ -r "/proc/$p/mountinfo" ]; then m=$(cat "/proc/$p/mountinfo")
    else m=$(ask 2 docker exec "$i" cat /proc/self/mountinfo); fi
    printf '%s\\n' "$m" | mine
  }}
  {smi}
done
{ended}"""
_SMI = (
    """a=$(ask 8 docker exec "$i" timeout 6 nvidia-smi -L); printf '%s\\n' "$a" | head -n 20 | sed 's/^/smi /'"""
)
# Of each run that a container is labelled with: since when it is over, if the shared dir says that.
_ENDED = """\
echo {frame}docker.ended
[ "$S" ] && for r in $(printf '%s\\n' "$c" | sed -n 's/.*clusterft\\.run=\\([A-Za-z0-9._-]*\\).*/\\1/p' |
    sort -u | head -n 5); do
  hear 2 sh -c 'cd -- "$S" && [ -f "$1/outcome.json" ] && echo "$1 over $(stat -c %Y "$1/outcome.json")"' sh "$r"
done"""

State = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
OVER = ("created", "exited", "dead")  # nothing runs in it


@dataclass(frozen=True, slots=True)
class Container:
    """One with a label of ours. Times are unix seconds by the node's own clock."""

    id: str
    name: str
    state: State
    labels: Mapping[str, str]
    since: float | None = None  # when it came into this state, as far as the engine tells
    code: int | None = None  # with which it ended last
    cards: bool = False  # it was given some
    binds: tuple[str, ...] = ()  # what it has of the node, by the path inside
    sees: Mounted | None = None  # what lies under the shared dir, inside
    smi: str | None = None  # what nvidia-smi says inside

    @property
    def run(self) -> str:
        """The run that it belongs to; empty for one of doctor's."""
        return self.labels.get("clusterft.run", "")


@dataclass(frozen=True, slots=True)
class DockerHealth:
    """What could be read; None where it could not."""

    now: float | None = None  # the node's clock; None: the engine was not asked, or does not answer
    image: Identity | None = None
    missing: bool | None = None  # the engine says that there is no such image
    requires: str | None = None  # NVIDIA_REQUIRE_CUDA of the image
    containers: tuple[Container, ...] | None = None
    here: Mounted | None = None  # what lies under the shared dir, outside
    ended: Mapping[str, float] | None = None  # run -> since when it is over, by the share's clock


def sections(asked: Asked) -> dict[str, str]:
    """Nothing that ends for sure: an engine may hang."""
    return {}


def stages(asked: Asked) -> dict[str, str]:
    """The engine's answers, in frames of their own."""
    if not asked.contained:
        return {}
    text = _STAGE.format(
        tag=shlex.quote(asked.tag or ""),
        shared=shlex.quote(asked.shared or ""),
        within=shlex.quote(_escaped(asked.shared or "")),
        ask=ASK.strip(),
        format=shlex.quote(_FORMAT),
        kept=_KEPT,
        inside=_INSIDE,
        smi=_SMI if asked.cuda else ":",
        ended=_ENDED,
    )
    return {"docker.now": text}


def parse(said: Mapping[str, str], asked: Asked) -> DockerHealth:
    """From the sections' texts."""
    now = whole(said.get("docker.now", ""))
    if now is None or "docker.containers" not in said:
        return DockerHealth()
    body, words = _objects(said.get("docker.image", ""))
    identity = _identity(body[0]) if body else None
    inside = _inside(said.get("docker.inside", ""), asked)
    return DockerHealth(
        now=float(now),
        image=identity,
        missing=False if identity else True if "no such image" in words.lower() else None,
        requires=_requires(body[0]) if body else None,
        containers=_containers(said["docker.containers"], inside),
        here=over(said.get("docker.here", "").splitlines()),
        ended=_ended(said.get("docker.ended", "")),
    )


def _escaped(path: str) -> str:
    """As the kernel writes a path in a table of mounts."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match.group()):03o}", path).rstrip("/")


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects among the lines, and the other lines."""
    found, words = [], []
    for line in text.splitlines():
        try:
            value = json.loads(line) if line.startswith("{") else None
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            words.append(line)
    return found, "\n".join(words)


def _identity(body: dict[str, Any]) -> Identity | None:
    try:
        return from_inspect(body)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _requires(body: dict[str, Any]) -> str | None:
    config = body.get("Config")
    variables = config.get("Env") if isinstance(config, dict) else None
    for one in variables if isinstance(variables, list) else ():
        name, _, value = str(one).partition("=")
        if name == "NVIDIA_REQUIRE_CUDA" and value:
            return value
    return None


def _containers(
    text: str, inside: Mapping[str, tuple[Mounted | None, str | None]]
) -> tuple[Container, ...] | None:
    """All that were asked about; None if the engine has not told of some, but for those that are gone since."""
    bodies, words = _objects(text)
    asked = re.search(r"^asked (\d{1,4})$", words, re.MULTILINE)
    gone = len(re.findall("no such", words, re.IGNORECASE))
    if not asked or len(bodies) + gone < int(asked.group(1)):
        return None
    found = (_container(one, inside) for one in bodies)
    return tuple(one for one in found if one)


def _container(body: dict[str, Any], inside: Mapping[str, tuple[Mounted | None, str | None]]) -> Container | None:
    identity, labels, state = body.get("id"), body.get("labels"), body.get("state")
    if not isinstance(identity, str) or not isinstance(labels, dict) or not isinstance(state, dict):
        return None
    status, code = state.get("Status"), state.get("ExitCode")
    if status not in _STATES:
        return None
    told = {"created": body.get("created"), "running": state.get("StartedAt"), "paused": state.get("StartedAt")}
    mounts = body.get("mounts")
    sees, smi = inside.get(identity, (None, None))
    return Container(
        id=identity,
        name=str(body.get("name", "")).lstrip("/"),
        state=status,
        labels={str(key): str(value) for key, value in labels.items()},
        since=_moment(told.get(status, state.get("FinishedAt"))),
        code=code if isinstance(code, int) else None,
        cards=bool(body.get("cards")) or body.get("runtime") == "nvidia",
        binds=tuple(
            str(one["Destination"])
            for one in (mounts if isinstance(mounts, list) else ())
            if isinstance(one, dict) and one.get("Type") == "bind" and "Destination" in one
        ),
        sees=sees,
        smi=smi,
    )


def _moment(text: object) -> float | None:
    """RFC 3339, with up to nine digits of a second; an engine writes the year 1 for never."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", text) if isinstance(text, str) else None
    if not match or match.group(1).startswith("0001"):
        return None
    zone = re.search(r"([+-]\d\d:\d\d)\Z", str(text))
    try:
        moment = datetime.fromisoformat(match.group(1) + (zone.group(1) if zone else "+00:00"))
    except ValueError:
        return None
    return moment.astimezone(UTC).timestamp()


def _inside(text: str, asked: Asked) -> dict[str, tuple[Mounted | None, str | None]]:
    found: dict[str, tuple[Mounted | None, str | None]] = {}
    for part in re.split(r"^container (?=[0-9a-f]{64}$)", text, flags=re.MULTILINE)[1:]:
        identity, *lines = part.splitlines()
        smi = [line[4:] for line in lines if line.startswith("smi ")]
        table = [line for line in lines if not line.startswith("smi ")]
        found[identity] = (over(table), "\n".join(smi) if smi else None)
    return found


def _ended(text: str) -> dict[str, float]:
    found = (re.fullmatch(r"([A-Za-z0-9._-]+) over (\d{1,12})", line) for line in text.splitlines())
    return {match.group(1): float(match.group(2)) for match in found if match}
