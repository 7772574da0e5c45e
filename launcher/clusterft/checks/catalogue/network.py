"""The network layer of the catalogue, in words."""

from clusterft.checks.check import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="net.dup-ip",
        layer="network",
        title="Two machines have one address",
        symptom="host keys that seem to change, connections that are reset now and then",
        how="the addresses of all nodes; the boot id of whoever answers at each node's address; where that "
        "fails, the MAC that the sender has for it against the node's own cards",
        cause="an address was given by hand twice, or by hand and by DHCP",
        mends=(
            "give one of them another address: sudo ip addr del ADDRESS/PREFIX dev IF",
            "sudo ip neigh flush all",
        ),
        found=("facts", "probe"),
        source="reproduced in network namespaces",
    ),
    Entry(
        id="net.netmask",
        layer="network",
        title="A node has another netmask than the others",
        symptom="it reaches some of them over a gateway, or not at all; `No route to host`, or timeouts one way",
        how="the mask of the address that the others dial: one node's leaves them out, and theirs has it in",
        cause="a typing error in the node's network configuration",
        mends=("sudo ip addr add ADDRESS/LENGTH dev IF   with the others' length, then delete the old one",),
        found=("facts",),
        source="third blind round",
    ),
    Entry(
        id="net.wrong-nic",
        layer="network",
        title="A node is dialled at an address by which the others do not reach it",
        symptom="`client socket has timed out`; nodes dial a master that they cannot reach",
        how="whether the address that training uses is the node's own, and dialling it from all others: a host "
        "that is not there fails after three seconds, a firewall refuses at once",
        cause="addr= of another network, or the first word of `hostname -I`",
        mends=("addr=ADDRESS in the hostfile, one in a network that all nodes share",),
        found=("facts", "probe"),
        source="DeepSpeed#5136",
    ),
    Entry(
        id="net.route",
        layer="network",
        title="A route of the node itself stops or leads astray what it would send to a peer",
        symptom="from one node `No route to host` or `Invalid argument` at once, or timeouts; the way back too",
        how="routes of the kinds unreachable, blackhole, prohibit and throw that hold a peer's address, where no "
        "other route leads there; and where dialling a peer of the node's own subnet fails, whether "
        "`ip route get` leads there by another interface",
        cause="fail2ban, or a person who has banned the address; a VPN whose routes come before the node's own",
        mends=(
            "sudo tailscale set --accept-routes=false",
            "sudo ip rule add to SUBNET lookup main priority N   below that of the rule that leads away",
            "sudo ip route del unreachable ADDRESS",
            "sudo fail2ban-client unban ADDRESS, and the address into ignoreip of jail.local",
        ),
        found=("facts", "probe"),
        source="ip-route(8); found blind in a lab",
        vital=True,
    ),
    Entry(
        id="net.isolated",
        layer="network",
        title="Two nodes on one wire are kept apart from each other",
        symptom="`No route to host` between two nodes that all others reach",
        how="where dialling fails, whether the sender's neighbour table has no answer to ARP from an address of "
        "its own subnet that its node does have, while both nodes and others reach each other; IPv4 alone. "
        "Of a firewall that refuses the MAC is known",
        cause="port isolation, protected ports, a private VLAN or client isolation on a switch, access point or "
        "hypervisor; or ports in two VLANs",
        mends=(
            "take isolation off the two ports on the switch or hypervisor, and put both into one VLAN",
            "ip neigh show to ADDRESS   FAILED or INCOMPLETE is no answer",
        ),
        found=("probe",),
        source="fourth blind round",
    ),
    Entry(
        id="net.high-ports",
        layer="network",
        title="High ports of a node cannot be reached from others",
        symptom="the rendezvous works, and NCCL or gloo hangs while it connects",
        how="every node opens a port of its kernel's range for a moment, and all others dial it; "
        "above 32 nodes each dials those 1, 2, 4, 8, ... places from it. Without Python, the node's sshd dials",
        cause="a firewall that lets only ssh, or only single ports, through",
        mends=(
            "sudo ufw prepend allow from SUBNET",
            "or net.ipv4.ip_local_port_range=50000 51000 in /etc/sysctl.d on every node, and open those",
        ),
        found=("probe", "deep", "train", "log"),
        source="NCCL's documentation; reproduced in network namespaces",
        vital=True,
    ),
    Entry(
        id="net.master-port",
        layer="network",
        title="The rendezvous port of a node cannot be reached from others",
        symptom="`client socket has timed out`",
        how="every node opens the rendezvous port for a moment, unless somebody has it, and all others dial it; "
        "so with the port, 64 above, on which the supervisors meet",
        cause="a firewall",
        mends=("sudo ufw prepend allow from SUBNET to any port 29500:29627 proto tcp",),
        found=("probe", "log"),
        source="nccl#375; reproduced in network namespaces",
    ),
    Entry(
        id="net.loopback",
        layer="network",
        title="A node cannot reach itself",
        symptom="all others come to the rendezvous, and rank 0 does not: `client socket has timed out` there",
        how="every node dials the high port that it has opened, at its own address",
        cause="a firewall without a rule for lo, or lo that is down",
        mends=("sudo iptables -I INPUT -i lo -j ACCEPT", "sudo ip link set lo up"),
        found=("probe",),
        source="missed in a lab",
    ),
    Entry(
        id="net.mtu",
        layer="network",
        title="Large packets are lost on the way between nodes",
        symptom="small messages work and large ones hang; ssh hangs at `expecting SSH2_MSG_KEX_ECDH_REPLY`",
        how="1 KB, then 64 KB echoed between all nodes; where that stalls, again with smaller packets",
        cause="9000 at the ends and 1500 at a switch; a tunnel with less, and a firewall that drops ICMP",
        mends=("sudo ip link set IF mtu 1500 on all nodes", "or jumbo frames on every switch port between them"),
        found=("probe", "deep", "train"),
        source="reproduced in network namespaces",
    ),
    Entry(
        id="net.loss",
        layer="network",
        title="Packets are lost",
        symptom="all-reduce several times slower than the link, now and then",
        how="up to 400 small messages between two nodes, one at a time, and how many had to be sent again; "
        "above 16 nodes, with the two beside each. From 0.2 % on it is told, which is our own threshold. Where a "
        "connection does not come about, eight more are made at once: some that do, and others that never do, "
        "are a dead link among several",
        cause="a cable, a plug, an optic, a switch port; radio; one leg of a bond",
        mends=(
            "replace the cable, or use another switch port",
            "ip -s link show dev IF   tells whose errors grow",
        ),
        found=("probe", "deep"),
        source="reproduced in network namespaces",
    ),
    Entry(
        id="net.linkspeed",
        layer="network",
        title="A node's link is far slower than those of the others",
        symptom="all ranks wait in every step; ten times slower than it should be",
        how="/sys/class/net/IF/speed of the cards that training uses, Wi-Fi among them, and what can be sent in "
        "0.3 s in each direction, against the other nodes; above 16 nodes, to the two beside each",
        cause="a cable with broken pairs, a slow switch port, the wrong card, a limit that was set",
        mends=("sudo ethtool IF   tells what was negotiated", "addr= of a faster network in the hostfile"),
        found=("facts", "probe", "deep"),
        source="NCCL's source",
    ),
    Entry(
        id="net.public-addr",
        layer="network",
        title="Nodes are dialled by public addresses",
        symptom="none, until somebody else connects to the rendezvous store",
        how="whether the address that training uses lies outside the private ranges",
        cause="the rendezvous store of PyTorch has no authentication",
        mends=("private addresses: addr= in the hostfile", "a VPN", "a firewall rule for these nodes only"),
        found=("facts",),
    ),
    Entry(
        id="net.dup-route",
        layer="network",
        title="A node has two cards in one subnet",
        symptom="NCCL or the kernel picks the other card; single connections hang",
        how="addresses of a node that share a prefix, on cards that are up; a cable and a radio together are well "
        "while the routes go by the cable",
        cause="two equal routes, and answers for either address on either card",
        mends=("sudo ip addr del ADDRESS/PREFIX dev IF", "give each card a subnet of its own"),
        found=("facts",),
        source="nccl#1581, nccl#1269",
    ),
)
