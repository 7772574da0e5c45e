"""Proves what a micro-batch says of its pictures: captions, size numbers, pixels."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402

from clusterft_trainer import captions, config, dataset, objective, records  # noqa: E402
from clusterft_trainer.buckets import Slot  # noqa: E402

pytestmark = pytest.mark.trainer
CAPTION = "one, two, three, four"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[records.Record]:
    """Two pictures of one bucket: red above and blue below, larger and smaller than it."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, (width, height) in {"large": (700, 300), "small": (70, 30)}.items():
        image = Image.new("RGB", (width, height), "blue")
        image.paste("red", (0, 0, width, height // 2))
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(CAPTION)
    return records.scan(folder)


def pictures(found: list[records.Record], seed: int = 3, **data: Any) -> dataset.Pictures:
    """The pictures under some settings."""
    body: dict[str, Any] = {"sources": [{"folder": "unused"}], "resolution": 512}
    return dataset.Pictures(found, config.Data.model_validate(body | data), seed)


def batch(made: dataset.Pictures, epoch: int = 0, known: bool = True) -> dataset.Batch:
    """Both pictures, the second only to fill up."""
    return made.batch([Slot(0, 1), Slot(1, 0)], epoch, lambda _: known)


def test_size_numbers_are_float32_and_tell_the_true_crop(found: list[records.Record]) -> None:
    made = batch(pictures(found))
    assert (made.bucket.width, made.bucket.height) == (512, 192)
    assert made.time_ids.dtype == torch.float32
    # 300 -> 192 high is 448 wide, less than 512: scaled to the width instead, 219 high, 13 cut above
    assert made.time_ids.tolist() == [[300, 700, 13, 0, 192, 512], [30, 70, 13, 0, 192, 512]]


def test_size_numbers_tell_kohyas_offset_if_asked(found: list[records.Record]) -> None:
    made = batch(pictures(found, crop_ids="kohya"))
    # 192 high is 448 wide; half of the 64 left over
    assert made.time_ids.tolist() == [[300, 700, 0, 32, 192, 512], [30, 70, 0, 32, 192, 512]]


def test_the_crop_that_is_told_is_the_crop_of_the_pixels(found: list[records.Record]) -> None:
    made = batch(pictures(found), known=False)
    assert made.pixels is not None and made.pixels.shape == (2, 3, 192, 512)
    # the border between the colours lies in the middle of the 219 rows, 13 of them cut off
    for picture, slack in zip(made.pixels, (1, 5), strict=True):  # enlarged edges are soft
        blue = (picture[2, :, 256] > 127).int()
        assert abs(int(blue.argmax()) - (219 // 2 - 13)) <= slack


def test_pixels_that_are_known_are_not_decoded(found: list[records.Record]) -> None:
    made = batch(pictures(found))
    assert made.pixels is None
    assert made.weights.tolist() == [1.0, 0.0] and made.indices == [0, 1]


def test_captions_are_settled_by_seed_epoch_and_sample(found: list[records.Record]) -> None:
    settings = {"shuffle": True, "keep": 1, "tag_dropout": 0.2, "dropout": 0.1}
    made = pictures(found, captions=settings)
    seen = set()
    for epoch in range(20):
        told = batch(made, epoch).captions
        for index in range(2):
            number = objective.key(3, epoch, index, "caption")
            assert told[index] == captions.settle(CAPTION, config.Captions.model_validate(settings), number)
        seen |= set(told)
    assert "" in seen and len(seen) > 10
    assert batch(made, 4).captions == batch(made, 4).captions
    other = pictures(found, seed=4, captions=settings)
    assert [batch(made, e).captions for e in range(9)] != [batch(other, e).captions for e in range(9)]


def test_a_caption_is_left_alone_by_default(found: list[records.Record]) -> None:
    assert batch(pictures(found)).captions == [CAPTION, CAPTION]


def test_held_out_pictures_keep_their_captions_whole(found: list[records.Record]) -> None:
    made = pictures(found, captions={"shuffle": True, "dropout": 1.0})
    assert made.batch([Slot(0, 1)], 0, lambda _: True, plain=True).captions == [CAPTION]
    assert made.batch([Slot(0, 1)], 0, lambda _: True).captions == [""]
