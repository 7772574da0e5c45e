"""A stand-in for nvidia-smi, for nodes without cards: a test double, written after nvidia-smi's documentation.

It answers the queries that doctor asks, in the formats of a driver of 470 or later, and refuses fields that the
driver did not have yet, as the real one does: `Field "x" is not a valid field to query.`. No card is behind it;
nothing that it says was measured.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

_SINCE = {"compute_cap": 495, "clocks_event_reasons.active": 535}  # fields and the drivers that brought them
_PROGRAM = """\
#!/bin/sh
for w in "$@"; do case $w in
  --query-gpu=*) q=${{w#*=}} ;;
  --query-remapped-rows=*) printf '%s\\n' '{remapped}'; exit ;;
  --query-compute-apps=*) printf '%s\\n' '{pids}'; exit ;;
  -L) printf '%s\\n' '{listed}'; exit ;;
  -q) printf '%s\\n' '{full}'; exit ;;
esac; done
IFS=,
for f in $q; do
  v=; case 0.$f in
{arms}  *) printf 'Field "%s" is not a valid field to query.\\n\\n' "$f"; exit 2 ;; esac
done
rows='{rows}'
IFS=' '; for r in $rows; do
  l=; IFS=,
  for f in $q; do
    case $r.$f in
{arms}    esac
    l="$l${{l:+, }}$v"
  done
  printf '%s\\n' "$l"
  IFS=' '
done
"""


def card(index: int = 0, **changes: Any) -> dict[str, Any]:
    """One healthy RTX 3090 at rest; fields by nvidia-smi's own names, with `_` for a dot where that is needed."""
    whole: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index:08d}-aaaa-bbbb-cccc-dddddddddddd",
        "name": "NVIDIA GeForce RTX 3090",
        "memory.total": 24576,
        "memory.used": 1,
        "pci.bus_id": f"00000000:{index + 1:02X}:00.0",
        "display_active": "Disabled",
        "pcie.link.gen.current": 1,
        "pcie.link.gen.max": 4,
        "pcie.link.width.current": 16,
        "pcie.link.width.max": 16,
        "compute_cap": "8.6",
        "persistence_mode": "Disabled",
        "power.limit": "350.00",
        "power.default_limit": "350.00",
        "power.draw": "21.63",
        "utilization.gpu": 0,
        "temperature.gpu": 34,
        "ecc.errors.uncorrected.volatile.total": "[N/A]",
        "clocks_throttle_reasons.active": "0x0000000000000001",
    }
    unknown = changes.keys() - whole.keys()
    assert not unknown, unknown
    return {**whole, **changes}


@dataclass(frozen=True)
class Smi:
    """What it will say."""

    cards: tuple[dict[str, Any], ...] = field(default_factory=lambda: (card(),))
    driver: str = "550.127.05"
    cuda: str = "12.4"
    remapped: tuple[str, str, str] | None = None  # rows, pending, failure: of every card
    programs: tuple[tuple[int, str], ...] = ()  # that compute on the first card
    words: str = ""  # instead of all else
    code: int = 9

    def program(self) -> str:
        """The text of the command, in plain sh: a node may have no Python."""
        if self.words:
            return f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(self.words)}\nexit {self.code}\n"
        major = int(self.driver.split(".")[0])
        told = [{**one, "driver_version": self.driver} for one in self.cards]
        for one in told:
            one["clocks_event_reasons.active"] = one["clocks_throttle_reasons.active"]
        arms = "".join(
            f"    {row}.{name}) v={shlex.quote(str(value))} ;;\n"
            for row, one in enumerate(told)
            for name, value in one.items()
            if _SINCE.get(name, 0) <= major
        )
        return _PROGRAM.format(
            rows=" ".join(str(row) for row in range(len(told))),
            arms=arms,
            remapped="\n".join(", ".join((one["uuid"], *self.remapped)) for one in told) if self.remapped else "",
            pids="\n".join(str(pid) for pid, _ in self.programs),
            listed="\n".join(f"GPU {one['index']}: {one['name']} (UUID: {one['uuid']})" for one in told),
            full=self._full(),
        )

    def _full(self) -> str:
        """Of -q: its head, and the programs of each card."""
        lines = ["", "==============NVSMI LOG==============", ""]
        lines += [f"Driver Version                            : {self.driver}"]
        lines += [f"CUDA Version                              : {self.cuda}", ""]
        lines += [f"Attached GPUs                             : {len(self.cards)}"]
        for row, one in enumerate(self.cards):
            mine = self.programs if row == 0 else ()
            lines += [
                f"GPU {one['pci.bus_id']}",
                "    Processes" if mine else "    Processes                             : None",
            ]
            for pid, name in mine:
                lines += [f"        Process ID                        : {pid}"]
                lines += ["            Type                          : C"]
                lines += [f"            Name                          : {name}"]
                lines += ["            Used GPU Memory               : 1024 MiB"]
        return "\n".join(lines)
