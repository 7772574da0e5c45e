"""Whether every node has the image that `up` brought, and the same one.

A tag is a name that anybody may give to another image; what an image is, is its layers and its configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from clusterft.facts.image import Identity, differences
from clusterft.findings import Finding


def same(tag: str, wanted: Identity | None, seen: Mapping[str, Identity | None], up: str) -> Iterator[Finding]:
    """dk.image-missing and dk.image-drift; without a record of what `up` brought, most nodes are the measure."""
    kinds = Counter((one.layers, one.config_digest, one.arch) for one in seen.values() if one is not None)
    usual = kinds.most_common(1)[0][0] if kinds else None  # of equals the first, which is the head's
    there = (one for one in seen.values() if one and (one.layers, one.config_digest, one.arch) == usual)
    measure = wanted or next(there, None)
    for name, one in seen.items():
        if one is None:
            summary = f"there is no image {tag}"
            yield Finding("dk.image-missing", "fail", (name,), summary, fix=(up,), blast_radius="the image")
        elif measure and (told := differences(measure, one)):
            yield Finding(
                "dk.image-drift",
                "fail",
                (name,),
                f"{tag} is another image than the one that up brought",
                evidence="; ".join(told),
                cause="it was built, pulled or tagged by hand since, or up reached only some nodes",
                fix=(up,),
                blast_radius="the image",
            )
