"""Texts of a training program's own last words: what it lacks on that node, or was denied. Pure.

All of them are last lines of exceptions, or what a loader says in place of one: the same words in a warning mean
nothing. They come after the other tables, which know more.
"""

from clusterft.diagnosis.signatures import Signature, known

_ERROR = r"^[\w.]*(?:Error|Exception)\b.*"
_SAME = "the same on all nodes: clusterft doctor --job job.yaml   compares their packages"

SIGNATURES: tuple[Signature, ...] = (
    known(
        0,
        "run.import",
        r"^(?:ModuleNotFoundError: |.*: Error while finding module specification for .*)"
        r"No module named '?(?P<name>[\w.]+)'?",
        "the Python of that rank has no {name}",
        "on {node}: PYTHON -m pip install {name}   with the PYTHON that the log names",
        _SAME,
    ),
    known(
        0,
        "run.import",
        r"(?P<file>[\w.+/-]+\.so[.\d]*): (?:file too short|invalid ELF header|cannot read file data)",
        "{file} is not whole: an install broke off, or the disk was full then",
        "on {node}: PYTHON -m pip install --force-reinstall --no-deps the package that has {file}",
        _SAME,
    ),
    known(
        0,
        "run.import",
        r"(?P<file>lib[\w.+-]+\.so[.\d]*): cannot open shared object file",
        "{file} is not there: a library of the system, or of another package",
        "on {node}: ldconfig -p | grep {file}; and what LD_LIBRARY_PATH says in the job's environment",
        _SAME,
    ),
    known(
        0,
        "run.import",
        r"version `?(?P<name>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)'? not found|undefined symbol: (?P<symbol>\w+)",
        "libraries of different builds were loaded together",
        "on {node}: install torch and what is built for it in one command, or use one image on all nodes",
        _SAME,
    ),
    known(
        0,
        "run.import",
        r"^(?:bash|sh|\S*/bash|\S*/sh|env|nohup|timeout)?:?.*?"
        r"['‘]?(?P<name>torchrun|accelerate|deepspeed|python3?|conda)['’]?: "
        r"(?:command not found|not found|No such file)",
        "{name} is not on the PATH of a login without a terminal, which reads no ~/.bashrc to its end",
        "on {node}: start it by its whole path; `clusterft train` names the interpreter",
    ),
    known(
        0,
        "data.broken-file",
        r"(?P<path>/\S+) is a Git LFS pointer",
        "a Git LFS pointer lies in the place of {path}: it was cloned without its large files",
        "on {node}: head -c 200 {path}   shows it; git lfs pull where it was cloned, or copy it again",
    ),
    known(
        0,
        "data.broken-file",
        r"invalid load key, 'v'|is a Git LFS pointer|HeaderTooLarge|InvalidHeader(?:Deserialization|Length|Start)",
        "a Git LFS pointer, or something else, lies in the place of the weights",
        "on {node}: head -c 200 FILE   of the file that the log names; a pointer is replaced by git lfs pull",
    ),
    known(
        0,
        "data.broken-file",
        r"MetadataIncompleteBuffer|PytorchStreamReader failed|failed finding central directory|"
        r"unexpected EOF, expected \d+ more bytes|UnpicklingError",
        "a file of weights is cut short: a copy broke off, or it is being written",
        "on {node}: ls -l FILE; sha256sum FILE   and the same on another node; then copy it again",
    ),
    known(
        0,
        "data.broken-file",
        r"UnidentifiedImageError: cannot identify image file '?(?P<path>[^'>]+)|"
        + _ERROR
        + r"image file is truncated",
        "a picture is not whole, or no picture",
        "on {node}: ls -l and file of it; replace it, or take it out of the data set",
    ),
    known(
        0,
        "data.hub",
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|[Cc]ouldn't connect to ['\"]?https?://(?P<host>[\w.-]+)|"
        r"Max retries exceeded with url|Can't load (?:tokenizer|the configuration|config|model) (?:for|of) ",
        "a model or data set was to be fetched from a hub, and that rank cannot reach it, or may not",
        "fetch it once, and give its folder in the shared dir in place of its name",
        "on {node}: curl -sSI https://huggingface.co   tells a proxy or a firewall",
    ),
    known(
        0,
        "data.hub",
        r"GatedRepoError|RepositoryNotFoundError|(?:401|403) Client Error",
        "the hub wants a token that may read it, and that rank has none",
        "HF_TOKEN in the environment of every rank (secrets: of a job of ours), or a local folder",
    ),
    known(
        0,
        "fs.squash",
        r"^PermissionError: \[Errno 13\] Permission denied: '(?P<path>[^']+)'",
        "that rank's user may not use {path} on its node",
        "on {node}: id; namei -l {path}   tells which directory keeps it out; the same UID:GID on all nodes",
    ),
    known(
        0,
        "fs.not-writable",
        r"\[Errno (?:5|107|121)\]|Input/output error|Transport endpoint is not connected",
        "a disk fails, or what serves the directory has gone",
        "on {node}: findmnt -T PATH; sudo dmesg -T | tail -n 50; then umount -l and mount it again",
    ),
    known(
        0,
        "fs.file-size",
        r"\[Errno 27\]|File too large|File size limit exceeded|Received Signals\.SIGXFSZ",
        "no file of that size may be made there: FAT, or a limit on the size of files",
        "on {node}: ulimit -f   must say unlimited; findmnt -T PATH   tells the filesystem",
    ),
    known(
        0,
        "data.missing",
        r"^FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<path>/[^']+)'",
        "{path} is not there on that node: not mounted, not copied, or another path",
        "on {node}: ls -ld {path}; findmnt -T {path}   and the same on a node where it is",
    ),
    known(
        0,
        "gpu.count",
        r"invalid device ordinal|device_id \S+ is out of range|CUDA error: no CUDA-capable device",
        "there are more ranks on that node than cards that it shows",
        "on {node}: nvidia-smi -L; as many ranks as cards: slots= in the hostfile, --nproc_per_node",
        "CUDA_VISIBLE_DEVICES, if it is set there",
    ),
    known(
        0,
        "gpu.old-driver",
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|"
        r"The provided PTX was compiled with an unsupported toolchain",
        "the driver is older than this torch's CUDA",
        "on {node}: nvidia-smi   a newer driver, or a torch of an older CUDA",
    ),
    known(
        0,
        "gpu.no-driver",
        r"Found no NVIDIA driver on your system|Torch not compiled with CUDA enabled",
        "that rank has no driver, or a torch without CUDA",
        "on {node}: nvidia-smi; PYTHON -c 'import torch; print(torch.version.cuda)'   must print a version",
        _SAME,
    ),
    known(
        0,
        "job.memory",
        r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "a library found no memory left on the card",
        "lower train.batch.per_slot; on {node}: nvidia-smi   tells who else has memory there",
    ),
    known(
        0,
        "net.route",
        r"\[Errno 101\]|Network is unreachable",
        "that node has no route to the address that was dialled",
        "on {node}: ip route get ADDRESS   and add the route, or addr= of another network in the hostfile",
    ),
    known(
        0,
        "net.master-port",
        r"\[Errno 99\]|EADDRNOTAVAIL|Cannot assign requested address",
        "rank 0 was to listen on an address that its node does not have",
        "on {node}: ip -br addr; --master_addr must be an address of the node of rank 0",
    ),
    known(
        0,
        "rdzv.env",
        r"environment variable (?P<name>RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT) expected, but not set",
        "the program was started by itself, and not by a launcher, which sets {name}",
        "on {node}: start it with torchrun or accelerate launch, as on the other nodes",
    ),
    known(
        0,
        "job.unused",
        r"Expected to have finished reduction in the prior iteration",
        "a part of the model took no part in a step, and its gradients were waited for",
        "find_unused_parameters=True of DistributedDataParallel; or freeze what is not trained",
    ),
)
