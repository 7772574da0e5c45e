"""A stand-in for nvidia-smi, for nodes without cards: a test double, written after nvidia-smi's documentation.

It answers the queries that doctor asks, in the formats of a driver of 470 or later, and refuses fields that the
driver did not have yet, as the real one does: `Field "x" is not a valid field to query.`. No card is behind it;
nothing that it says was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

PROGRAM = """\
#!/usr/bin/env python3
import json, sys
told = json.loads({body!r})
major = int(told["driver"].split(".")[0])
newer = {{"compute_cap": 495, "clocks_event_reasons.active": 535}}
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
if told["words"]:
    print(told["words"])
    sys.exit(told["code"])
if "--query-gpu" in words:
    fields = words["--query-gpu"].split(",")
    for one in fields:
        if newer.get(one, 0) > major or one not in {{**told["cards"][0], **newer}}:
            print(f'Field "{{one}}" is not a valid field to query.\\n')
            sys.exit(2)
    for card in told["cards"]:
        card["clocks_event_reasons.active"] = card["clocks_throttle_reasons.active"]
        print(", ".join(str(card[one]) for one in fields))
elif "--query-remapped-rows" in words:
    for card in told["cards"]:
        print(", ".join([card["uuid"], *told["remapped"]]) if told["remapped"] else "")
elif "--query-compute-apps" in words:
    for pid, _ in told["programs"]:
        print(pid)
elif "-L" in words:
    for card in told["cards"]:
        print(f"GPU {{card['index']}}: {{card['name']}} (UUID: {{card['uuid']}})")
elif "-q" in words:
    print("\\n==============NVSMI LOG==============\\n")
    print(f"Driver Version                            : {{told['driver']}}")
    print(f"CUDA Version                              : {{told['cuda']}}\\n")
    print(f"Attached GPUs                             : {{len(told['cards'])}}")
    for card in told["cards"]:
        print(f"GPU {{card['pci.bus_id']}}")
        mine = told["programs"] if card["index"] == 0 else []
        print("    Processes" if mine else "    Processes                             : None")
        for pid, name in mine:
            print(f"        Process ID                        : {{pid}}")
            print("            Type                          : C")
            print(f"            Name                          : {{name}}")
            print("            Used GPU Memory               : 1024 MiB")
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
        "pstate": "P8",
        "ecc.mode.current": "[N/A]",
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
        """The text of the command."""
        cards = [{**one, "driver_version": self.driver} for one in self.cards]
        body = {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "cards": cards}
        return PROGRAM.format(body=json.dumps(body))
