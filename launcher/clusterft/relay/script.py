"""The forced command of the relay keys: POSIX sh, the same text on every node.

Owns what a relay key can do: say hello, and read one blob of a ship session of its own cluster. Refuses everything
else, and every word that is not plain hexadecimal or decimal; names no file that a request could choose.
"""

from __future__ import annotations

VERSION = 1

# Installed at `NodePlaces.relay`, and run as `sh THAT_PATH`: the cluster is the directory it lies in.
#
# - A noisy .bashrc writes into the same stdout before us: what counts comes after a line of ours, begun afresh.
# - A blob that is still arriving is read through one open file: it goes on where it ended, also after the rename.
# - The size is looked at before a copy to the end of the file: once that size was the whole, all has been sent.
# - /proc/self/fd/3 is the very file that is being read, whatever its name means by now.
SCRIPT = """\
#!/bin/sh
# What a peer's relay key may ask of this node. Written by `clusterft up`, taken away by `clusterft down`.
LC_ALL=C; export LC_ALL
set -fu
refuse() { printf 'clusterft-relay: %s\\n' "$1" >&2; exit 65; }
number() { case $1 in 0) ;; ''|*[!0-9]*|0*|????????????????*) refuse 'not a number' ;; esac; }
hex() { case $1 in *[!0-9a-f]*) refuse 'not a digest' ;; esac; [ ${#1} -eq "$2" ] || refuse 'not a digest'; }
ours() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; }
size() { stat -L -c %s /proc/self/fd/3; }
nap() { sleep 0.2 2>/dev/null || sleep 1; }

serve() {
    hex "$1" 16; hex "$2" 64; number "$3"; number "$4"
    here=${0%/*}; cluster=${here##*/}
    top=/var/tmp/clusterft-$(id -u)
    session=$top/$cluster/$1
    for at in "$top" "$top/$cluster" "$session" "$session/blobs/sha256"; do
        ours "$at" || refuse 'no such session'
    done
    blob=$session/blobs/sha256/$2
    idle=0
    while :; do
        # The finished name last: the other one may become it between the two looks.
        for file in "$blob.part" "$blob"; do
            [ -f "$file" ] && [ ! -L "$file" ] && exec 3<"$file" && break 2
        done 2>/dev/null
        idle=$((idle + 1)); [ "$idle" -lt 150 ] || refuse 'the blob did not begin to arrive'
        nap
    done
    printf '\\nclusterft-relay 1 blob %s %s\\n' "$2" "$3"
    idle=0 before=0
    while size=$(size) && [ "$size" -lt "$3" ]; do
        [ "$size" -gt "$before" ] && { before=$size; idle=0; }
        idle=$((idle + 1)); [ "$idle" -lt 300 ] || refuse 'the blob stopped arriving'
        nap
    done
    # tail seeks on a file; what it reads last is where cat goes on.
    tail -c +$(($3 + 1)) <&3 || exit 74
    [ "$size" -lt "$4" ] || exit 0
    while :; do
        nap
        size=$(size) || exit 74
        if [ "$size" -gt "$before" ]; then
            before=$size idle=0
            cat <&3 || exit 74
            [ "$size" -lt "$4" ] || exit 0
        fi
        idle=$((idle + 1)); [ "$idle" -lt 300 ] || refuse 'the blob stopped arriving'
    done
}

case ${SSH_ORIGINAL_COMMAND-} in
    hello) printf '\\nclusterft-relay 1 %s\\n' "${SSH_CONNECTION-}" ;;
    'serve '*)
        IFS=' '
        set -- $SSH_ORIGINAL_COMMAND
        [ $# -eq 5 ] || refuse 'not a request'
        shift
        serve "$@" ;;
    *) refuse 'this key reads blobs of a ship session, no more' ;;
esac
"""
