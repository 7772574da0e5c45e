"""Proves that a tensor is read back bit for bit, however ranks cut it and whoever reads which part."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors import safe_open  # noqa: E402

from clusterft_trainer import scribe  # noqa: E402
from clusterft_trainer.checkpoint.shards import Shards, Stage, check, entry  # noqa: E402
from clusterft_trainer.engine import pieces  # noqa: E402
from clusterft_trainer.errors import RunError  # noqa: E402

pytestmark = pytest.mark.trainer

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8, torch.int64, torch.float64]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numel=st.integers(1, 40),
    world=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_part_comes_back_whatever_the_cuts(
    tmp_path_factory: pytest.TempPathFactory, numel: int, world: int, dtype: torch.dtype, cut: tuple[int, int]
) -> None:
    folder, whole, names = tmp_path_factory.mktemp("shards"), (torch.randn(numel) * 50).to(dtype), []
    for rank in range(world):
        first, end = pieces.slice_of(numel, rank, world)
        stage = Stage(pinned=False)
        odd = entry("other", f"w{rank}", 0, torch.ones(3, dtype=torch.uint8))  # would misalign what follows
        mine = [entry("weight", "w", first, whole[first:end])] if first < end else []
        stage.take([odd, *mine], {"w": (numel,)})
        names.append(f"rank-{rank}.safetensors")
        said = stage.write(folder / names[-1])
        assert check(folder / names[-1], said["size"], said["xxh3"]) is None
    stored = Shards(folder, names)
    first, end = sorted(min(c, numel) for c in cut)
    if first < end:
        got = stored.read("weight", "w", first, end)
        assert got.dtype == dtype and torch.equal(got, whole[first:end])
    assert stored.shapes == {"w": (numel,)}


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    stage = Stage(pinned=False)
    stage.take([entry("weight", "unet.x", 4, torch.arange(3.0))], {"unet.x": (7,)})
    stage.write(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert list(file.keys()) == ["weight|unet.x|4"]
        assert file.get_tensor("weight|unet.x|4").tolist() == [0.0, 1.0, 2.0]


def test_memory_is_made_once(tmp_path: Path) -> None:
    stage = Stage(pinned=False)
    stage.take([entry("weight", "w", 0, torch.ones(100))], {"w": (100,)})
    at = stage._memory.data_ptr()
    stage.take([entry("weight", "w", 0, torch.zeros(100))], {"w": (100,)})
    assert stage._memory.data_ptr() == at


def test_a_gap_is_no_zero(tmp_path: Path) -> None:
    stage = Stage(pinned=False)
    parts = [entry("weight", "w", 0, torch.ones(3)), entry("weight", "w", 5, torch.ones(2))]
    stage.take(parts, {"w": (7,)})
    stage.write(tmp_path / "a.safetensors")
    with pytest.raises(RunError, match="lacks elements 3 to 7 of weight w"):
        Shards(tmp_path, ["a.safetensors"]).read("weight", "w", 0, 7)


def shared(size: int) -> memoryview:
    """Memory as the writer gets it: whole pages."""
    room = mmap.mmap(-1, scribe.pages(size))
    room[:size] = bytes(i % 251 for i in range(size))
    return memoryview(room)


def test_what_the_disk_gives_back_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def spoil(handle: int) -> None:
        real(handle)
        with (tmp_path / "a").open("r+b") as file:
            file.seek(9000)
            file.write(b"spoilt")

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(OSError, match="reads back otherwise"):
        scribe.put(shared(20_000), 20_000, str(tmp_path / "a"))


def test_a_file_system_that_has_no_way_past_the_page_cache_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    found = scribe.put(shared(20_000), 20_000, str(tmp_path / "a"))
    assert check(tmp_path / "a", 20_000, found) is None
    assert (tmp_path / "a").read_bytes() == bytes(i % 251 for i in range(20_000))


def test_the_writers_error_is_the_disks_own(tmp_path: Path) -> None:
    stage = Stage(pinned=False)
    stage.take([entry("weight", "w", 0, torch.ones(10))], {"w": (10,)})
    with pytest.raises(FileNotFoundError, match="absent"):
        stage.write(tmp_path / "absent" / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"another attempt's")
    with pytest.raises(FileExistsError):
        stage.write(tmp_path / "a.safetensors")
    assert stage.write(tmp_path / "b.safetensors")["size"] > 0, "it serves on"
    stage.close()


def test_a_writer_that_dies_is_no_checkpoint_and_the_next_has_another(tmp_path: Path) -> None:
    stage = Stage(pinned=False)
    stage.take([entry("weight", "w", 0, torch.ones(10))], {"w": (10,)})
    stage.write(tmp_path / "a.safetensors")
    assert stage._scribe is not None
    stage._scribe.kill()
    with pytest.raises(RuntimeError, match="died"):
        stage.write(tmp_path / "b.safetensors")
    assert stage.write(tmp_path / "c.safetensors")["size"] > 0
    stage.close()
