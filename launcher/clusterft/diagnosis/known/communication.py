"""Texts of NCCL, Gloo and torch's rendezvous."""

from __future__ import annotations

from clusterft.diagnosis.signatures import Signature, known

_OPEN = "on every node: sudo ufw prepend allow from SUBNET   (all ports: NCCL and Gloo choose theirs at random)"
_INTERFACE = "NCCL_SOCKET_IFNAME=IF GLOO_SOCKET_IFNAME=IF   with the interface of the nodes' own network"
_PEER = "another rank ended or could not be reached; this one only noticed"
_FIRST = "look for the rank that ended first"
_RERUN = "start again with NCCL_DEBUG=INFO, and read the WARN lines before this one"
_PORT = "on rank 0's node: ss -ltnp 'sport = :{port}'   then end that process, or choose another port"

BENIGN: tuple[Signature, ...] = (
    known(24, "", r"hostname of the client socket cannot be retrieved", "", weight="benign"),
    known(0, "", r"^Exception ignored in[: ]|leaked (semaphore|shared_memory)", "", weight="benign"),
)

SIGNATURES: tuple[Signature, ...] = (
    known(
        1,
        "nccl.ifname",
        r"Bootstrap : no socket interface found",
        "NCCL found no interface of the name that NCCL_SOCKET_IFNAME gives",
        "on {node}: ip -o -4 addr   and give NCCL_SOCKET_IFNAME a name that is there",
    ),
    known(
        2,
        "nccl.ifname",
        r"NET/Socket : no interface found",
        "NCCL found no interface of the name that NCCL_SOCKET_IFNAME gives",
        "on {node}: ip -o -4 addr   and give NCCL_SOCKET_IFNAME a name that is there",
    ),
    known(
        6,
        "nccl.bridge",
        r"onnect to (?P<address>172\.(?:1[7-9]|2\d|3[01])\.\d+\.\d+)",
        "NCCL dialled {address}, an address of a container bridge that every node has for itself",
        _INTERFACE,
        weight="contact",
    ),
    known(
        3,
        "net.high-ports",
        r"onnect to (?P<address>\S+) (failed|returned).*No route to host",
        "a firewall rejects connections to {address}, or the nodes do not share the network of that address",
        _OPEN,
        _INTERFACE,
        weight="contact",
    ),
    known(
        5,
        "net.high-ports",
        r"onnect to (?P<address>\S+).*timed out",
        "connections to {address} are dropped: a firewall lets only some ports through",
        _OPEN,
        weight="contact",
    ),
    known(
        0,
        "net.high-ports",
        r"Gloo connectFullMesh failed.*SO_ERROR: (Connection timed out|No route to host)"
        r".*remote=\[(?P<address>(?!127\.0\.0\.1)[^\]]+)\]",
        "connections to {address} do not come about: a firewall lets only some ports through, or counts them",
        _OPEN,
        "on the node with {address}: sudo iptables -S | grep -E 'limit|recent'   tells whether they are counted",
        weight="contact",
    ),
    known(
        7,
        "net.high-ports",
        r"exceeded error retry count",
        "NCCL could not connect to a peer, however often it tried",
        _OPEN,
        weight="contact",
    ),
    known(
        4,
        "peer-lost",
        r"onnect to (?P<address>\S+).*Connection refused",
        "nobody listens at {address}: that rank has ended, or the address is not its",
        _FIRST,
        weight="secondary",
    ),
    known(
        9,
        "nccl.version",
        r"Mismatched NCCL version",
        "the nodes run different builds of NCCL",
        "clusterft up   brings one image to all nodes",
    ),
    known(
        10,
        "nccl.version",
        r"address with family 0",
        "the nodes run different builds of NCCL, which do not understand each other's addresses",
        "clusterft up   brings one image to all nodes",
    ),
    known(
        11,
        "ctl.same-host-twice",
        r"Duplicate GPU detected|Multiple Ranks are using the same GPU",
        "two ranks use one card: a machine is listed twice, or a program does not choose its card by LOCAL_RANK",
        "cat /proc/sys/kernel/random/boot_id   on each node: equal ids are one machine; delete one of its entries",
        "in the program: torch.cuda.set_device(int(os.environ['LOCAL_RANK']))",
    ),
    known(
        12,
        "os.shm",
        r"failed to extend /dev/shm",
        "/dev/shm is full",
        "on {node}: df -h /dev/shm; ls -l /dev/shm/nccl-*   what is left of ended runs may be removed",
        "on {node}: sudo mount -o remount,size=50% /dev/shm, or start containers with --ipc=host",
    ),
    known(
        13,
        "os.removeipc",
        r"unlink shared memory .*nccl-",
        "systemd removes a user's shared memory when he logs out (RemoveIPC=yes)",
        "on {node}: RemoveIPC=no in /etc/systemd/logind.conf, then: sudo systemctl restart systemd-logind",
    ),
    known(
        14,
        "os.memlock",
        r"ibv_(reg_mr|create_qp).*failed",
        "the container or login may not lock enough memory for InfiniBand",
        "start the container with --ulimit memlock=-1; check inside it: ulimit -l",
    ),
    known(
        15,
        "nccl.ib-timeout",
        r"ibv_modify_qp failed.*Invalid argument",
        "the RoCE GID that NCCL chose is not usable",
        "NCCL 2.21 and newer: unset NCCL_IB_GID_INDEX; older: set it to the RoCE v2 entry that show_gids names",
    ),
    known(
        16,
        "nccl.ib-timeout",
        r"status=\S*12\b.*vendor err 129",
        "an InfiniBand peer did not answer: link, GID or MTU differ",
        "on both nodes: ibstat; ibv_devinfo | grep -E 'state|active_mtu'   must agree; then check the cable",
        weight="contact",
    ),
    known(
        17,
        "nccl.ib-timeout",
        r"NET/IB .*async fatal event",
        "an InfiniBand port went down",
        "on {node}: ibstat   and check cable and switch port",
    ),
    known(
        18,
        "nccl.net-mix",
        r"mixed local Net device counts",
        "the nodes have different numbers of InfiniBand adapters",
        "on every node: ls /sys/class/infiniband   must agree; else NCCL_IB_DISABLE=1 everywhere",
    ),
    known(
        27,
        "os.localhost-name",
        r"Gloo connectFullMesh failed.*127\.0\.0\.1",
        "the node's own name leads to 127.0.0.1, which its peers then dial",
        "on {node}: the address of the nodes' network beside its name in /etc/hosts, or GLOO_SOCKET_IFNAME=IF",
    ),
    known(
        28,
        "os.localhost-name",
        r"Unable to resolve hostname to a \(local\) address",
        "the node does not know its own name",
        "on {node}: the address of the nodes' network beside its name in /etc/hosts, or GLOO_SOCKET_IFNAME=IF",
    ),
    known(
        23,
        "rdzv.dns",
        r"cannot be retrieved \(gai error|Name or service not known|Temporary failure in name resolution",
        "the name of the rendezvous host does not resolve there",
        "give rank 0's address instead of its name: --master_addr ADDRESS, or addr= in the hostfile",
    ),
    known(
        22,
        "rdzv.inuse",
        r"server socket has failed to (bind|listen)(.*?(?:\]:|port[:=]? ?)(?P<port>\d+))?",
        "another process holds the rendezvous port: a rank that was left behind, or another run",
        _PORT,
    ),
    known(0, "rdzv.inuse", r"EADDRINUSE|[Aa]ddress already in use", "another process holds the port", _PORT),
    known(
        21,
        "net.master-port",
        r"client socket has (failed to connect|timed out)(.*?\((?P<address>[^()]+?), (?P<port>\d+)\))?",
        "the rendezvous host did not answer on its port: wrong address, closed port, or nobody there",
        "on {node}: nc -zv {address} {port}   while rank 0 waits; then on rank 0's node: "
        "sudo ufw prepend allow from SUBNET to any port {port} proto tcp, or correct the address",
        weight="contact",
    ),
    known(
        26,
        "net.master-port",
        r"connection to the C10d store has failed",
        "the rendezvous store did not answer: wrong address, closed port, or nobody there",
        "on rank 0's node: sudo ufw prepend allow from SUBNET to any port PORT proto tcp, or correct the address",
        weight="contact",
    ),
    known(
        25,
        "rdzv.partial",
        r"(?P<came>\d+)/(?P<all>\d+) clients joined",
        "only {came} of {all} came to the rendezvous: one is late, absent, or failed before it",
        "look at the node that has no log, or whose log ends early",
        weight="contact",
    ),
    known(
        0,
        "run.watchdog",
        r"Detected mismatch between collectives on ranks\. Rank (?P<one>\d+) is running.*?OpType=(?P<op>\w+)"
        r".*?but Rank (?P<other>\d+) is running",
        "rank {one} called {op} where rank {other} called another one: the program goes different ways",
        "look for what depends on the rank: a branch, the length of its data, a loop that ends early",
    ),
    known(
        0,
        "job.other-model",
        r"expects same model across all ranks, but Rank (?P<mine>\d{1,6}) has (?P<has>\d+) params, "
        r"while rank (?P<peer>\d{1,6}) has inconsistent (?P<theirs>\d+) params",
        "all ranks must build the same model, and rank {mine} has {has} params where rank {peer} has {theirs}",
        "the same config, script and packages on all nodes",
    ),
    known(
        0,
        "job.other-model",
        r"\[(?P<mine>\d{1,6})\]: params\[(?P<place>\d+)\] in this process with (?:sizes|strides) "
        r"(?P<has>\[[\d, ]*\]) appears not to match (?:sizes|strides) of the same param in process 0",
        "all ranks must build the same model, and that of rank {mine} has other sizes than that of rank 0",
        "the same config, script and packages on all nodes",
    ),
    known(
        0,
        "run.watchdog",
        r"\b[Rr]anks? (?P<rank>\d+)(?:, \d+)* failed to pass monitoredBarrier",
        "rank {rank} did not come to a barrier at which the others waited",
        "look at what rank {rank} did then: py-spy dump --pid PID, or its stacks in the run's folder",
        weight="contact",
    ),
    known(
        29,
        "run.watchdog",
        r"Watchdog caught collective operation timeout.*SeqNum=(?P<seq>\d+)(?:, OpType=(?P<op>\w+))?",
        "a collective was not completed in time: some rank did not take part in it",
        "look at the rank that is missing or behind: its last lines, py-spy dump --pid PID",
        weight="secondary",
    ),
    known(
        30,
        "run.watchdog",
        r"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
        "a rank's CUDA calls or driver hung",
        "on {node}: sudo dmesg -T | grep -i xid; py-spy dump --pid PID",
        weight="secondary",
    ),
    known(
        0,
        "run.watchdog",
        r"Timed out waiting \d+ ?ms for (recv|send)|Application timeout caused pair closure|"
        r"Socket Timeout|wait timeout after \d+ms|Gloo connectFullMesh failed.*timed? ?out",
        "a rank waited in vain for another one",
        "look at the rank that is missing or behind: its last lines, py-spy dump --pid PID",
        weight="secondary",
    ),
    known(8, "peer-lost", r"(?<!read: )[Cc]onnection (was )?(closed|reset) by", _PEER, _FIRST, weight="secondary"),
    known(
        20, "peer-lost", r"remote process exited or there was a network error", _PEER, _FIRST, weight="secondary"
    ),
    known(
        0,
        "peer-lost",
        r"Connection was likely closed|[Bb]roken [Pp]ipe|store has failed|TCPStore.* (server|host).*(gone|closed)|"
        r"failed to recv, got 0 bytes|sendBytes failed|recvValue failed|ncclRemoteError|DistStoreError|"
        r"NCCL communicator was aborted|Failed to (recv|check|wait).*TCPStore",
        _PEER,
        _FIRST,
        weight="secondary",
    ),
    known(
        19,
        "nccl",
        r"unhandled (?P<what>system|cuda) error",
        "NCCL met a {what} error and told its reason in a line before this one, if NCCL_DEBUG was set",
        _RERUN,
        weight="secondary",
    ),
)
