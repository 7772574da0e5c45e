"""Texts of launchers, DeepSpeed, checkpoints and what is built or imported at the start."""

from __future__ import annotations

from clusterft.diagnosis.signatures import Signature, known

SIGNATURES: tuple[Signature, ...] = (
    known(
        31,
        "killed",
        r"Signal 9 \(SIGKILL\)|return code = -9\b|died with <Signals\.SIGKILL|exitcode\s*: -9 ",
        "SIGKILL comes from outside: from the kernel when memory runs out, else from a person or an engine",
        "on {node}: sudo dmesg -T | grep -i -E 'killed process|out of memory'",
        "if it was memory: lower train.data.workers, leave out offload, or use nodes with more memory",
    ),
    known(
        32,
        "ctl.sighup",
        r"Received 1 death signal|Received Signals\.SIGHUP|got signal: 1\b|died with <Signals\.SIGHUP|"
        r"Received death signal SIGHUP",
        "the terminal or SSH session that started the ranks was closed, and took them along",
        "start them detached: `clusterft train` does; by hand: nohup, tmux, or docker run -d",
    ),
    known(
        0,
        "ckpt.world",
        r"DP world size of (?P<old>\d+) but (.{0,40}?)(?P<new>\d+)|"
        r"loading with a different (DP|data parallel) world size|"
        r"world size.{0,60}?checkpoint.{0,60}?(differ|mismatch)|"
        r"checkpoint used a DP world size of \d+",
        "DeepSpeed's optimizer state belongs to the number of ranks that saved it",
        "resume with as many ranks as before, or load weights alone (load_module_only), or convert it: "
        "python -m deepspeed.checkpoint.ds_to_universal --input_folder CHECKPOINT --output_folder UNIVERSAL",
    ),
    known(
        46,
        "ckpt.latest",
        r"Unable to find latest file at (?P<path>[^\s,]+)",
        "DeepSpeed finds no file `latest` there, warns, and starts from step 0",
        "ls {path}; write the name of the newest complete folder beside it into `latest`, or give a tag",
    ),
    known(
        0,
        "ckpt.race",
        r"File(Exists|NotFound)Error:.*checkpoint-\d+.*->.*checkpoint-\d+",
        "several nodes rename the same checkpoint in the shared dir",
        "let global rank 0 alone save: save_on_each_node=False",
    ),
    known(
        0,
        "job.batch",
        r"Check batch related parameters.*?(?P<sum>train_batch_size is not equal.*)",
        "the batch sizes contradict each other: {sum}",
        "train_batch_size = micro_batch_per_gpu x gradient_acc_step x number of ranks; leave one of them out",
    ),
    known(
        0,
        "job.batch",
        r"Check batch related parameters",
        "the batch sizes contradict each other",
        "train_batch_size = micro_batch_per_gpu x gradient_acc_step x number of ranks; leave one of them out",
    ),
    known(
        0,
        "job.hostfile",
        r"Unable to find hostfile.*proceed with training with local resources only|"
        r"proceed with training with local resources only",
        "DeepSpeed did not find its hostfile and trained on this machine alone",
        "on {node}: give --hostfile a file that is there; a run of clusterft has one at @HERE@/hostfile",
    ),
    known(
        44,
        "ssh.unreachable",
        r"(?:host=)?(?P<host>[^\s=]+) was not reachable via ssh",
        "DeepSpeed could not log in to a node, and hides what ssh said",
        "as the user who launches, from the same machine: ssh -o BatchMode=yes {host} true",
    ),
    known(
        45,
        "job.deepspeed-env",
        r"not enough values to unpack \(expected 2, got 1\)",
        "a line of .deepspeed_env is no NAME=VALUE: a blank one is enough",
        "on {node}: grep -n -v = ~/.deepspeed_env ./.deepspeed_env   and delete those lines",
    ),
    known(
        47,
        "job.pdsh",
        r"launcher 'pdsh' not installed",
        "DeepSpeed starts other nodes with pdsh, which is not installed here",
        "on {node}: sudo apt-get install pdsh   or start it with --launcher openmpi, or with `clusterft train`",
    ),
    known(
        48,
        "run.cuda-home",
        r"CUDA_HOME (environment variable is not set|does not exist)",
        "an operation is to be compiled, and there is no CUDA compiler: a runtime image has none",
        "use a -devel image, or install the toolkit and set CUDA_HOME; DS_BUILD_OPS=0 does not help here",
    ),
    known(
        49,
        "rdzv.inuse",
        r"launch distributed communication on port\W*(?P<port>\d+)?",
        "another process holds the rendezvous port",
        "on {node}: ss -ltnp 'sport = :{port}'   then end that process, or choose another --main_process_port",
    ),
    known(
        60,
        "run.torchvision",
        r"operator torchvision::nms does not exist",
        "torch and torchvision are of different builds",
        "install a matching pair in the image: pip install torch torchvision from one index, in one command",
    ),
    known(
        61,
        "run.int32",
        r"negative dimension -\d{9,}",
        "a bucket of gradients has more than 2^31 elements, and this build counts them in 32 bits",
        "smaller buckets (reduce_bucket_size, allgather_bucket_size), or another build of torch",
    ),
    known(
        0,
        "data.local-cache",
        r"(FileNotFoundError|No such file).*(latent|vae|text_embed|embed)\S*cache",
        "a cache that rank 0 wrote lies on its node's own disk, where the other nodes do not see it",
        "put the cache into the shared dir",
    ),
)
