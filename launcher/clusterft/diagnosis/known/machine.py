"""Texts of kernels, drivers, engines, filesystems and what memory says when it runs out."""

from __future__ import annotations

from clusterft.diagnosis.signatures import MEMORY, Signature, known

_ROOM = "on {node}: df -h; df -i; docker system df   and make room there"
_SHM = (
    "on {node}: df -h /dev/shm   and, when idle, remove what ended runs have left there",
    "start containers with --ipc=host or a larger --shm-size, or lower train.data.workers",
)
_SMALLER = "lower train.batch.per_slot, or choose an engine that shards: engine: {kind: zero}"

SIGNATURES: tuple[Signature, ...] = (
    known(
        40,
        "os.oom",
        r"Killed process (?P<pid>\d+) \((?P<name>[^)]*)\)",
        "the kernel ran out of memory and ended process {pid} ({name})",
        MEMORY,
        weight="kernel",
    ),
    known(
        39,
        "gpu.xid",
        r"NVRM: Xid \((?P<card>(?:PCI:)?[0-9a-fA-F:.]+)\).*?: (?P<xid>\d+),",
        "the driver reported Xid {xid} for card {card}",
        "Xid 48, 62, 64, 95, 119, 120: reset the card or reboot; 79: reboot, then RMA; 94: start again",
        "Xid 13, 31: look at the program: an access out of bounds",
        weight="kernel",
    ),
    known(
        41,
        "fs.hung",
        r"nfs: server (?P<server>\S+) not responding",
        "NFS server {server} does not answer; whatever touches its files waits",
        "on {server}: is it on, and does nfsd run?   systemctl status nfs-server",
        weight="kernel",
    ),
    known(
        42,
        "os.ro-fs",
        r"Remounting filesystem read-only",
        "the kernel found errors on a disk and made it read-only",
        "on {node}: sudo dmesg -T | grep -i -E 'i/o error|ext4|xfs'   then fsck or replace the disk",
        weight="kernel",
    ),
    known(
        0,
        "os.hung-task",
        r"task (?P<name>\S+?):(?P<pid>\d+) blocked for more than \d+ seconds",
        "process {pid} ({name}) waits in the kernel for a disk or a share",
        "on {node}: ps -eo pid,stat,wchan:32,comm | awk '$2 ~ /D/'   and mend the storage behind it",
        weight="kernel",
    ),
    known(
        0,
        "os.nofile",
        r"\[Errno 24\]|Too many open files",
        "a process has as many files open as it may",
        "on {node}: echo 'USER - nofile 65536' | sudo tee /etc/security/limits.d/nofile.conf   then log in again; "
        "ulimit -n   tells what holds now",
        "or lower train.data.workers",
    ),
    known(
        43,
        "os.shm",
        r"DataLoader worker.*Bus error|insufficient shared memory \(shm\)|"
        r"unable to (open|write|mmap|allocate|resize).*shared memory.*|No space left on device.*/torch_\d+",
        "/dev/shm is full or too small: the workers of a data loader pass their batches through it",
        *_SHM,
    ),
    known(
        0,
        "os.disk-full",
        r"No space left on device|Disk quota exceeded|errno 28\b|"
        r"enforce fail at inline_container\.cc\S* \. unexpected pos",
        "a disk, a quota or its inodes are used up",
        _ROOM,
    ),
    known(
        0,
        "os.ro-fs",
        r"Read-only file system",
        "a filesystem is mounted read-only",
        "on {node}: findmnt -T PATH; dmesg -T | tail",
    ),
    known(
        57,
        "fs.stale",
        r"Stale file handle",
        "the share was exported anew, and this node holds handles of before",
        "on {node}: sudo umount -fl DIR && sudo mount DIR",
    ),
    known(
        59,
        "fs.lock",
        r"No locks available",
        "the share gives no locks: lockd does not run, or it is mounted with nolock",
        "mount it with vers=4.2, or keep what is locked (HF_HOME) on the node's own disk",
    ),
    known(
        56,
        "fs.export",
        r"access denied by server while mounting (?P<what>\S+)",
        "the server does not export {what} to this node",
        "on the server: add the node to /etc/exports, then: sudo exportfs -ra",
    ),
    known(
        55,
        "fs.nfs-version",
        r"requested NFS version or transport protocol is not supported",
        "the server does not speak the NFS version that is asked for",
        "mount with -o vers=4.2, else vers=3; on the server: cat /proc/fs/nfsd/versions",
    ),
    known(
        58,
        "fs.nfs-port",
        r"mount\.nfs: Connection (timed out|refused)",
        "the NFS server was not reached: port 2049 is closed, or nfsd does not run",
        "on the server: systemctl status nfs-server; "
        "sudo ufw prepend allow from SUBNET to any port 2049 proto tcp",
    ),
    known(
        34,
        "gpu.ecc",
        r"uncorrectable (NVLink |ECC )?error|[Uu]ncorrectable ECC",
        "a card has memory errors that it cannot correct",
        "on {node}: nvidia-smi -q -d ECC,ROW_REMAPPER   then reset the card or reboot; a failed remap is for RMA",
    ),
    known(
        35,
        "gpu.arch",
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible|"
        r"not compatible with the current PyTorch",
        "this build of torch has no code for the card",
        "python3 -c 'import torch; print(torch.cuda.get_arch_list())'   and use an image whose list has the card",
    ),
    known(
        36,
        "gpu.fabric",
        r"system not yet initialized|\berror 802\b",
        "the fabric manager does not run, or is of another version than the driver",
        "on {node}: sudo systemctl enable --now nvidia-fabricmanager   (the driver's very version)",
    ),
    known(
        37,
        "dk.nvml-lost",
        r"Failed to initialize NVML: Unknown",
        "the container has lost its cards: systemd was reloaded and dropped its device rules",
        'on {node}: "exec-opts": ["native.cgroupdriver=cgroupfs"] in /etc/docker/daemon.json',
        "on {node}: sudo systemctl restart docker, then a new container",
    ),
    known(
        38,
        "gpu.mismatch",
        r"Driver/library version mismatch",
        "the driver was upgraded without a reboot",
        "on {node}: sudo reboot",
    ),
    known(
        53,
        "gpu.no-driver",
        r"libnvidia-ml\.so\.1: cannot open",
        "the node has no NVIDIA driver, or the container does not see it",
        "on {node}: nvidia-smi   and install the driver where it is missing",
    ),
    known(
        0,
        "gpu.busy",
        r"CUDA out of memory.*Process (?P<pid>\d+) has (?P<held>[\d.]+ [GM]iB) memory in use",
        "process {pid} holds {held} of the same card",
        "on {node}: ps -fp {pid}   ask its owner, or end it; or use other cards: gpus= in the hostfile",
    ),
    known(
        33,
        "job.memory",
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError",
        "a card's memory is used up: by this run, or by another process on it",
        "on {node}: nvidia-smi   names other processes on the card; if there are none:",
        _SMALLER,
    ),
    known(
        0,
        "os.oom",
        r"^MemoryError|DefaultCPUAllocator: (can't allocate|not enough memory)|Cannot allocate memory",
        "the process asked for more memory than its limit or the node allows",
        MEMORY,
    ),
    known(
        0,
        "killed",
        r"DataLoader worker \(pid\S* (?P<pid>[\d, ]+)\) is killed by signal: Killed",
        "worker {pid} of a data loader was ended by SIGKILL: most often by the kernel when memory runs out",
        "on {node}: sudo dmesg -T | grep -i -E 'killed process|out of memory'",
        MEMORY,
    ),
    known(
        50,
        "ssh.maxstartups",
        r"kex_exchange_identification|Not allowed at this time",
        "sshd turned a login away: too many at once",
        "on {node}: MaxStartups 100:30:200 in /etc/ssh/sshd_config, then: sudo systemctl reload ssh",
    ),
    known(
        51,
        "dk.nogpu",
        r"could not select device driver",
        "the engine cannot give containers a GPU",
        "on {node}: sudo apt-get install nvidia-container-toolkit",
        "on {node}: sudo nvidia-ctk runtime configure --runtime=docker; sudo systemctl restart docker",
    ),
    known(
        52,
        "gpu.old-driver",
        r"unsatisfied condition: cuda",
        "the driver is older than the image's CUDA",
        "on {node}: a newer driver, or an image of an older CUDA",
    ),
    known(
        54,
        "dk.ratelimit",
        r"toomanyrequests",
        "the registry limits pulls from this address",
        "docker login   or pull once and pass it on: `clusterft up` does",
    ),
)
