"""The rendezvous layer of the catalogue, in words."""

from clusterft.checks.check import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="nccl.bridge",
        layer="rendezvous",
        title="Training would use a bridge that has one address on all nodes",
        symptom="`connect to 172.18.0.1 ... failed`, or a node that connects to itself",
        how="whether the address that training uses, or the interface that the job's env: names, is a bridge's "
        "or a VPN's whose address other nodes have too. Bridges that nobody uses are well",
        cause="NCCL leaves out docker*, lo and virbr*, but not br-*, veth, tailscale and wg",
        mends=(
            "addr=ADDRESS in the hostfile, of the network that all share",
            "remove NCCL_SOCKET_IFNAME from env:",
        ),
        found=("facts", "log"),
        source="NCCL's source; accelerate#1317",
    ),
    Entry(
        id="nccl.ifname",
        layer="rendezvous",
        title="The job names an interface that a node lacks",
        symptom="`no socket interface found`",
        how="NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in the job's env: against the interfaces of each node. "
        "Without them each node is given its own, whatever it is called",
        cause="eth0 on one machine, ens3 on the next",
        mends=("remove the variable from env: in job.yaml",),
        found=("facts", "log"),
        source="NCCL's source",
    ),
    Entry(
        id="nccl.version",
        layer="rendezvous",
        title="Nodes have different versions of NCCL",
        symptom="`Mismatched NCCL version detected`; `address with family 0`",
        how="torch.cuda.nccl.version() in a container on each node; the ranks' own words",
        cause="different images under one tag, or plain processes with different installations",
        mends=(
            "clusterft up   brings one image to all nodes",
            "with runtime: process, the same PyTorch everywhere",
        ),
        found=("probe", "log"),
        source="nccl#1267",
    ),
    Entry(
        id="nccl.net-mix",
        layer="rendezvous",
        title="InfiniBand works on some nodes only",
        symptom="the first collective hangs without a word",
        how="the RDMA ports of all nodes, unless the job's env: sets NCCL_IB_DISABLE. A warning where it is RoCE, "
        "which a card can do without anybody using it",
        cause="nodes with it and nodes without it never meet",
        mends=("NCCL_IB_DISABLE: '1' in env: of job.yaml", "or bring the ports up: ibstat"),
        found=("facts", "log"),
        source="nccl#2428",
    ),
    Entry(
        id="nccl.ib-timeout",
        layer="rendezvous",
        title="An InfiniBand port is down, or slower than its like on other nodes",
        symptom="`status=12 ... vendor err 129`; a port that others have is not used",
        how="state and rate of each RDMA port against the same port of the other nodes; the ranks' own words",
        cause="a cable, an optic, a switch port; no subnet manager; another GID or MTU",
        mends=("ibstat   on that node", "replace the cable or optic", "start a subnet manager"),
        found=("facts", "log"),
        source="nccl#902, nccl#1524",
    ),
    Entry(
        id="rdzv.inuse",
        layer="rendezvous",
        title="Somebody else listens on the rendezvous port",
        symptom="`server socket has failed to bind`",
        how="/proc/net/tcp, and whose process it is where this user may know; a run of clusterft is no finding. "
        "Training goes on to the next free port of 64, so that it is a warning while one is left",
        cause="a rank that an earlier run left, or another service",
        mends=("end that process", "port: in job.yaml"),
        found=("facts", "log"),
        source="accelerate",
    ),
    Entry(
        id="rdzv.partial",
        layer="rendezvous",
        title="Not all ranks came to the rendezvous",
        symptom="`3/4 clients joined`, or `wait timeout after 300000ms, keys: .../assigned_ranks/1`",
        how="the ranks' own words, and which rank has no log; of launchers that were started by hand, the "
        "machine rank in their command lines and in the keys that they waited for: twice there, or not at all",
        cause="one node was late, its ranks never started, or it was started with another's --node_rank",
        mends=(
            "a machine rank of its own for each machine, from 0 on: --node_rank, --machine_rank",
            "clusterft logs RUN --node NODE   of the node that has none",
            "clusterft doctor   tells what keeps that node away",
        ),
        found=("log",),
        source="torch's source",
    ),
)
