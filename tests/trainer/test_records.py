"""Proves that what a run trains on is every picture of its folder, in one order, and that no problem is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clusterft_trainer import shapes
from clusterft_trainer.config import FolderSource, Problems
from clusterft_trainer.corpus import ingest
from clusterft_trainer.corpus.index import Index
from clusterft_trainer.errors import DataError


def picture(path: Path, size: tuple[int, int] = (40, 30), caption: str | None = "a thing") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def scan(folder: Path) -> Index:
    """The index as a run makes it."""
    out = folder.parent / f"index-{folder.name}"
    source = FolderSource(folder=str(folder))
    return ingest.ingest([source], Problems(), out, processes=1, say=lambda _: None)


def test_pictures_are_found_below_the_folder_in_name_order(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", (40, 30), "second\n")
    picture(tmp_path / "a" / "Z.JPG", (10, 20), "\ufefffirst")
    (tmp_path / "notes.md").write_text("not a picture")
    found = scan(tmp_path)
    assert [(r.name, r.caption, r.width, r.height) for r in map(found.row, range(len(found)))] == [
        ("a/Z.JPG", "first", 10, 20),
        ("b.png", "second", 40, 30),
    ]


def test_a_photo_turned_by_exif_has_the_size_that_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "p.jpg", exif=exif)
    (tmp_path / "p.txt").write_text("")
    found = scan(tmp_path)
    record = found.row(0)
    assert len(found) == 1 and (record.width, record.height, record.caption) == (30, 40, "")


def test_missing_captions_are_named(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png", caption=None if number else "one")
    with pytest.raises(DataError, match=r"4 x no caption: 1\.png, 2\.png, 3\.png and 1 more"):
        scan(tmp_path)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"not a picture")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"no whole picture: x\.png"):
        scan(tmp_path)


def test_a_caption_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"UTF-8: p\.png"):
        scan(tmp_path)


@pytest.mark.parametrize("make", [True, False])
def test_an_empty_or_absent_folder_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "pictures"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match="no picture" if make else r"cannot be listed on this node \(No such"):
        scan(folder)


def test_the_digest_follows_content_and_not_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(tmp_path / name / "p.png")
    one, two = scan(tmp_path / "one"), scan(tmp_path / "two")
    assert one.digest == two.digest
    (tmp_path / "two" / "p.txt").write_text("another caption")
    assert one.digest != scan(tmp_path / "two").digest


def test_drawn_shapes_are_the_same_each_time_and_tell_the_truth() -> None:
    image, caption = shapes.draw(0)
    again, _ = shapes.draw(0)
    assert image.tobytes() == again.tobytes()
    _, colour, shape, _, ground = caption.split()
    assert shape in shapes.SHAPES
    middle = image.getpixel((image.width // 2, image.height // 2))
    assert middle == shapes.COLOURS[colour]
    assert image.getpixel((0, 0)) == shapes.GROUNDS[ground]
    assert len({shapes.draw(n)[1] for n in range(64)}) >= 12
