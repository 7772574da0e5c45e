"""The data layer of the catalogue, in words: data sets and checkpoints."""

from clusterft.checks.check import Entry

_LOG = "clusterft doctor --run RUN, or --log FILE: the words of all ranks"

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="data.local-cache",
        layer="data",
        title="A cache on the nodes' own disks is not what it should be",
        symptom="ranks of other nodes miss a file that rank 0 has written; or a run ends as it cannot keep copies",
        how="for data.cache.local of a job: on every node the folder is there or can be made, the run's user may "
        "write to it, it has room for local_gigabytes with what is in it already, and it lies on no share. Of "
        "other programs, which let rank 0 alone fill a cache, the words of all ranks: --run, --log",
        cause="the folder is missing, somebody else's, small, or on the share; or a program takes a path of one "
        "node for one that all see",
        mends=(
            "on the node: sudo mkdir -p FOLDER && sudo chown UID:GID FOLDER",
            "put a cache that all ranks read into the shared dir; `clusterft prep` does",
        ),
        found=("facts", "train", "log"),
        source="SimpleTuner#1446",
    ),
    Entry(
        id="data.missing",
        layer="data",
        title="What a job reads is not there",
        symptom="a run or a `prep` that ends with `The folder ... cannot be listed` or `named, but not there`",
        how="on every node each path that the job reads: pictures, captions, tables, the model; a folder of "
        "pictures holds one at least. Of a table in CSV or JSON lines the first 200 files that it names are "
        "looked for. What the SSH user may not look into is not judged",
        cause="a path of another machine, a share that is not mounted, or pictures that have been moved",
        mends=(
            "clusterft push PATH   where the controller has all of it",
            "put it into the shared dir, or name another path in job.yaml",
            "problems: {broken: skip} under train.data leaves out single pictures that a table names",
        ),
        found=("facts", "train"),
    ),
    Entry(
        id="data.differs",
        layer="data",
        title="The nodes' own disks do not hold the same data",
        symptom="a run that ends with `No such file or directory` on one node, often only after some steps",
        how="for what a job reads outside the shared dir (pictures, captions, the model): number and sizes of the "
        "files on every node, hidden ones left out; more than 200,000 of a path are not counted. Of model, VAE "
        "and tokenizers the content is compared too: small files whole, of a large one 64 blocks from its head to "
        "its tail. Not with --quick",
        cause="a copy that broke off or went wrong, or that was made before the last pictures came",
        mends=(
            "clusterft push PATH   where the controller has all of it",
            "on the node: rsync -a OTHER:PATH/ PATH/   with --checksum where sizes are the same",
            "put it into the shared dir",
        ),
        found=("probe",),
    ),
    Entry(
        id="data.too-small",
        layer="data",
        title="There are fewer pictures than one step takes",
        symptom="ranks with uneven numbers of batches, of which some wait for ever",
        how="of pictures that are drawn, their number; others are counted by `clusterft prep`, and by the trainer "
        "before its first step: it fills up the last batch of a bucket, where others hang",
        cause="batch.per_slot x accumulate x slots is more than there are",
        mends=("add pictures or repeats, or lower train.batch.per_slot or accumulate",),
        found=("facts",),
        source="SimpleTuner's documentation",
    ),
    Entry(
        id="data.cache-slow",
        layer="data",
        title="The ranks wait for a cache that rank 0 makes",
        symptom="`Watchdog caught collective operation timeout` after 30 minutes, before the first step",
        how="",
        why_not="before a run there is nothing to see; afterwards it is told as run.watchdog, with rank 0 as the "
        "one that the others waited for, and its stack says what it did",
        mends=("make the cache before: clusterft prep job.yaml; or a longer timeout in init_process_group",),
        found=("never",),
        source="kohya-ss/sd-scripts#971",
    ),
    Entry(
        id="ckpt.race",
        layer="data",
        title="Several nodes rename the same checkpoint",
        symptom="`FileExistsError` or `FileNotFoundError` from a rename in the checkpoint's folder",
        how="--deep saves and loads one through the shared dir; after a run, its words",
        cause="each node's first rank believes that the folder is its own",
        mends=("let global rank 0 alone save: save_on_each_node=False",),
        found=("deep", "log"),
        source="transformers#27925",
    ),
    Entry(
        id="ckpt.latest",
        layer="data",
        title="DeepSpeed finds no `latest` and starts from step 0",
        symptom="training begins at step 0 again; `Unable to find latest file at`",
        how="--deep saves and loads one through the shared dir; after a run, its words",
        cause="the file was not copied along, or the folder is not shared",
        mends=(
            "write the name of the newest complete folder beside it into `latest`",
            "load_checkpoint(..., tag=...)",
        ),
        found=("deep", "log"),
        source="DeepSpeed runtime/engine.py",
    ),
    Entry(
        id="ckpt.world",
        layer="data",
        title="A checkpoint of DeepSpeed's belongs to another number of ranks",
        symptom="`The checkpoint being loaded used a DP world size of X but the current world size is Y`",
        how=_LOG,
        cause="the optimizer's state is split by rank; a node was added or left out",
        mends=(
            "resume with as many ranks as before; clusterft's own checkpoints know no such limit",
            "python -m deepspeed.checkpoint.ds_to_universal --input_folder CHECKPOINT --output_folder UNIVERSAL",
        ),
        found=("log",),
        source="DeepSpeed runtime/engine.py",
    ),
)
