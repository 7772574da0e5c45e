"""Proves that a disk that is full or refuses is told as that, whichever library met it, and never as a bug.

A full disk is a small tmpfs where the user may mount one, and /dev/full for what is written line by line. A disk
that refuses for another reason is a limit on the size of files, set in a process of its own.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks

from clusterft_trainer import dist, errors, metrics
from clusterft_trainer.buckets import Bucket, Epochs, Position, Shape
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.dist import Place
from clusterft_trainer.errors import RunError
from clusterft_trainer.progress import Step

ALONE = Place(0, 1, 0, 1, "cpu")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk with no room left."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "clusterft-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root; run it in a container with CAP_SYS_ADMIN")
    try:
        with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield folder
    finally:
        # lazy: a writer that failed may hold its file open for as long as its error lives
        subprocess.run(["umount", "-l", str(folder)], check=True)


def save_torch(folder: Path) -> None:
    """As torch saves."""
    import torch

    torch.save({"a": torch.zeros(10_000)}, folder / "a.bin")


def save_model(folder: Path) -> None:
    """As safetensors saves."""
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(10_000)}, folder / "a.safetensors")


def export_file(folder: Path) -> None:
    """The exported model."""
    import torch

    from clusterft_trainer import export
    from clusterft_trainer.model import stored

    config = TrainConfig.model_validate(ranks.settings())
    leaf = stored.Leaf((10_000,), torch.float32, lambda: torch.zeros(10_000))
    export.write(folder / "export" / "x.safetensors", {"a": leaf}, {}, config)


def draw_sample(folder: Path) -> None:
    """A grid of samples."""
    import numpy as np

    from clusterft_trainer import sample

    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    sample.write(folder / "step-00000001.png", [noise])


def keep_account(folder: Path) -> None:
    """metrics.jsonl and TensorBoard."""
    journal = metrics.Journal(folder, None)
    for step in range(1, 1000):
        journal.step(Step(step, 1000, 0, 1.0, 0.1, None, 3.0, 0.25, 9.0))
    journal.finish("x")


def save_checkpoint(folder: Path) -> None:
    """A rank's part of a checkpoint, from the copy to the name."""
    import torch

    from clusterft_trainer.checkpoint import Identity, Keeper, State
    from clusterft_trainer.checkpoint.keeper import Saving
    from clusterft_trainer.engine.pieces import Piece

    class Engine:
        kind, count, replicated = "ddp", 1.0, True
        shapes = {"unet.a": (50_000,)}

        def pieces(self) -> list[Piece]:
            return [Piece("unet.a", (50_000,), 0, torch.zeros(50_000))]

        def scalars(self) -> dict[str, float]:
            return {}

        def rest(self) -> dict[str, Any]:
            return {}

    config = TrainConfig.model_validate(ranks.settings())
    epochs = Epochs([Bucket(64, 64)] * 4, 0, Shape(1, 1, 1))
    keeper = Keeper(folder, config, Identity(1, "", "", "", ""), ALONE)
    saving = Saving(State(1, Position(0, 1)), epochs, ("kept",), wait=True)
    keeper.save(Engine(), None, saving)  # type: ignore[arg-type]


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": save_checkpoint,
    "export": export_file,
    "samples": draw_sample,
    "account": keep_account,
}


@pytest.mark.trainer
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_as_one(full: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "on_lead", lambda _, action: action())
    monkeypatch.setattr(dist, "gather", lambda item: [item])
    with pytest.raises(RunError) as caught:
        WRITERS[writer](full)
    assert caught.value.failure == "disk-full" and str(full) in caught.value.message, caught.value
    assert "room" in caught.value.remedy and caught.value.exit_code == 5


def test_a_full_account_needs_no_root_to_be_told(tmp_path: Path) -> None:
    journal = metrics.Journal(tmp_path, None)
    journal._file.close()
    journal._file = Path("/dev/full").open("w", encoding="utf-8")
    with pytest.raises(RunError) as caught:
        journal.step(Step(1, 2, 0, 1.0, 0.1, None, 3.0, 0.25, 9.0))
    assert caught.value.failure == "disk-full"


@pytest.mark.parametrize("case", ["checkpoint", "samples", "account"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case != "account":
        pytest.importorskip("torch")
    monkeypatch.setattr(dist, "on_lead", lambda _, action: action())
    monkeypatch.setattr(dist, "gather", lambda item: [item])
    (tmp_path / "file").write_text("no folder")
    calls: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: save_checkpoint(tmp_path / "file"),
        "samples": lambda: draw_sample(tmp_path / "file"),
        "account": lambda: metrics.Journal(tmp_path / "file", None),
    }
    with pytest.raises(RunError) as caught:
        calls[case]()
    assert caught.value.failure == "storage" and str(tmp_path / "file") in caught.value.message


@pytest.mark.trainer
@pytest.mark.parametrize("writer", ["save_torch", "save_model"])
def test_a_disk_that_refuses_for_another_reason_is_no_full_one(tmp_path: Path, writer: str) -> None:
    script = (
        "import resource, sys, test_storage\n"
        "from pathlib import Path\n"
        "from clusterft_trainer import errors\n"
        "import torch, safetensors.torch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with errors.storing('The file', folder := Path(sys.argv[1])):\n"
        "        getattr(test_storage, sys.argv[2])(folder)\n"
        "except errors.RunError as error: print(error.failure, error.message)\n"
    )
    here = os.pathsep.join([str(Path(__file__).parent), ranks.TRAINER])
    argv = [sys.executable, "-c", script, str(tmp_path), writer]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": here})
    assert done.stdout == f"storage The file {tmp_path} could not be written: File too large.\n", done.stderr


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full"),
        (OSError(errno.EIO, "Input/output error"), "storage"),
        (PermissionError(errno.EACCES, "Permission denied"), "storage"),
    ],
)
def test_the_reason_is_kept(tmp_path: Path, error: OSError, failure: str) -> None:
    with pytest.raises(RunError) as caught, errors.storing("The export", tmp_path):
        raise error
    assert caught.value.failure == failure and str(error) in caught.value.message
    assert not caught.value.everywhere


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), ConnectionResetError("peer"), ValueError("x")])
def test_what_no_disk_did_is_left_as_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), errors.storing("The export", tmp_path):
        raise error
