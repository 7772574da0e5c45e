"""From a list of records to decoded micro-batches, ahead of the training step.

Owns decoding, resizing, cropping and the background loading. Refuses to hide a picture that cannot
be decoded: the step that needs it fails with its name.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from clusterft_trainer import buckets, captions, objective
from clusterft_trainer.buckets import Bucket, Epochs, Position, Shape, Slot
from clusterft_trainer.config import Data
from clusterft_trainer.errors import DataError
from clusterft_trainer.records import Record

_AHEAD = 2  # optimizer steps that are loaded before they are needed
_WORKERS = 4  # threads; PIL releases the interpreter lock while it decodes


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's micro-batch; pixels are missing where the latents are known already."""

    bucket: Bucket
    indices: list[int]
    weights: torch.Tensor  # (B,) float32: 1 counts, 0 pads
    captions: list[str]
    time_ids: torch.Tensor  # (B, 6) float32
    pixels: torch.Tensor | None  # (B, 3, H, W) uint8


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's part of an optimizer step."""

    position: Position
    real: int  # samples that count, over all ranks
    micro: list[Batch]


class Pictures:
    """The records of a run, each with its bucket."""

    def __init__(self, records: Sequence[Record], data: Data, seed: int) -> None:
        self.records = records
        table = buckets.sizes(data.resolution)
        self.buckets = [buckets.assign(r.width, r.height, table) for r in records]
        self._captions = data.captions
        self._crop_ids = data.crop_ids
        self._seed = seed

    def usual_size(self) -> tuple[int, int]:
        """Width and height that most pictures have."""
        sizes = Counter((r.width, r.height) for r in self.records)
        return sizes.most_common(1)[0][0]

    def batch(self, slots: list[Slot], epoch: int, known: Callable[[int], bool], *, plain: bool = False) -> Batch:
        """Decode what is not `known`; `plain` leaves captions as they are. Safe to call from several threads."""
        indices = [s.index for s in slots]
        bucket = self.buckets[indices[0]]
        fits = [self._fit(i) for i in indices]
        ids = [self._time_ids(i, f) for i, f in zip(indices, fits, strict=True)]
        pixels = None
        if not all(known(i) for i in indices):
            pictures = [decode(self.records[i], f, bucket) for i, f in zip(indices, fits, strict=True)]
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return Batch(
            bucket=bucket,
            indices=indices,
            weights=torch.tensor([float(s.weight) for s in slots]),
            captions=[self.records[i].caption if plain else self._caption(i, epoch) for i in indices],
            time_ids=torch.tensor(ids, dtype=torch.float32),
            pixels=pixels,
        )

    def _fit(self, index: int) -> buckets.Fit:
        record = self.records[index]
        return buckets.fit(record.width, record.height, self.buckets[index])

    def _time_ids(self, index: int, fit: buckets.Fit) -> list[float]:
        record = self.records[index]
        return objective.time_ids((record.width, record.height), fit, self.buckets[index], self._crop_ids)

    def _caption(self, index: int, epoch: int) -> str:
        drawn = objective.key(self._seed, epoch, index, "caption")
        return captions.settle(self.records[index].caption, self._captions, drawn)


def decode(record: Record, fit: buckets.Fit, bucket: Bucket) -> np.ndarray:
    """The bucket-sized RGB pixels of a picture; transparency lies on white."""
    try:
        with Image.open(record.path) as stored:
            image = _rgb(ImageOps.exif_transpose(stored))
    except OSError as error:
        raise DataError(
            f"The picture {record.path} cannot be decoded ({error}).",
            "Replace or remove it; on a network share, check that this node reads it.",
            everywhere=False,
        ) from error
    size = (fit.resized_width, fit.resized_height)
    if image.size != size:
        smaller = size[0] * size[1] < image.size[0] * image.size[1]
        # averaging over areas when shrinking, as kohya does; Lanczos when growing
        how = Image.Resampling.BOX if smaller else Image.Resampling.LANCZOS
        image = image.resize(size, how)
    edges = (fit.left, fit.top, fit.left + bucket.width, fit.top + bucket.height)
    return np.array(image.crop(edges), dtype=np.uint8)


def stream(
    pictures: Pictures, epochs: Epochs, shape: Shape, rank: int, known: Callable[[int], bool]
) -> Callable[[Position, int], Iterator[Work]]:
    """Work of one rank from a position on, decoded a few steps ahead by threads."""

    def make(position: Position, batch: tuple[int, ...]) -> Work:
        micro = [pictures.batch(slots, position.epoch, known) for slots in buckets.share(batch, shape, rank)]
        return Work(position, len(batch), micro)

    def walk(start: Position, count: int) -> Iterator[Work]:
        waiting: deque[Future[Work]] = deque()
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="decode") as pool:
            try:
                for number, (position, batch) in enumerate(epochs.walk(start)):
                    if number < count:
                        waiting.append(pool.submit(make, position, batch))
                    if len(waiting) > _AHEAD or number >= count:
                        if not waiting:
                            return
                        yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    return walk


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
