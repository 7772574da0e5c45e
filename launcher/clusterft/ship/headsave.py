"""Layers out of the engine of a node: the head that built the image serves its blobs, the controller sends none.

Owns the two scripts that lay a `docker save` out there and sort it into blobs. Refuses a layer whose content is
not what the image says.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import PurePosixPath

from clusterft.errors import ClusterftError
from clusterft.remote import Remote
from clusterft.ship import scripts
from clusterft.ship.origin import Seen, Unpacked

_BUSY = """
busy() { ( while :; do sleep 2; say busy; done ) & busy=$!; trap 'kill $busy 2>/dev/null' EXIT; }
"""

# $1 session directory, $2 image, $3... docker.
SAVE = (
    scripts.HEAD
    + _BUSY
    + """\
session=$1 name=$2; shift 2
busy
rm -rf -- "$session/save" && mkdir -- "$session/save" || { say failed; exit 0; }
"$@" save "$name" 2>"$session/save.err" | tar -xf - -C "$session/save" 2>"$session/tar.err"
code=$?
said=$(cat "$session/tar.err" "$session/save.err" | tail -n 2 | tr '\\n' ' ')
rm -f "$session/tar.err" "$session/save.err"
[ "$code" -eq 0 ] && [ -f "$session/save/manifest.json" ] && say saved || say failed "$said"
"""
)

# $1 session directory, then for each layer: its file, its digest, and whether it is wanted.
SORT = (
    scripts.HEAD
    + _BUSY
    + """\
session=$1; shift
blobs=$session/blobs/sha256
busy
cd -- "$session/save" || { say failed; exit 0; }
while [ $# -gt 2 ]; do
    file=$1 digest=$2 wanted=$3; shift 3
    case $(head -c 4 -- "$file" | od -An -tx1 | tr -d ' \\n') in
        1f8b*) gzip -dc <"$file" >"$session/plain" || { say failed "gzip: $file"; exit 0; } ;;
        28b52ffd) zstd -qdc <"$file" >"$session/plain" || { say failed "zstd: $file"; exit 0; } ;;
        *) ln -f -- "$(readlink -f -- "$file")" "$session/plain" || { say failed "$file"; exit 0; } ;;
    esac
    if [ "$wanted" = yes ] && [ ! -f "$blobs/$digest" ]; then
        sum=$(sha256sum <"$session/plain")
        [ "${sum%% *}" = "$digest" ] || { say failed "sha256 of $file is ${sum%% *}"; exit 0; }
        ln -f "$session/plain" "$blobs/$digest" || { say failed "$file"; exit 0; }
    fi
    say layer "$digest" "$(size "$session/plain")"
    rm -f "$session/plain"
done
cd -- "$session" && rm -rf save && say sorted
"""
)


def save(
    remote: Remote,
    command: tuple[str, ...],
    seen: Seen,
    session: PurePosixPath,
    wanted: Collection[str],
    name: str,
) -> Unpacked:
    """Put the wanted layers (by sha256 in hex) into the session of the node whose engine has the image."""
    said = dict(scripts.said(remote.lines(scripts.sh(SAVE, session, name, *command))))
    if "saved" not in said:
        raise ClusterftError(f"docker save {name} broke off on the head: {said.get('failed', 'no word')}")
    (manifest, *_) = json.loads(_read(remote, session / "save" / "manifest.json"))
    config = _read(remote, session / "save" / _inside(manifest["Config"]))
    asked: list[str] = []
    for path, diff_id in zip(manifest["Layers"], seen.diff_ids, strict=True):
        digest = diff_id.removeprefix("sha256:")
        asked += [_inside(path), digest, "yes" if digest in wanted else "no"]
    sizes: dict[str, int] = {}
    for word, rest in scripts.said(remote.lines(scripts.sh(SORT, session, *asked))):
        if word == "layer":
            digest, _, size = rest.partition(" ")
            sizes[digest] = int(size)
        elif word == "failed":
            raise ClusterftError(f"the layers of {name} could not be taken out on the head: {rest}")
        elif word == "sorted":
            return Unpacked(config, sizes)
    raise ClusterftError(f"the layers of {name} could not be taken out on the head: it fell silent")


def _read(remote: Remote, path: PurePosixPath) -> bytes:
    """A document as the bytes that it is: its digest counts."""
    mark = b"\n+ship document\n"
    with remote.stream(("sh", "-c", r'printf "\n+ship document\n"; cat -- "$1"', "sh", str(path))) as stream:
        stream.settimeout(30)
        with stream.makefile("rb") as file:
            _, found, data = file.read().partition(mark)
    if not found:
        raise ClusterftError(f"{path} on the head cannot be read: {stream.complaint()}")
    return data


def _inside(path: str) -> str:
    """A path of a manifest, which is a stranger's word."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path.startswith("-"):
        raise ClusterftError(f"the image names {path!r} as one of its files")
    return path
