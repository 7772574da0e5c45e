"""Pictures from fixed prompts and seeds, so that progress can be seen.

Owns `samples/` of a run. Each rank draws its share of the prompts; rank 0 joins them into one grid.
Refuses to touch the training state: its random numbers come from generators of its own.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clusterft_trainer import dist, metrics, objective
from clusterft_trainer.config import Samples
from clusterft_trainer.dist import Place
from clusterft_trainer.engine.base import Engine
from clusterft_trainer.errors import storing
from clusterft_trainer.model.sdxl import Conditioning
from clusterft_trainer.step import Learner

_GAP = 4  # pixels between the pictures of a grid


class Sampler:
    """Draws one grid whenever asked."""

    def __init__(
        self, settings: Samples, side: int, original: tuple[int, int], folder: Path, place: Place
    ) -> None:
        self._settings = settings
        self._side = side
        # The size ids ask for a picture like most of those that were trained: a size that the
        # model has not seen would spoil samples of a small data set.
        width, height = original
        self._ids = torch.tensor([[height, width, 0, 0, side, side]] * 2, dtype=torch.float32)
        self._folder = folder
        self._place = place

    def draw(self, learner: Learner, step: int) -> None:
        """All ranks call this; rank 0 writes `step-<8 digits>.png`."""
        began = time.monotonic()
        path = self.draw_to(learner, self._folder / f"step-{step:08d}.png")
        if self._place.leads:
            metrics.saved("sample", path, step, began)

    def draw_to(self, learner: Learner, path: Path) -> Path:
        """The same, into any file."""
        count = len(self._settings.prompts)
        mine = range(self._place.rank, count, self._place.world)
        # Where weights are spread, a rank that draws one picture less would leave the others waiting.
        rounds = len(mine) if learner.engine.replicated else -(-count // self._place.world)
        model = learner.engine.bare
        was_training = model.training
        model.eval()
        with torch.no_grad():
            drawn = {i: self._picture(learner, i) for i in mine}
            for _ in range(rounds - len(mine)):
                self._picture(learner, 0)
        model.train(was_training)
        pictures: dict[int, np.ndarray] = {}
        for part in dist.gather(drawn):
            pictures |= part
        dist.on_lead(self._place, lambda: write(path, [pictures[i] for i in sorted(pictures)]))
        return path

    def _picture(self, learner: Learner, number: int) -> np.ndarray:
        encoders, learned = learner.encoders, learner.objective
        shape = encoders.latent_shape(self._side, self._side)
        generator = torch.Generator().manual_seed(objective.key(0, 0, number, "sample"))
        noise = torch.randn((1, *shape), generator=generator)
        given = encoders.condition([self._settings.prompts[number], self._settings.negative], self._ids)
        latents = noise.to(given.time_ids.device)
        times = learned.denoise_times(self._settings.denoise_steps)
        for now, then in zip(times, [*times[1:], None], strict=True):
            output = _guided(learner.engine, latents, now, given, self._settings.guidance)
            latents = learned.denoise(latents, output, now, then)
        return encoders.decode(latents)[0].numpy()


def write(path: Path, pictures: list[np.ndarray]) -> None:
    """One grid on disk, under its name only when it is whole."""
    draft = path.with_suffix(".new")
    with storing("The samples", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(pictures).save(draft, format="PNG")
        draft.replace(path)


def grid(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures of one size, row by row on a neutral ground."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, (128, 128, 128))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        corner = (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP))
        sheet.paste(Image.fromarray(picture), corner)
    return sheet


def _guided(engine: Engine, latents: torch.Tensor, now: int, given: Conditioning, guidance: float) -> torch.Tensor:
    """Classifier-free guidance: prompt and negative prompt in one pass."""
    time_step = torch.tensor([now, now], device=latents.device)
    wanted, avoided = engine.forward(torch.cat([latents, latents]), time_step, given).float().chunk(2)
    guided: torch.Tensor = avoided + guidance * (wanted - avoided)
    return guided
