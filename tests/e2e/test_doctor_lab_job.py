"""What a job finds on its nodes, real ones: a Python that cannot load torch, pictures on their own disks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doctoring import JOB, Desk, Fault, above_info, clean, finding, on, suffers
from PIL import Image

from lab import LightLab

pytestmark = [pytest.mark.lab_light, pytest.mark.trainer, pytest.mark.long]


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes, so that there is a most."""
    with LightLab.up(count=3) as made:
        yield made


def _library() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    return Path(spec.origin).parent / "lib" / "libtorch_cpu.so"


def test_a_torch_that_cannot_be_imported_is_named_before_a_run(lab: LightLab, tmp_path: Path) -> None:
    """An install that broke off, on one node: its biggest library is an empty file."""
    fault = Fault(
        "an empty libtorch",
        "run.import",
        lambda lab, _: on(lab, "n2", f": >/run/empty.so; mount --bind /run/empty.so {_library()}"),
        lambda lab, _: on(lab, "n2", f"umount -l {_library()}"),
        fix=("on n2: ", "-m pip install --force-reinstall --no-deps torch=="),
        evidence=("the job's Python cannot import torch: ", "libtorch_cpu.so", "file too short"),
        options=(),
    )
    suffers(fault, lab, tmp_path)


def test_a_python_that_is_not_there_is_named_on_its_node(lab: LightLab, tmp_path: Path) -> None:
    """/run is each node's own."""
    for name in ("n1", "n3"):
        on(lab, name, f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"' >/run/python; chmod +x /run/python")
    desk = Desk(lab, tmp_path, job=JOB.format(shared=lab.shared, runtime="process") + "python: /run/python\n")
    answer = desk.doctor()
    found = finding(answer, "run.import", "n2")
    assert [one["id"] for one in above_info(answer)] == ["run.import"]
    assert found["status"] == "fail" and "/run/python, does not run" in found["summary"]


def test_a_python_whose_link_leads_to_nothing_is_told_with_its_environment(lab: LightLab, tmp_path: Path) -> None:
    """Removed by an upgrade of the system, on one node."""
    for name in ("n1", "n2", "n3"):
        on(lab, name, f"mkdir -p /run/venv/bin; printf 'version = 3.10.12\\n' >/run/venv/pyvenv.cfg; "
           f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"' >/run/real; chmod +x /run/real; "
           "ln -sfn /run/real /run/venv/bin/python")  # fmt: skip
    desk = Desk(
        lab, tmp_path, job=JOB.format(shared=lab.shared, runtime="process") + "python: /run/venv/bin/python\n"
    )
    on(lab, "n2", "rm /run/real")
    found = finding(desk.doctor(), "run.import", "n2")
    assert found["status"] == "fail" and "/run/real is gone" in found["cause"]
    assert " -m venv --clear /run/venv" in found["fix"][0]


def test_pictures_that_one_node_lacks_are_counted(lab: LightLab, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(16):
        Image.new("RGB", (8 + k, 8), (k, k, k)).save(pictures / f"{k:05d}.png")
    job = JOB.format(shared=lab.shared, runtime="process").replace("{builtin: shapes}", f"{{folder: {pictures}}}")
    desk = Desk(lab, tmp_path / "desk", job=job)
    clean(desk.doctor())
    less = f"mkdir /run/less && cp {pictures}/000[01]* /run/less && rm /run/less/0001[2-5]*"
    on(lab, "n2", f"{less} && mount --bind /run/less {pictures}")
    try:
        answer = desk.doctor()
        quick = desk.doctor("--quick")
    finally:
        on(lab, "n2", f"umount -l {pictures}")
    found = finding(answer, "data.differs", "n2")
    assert found["status"] == "fail" and found["summary"] == f"n2 has 4 files less in {pictures} than other nodes"
    assert found["evidence"].splitlines()[0].startswith("n1 n3: 16 files, ")
    assert found["fix"][0].startswith("clusterft push ") and str(pictures) in found["fix"][0]
    assert found["fix"][1] == f"on n2: rsync -a {lab.node('n1').address}:{pictures}/ {pictures}/"
    assert [one["id"] for one in above_info(answer)] == ["data.differs"]
    clean(quick)
    clean(desk.doctor())


def _part_of_diffusers() -> Path:
    spec = importlib.util.find_spec("diffusers")
    assert spec and spec.origin
    return Path(spec.origin).parent / "models" / "unets" / "unet_2d_condition.py"


def test_a_library_that_is_not_whole_is_found_by_a_rank_that_is_tried(lab: LightLab, tmp_path: Path) -> None:
    """Versions are alike, and torch is well: only a rank that begins as in a run shows it."""
    fault = Fault(
        "an empty file of diffusers",
        "run.rehearsal",
        lambda lab, _: on(lab, "n2", f": >/run/empty.py; mount --bind /run/empty.py {_part_of_diffusers()}"),
        lambda lab, _: on(lab, "n2", f"umount -l {_part_of_diffusers()}"),
        fix=("on n2: ", "-m pip install --force-reinstall --no-deps diffusers=="),
        evidence=("a rank fails when it imports its libraries: ImportError", "unet_2d_condition.py"),
        options=(),
    )
    suffers(fault, lab, tmp_path)


def test_a_model_that_is_a_pointer_is_told_before_a_run(lab: LightLab, tmp_path: Path) -> None:
    model = Path(lab.shared) / "sdxl.safetensors"
    model.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 6938078334\n")
    job = JOB.format(shared=lab.shared, runtime="process").replace("builtin:tiny", str(model))
    answer = Desk(lab, tmp_path, job=job).doctor()
    model.unlink()
    found = finding(answer, "run.rehearsal", "n1", "n2", "n3")
    assert "is a Git LFS pointer" in found["summary"] and found["fix"] == [
        "Fetch it with `git lfs pull`, or download it."
    ]


def test_weights_of_the_same_size_with_zeros_at_their_end_are_told(lab: LightLab, tmp_path: Path) -> None:
    """Of the fourth blind round: a VAE on the node's own disk, with size and time as they were."""
    vae = tmp_path / "vae.safetensors"
    content = os.urandom(9_000_000)
    vae.write_bytes(content)
    job = JOB.format(shared=lab.shared, runtime="process").replace(
        "model: builtin:tiny", f"model: builtin:tiny\n  vae: {vae}"
    )
    zeros = tmp_path / "zeros"
    zeros.write_bytes(content[:5_400_000] + bytes(3_600_000))
    on(lab, "n2", f"mount --bind {zeros} {vae}")
    try:
        answer = Desk(lab, tmp_path / "desk", job=job).doctor()
    finally:
        on(lab, "n2", f"umount -l {vae}")
    found = finding(answer, "data.differs", "n2")
    assert found["status"] == "fail" and "other content on n2" in found["summary"]
    assert "rsync -a --checksum" in found["fix"][0]


def test_pictures_that_are_links_to_what_is_not_there(lab: LightLab, tmp_path: Path) -> None:
    pictures = Path(lab.shared) / "pics"
    pictures.mkdir()
    for k in range(8):
        (pictures / f"{k:03d}.png").symlink_to(f"/srv/raw/{k:03d}.png")
    job = JOB.format(shared=lab.shared, runtime="process").replace("{builtin: shapes}", f"{{folder: {pictures}}}")
    answer = Desk(lab, tmp_path, job=job).doctor()
    shutil.rmtree(pictures)
    found = finding(answer, "run.rehearsal")
    assert "is a link to /srv/raw/00" in found["summary"] and "LFS" not in "".join((found["cause"], *found["fix"]))
    assert "rsync -aL" in found["fix"][0]
