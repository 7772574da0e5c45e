"""A node whose engine keeps images in containerd, and has a layer of ours as another blob than we would send."""

from __future__ import annotations

import base64
import json

import pytest
from shipping import MIB, Harbour, layer, made

from lab import FullLab

pytestmark = pytest.mark.lab_full


def test_a_layer_that_the_node_has_as_another_blob() -> None:
    """The engine says "Loaded", creates a container, and cannot list the layers: then all of them travel."""
    base, top = layer("base", MIB, "base"), layer("top", MIB, "top")
    with FullLab.up(count=1, engine="28.5c") as lab, made("clusterft-test-store:1", [base, top]) as image:
        node = lab.nodes[0]
        # What is imported has our diff id, and is kept compressed under a digest of its own.
        look = "docker image inspect -f '{{json .RootFS.Layers}}' base:1"
        take = f"base64 -d | docker import - base:1 >/dev/null; {look}"
        done = node.run(["sh", "-c", take], stdin=base64.b64encode(base).decode(), timeout=60)
        assert json.loads(done.stdout) == [image.parts.diff_ids[0]], done.stderr
        harbour = Harbour(lab, cluster="store")
        shipment = harbour.bring(image)
        assert "n1" in shipment.whole, "it lacked one layer, and had to be sent both"
        assert harbour.has("n1", image), shipment.outcomes
        assert harbour.bring(image, shipment.parts).outcomes == {"n1": ()}
