"""The job layer of the catalogue, in words; and what is known from the words of failed runs alone."""

from clusterft.checks.check import Entry, Layer

_LOG = "clusterft doctor --run RUN, or --log FILE: the words of all ranks"

_BEFORE: tuple[Entry, ...] = (
    Entry(
        id="job.memory",
        layer="job",
        title="A slot needs more memory than its card can give",
        symptom="`CUDA out of memory`",
        how="the trainer's estimate against each card's free memory, by `train`; after a run, its words",
        cause="weights, gradients, optimizer state and activations of these settings",
        mends=("lower train.batch.per_slot", "an engine that shards: engine: {kind: zero}"),
        found=("train", "log"),
        source="torch CUDACachingAllocator.cpp",
    ),
    Entry(
        id="job.batch",
        layer="job",
        title="DeepSpeed's batch sizes contradict each other",
        symptom="`Check batch related parameters`",
        how="the figures of the configuration that script.args names, against the slots of the hostfile; after a "
        "run, its words. Settings of `train:` cannot contradict each other",
        cause="train_batch_size is not micro batch x accumulation x ranks",
        mends=("leave one of the three out; DeepSpeed computes it",),
        found=("facts", "log"),
        source="DeepSpeed runtime/config.py",
    ),
    Entry(
        id="job.hostfile",
        layer="job",
        title="DeepSpeed did not find its hostfile and trains on one machine",
        symptom="`will proceed with training with local resources only`, and all other nodes idle",
        how=_LOG,
        mends=("give --hostfile a file that is there; a script of a job finds one at @HERE@/hostfile",),
        found=("log",),
        source="DeepSpeed launcher/runner.py",
    ),
    Entry(
        id="job.env",
        layer="job",
        title="A variable is set for rank 0 alone",
        symptom="one node behaves differently, such as with another cache or without a token",
        how="",
        why_not="clusterft sets env: of a job in every rank on every node, and nothing from a login; of a run "
        "that was started otherwise, no log says which variables its ranks had",
        cause="DeepSpeed passes on variables of certain prefixes alone",
        mends=("name it under env: in job.yaml", "NAME=VALUE in ~/.deepspeed_env"),
        found=("never",),
        source="DeepSpeed launcher/constants.py",
    ),
    Entry(
        id="run.import",
        layer="job",
        title="The job's Python cannot load what its ranks need",
        symptom="a run that ends on one node with `ImportError`, `ModuleNotFoundError` or `file too short`",
        how="with runtime: process: on every node the job's Python imports torch in a process of its own, and has "
        "the trainer and its packages; their versions are compared. Of one that cannot be started it is told "
        "where its links lead, what is not there, and whether it is in an environment. Not with --quick. A "
        "container's Python is tried when its image is built",
        cause="an install that broke off, another environment in that place, libraries of another machine, or a "
        "link to a Python that was removed",
        mends=(
            "on the node: PYTHON -m pip install --force-reinstall --no-deps torch==VERSION",
            "on the node: python3 -m venv --clear DIRECTORY   where the environment's own Python is gone",
            "python: of job.yaml names an interpreter that has clusterft[trainer] on every node",
        ),
        found=("probe",),
    ),
    Entry(
        id="run.rehearsal",
        layer="job",
        title="A rank does not come as far as its first all-reduce",
        symptom="a run that ends, or hangs, before its first step",
        how="one rank is started on every node with the variables, limits, mounts and user of a run; it imports "
        "the run's libraries, reads the model's headers and a few pictures, starts a helper process and meets the "
        "others in an all-reduce over gloo, 16 nodes at a time. It uses no card and loads "
        "no weights. Not with --quick, nor beside a run. What has a check of its own is told by that",
        cause="whatever a run would meet: an install that is not whole, a model that is a Git LFS pointer, a "
        "variable in env:, a limit",
        mends=("as the rank's own words say, which are the evidence",),
        found=("probe",),
    ),
    Entry(
        id="run.jit-lock",
        layer="job",
        title="A lock is left over from an extension that was being built",
        symptom="ranks hang at `Loading extension module`, and use no processor",
        how="",
        why_not="a lock that is in use looks the same, and lies where the job's environment says; the ranks' "
        "stacks name it: FileBaton.wait",
        cause="the process that built it was killed; or its cache is on NFS",
        mends=(
            "with no run there: rm -rf ~/.cache/torch_extensions/*/*/lock",
            "TRITON_CACHE_DIR on the node's disk",
        ),
        found=("never",),
        source="DeepSpeed#3416, DeepSpeed#5205",
    ),
)

_DURING: tuple[Entry, ...] = (
    Entry(
        id="run.watchdog",
        layer="job",
        title="A collective was not completed in time",
        symptom="`Watchdog caught collective operation timeout` on every rank that waited",
        how="who is behind: the lowest SeqNum, another operation, or the rank that did not complain; never a "
        "first cause where anything else is known",
        cause="a rank died, stalled or took another way through the program",
        mends=("look at that rank: its last lines, its stacks, sudo dmesg -T on its node",),
        found=("log",),
        source="torch ProcessGroupNCCL.cpp",
    ),
    Entry(
        id="run.host-bound",
        layer="job",
        title="Cards are at work all the time and far below their power",
        symptom="full utilisation, less than 70 % of the power limit, few pictures a second",
        how="--deep, or a run of ours that goes on: power against utilisation",
        cause="processor, PCIe or the loader cannot keep up",
        mends=("the performance governor; fewer, pinned threads; more gradient accumulation",),
        found=("facts", "deep"),
        source="seed 001",
    ),
    Entry(
        id="run.straggler",
        layer="job",
        title="One node, card or rank is much slower than the others",
        symptom="all ranks are slow, as each step waits for the slowest",
        how="--deep: collectives by pairs of nodes, and a matrix product on every card",
        mends=("leave the node out, and look at its temperature, link and power limit",),
        found=("deep",),
        source="DLRover",
    ),
)


_OURS: tuple[Entry, ...] = (
    Entry(
        id="run.taken",
        layer="job",
        title="Another controller starts this run, or has",
        symptom="`clusterft resume` says that the run is in other hands",
        how="the claim in the run's folder, by `resume`",
        mends=("clusterft attach RUN", "if nobody does any more: rm -r the claim that it names"),
        found=("train",),
    ),
    Entry(
        id="run.occupied",
        layer="job",
        title="Another run has the node",
        symptom="`clusterft train` or `resume` starts nothing, and names the run",
        how="the lock of each node and whose supervisor holds it; with containers, the name of the node's cards",
        mends=("clusterft attach RUN   to wait for it", "clusterft stop RUN"),
        found=("train",),
    ),
    Entry(
        id="run.alive",
        layer="job",
        title="A part of the run is still there, or may be",
        symptom="`clusterft resume` does not start a second run in the same folder",
        how="what each of its nodes says, by `resume`",
        mends=(
            "clusterft attach RUN",
            "clusterft stop RUN",
            "make the node reachable, or make sure that it is off",
        ),
        found=("train",),
    ),
    Entry(
        id="run.container-down",
        layer="job",
        title="A run's container does not run",
        symptom="a node of a run that goes on is silent",
        how="the engine's word for it, while a run is followed; afterwards its exit code, and OOMKilled",
        mends=("clusterft doctor --run RUN   says why; its engine brings it back, or clusterft resume RUN",),
        found=("train", "log"),
    ),
    Entry(
        id="run.unreadable",
        layer="job",
        title="A supervisor gives no answer",
        symptom="stop or status of a run says that it gave no answer",
        how="what the supervisor's own command prints",
        mends=("ps -ef | grep clusterft_trainer.supervisor   there, and look at its stream.jsonl",),
        found=("train",),
    ),
)


def _logged(identity: str, layer: Layer, title: str, symptom: str, *words: str) -> Entry:
    *mends, source = words
    return Entry(
        id=identity,
        layer=layer,
        title=title,
        symptom=f"`{symptom}`",
        how=_LOG,
        mends=tuple(mends),
        found=("log",),
        source=source,
    )


_LOGGED: tuple[Entry, ...] = (
    _logged(
        "rdzv.dns",
        "rendezvous",
        "The rendezvous host's name does not resolve on a node",
        "cannot be retrieved (gai error: -2",
        "an address in place of the name: --master_addr, or addr= in the hostfile",
        "torch c10d/socket.cpp",
    ),
    _logged(
        "gpu.no-driver",
        "gpu",
        "There is no NVIDIA driver, or the container does not see it",
        "libnvidia-ml.so.1: cannot open",
        "nvidia-smi   on the node, and install the driver where it is missing",
        "NVIDIA container toolkit",
    ),
    _logged(
        "data.broken-file",
        "data",
        "A file of weights or a picture is not whole, or a Git LFS pointer",
        "MetadataIncompleteBuffer; invalid load key, 'v'; cannot identify image file",
        "head -c 200 FILE; sha256sum FILE on two nodes; git lfs pull, or copy it again",
        "safetensors, torch, Pillow",
    ),
    _logged(
        "data.hub",
        "data",
        "A rank was to fetch something from a hub, and could not",
        "couldn't connect to 'https://huggingface.co'; 401 Client Error",
        "a folder in the shared dir in place of the name; HF_TOKEN for what is gated",
        "huggingface_hub",
    ),
    _logged(
        "rdzv.env",
        "rendezvous",
        "A rank was started by itself, and not by a launcher",
        "environment variable RANK expected, but not set",
        "torchrun, accelerate launch, or `clusterft train`",
        "torch distributed/rendezvous.py",
    ),
    _logged(
        "job.uneven",
        "job",
        "A rank had come to its end while the others went on",
        "training done, on one rank; Connection closed by peer, on the others",
        "as many batches for every rank: DistributedSampler(drop_last=True), or the same number of steps",
        "torch.distributed.algorithms.Join",
        "third blind round",
    ),
    _logged(
        "job.other-model",
        "job",
        "The ranks have not built the same model",
        "DDP expects same model across all ranks; appears not to match sizes of the same param in process 0",
        "the same config, script and packages on all nodes",
        "sha256sum SCRIPT CONFIG on every node tells which is another one",
        "torch reducer.cpp; fourth blind round",
    ),
    _logged(
        "job.unused",
        "job",
        "A part of the model took no part in a step",
        "Expected to have finished reduction in the prior iteration",
        "find_unused_parameters=True, or freeze what is not trained",
        "torch reducer.cpp",
    ),
    _logged(
        "fs.nfs-version",
        "storage",
        "The NFS server does not speak the version that is asked for",
        "requested NFS version or transport protocol is not supported",
        "mount with -o vers=4.2, else vers=3",
        "on the server: cat /proc/fs/nfsd/versions",
        "nfs-utils",
    ),
    _logged(
        "fs.nfs-port",
        "storage",
        "The NFS server was not reached",
        "mount.nfs: Connection timed out",
        "on the server: systemctl status nfs-server",
        "on the server: let the nodes in on port 2049",
        "nfs-utils",
    ),
    _logged(
        "job.pdsh",
        "job",
        "DeepSpeed's launcher needs pdsh",
        "launcher 'pdsh' not installed",
        "sudo apt-get install pdsh   or start it with `clusterft train`",
        "DeepSpeed launcher/runner.py",
    ),
    _logged(
        "job.deepspeed-env",
        "job",
        "A line of .deepspeed_env is no NAME=VALUE",
        "not enough values to unpack (expected 2, got 1)",
        "grep -n -v = ~/.deepspeed_env ./.deepspeed_env   and delete those lines",
        "DeepSpeed launcher/runner.py",
    ),
    _logged(
        "run.cuda-home",
        "job",
        "An operation is to be compiled where there is no CUDA compiler",
        "CUDA_HOME environment variable is not set",
        "a -devel image, or the toolkit and CUDA_HOME",
        "torch utils/cpp_extension.py",
    ),
    _logged(
        "run.torchvision",
        "job",
        "torch and torchvision are of different builds",
        "operator torchvision::nms does not exist",
        "install both in one command from one index",
        "torchvision",
    ),
    _logged(
        "run.int32",
        "job",
        "A bucket of gradients has more elements than 32 bits count",
        "negative dimension -2147483648",
        "smaller reduce_bucket_size and allgather_bucket_size, or another build of torch",
        "DeepSpeed runtime/zero",
    ),
)

ENTRIES: tuple[Entry, ...] = (*_BEFORE, *_DURING, *_OURS, *_LOGGED)
