"""The text of the probe: plain POSIX sh, one round trip, nothing changed or left behind on the node.

Every section is framed by a line with a random word, so that a noisy .bashrc cannot be taken for an answer. A
section that cannot be read stays empty and becomes unknown; it is never guessed. What hangs costs its own section.

What is slow (an engine, a driver) runs beside the rest, without a temporary file: each is a stage of one pipeline,
which holds its own answer back, passes on what came before it, and then says its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

HOME = "~"  # as a directory to look at: the login directory of whoever the probe runs as
FRAME = "--clusterft-{word}-"

# What later steps may use of a node, if it is there.
TOOLS = ("zstd", "sshd", "sudo", "nvidia-ctk", "nvidia-container-runtime-hook", "nvidia-container-cli")
CARD_FIELDS = (
    *("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "pci.bus_id", "display_active"),
    *("pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max"),
)
_KERNEL_FILESYSTEMS = (
    "autofs|binfmt_misc|bpf|cgroup|cgroup2|configfs|debugfs|devpts|devtmpfs|efivarfs|fusectl|hugetlbfs|mqueue|nsfs|"
    "proc|pstore|ramfs|rpc_pipefs|securityfs|selinuxfs|squashfs|sysfs|tracefs|fuse.snapfuse|fuse.lxcfs|fuse.gvfsd-fuse"
)
# The engine's own overlays, one for each container, say nothing about the node.
MOUNTS = f'awk \'$3 !~ /^({_KERNEL_FILESYSTEMS})$/ && ($3 != "overlay" || $2 == "/")\' /proc/mounts'
# Mounts whose later changes do not spread: neither into the containers of an engine, which then refuses rslave.
_PRIVATE = (
    'awk \'{ for (i = 7; i < NF && $i != "-"; i++) if ($i ~ /^(shared|master):/) next; '
    f'if ($(i + 1) !~ /^({_KERNEL_FILESYSTEMS})$/) print "private " $5 }}\' /proc/self/mountinfo'
)

_TOOLS = r"""
LC_ALL=C; export LC_ALL
unset LD_PRELOAD  # what is missing of it is told by every program; ranks inherit none of it either
exec 2>/dev/null  # for good: a redirection around what hangs would leave it a copy of the session's own stderr
PATH=$PATH:/usr/sbin:/sbin  # where some systems keep ip and sshd, and do not tell other users
e=2  # where a limited command's complaints go; the shell's own remarks on its end never go there
if timeout -k 1 1 uname; then
  limit() { ( exec timeout -k 1 "$@" 2>&"$e" ); }
else  # none, or one of an old busybox with a syntax of its own
  limit() {
    s=$1; shift
    { "$@" <&3 2>&"$e" 3<&- & } 3<&0
    c=$!
    ( n=0; while [ "$n" -lt "$s" ]; do sleep 1; n=$((n + 1)); done; kill "$c" ) >/dev/null 2>&1 &
    d=$!
    wait "$c"
    kill "$d" 2>/dev/null
  }
fi >/dev/null
# Whatever is asleep in the kernel cannot be killed: then it is the reader that gives up.
hear() { s=$1; shift; { { e=1; limit "$s" "$@"; } & } | limit "$((s + 2))" cat; }
room() {
  at=$1
  while [ ! -d "$at" ] && [ "$at" != / ] && [ "$at" != . ]; do at=$(dirname -- "$at"); [ "$at" ] || return; done
  [ -w "$at" ] && echo yes || echo no
  limit 5 df -Pk -- "$at"; limit 5 df -Pi -- "$at"
  [ "$at" = "$1" ] || { printf '@above %s\n' "$at"; limit 5 ls -1F -- "$at" | head -n 500; }
}
"""

# Section -> commands. Each runs in its own subshell, so that one failure leaves the others alone.
_SECTIONS = {
    "clock": "date +%s.%N",
    "boot": "cat /proc/sys/kernel/random/boot_id",
    "hostname": "uname -n",
    "kernel": "uname -srm",
    "os": "cat /etc/os-release || cat /usr/lib/os-release",
    "user": "id -u; id -g; id -un",
    "groups": "id -Gn; id -G; getent group docker || grep '^docker:' /etc/group",
    "home": 'printf "%s\\n" "$HOME"',
    "cpu": "nproc",
    "memory": "grep -E '^(MemTotal|MemAvailable):' /proc/meminfo",
    "shm": "df -Pk /dev/shm",
    "limits": "grep -E '^Max (open files|locked memory|stack size) ' /proc/self/limits",
    "listening": "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" {print $2}'",
    # The address that this very SSH connection came from is how the node reaches the controller.
    "controller": '[ -n "$SSH_CONNECTION" ] && ip -o route get "${SSH_CONNECTION%% *}"',
    # Its third word is the node's own side of this connection; behind a bastion nothing else tells an address.
    "login": 'printf "%s\\n" "$SSH_CONNECTION"',
    "addresses": "ip -o addr",
    "links": "ip -o link",
    "speeds": "grep -s . /sys/class/net/*/speed /dev/null",  # a virtual interface has none and refuses
    "infiniband": "[ -d /sys/class/net ] && echo seen; cd /sys/class/infiniband && "
    "grep -s . */ports/*/state */ports/*/rate */ports/*/link_layer */ports/*/gid_attrs/ndevs/0 /dev/null",
    "mounts": f"{MOUNTS}; {_PRIVATE}",
    # Only what the managers themselves say, and the kernel's input chains where root may read them.
    "firewall": "grep -s '^ENABLED=' /etc/ufw/ufw.conf; "
    'command -v firewall-cmd >/dev/null && echo "firewalld $(systemctl is-active firewalld)"; '
    'command -v nft >/dev/null && rules=$(limit 5 nft list ruleset) && echo "nft" && '
    "printf '%s\\n' \"$rules\" | grep 'hook input'",
    "tools": f"echo seen; for t in {' '.join(TOOLS)}; do command -v $t; done",
    "nvidia": "cat /proc/driver/nvidia/version",
    # The classes of NVIDIA's devices: what is plugged in, whatever the driver makes of it.
    "pci": "[ -d /sys/bus/pci/devices ] && echo seen; grep -ls 0x10de /sys/bus/pci/devices/*/vendor | "
    'while read -r v; do read -r c <"${v%vendor}class" && echo "$c"; done',
    "rooms": "limit 5 df -Pkl",
    "room.home": 'room "$HOME"',
}

# Whoever may not speak to the engine is asked about again as root, where sudo wants no password. A user cannot
# kill what root runs, so its reader gives up, and root is asked to end it. $with is docker or sudo.
ASK = r"""
ask() {
  case $with in
    docker) hear "$@" ;;
    sudo)
      s=$1; shift
      w=$({ sudo -n "$@" 2>&1 & echo "pid $!"; } | limit "$s" cat)
      case ${w#pid } in
        *[!0-9]*) printf '%s\n' "$w" | grep -v '^pid [0-9]*$' ;;
        *) sudo -n kill "${w#pid }" ;;
      esac ;;
  esac
}
"""
_DOCKER = (
    r"""
with=docker v='' i=''
p=$(command -v docker || ls /snap/bin/docker) && printf '%s\n' "$p" && readlink -f "$p" || echo none
"""
    + ASK.strip()
    + r"""
echo {frame}docker.version
[ "$p" ] && v=$(ask 4 docker version -f '{{json .Server}}')
case $v in
  *'"ApiVersion"'*) ;;
  *'permission denied'*)
    if command -v sudo >/dev/null; then
      with=sudo; w=$(ask 4 docker version -f '{{json .Server}}')
      case $w in *'sudo: '* | *'sudo-rs: '* | *'Sorry, '*) with=docker ;; *) v=$w ;; esac
    fi ;;
esac
printf '%s\n' "$with" "$v"
echo {frame}docker.info
case $v in *'"ApiVersion"'*) i=$(ask 7 docker info -f '{{json .}}'); printf '%s\n' "$i" ;; esac
echo {frame}docker.root
r=$(printf '%s\n' "$i" | sed -n 's/.*"DockerRootDir":"\([^"]*\)".*/\1/p')
[ "$r" ] && room "$r"
echo {frame}docker.store
[ "$r" ] && [ -S /run/containerd/containerd.sock ] && room /var/lib/containerd
"""
)

# An unknown field fails the whole query, and drivers before 495 do not know the compute capability.
_CARDS = (
    "command -v nvidia-smi >/dev/null && { "
    f"q='--format=csv,noheader,nounits --query-gpu={','.join(CARD_FIELDS)}'; "
    "c=$(hear 14 nvidia-smi $q,compute_cap); "
    "case $c in *'is not a valid field'*) c=$(hear 14 nvidia-smi $q) ;; esac; printf '%s\\n' \"$c\"; }"
)
_STAGES = {
    "docker.path": _DOCKER,
    "gpus": _CARDS,
    "gpu.processes": "command -v nvidia-smi >/dev/null && hear 14 nvidia-smi -q -d PIDS",
}
CUT = ".cut"
# A stage given up on as a whole, by its reader: its writer may be asleep in the kernel. What the writer has begun
# ends by limits of its own; it begins nothing more.
_BOUND = """\
x=$(
{{ {{ (
read -r p v </proc/self/stat; echo "$p"
{text}
); printf '\\nover\\n'; }} & }} | limit {within} cat
)
case $x in
  *'
over') x=${{x%?over}}; printf '%s\\n' "${{x#*[!0-9]}}" ;;
  *)
    kill "${{x%%[!0-9]*}}"
    case $x in *[!0-9]*) printf '%s\\n' "${{x#*[!0-9]}}" ;; esac
    echo {{frame}}{name}.cut ;;
esac"""
_WITHIN = ("docker.version", "docker.info", "docker.root", "docker.store")  # framed by the stage of docker.path


def script(word: str, *, peers: tuple[str, ...] = (), disks: tuple[str, ...] = ()) -> str:
    """The probe for one node. `peers` are addresses to route to, `disks` directories whose room matters."""
    asked = {
        **_SECTIONS,
        **{f"route.{index}": f"ip -o route get {shlex.quote(peer)}" for index, peer in enumerate(peers)},
        # Even looking for a directory can hang, if it is a share whose server is gone.
        **{f"disk.{index}": f"{{ room {_directory(disk)} & }} | limit 8 cat" for index, disk in enumerate(disks)},
    }
    return framed(word, asked, _STAGES)


def framed(word: str, sections: Mapping[str, str], stages: Mapping[str, str], within: int | None = None) -> str:
    """A script of sections, one after the other, and of stages beside them; `{frame}` in a stage is the frame.

    A stage that takes longer than `within` seconds is cut: what it has said by then counts, and behind it comes
    an empty frame with its name and CUT, as half of an answer must not be taken for all of it.
    """
    frame = FRAME.format(word=word)
    if within is not None:
        stages = {name: _BOUND.format(name=name, within=within, text=text) for name, text in stages.items()}
    quick = "".join(f"echo {frame}{name}; ( {text} )\n" for name, text in sections.items())
    slow = "".join(
        f" | {{ x=$(\necho {frame}{name}\n{text.replace('{frame}', frame)}\n); cat; printf '%s\\n' \"$x\"; }}"
        for name, text in stages.items()
    )
    # One compound command: nothing runs before all of the text has come, and nothing reads it as its input.
    return f"{_TOOLS}{{\n{quick}}} </dev/null{slow}\necho {frame}end\n"


def section_names(peers: tuple[str, ...], disks: tuple[str, ...]) -> tuple[str, ...]:
    """What every complete answer holds. Numbers, not values, name the last ones: a path may hold anything."""
    routes = (f"route.{index}" for index in range(len(peers)))
    rooms = (f"disk.{index}" for index in range(len(disks)))
    return (*_SECTIONS, *_STAGES, *_WITHIN, *routes, *rooms)


def _directory(directory: str) -> str:
    return '"$HOME"' if directory == HOME else shlex.quote(directory)
