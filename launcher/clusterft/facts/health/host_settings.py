"""What a node's system is set to do by itself: set its clock, sleep, save power, clear up, upgrade. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from clusterft.facts.frames import whole

_CPU = "/sys/devices/system/cpu"
_DAEMONS = "chronyd|ntpd|ntpsec|openntpd|systemd-timesyn|ptp4l|phc2sys|VBoxService|vmtoolsd"  # comm has 15 letters

SECTIONS = {
    # The file that counts, then all pieces; which of the pieces counts is for the parser.
    "host.logind": "for f in /etc/systemd/logind.conf /run/systemd/logind.conf /usr/lib/systemd/logind.conf; do "
    '[ -e "$f" ] && break; done; '
    "for f in $f /usr/lib/systemd/logind.conf.d/*.conf /run/systemd/logind.conf.d/*.conf "
    '/etc/systemd/logind.conf.d/*.conf; do [ -e "$f" ] && printf "file %s\\n" "$f" && '
    "grep -E '^[[:space:]]*(RemoveIPC|IdleAction|IdleActionSec)[[:space:]]*=' \"$f\"; done; "
    '[ -e "/var/lib/systemd/linger/$(id -un)" ] && echo linger; '
    # A shutdown that logind is to begin later, with the node's own time.
    "f=/run/systemd/shutdown/scheduled; [ -s $f ] && "
    "echo planned $(sed -n 's/^USEC=//p' $f) $(sed -n 's/^MODE=//p' $f) $(date +%s)",
    "host.governor": f"cat {_CPU}/cpu[0-9]*/cpufreq/scaling_governor | sort | uniq -c; echo ==; "
    f"cd {_CPU}/cpu0/cpufreq && cat scaling_driver cpuinfo_min_freq cpuinfo_max_freq",
}
# These ask services, any of which may hang.
STAGES = {
    "host.ntp": "command -v timedatectl >/dev/null && "
    "limit 3 timedatectl show -p NTP -p NTPSynchronized -p CanNTP",
    "host.sleep": f"c=$(cat /proc/[0-9]*/comm | grep -xE '{_DAEMONS}|gsd-power' | sort -u); "
    "echo seen; "
    "printf 'daemon %s\\n' $c; for t in sleep suspend; do "
    '[ "$(readlink -f /etc/systemd/system/$t.target)" = /dev/null ] && echo masked; done; '
    "case $c in *gsd-power*) u=$(id -u); for p in $(grep -lx gsd-power /proc/[0-9]*/comm); do "
    '[ "$(stat -c %u "$p")" = "$u" ] && echo desktop && for k in type timeout; do printf "$k "; '
    # A distribution's defaults are for its own desktop alone, which a login over SSH is not.
    "x=$(tr '\\0' '\\n' <${p%comm}environ | grep -E '^XDG_(CURRENT_DESKTOP|DATA_DIRS|CONFIG_HOME)=[^ ]*$'); "
    "limit 3 env $x gsettings get org.gnome.settings-daemon.plugins.power sleep-inactive-ac-$k; "
    "done; done ;; esac",
}
# The driver's packages, held or not, and where newer ones would come from.
APT_STAGE = {
    "host.apt": "command -v unattended-upgrade >/dev/null && echo seen && { "
    "limit 4 apt-config dump | grep -E '^(APT::Periodic::|Unattended-Upgrade::Package-Blacklist)'; echo ==; "
    "limit 4 apt-mark showhold; echo ==; "
    "p=$(limit 4 dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' 'nvidia-driver-*' 'libnvidia-compute-*' "
    "'nvidia-kernel-*' 'nvidia-driver' | sed -n 's/^ii  *//p'); printf '%s\\n' \"$p\"; echo ==; "
    '[ "$p" ] && limit 6 apt-cache policy $p; }'
}


@dataclass(frozen=True, slots=True)
class Logind:
    """What somebody has set; None where it is left to what the system was built with."""

    remove_ipc: bool | None
    idle_action: str | None
    lingers: bool  # the user counts as logged in for ever
    where: Mapping[str, str]  # setting -> file
    ends: tuple[str, int] | None = None  # reboot, poweroff, halt or kexec, in so many seconds


@dataclass(frozen=True, slots=True)
class Sleep:
    """Whether it can sleep by itself."""

    masked: bool
    desktop: tuple[str, int | None] | None  # of this user's own session: what it does when idle, after seconds


@dataclass(frozen=True, slots=True)
class Governor:
    """How processors choose their clocks."""

    names: Mapping[str, int]  # governor -> processors
    driver: str
    lowest: int | None  # kHz
    highest: int | None


@dataclass(frozen=True, slots=True)
class Apt:
    """Upgrades that come by themselves, and the driver's packages."""

    upgrades: bool
    held: frozenset[str]
    blacklist: tuple[str, ...]
    drivers: tuple[str, ...]
    from_security: frozenset[str]  # of `drivers`, those whose newer versions come with security updates


def ntp(text: str, processes: str) -> dict[str, str]:
    """`timedatectl show`, and the daemons that set clocks."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    running = re.findall(rf"^daemon ({_DAEMONS})$", processes, re.MULTILINE)
    return {**found, "daemons": " ".join(running)}


def logind(text: str) -> Logind | None:
    """The main file, then the pieces by name; of one name the one in /etc, else in /run, counts."""
    pieces: dict[str, tuple[str, list[str]]] = {}
    main: tuple[str, list[str]] | None = None
    current: list[str] = []
    for line in text.splitlines():
        kind, _, path = line.partition(" ")
        if kind == "file":
            current = []
            if path.endswith("/logind.conf"):
                main = (path, current)
            else:
                pieces[path.rpartition("/")[2]] = (path, current)  # they come in the order of what counts more
        elif line != "linger" and kind != "planned":
            current.append(line)
    planned = re.search(r"^planned (\d{10,13})\d{6} (\w+) (\d{10,13})$", text, re.MULTILINE)
    if main is None and not pieces and not planned:
        return None
    settings: dict[str, tuple[str, str]] = {}
    for path, lines in ([main] if main else []) + [pieces[name] for name in sorted(pieces)]:
        for line in lines:
            key, _, value = line.partition("=")
            settings[key.strip()] = (value.strip(), path)
    ipc = settings.get("RemoveIPC", ("", ""))[0].lower()
    return Logind(
        remove_ipc={"yes": True, "true": True, "1": True, "on": True}.get(ipc, False if ipc else None),
        idle_action=settings.get("IdleAction", ("", ""))[0] or None,
        lingers="linger" in text.splitlines(),
        where={key: path for key, (_, path) in settings.items()},
        ends=(planned[2], int(planned[1]) - int(planned[3])) if planned else None,
    )


def sleep(text: str) -> Sleep | None:
    """What masks it, and what a desktop does when idle."""
    lines = text.splitlines()
    if lines[:1] != ["seen"]:
        return None
    said = dict(line.split(" ", 1) for line in lines if line.startswith(("type ", "timeout ")))
    kind = said.get("type", "").strip().strip("'")
    timeout = whole(said.get("timeout", "").replace("uint32", ""))
    return Sleep("masked" in lines, (kind, timeout) if kind else None)


def governor(text: str) -> Governor | None:
    """uniq -c of all processors, then the first one's driver and range."""
    counts, _, rest = text.partition("==\n")
    names = {name: int(count) for count, name in re.findall(r"^\s*(\d{1,6}) (\S+)$", counts, re.MULTILINE)}
    lines = rest.splitlines()
    if not names or not lines:
        return None
    figures = [whole(line) for line in lines[1:3]] + [None, None]
    return Governor(names, lines[0].strip(), figures[0], figures[1])


def apt(text: str) -> Apt | None:
    """None where no unattended-upgrade is installed, or it was not asked."""
    parts = text.split("==\n")
    if not text.startswith("seen\n") or len(parts) < 3:
        return None
    on = {key: value for key, value in re.findall(r'^APT::Periodic::([\w-]+) "([^"]*)";$', parts[0], re.MULTILINE)}
    drivers = tuple(line.split(":")[0] for line in parts[2].split())
    sources: dict[str, str] = {}
    for block in re.split(r"^(?=\S+:$)", parts[3], flags=re.MULTILINE) if len(parts) > 3 else ():
        name, _, body = block.partition(":\n")
        sources[name] = body
    return Apt(
        upgrades=on.get("Unattended-Upgrade", "0") not in ("0", "") and on.get("Enable", "1") != "0",
        held=frozenset(parts[1].split()),
        blacklist=tuple(
            re.findall(r'^Unattended-Upgrade::Package-Blacklist:: "([^"]+)";$', parts[0], re.MULTILINE)
        ),
        drivers=drivers,
        from_security=frozenset(
            one for one in drivers if re.search(r"-security[/ ]|security\.(ubuntu|debian)", sources.get(one, ""))
        ),
    )
