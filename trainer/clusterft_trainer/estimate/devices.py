"""GPUs by the names that drivers give them: dense peak rates and memory. Torch-free.

Owns the table; refuses to guess: a name that is not in it has no peak, and MFU is then not told. Rates are those
of the tensor cores with fp32 accumulation and without sparsity, which vendors often print doubled.

Sources: (A) NVIDIA Ampere GA102 whitepaper, appendix A, (B) NVIDIA A100 whitepaper, table 1, (C) NVIDIA Ada
whitepaper, appendix A, (D) NVIDIA H100 and H200 datasheets, halved where they count sparsity, (E) NVIDIA RTX
Blackwell whitepaper, appendix A, (F) datasheets of the single cards, halved where they count sparsity, (G) NVIDIA
HGX B200 datasheet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clusterft_trainer.config.base import Dtype
from clusterft_trainer.errors import ConfigError

GIB = 1 << 30
TERA = 1e12


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU."""

    name: str
    words: tuple[str, ...]  # all of them stand in the driver's name; the entry with most words wins
    bf16: float | None  # TFLOPS; None where the hardware cannot multiply bfloat16
    fp16: float  # TFLOPS
    fp32: float  # TFLOPS of the plain cores: torch's matrix products do not use TF32 unless told to
    memory: float  # GiB; the driver shows up to 4% less
    source: str


_GEFORCE = (
    Device("RTX 3080", ("RTX", "3080"), 59.5, 59.5, 29.8, 10, "A"),
    Device("RTX 3080 Ti", ("RTX", "3080", "Ti"), 68.2, 68.2, 34.1, 12, "A"),
    Device("RTX 3090", ("RTX", "3090"), 71.0, 71.0, 35.6, 24, "A"),
    Device("RTX 3090 Ti", ("RTX", "3090", "Ti"), 80.0, 80.0, 40.0, 24, "A"),
    Device("RTX 4080", ("RTX", "4080"), 97.5, 97.5, 48.7, 16, "C"),
    Device("RTX 4090", ("RTX", "4090"), 165.2, 165.2, 82.6, 24, "C"),
    Device("RTX 5090", ("RTX", "5090"), 209.5, 209.5, 104.8, 32, "E"),
)
_WORKSTATION = (
    Device("RTX A5000", ("RTX", "A5000"), 111.1, 111.1, 27.8, 24, "F"),
    Device("RTX A6000", ("RTX", "A6000"), 154.8, 154.8, 38.7, 48, "A"),
    Device("RTX 6000 Ada", ("RTX", "6000", "Ada"), 364.2, 364.2, 91.1, 48, "F"),
)
_SERVER = (
    Device("T4", ("T4",), None, 65.0, 8.1, 16, "F"),
    Device("V100 PCIe", ("V100", "PCIE"), None, 112.0, 14.0, 16, "F"),
    Device("V100", ("V100",), None, 125.0, 15.7, 16, "B"),
    Device("V100 32 GB", ("V100", "32GB"), None, 125.0, 15.7, 32, "B"),
    Device("V100 PCIe 32 GB", ("V100", "PCIE", "32GB"), None, 112.0, 14.0, 32, "F"),
    Device("A10", ("A10",), 125.0, 125.0, 31.2, 24, "F"),
    Device("A30", ("A30",), 165.0, 165.0, 10.3, 24, "F"),
    Device("A40", ("A40",), 149.7, 149.7, 37.4, 48, "A"),
    Device("A100", ("A100",), 312.0, 312.0, 19.5, 40, "B"),
    Device("A100 80 GB", ("A100", "80GB"), 312.0, 312.0, 19.5, 80, "B"),
    Device("L4", ("L4",), 121.0, 121.0, 30.3, 24, "F"),
    Device("L40", ("L40",), 181.0, 181.0, 90.5, 48, "F"),
    Device("L40S", ("L40S",), 362.0, 362.0, 91.6, 48, "F"),
    Device("H100", ("H100",), 989.4, 989.4, 66.9, 80, "D"),
    Device("H100 PCIe", ("H100", "PCIE"), 756.4, 756.4, 51.2, 80, "D"),
    Device("H100 NVL", ("H100", "NVL"), 835.5, 835.5, 60.0, 94, "D"),
    Device("H200", ("H200",), 989.4, 989.4, 66.9, 141, "D"),
    Device("H200 NVL", ("H200", "NVL"), 835.5, 835.5, 60.0, 141, "D"),
    Device("B200", ("B200",), 2250.0, 2250.0, 75.0, 180, "G"),
)
DEVICES = (*_GEFORCE, *_WORKSTATION, *_SERVER)
# A card of another rate under nearly the same name: "RTX 4090 D", "RTX 4090 Laptop GPU", half a card under MIG.
_OTHER = frozenset({"D", "LAPTOP", "MAX-Q", "SUPER", "MIG", "QUADRO"})


def find(name: str) -> Device | None:
    """The entry for a name as torch, nvidia-smi or a user writes it; None where there is none."""
    words = {w.upper() for w in re.split(r"[\s_-]+", re.sub(r"(\d+)\s*GB\b", r"\1GB", name)) if w}
    if "TI" not in words and any(re.fullmatch(r"\d{4}TI", w) for w in words):
        words |= {"TI"} | {w[:4] for w in words if re.fullmatch(r"\d{4}TI", w)}
    found = [d for d in DEVICES if {w.upper() for w in d.words} <= words]
    if not found or words & _OTHER:
        return None
    best = max(found, key=lambda d: len(d.words))
    # "3080 Ti" must not be taken for a 3080 where no entry names the Ti
    return None if "TI" in words and "Ti" not in best.words else best


def peak(name: str, precision: Dtype) -> float | None:
    """FLOP/s that the hardware can do at most in a precision; None for CPUs and names not in the table."""
    device = find(name)
    if device is None:
        return None
    rate = {"bf16": device.bf16, "fp16": device.fp16, "fp32": device.fp32}[precision]
    return None if rate is None else rate * TERA


def require(name: str) -> Device:
    """The entry for a name that a user gave."""
    device = find(name)
    if device is None:
        raise ConfigError(
            f"--gpu {name!r} is not in the table of GPUs.",
            "Give one of " + ", ".join(d.name for d in DEVICES) + "; or leave --gpu out and give --memory.",
        )
    return device
