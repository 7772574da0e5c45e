"""What runs on a node during a shipment: constant POSIX sh texts, and the words they answer with.

Owns the session directory on a node: made here, 0700 and the user's own, taken away here. Refuses to build shell
text: every value is a parameter. Every line that counts begins with MARK, so that a noisy .bashrc hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

MARK = "+ship"

HEAD = """\
LC_ALL=C; export LC_ALL
set -u; umask 077
say() { printf '+ship %s\\n' "$*"; }
ours() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; }
size() { stat -c %s -- "$1" 2>/dev/null || echo 0; }
nap() { sleep "$1" 2>/dev/null || sleep 1; }
holds() { word_in=; IFS= read -r word_in <"$1"; [ "$word_in" = "$2" ]; } 2>/dev/null
free() { df -Pk -- "$1" 2>/dev/null | sed -n '$s/.* \\([0-9][0-9]*\\)  *[0-9][0-9]*% .*/\\1/p'; }
"""

# $1 session directory, $2 owner word, $3... where else room is needed.
# /var/tmp is everybody's: a directory that another user put there, or a link, is not ours to write into.
OPEN = (
    HEAD
    + """\
session=$1 owner=$2; shift 2
cluster=${session%/*}; top=${cluster%/*}
for at in "$top" "$cluster" "$session" "$session/blobs" "$session/blobs/sha256"; do
    [ -e "$at" ] || mkdir -m 700 -- "$at" 2>/dev/null
    ours "$at" || { say refused "$at"; exit 0; }
done
printf '%s' "$owner" >"$session/owner" || { say full; exit 0; }
for at in "$session"/blobs/sha256/*; do
    # One that has another name too may have been changed under that name.
    [ "$(stat -c %h -- "$at" 2>/dev/null || echo 1)" -eq 1 ] || rm -f -- "$at"
    [ -f "$at" ] && say blob "${at##*/}" "$(size "$at")"
done
room() {
    rest=$(free "$2")
    say room "$1" "${rest:-unknown}" "$(df -P -- "$2" 2>/dev/null | sed -n '$s/.*% *//p')"
}
room spool "$session"
for at in "$@"; do room target "$at"; done
say opened
"""
)

# $1 session directory, $2 digest, $3 its size, $4 this attempt's word, $5 owner word; then, to take it from a
# peer:
# $6 ssh config, $7 peer, $8 and $9 the request before and after the offset, ${10} the line before the bytes
# without the offset. Without $6 the bytes come on stdin, from the offset that is said.
#
# One writer at a time: who finds another's word in the job file lets go of the blob within half a second.
# Both ends of the pipe are told to end by the ids that they left, and nothing else is.
FETCH = (
    HEAD
    + """\
session=$1 digest=$2 total=$3 word=$4 owner=$5
blob=$session/blobs/sha256/$2 job=$session/$2.job lock=$session/$2.lock err=$session/$2.err
exec 3<&0
holds "$session/owner" "$owner" || { say usurped; exit 0; }
printf '%s' "$word" >"$job" || { say full; exit 0; }
n=0
until mkdir "$lock" 2>/dev/null; do n=$((n + 1)); [ $n -lt 15 ] || break; nap 0.2; done
child= way=$session/$2.way
release() {
    [ -n "$child" ] && kill "$child" 2>/dev/null
    [ -s "$way" ] && kill "$(cat "$way")" 2>/dev/null
    rm -f "$way" "$err" "$err.way"; rmdir "$lock" 2>/dev/null
}
trap release EXIT
trap 'exit 1' HUP INT PIPE TERM
rm -f "$way"
if [ -f "$blob" ]; then
    say from "$total"; say good; exit 0
fi
from=$(size "$blob.part")
[ "$from" -le "$total" ] || { : >"$blob.part"; from=0; }
: >>"$blob.part" || { say full; exit 0; }
say from "$from"
if [ $# -gt 5 ]; then
    config=$6 peer=$7 before=$8 after=$9; shift 9
    lead="$1 $from" request="$before $from $after"
    sh -c 'echo $$ >"$1"; exec ssh -T -F "$2" -- "$3" "$4"' sh "$way" "$config" "$peer" "$request" \\
        </dev/null 2>"$err.way" | {
        while IFS= read -r line; do [ "$line" != "$lead" ] || exec cat; done; exit 1
    } >>"$blob.part" 2>"$err" &
else
    cat <&3 >>"$blob.part" 2>"$err" &
fi
child=$!
exec 3<&-
while kill -0 "$child" 2>/dev/null; do
    nap 0.3
    say at "$(size "$blob.part")"
    holds "$job" "$word" && holds "$session/owner" "$owner" || { say usurped; exit 0; }
done
wait "$child"; child=
size=$(size "$blob.part"); say at "$size"
if [ "$size" -ne "$total" ]; then
    # A disk without room has none for the words that would say so.
    rest=$(free "$session")
    if [ "${rest:-64}" -lt 64 ] || grep -q 'No space left\\|quota exceeded' "$err"; then say full; exit 0; fi
    said=$(cat "$err.way" "$err" 2>/dev/null | tail -n 3 | tr '\\n' ' ')
    say short "$said"; exit 0
fi
say whole
sum=$(sha256sum <"$blob.part")
if [ "${sum%% *}" = "$digest" ]; then mv "$blob.part" "$blob" && say good; else rm -f "$blob.part"; say spoiled; fi
"""
)

# $1 session directory, $2 owner word. That it speaks is the sign of life of a node that only serves.
WATCH = (
    HEAD
    + """\
while holds "$1/owner" "$2"; do say tick; sleep 1; done
say usurped
"""
)

# $1 session directory, $2 owner word.
CLOSE = (
    HEAD
    + """\
session=$1; cluster=${session%/*}; top=${cluster%/*}
[ -e "$session" ] || { say closed; exit 0; }
ours "$session" || { say refused "$session"; exit 0; }
holds "$session/owner" "$2" || { say usurped; exit 0; }
rm -rf -- "$session" && say closed
rmdir -- "$cluster" "$top" 2>/dev/null
:
"""
)

# $1 image name, $2 berth: how the names of what arrives begin, for this user and cluster; $3... docker.
# What another engine calls "no such image" is an answer here, not an error.
LOOK = (
    HEAD
    + """\
name=$1 berth=$2; shift 2
engine=$("$@" version -f '{{.Server.Os}} {{.Server.Arch}} {{.Server.Version}}' 2>/dev/null) || {
    said=$("$@" version 2>&1 >/dev/null | tail -n 1); say mute "$said"; exit 0
}
say engine "$engine"
for left in $("$@" ps -aq --filter "label=clusterft.proof=$berth" 2>/dev/null); do
    "$@" rm "$left" >/dev/null 2>&1
done
for left in $("$@" image ls --format '{{.Repository}}:{{.Tag}}' "${berth%:*}" 2>/dev/null); do
    case $left in "$berth"-*) "$@" image rm "$left" >/dev/null 2>&1 ;; esac
done
"$@" image ls -aq --no-trunc | sort -u | while read -r id; do
    say layers "$id" "$("$@" image inspect -f '{{json .RootFS}}' "$id" 2>/dev/null)"
done
id=$("$@" image inspect -f '{{.Id}}' "$name" 2>/dev/null) && {
    label=clusterft.proof=$berth
    proof=$("$@" create --pull never --network none --label "$label" "$name" /proof 2>/dev/null) &&
        "$@" rm "$proof" >/dev/null 2>&1 && say has "$id"
}
root=$("$@" info -f '{{.DockerRootDir}}' 2>/dev/null)
say root "$root"
command -v zstd >/dev/null 2>&1 && say zstd
say looked
"""
)

# stdin: a tar of the documents. $1 session directory, $2 owner word, $3 name while it arrives, $4 image name,
# $5 ids that the image may have, $6 its layers, $7 files of the session to load (all: plain words in one
# parameter), $8... docker.
# An engine may say "Loaded image" and mean half of it: the image gets its name after a container was created. It
# is named by its id: that is what was proven.
LOAD = (
    HEAD
    + """\
session=$1 owner=$2 passing=$3 name=$4 ids=$5 layers=$6 files=$7; shift 7
log=$session/load.log
holds "$session/owner" "$owner" || { say usurped; exit 0; }
proof= child=
drop() {
    [ -n "$child" ] && kill "$child" 2>/dev/null
    [ -n "$proof" ] && "$@" rm "$proof" >/dev/null 2>&1
    "$@" image rm "$passing" >/dev/null 2>&1
    :
}
trap 'drop "$@"' EXIT
trap 'exit 1' HUP INT PIPE TERM
tar -xf - -C "$session" || { say full; exit 0; }
set -f
{ tar -cf - -C "$session" $files | "$@" load; } >"$log" 2>&1 &
child=$!
while kill -0 "$child" 2>/dev/null; do nap 0.3; say loading; done
wait "$child" && code=0 || code=$?; child=
said=$(tail -n 3 "$log" | tr '\\n' ' ')
if grep -q 'no space left\\|No space left\\|quota exceeded' "$log"; then say full; exit 0; fi
[ "$code" -eq 0 ] || { say refused "$said"; exit 0; }
id=$("$@" image inspect -f '{{.Id}}' "$passing" 2>"$log") || {
    said="$said $(tail -n 1 "$log")"; say refused "$said"; exit 0
}
found=$("$@" image inspect -f '{{range .RootFS.Layers}}{{.}} {{end}}' "$id" 2>/dev/null)
label=clusterft.proof=${passing%-*}
proof=$("$@" create --pull never --network none --label "$label" "$id" /proof 2>"$log") || {
    proof=; said="$said $(tail -n 1 "$log")"; say refused "$said"; exit 0
}
case " $ids " in *" $id "*) ;; *) say differs id "$id"; exit 0 ;; esac
[ "$found" = "$layers " ] || { say differs layers "$found"; exit 0; }
holds "$session/owner" "$owner" || { say usurped; exit 0; }
"$@" tag "$id" "$name" 2>"$log" || { said=$(tail -n 3 "$log" | tr '\n' ' '); say unnamed "$said"; exit 0; }
say loaded "$id"
"""
)


def sh(script: str, *words: str | PurePosixPath) -> tuple[str, ...]:
    """The argv of one of these scripts with its parameters."""
    return ("sh", "-c", script, "sh", *(str(word) for word in words))


def said(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(word, rest) of each line that is ours."""
    for line in lines:
        mark, _, words = line.partition(" ")
        if mark == MARK:
            word, _, rest = words.partition(" ")
            yield word, rest.strip()
