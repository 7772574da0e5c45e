"""The data layer of the catalogue, in words."""

from clusterft.checks.check import Entry

ENTRIES: tuple[Entry, ...] = ()
