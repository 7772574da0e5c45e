"""job.yaml -> JobSpec: the one edge where a user's job is read and judged whole, before any node is touched."""

from clusterft.spec.image import ImageSpec
from clusterft.spec.job import JobSpec, Resources, json_schema, load

__all__ = ["ImageSpec", "JobSpec", "Resources", "json_schema", "load"]
