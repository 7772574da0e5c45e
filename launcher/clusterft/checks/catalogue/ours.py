"""What the catalogue tells of things that only clusterft itself makes: its files, and what its verbs leave."""

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
    Entry(
        id="os.nofile",
        layer="host",
        title="A process may have few files open",
        symptom="`OSError: [Errno 24] Too many open files`, in loaders or where ranks meet",
        how="the limit of a login; in the log of a run that failed, the words of the system",
        cause="limits.conf, or the service that starts sshd, sets it lower than systems do",
        mends=("echo 'USER - nofile 65536' | sudo tee /etc/security/limits.d/nofile.conf, then log in again",),
        found=("facts", "log"),
    ),
    Entry(
        id="ctl.left-behind",
        layer="controller",
        title="A node that was up is no longer in the hostfile, and still has keys and image",
        symptom="nothing; the node can still be reached by the others with keys that up has made",
        how="the nodes of the last up against the hostfile, when up is run again",
        cause="the line was taken out of the hostfile before clusterft down",
        mends=("put the line back, clusterft down, take it out, clusterft up",),
        found=("up",),
    ),
    Entry(
        id="net.container-ssh",
        layer="network",
        title="The container of a node does not reach the others over SSH",
        symptom="in a container of `clusterft open`, ssh NODE hangs or is refused; DeepSpeed's launcher with it",
        how="plain `ssh NODE` from each container to all others, when `clusterft open` starts them",
        cause="a firewall between the nodes, most likely: these containers listen on a port of their own",
        mends=("open the nodes' network for each other; `clusterft doctor` names the node and the command",),
        found=("up",),
    ),
)
