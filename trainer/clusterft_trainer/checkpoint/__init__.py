"""Resumable states on disk: what of a run must outlive it, and how it is found again on any topology."""

from clusterft_trainer.checkpoint.keeper import Keeper as Keeper
from clusterft_trainer.checkpoint.manifest import Found as Found
from clusterft_trainer.checkpoint.manifest import Identity as Identity
from clusterft_trainer.checkpoint.manifest import Manifest as Manifest
from clusterft_trainer.checkpoint.manifest import State as State
from clusterft_trainer.checkpoint.manifest import complete as complete
