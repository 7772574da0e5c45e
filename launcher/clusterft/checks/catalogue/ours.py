"""What the catalogue tells of clusterft's own files, which belong to the controller layer."""

from clusterft.checks.check import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="ctl.modes",
        layer="controller",
        title="Keys or directories of this cluster are open to others",
        symptom="`Permissions 0644 for ... are too open`; up cannot hand the image from node to node",
        how="modes of ~/.clusterft/<cluster> here and of each node's own part of it",
        cause="copied from elsewhere, or restored from a backup without its modes",
        mends=("chmod 600 on the key, chmod 700 on the directory; `clusterft doctor --fix` does it",),
        found=("facts",),
        source="OpenSSH, ssh(1) on identity files",
    ),
)
