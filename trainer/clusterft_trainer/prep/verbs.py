"""The commands of the data path, for the trainer's command line.

Owns their names and one line about each. A module is imported only for the command that was typed: `prep` of a
small data set takes less time than the import of what it does not need.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verb:
    """One command: where its arguments are described, and what does it."""

    help: str
    module: str
    arguments: str
    run: str


VERBS = {
    "prep": Verb("make a data set ready", "prep.command", "add_arguments", "main"),
    "verify": Verb("test every entry of a cache", "latents.verify", "add_arguments", "run"),
    "pack": Verb("a folder as tar files", "latents.packing", "add_pack_arguments", "run_pack"),
    "unpack": Verb("tar files as a folder", "latents.packing", "add_unpack_arguments", "run_unpack"),
    "import-npz": Verb("kohya's .npz caches into ours", "latents.importing", "add_arguments", "run_import"),
    "export-npz": Verb("our cache as kohya's .npz", "latents.importing", "add_export_arguments", "run_export"),
}


def add(commands: Any, typed: str) -> None:
    """Name all of them to argparse; describe the arguments of the one that was typed."""
    for name, verb in VERBS.items():
        parser: argparse.ArgumentParser = commands.add_parser(name, help=verb.help)
        if name == typed:
            getattr(_module(verb), verb.arguments)(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; its exit code."""
    verb = VERBS[arguments.command]
    return int(getattr(_module(verb), verb.run)(arguments) or 0)


def _module(verb: Verb) -> Any:
    return importlib.import_module(f"clusterft_trainer.{verb.module}")
