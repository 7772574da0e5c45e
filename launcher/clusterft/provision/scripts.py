"""What runs on a node: constant POSIX sh, everything that varies is a parameter. Needs no Python there.

Answers are lines that begin with a random word, so that a noisy .bashrc cannot be taken for one.
"""

from __future__ import annotations

_BEGIN = """\
LC_ALL=C; export LC_ALL
umask 077
word=$1
say() { printf '\\n%s %s\\n' "$word" "$*"; }
refuse() { say refused "$*"; exit 0; }
"""

# word root cluster node make token FILE... -> what is there; `make` is no, place (a directory and its token),
# fresh (the same with a new token) or key (place and relay key). An empty root is the login directory's.
# The public half of the key appears first: a private half without one is made anew. Whatever became of the public
# half's file, it is what the private half says.
LOOK = (
    _BEGIN
    + """\
root=${2:-$HOME/.clusterft} cluster=$3 node=$4 make=$5 token=$6
shift 6
nodes=$root/$cluster/nodes
base=$nodes/$node
key=$base/relay_ed25519
if [ "$make" != no ]; then
    for at in "$root/$cluster" "$nodes" "$base"; do
        [ ! -L "$at" ] || refuse "$at is a symbolic link"
    done
    [ -d "$base" ] || say made 'directory made'
    words=$(mkdir -p "$base" 2>&1) || refuse "$words"
    [ "$(stat -c %a "$base")" = 700 ] || { chmod 700 "$base" && say made 'directory: mode set right'; }
    if [ "$make" = fresh ] || [ ! -s "$base/place" ]; then
        # cat, since a shell's own printf has no words for a full disk.
        place=$base/place
        words=$({ printf '%s\\n' "$token" | cat >"$place.new" && mv -f "$place.new" "$place"; } 2>&1) ||
            refuse "$words"
        say fresh
    fi
fi
if [ "$make" = key ] && { [ ! -s "$key" ] || [ ! -s "$key.pub" ]; }; then
    command -v ssh-keygen >/dev/null || refuse 'ssh-keygen is not there'
    rm -f "$key.new" "$key.new.pub"
    words=$(ssh-keygen -q -t ed25519 -N '' -C "clusterft:$cluster:$node" -f "$key.new" 2>&1 </dev/null &&
        mv -f "$key.new.pub" "$key.pub" 2>&1 && mv -f "$key.new" "$key" 2>&1) || refuse "$words"
    say made 'relay key made'
fi
if [ "$make" = key ] && [ "$(stat -c %a "$key")" != 600 ]; then
    chmod 600 "$key" && say made 'relay key: mode set right'
fi
if [ "$make" = key ] && command -v ssh-keygen >/dev/null; then
    public=$(ssh-keygen -y -P '' -f "$key" 2>/dev/null </dev/null) ||
        refuse "$key is damaged: $(ssh-keygen -y -P '' -f "$key" 2>&1 </dev/null)"
    kind= blob=
    read -r kind blob rest <"$key.pub"
    case $public in
        "$kind $blob" | "$kind $blob "*) ;;
        *)
            words=$({ printf '%s\\n' "$public" | cat >"$key.new.pub" && mv -f "$key.new.pub" "$key.pub"; } 2>&1) ||
                refuse "$words"
            say made 'relay key: public half made anew'
            ;;
    esac
fi
say user "$(id -un)"
say login "${SSH_CONNECTION-}"
[ ! -s "$key.pub" ] || say public "$(cat "$key.pub")"
n=0
for file in "$@"; do
    if [ -L "$file" ]; then
        say file "$n" link -
    elif [ -f "$file" ]; then
        sum=$(sha256sum <"$file") && say file "$n" "$(stat -c %a "$file")" "${sum%% *}"
    fi
    n=$((n + 1))
done
for file in "$nodes"/*/place; do
    [ ! -f "$file" ] || say token "$(cat "$file")"
done
[ ! -s "$base/place" ] || say own "$(cat "$base/place")"
if [ -f "$base/nat" ]; then
    while read -r peer address; do say nat "$peer $address"; done <"$base/nat"
fi
keys=$HOME/.ssh/authorized_keys
if [ -f "$keys" ] && [ -r "$keys" ]; then
    say keys "$(base64 <"$keys" | tr -d '\\n')"
elif [ -e "$keys" ] || [ -L "$keys" ] || [ -e "$HOME/.ssh" -a ! -d "$HOME/.ssh" ]; then
    say odd "$(ls -ld "$HOME/.ssh" "$keys" 2>&1)"
else
    say absent
fi
say end
"""
)

# word root PATH... <tar of files named 0, 1, ... with their modes -> each file appears whole, under its own name.
PUT = (
    _BEGIN
    + """\
root=$2
shift 2
new=$(mktemp -d "$root/.new.XXXXXX" 2>&1) || refuse "$new"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
# Not -C: GNU tar takes a backslash in its argument for the start of something else.
words=$(cd "$new" && tar -xpof - 2>&1) || refuse "$words"
n=0
for path in "$@"; do
    words=$({ sync "$new/$n" && mv -f "$new/$n" "$path"; } 2>&1) || refuse "$words"
    n=$((n + 1))
done
say end
"""
)

# word root expected sum <content -> authorized_keys becomes that content, if it is still what `expected` says (the
# sum of its bytes, or absent). With no content it goes again, if it was made here and has nothing else in it.
# `made` remembers what of ~/.ssh was not there before; it is there before the thing itself.
# A lock that nobody lets go of within 20 s is a dead one's: held ones live for milliseconds. No clock is compared.
KEYS = (
    _BEGIN
    + """\
root=${2:-$HOME/.clusterft} expected=$3 sum=$4
lock=$root/authorized_keys.lock made=$root/made temp=
seen= same=0 tries=0
until mkdir "$lock" 2>/dev/null; do
    words=$(mkdir -p "$root" 2>&1) || refuse "$words"
    [ "$tries" -lt 50 ] || refuse "$lock cannot be made: $(mkdir "$lock" 2>&1)"
    now=$(stat -c '%i %Z' "$lock" 2>/dev/null)
    [ "$now" = "$seen" ] || same=0
    seen=$now same=$((same + 1)) tries=$((tries + 1))
    [ "$same" -lt 20 ] || rmdir "$lock" 2>/dev/null
    sleep 1
done
trap '[ -z "$temp" ] || rm -f "$temp"; rmdir "$lock"' EXIT
trap 'exit 1' HUP INT TERM
dir=$HOME/.ssh file=$HOME/.ssh/authorized_keys
if [ -L "$file" ]; then
    file=$(readlink -f "$file") && [ -f "$file" ] || refuse "$HOME/.ssh/authorized_keys leads nowhere"
fi
have=absent
if [ -e "$file" ]; then
    [ -f "$file" ] || refuse "$file is not a file"
    [ -O "$file" ] || refuse "$file belongs to somebody else: $(ls -ld "$file")"
    have=$(sha256sum <"$file") || refuse "$file cannot be read"
    have=${have%% *}
fi
[ "$have" = "$expected" ] || { say moved; exit 0; }
remember() { words=$({ printf '%s\\n' "$1" | cat >>"$made"; } 2>&1) || refuse "$words"; }
if [ ! -e "$dir" ]; then
    remember ssh
    words=$(mkdir -m 700 "$dir" 2>&1) || refuse "$words"
fi
[ "$have" != absent ] || remember keys
temp=$file.clusterft.$$
if [ "$have" = absent ]; then
    words=$({ : >"$temp"; } 2>&1) || refuse "$words"
else
    words=$(cp -p "$file" "$temp" 2>&1) || refuse "$words"
fi
words=$({ cat >"$temp"; } 2>&1) || refuse "$words"
got=$(sha256sum <"$temp")
[ "${got%% *}" = "$sum" ] || refuse 'the new content did not arrive whole'
words=$(sync "$temp" 2>&1 && mv -f "$temp" "$file" 2>&1) || refuse "$words"
temp=
if [ ! -s "$file" ] && grep -qx keys "$made" 2>/dev/null; then
    rm -f "$file" && say removed 'authorized_keys'
    if grep -qx ssh "$made" && rmdir "$dir" 2>/dev/null; then say removed '.ssh'; fi
    rm -f "$made"
fi
say end
"""
)

# word cluster node root? -> this node's files of one cluster are gone, and each directory that nothing else is in.
TAKE = (
    _BEGIN
    + """\
cluster=$2 node=$3
root=${4:-$HOME/.clusterft}
nodes=$root/$cluster/nodes
base=$nodes/$node
for at in "$root/$cluster" "$nodes" "$base"; do
    [ ! -L "$at" ] || refuse "$at is a symbolic link: what it leads to is not touched"
done
if [ -d "$base" ]; then
    runs=0
    for run in "$base/runs"/*/; do [ ! -d "$run" ] || runs=$((runs + 1)); done
    words=$(rm -rf "$base" 2>&1) || refuse "$words"
    say removed "$runs"
fi
if rmdir "$nodes" 2>/dev/null || [ ! -e "$nodes" ]; then rm -f "$root/$cluster/relay.sh"; fi
rmdir "$root/$cluster" 2>/dev/null
keys=$HOME/.ssh/authorized_keys
grep -q ' clusterft:[A-Za-z0-9._-]*:[A-Za-z0-9._-]*$' "$keys" 2>/dev/null || rm -f "$root/made"
rmdir "$root" 2>/dev/null
mine=/var/tmp/clusterft-$(id -u)
if [ -d "$mine/$cluster" ] && [ ! -L "$mine" ] && [ -O "$mine" ] && [ ! -L "$mine/$cluster" ]; then
    words=$(rm -rf "$mine/$cluster" 2>&1) || refuse "$words"
    say scratch
fi
[ -L "$mine" ] || rmdir "$mine" 2>/dev/null
say end
"""
)

# word config request seconds PEER... -> what each peer answers, four at a time. A peer that sends callers away
# while it is busy with others (MaxStartups) is asked again.
HELLO = """\
LC_ALL=C; export LC_ALL
word=$1 config=$2 request=$3 limit=
! command -v timeout >/dev/null || limit="timeout $4"
shift 4
ask() {
    for nap in 1 2 0; do
        out=$($limit ssh -F "$config" -- "$1" "$request" 2>&1 </dev/null)
        code=$?
        case $code:$out in
            255:*kex_exchange_identification*|255:*'Connection reset'*|255:*'Connection closed'*) sleep $nap ;;
            *) break ;;
        esac
    done
    printf '\\n%s %s %s %s\\n' "$word" "$1" "$code" "$(printf '%s' "$out" | tail -c 1500 | tr '\\n\\r' '\\037 ')"
}
n=0
for peer in "$@"; do
    ask "$peer" &
    n=$((n + 1))
    [ $((n % 4)) -ne 0 ] || wait
done
wait
"""
