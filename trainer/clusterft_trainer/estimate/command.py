"""`estimate CONFIG`: the command line of the estimate.

Owns the options and their units; refuses a number without one. Prints to the stream that it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from clusterft_trainer import config
from clusterft_trainer.errors import ConfigError

_BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_RATES = {"MBIT": 1e6 / 8, "GBIT": 1e9 / 8, "MB": 1e6, "GB": 1e9}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)(?:/s|ps)?\s*")


def memory(text: str) -> float:
    """Bytes, of '24GB' or '22.5GiB'."""
    return _quantity(text, _BYTES, "24GB or 22.5GiB")


def rate(text: str) -> float:
    """Bytes a second, of '9.4Gbit' or '1.2GB/s'."""
    return _quantity(text, _RATES, "9.4Gbit or 1.2GB/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("config", type=Path, help="JSON with the settings of the train: block")
    parser.add_argument("--nodes", type=_positive, default=1, help="machines")
    parser.add_argument("--slots", type=_positive, default=1, help="GPUs of each")
    parser.add_argument("--gpu", help="name as the driver tells it, or RTX 3090, A100, H100, ...")
    parser.add_argument("--memory", type=memory, help="of each GPU, in place of what the table says: 24GB")
    parser.add_argument("--link", type=rate, help="measured rate between nodes, one way: 9.4Gbit")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def remedy(path: Path) -> str:
    """What to do about settings that cannot be read."""
    if path.suffix in (".yaml", ".yml"):
        return f"That is a job; its settings as JSON: clusterft settings {path.name} > train.json"
    return "Mend the setting named." if path.is_file() else "Give the file that clusterft settings has written."


def main(arguments: argparse.Namespace, out: TextIO = sys.stdout) -> None:
    """Estimate and print."""
    try:
        settings = config.load(arguments.config)
    except (OSError, ValidationError, ValueError) as error:
        raise ConfigError(f"{arguments.config}: {error}", remedy(arguments.config)) from error
    from clusterft_trainer import imports

    # only now: torch and diffusers take seconds; nothing is computed on what device DeepSpeed would look for
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    imports.classes()
    from clusterft_trainer.estimate import predict, report

    site = predict.Site(arguments.nodes, arguments.slots, arguments.gpu, arguments.memory, arguments.link)
    found = predict.run(settings, site)
    out.write(json.dumps(report.to_json(found)) + "\n" if arguments.json else report.text(found))


def _quantity(text: str, units: dict[str, float], example: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].upper() not in units or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and its unit, as {example}")
    return float(match[1]) * units[match[2].upper()]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)
