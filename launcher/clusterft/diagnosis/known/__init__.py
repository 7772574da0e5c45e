"""The tables of all signatures. What silences comes first, then what is most specific."""

from __future__ import annotations

from clusterft.diagnosis.known.communication import BENIGN
from clusterft.diagnosis.known.communication import SIGNATURES as COMMUNICATION
from clusterft.diagnosis.known.launching import SIGNATURES as LAUNCHING
from clusterft.diagnosis.known.machine import SIGNATURES as MACHINE
from clusterft.diagnosis.known.programs import SIGNATURES as PROGRAMS
from clusterft.diagnosis.signatures import Signature

ALL: tuple[Signature, ...] = (
    *BENIGN,
    *LAUNCHING,
    *COMMUNICATION,
    *MACHINE,
    *PROGRAMS,
)
