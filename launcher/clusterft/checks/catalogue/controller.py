"""The controller layer of the catalogue, in words."""

from clusterft.checks.check import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="ctl.same-host-twice",
        layer="controller",
        title="Two entries of the hostfile are one machine",
        symptom="`Duplicate GPU detected`, or `Multiple Ranks are using the same GPU`",
        how="the boot id of two entries is the same",
        cause="the machine is listed under several names or addresses",
        mends=("delete all but one of the entries from the hostfile",),
        found=("facts", "up", "train"),
        source="NCCL, getHostHash",
    ),
    Entry(
        id="ctl.same-hostname",
        layer="controller",
        title="Different machines have the same hostname",
        symptom="with an old NCCL: ranks hang, or fail over shared memory",
        how="hostnames are equal, boot ids are not",
        cause="machines were cloned from one image",
        mends=("sudo hostnamectl set-hostname NAME on each, or a unique NCCL_HOSTID",),
        found=("facts", "up"),
        source="nccl-tests#64",
    ),
    Entry(
        id="ctl.stale-mux",
        layer="controller",
        title="A shared ssh connection still has the groups of an old login",
        symptom="`ssh NODE docker ps` says permission denied after usermod, and clusterft can use Docker",
        how="the groups over a ControlMaster socket that is open, against those of a new login",
        cause="a shared connection keeps the groups that it began with",
        mends=("ssh -O stop NODE   (what uses the connection now goes on; the next command logs in anew)",),
        found=("facts",),
        source="lima-vm#455",
    ),
    Entry(
        id="ctl.sighup",
        layer="controller",
        title="The run ended with the terminal that had started it",
        symptom="`Received 1 death signal`, on all ranks at once",
        how="all ranks ended on SIGHUP within a moment; runs of `clusterft train` outlive their terminal",
        cause="ranks were started by hand, in a login that was closed",
        mends=("`clusterft train`: its runs go on without the controller; clusterft logs --follow   shows them",),
        found=("log",),
        source="ms-swift#5884",
    ),
)
