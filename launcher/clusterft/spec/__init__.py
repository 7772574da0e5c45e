"""job.yaml -> JobSpec: the one edge where a user's job is read and judged whole, before any node is touched."""

from clusterft.spec.image import ImageSpec
from clusterft.spec.job import JobSpec, Resources, json_schema, load
from clusterft.spec.mounts import Mount
from clusterft.spec.mounts import parse as parse_mount
from clusterft.spec.script import ScriptSpec

__all__ = ["ImageSpec", "JobSpec", "Mount", "Resources", "ScriptSpec", "json_schema", "load", "parse_mount"]
