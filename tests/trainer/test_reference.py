"""Proves the loss curve of real runs against a plain training loop that is written out here from the papers.

The reference knows nothing of the trainer's objective, model and engine code: text by transformers, latents by
diffusers, the forward process, targets and weights by their formulas, AdamW by torch, one process, one batch at a
time, and no padding. Of the trainer it takes the buckets and the order of the batches. Its random draws are made
anew from the recipe that `objective` documents.

    forward process    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e                     Ho et al. 2006.11239, eq. 4
    target             e, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0                 Salimans & Ho 2202.00512, app. D
    min-SNR            min(SNR, g) / SNR, or min(SNR, g) / (SNR + 1) for v       Hang et al. 2303.09556, sec. 3.4
    zero terminal SNR  sqrt(a_t) shifted and scaled to end at 0                  Lin et al. 2305.08891, alg. 1
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ranks

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from clusterft_trainer import buckets, builtin, shapes  # noqa: E402

pytestmark = pytest.mark.trainer

PICTURES, STEPS, SEED, RESOLUTION = 12, 6, 7, 64
CUTS = (None, (0, 14, 128, 114), None, (10, 0, 118, 128))  # so that some pictures are cropped on their way
RATE, TEXT_RATE, DECAY, CLIP, DROPOUT = 1e-3, 1e-4, 0.01, 1.0, 0.25


@dataclass(frozen=True)
class Case:
    """One objective and what of the model is trained with it."""

    prediction: str
    gamma: float | None = None
    zero_terminal: bool = False
    accumulate: int = 1
    text: bool = False

    def body(self, pictures: Path) -> dict[str, Any]:
        """The settings of the run that the reference is compared with."""
        learn: dict[str, Any] = {"unet": {"rate": RATE}, "weight_decay": DECAY, "clip": CLIP}
        if self.text:
            learn["text_encoders"] = {"rate": TEXT_RATE}
        return ranks.settings(
            data={
                "sources": [{"folder": str(pictures)}],
                "resolution": RESOLUTION,
                "captions": {"dropout": DROPOUT},
            },
            learn=learn,
            objective={
                "prediction": self.prediction,
                "min_snr": self.gamma,
                "zero_terminal_snr": self.zero_terminal,
            },
            batch={"per_slot": 4 // self.accumulate, "accumulate": self.accumulate},
            engine={"kind": "ddp"},
            checkpoints={"every_steps": 5000, "keep": 1},
            steps=STEPS,
            seed=SEED,
        )


CASES = {
    "epsilon": Case("epsilon"),
    "v": Case("v"),
    "epsilon-min-snr": Case("epsilon", gamma=5.0, accumulate=2),
    "v-min-snr-zero-terminal": Case("v", gamma=5.0, zero_terminal=True, text=True),
}


def random_bits(purpose: str, epoch: int, index: int) -> int:
    """63 bits that belong to one sample in one epoch."""
    text = f"{purpose}:{SEED}:{epoch}:{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def signal_kept(case: Case) -> Any:
    """The running product of 1 - beta (the papers' a_t with a bar), float64; SDXL's betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.ones(1000, dtype=torch.float64)
    for step in range(1000):
        kept[step] = (kept[step - 1] if step else 1.0) * (1 - betas[step])
    if case.zero_terminal:
        root = kept.sqrt()
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return kept


class Reference:
    """The model and the plain loop."""

    def __init__(self, case: Case, pictures: Path, model: Path) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        self.case, self.kept = case, signal_kept(case)
        self.vae = AutoencoderKL.from_pretrained(model / "vae").eval()
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
        self.texts = (
            CLIPTextModel.from_pretrained(model / "text_encoder"),
            CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2"),
        )
        self.tokenizers = [CLIPTokenizer.from_pretrained(model / n) for n in ("tokenizer", "tokenizer_2")]
        self.files = sorted(pictures.glob("*.png"))
        table = buckets.sizes(RESOLUTION)
        self.buckets = [buckets.assign(*Image.open(f).size, table) for f in self.files]
        groups = [{"params": list(self.unet.parameters()), "lr": RATE}]
        if case.text:
            groups += [{"params": [p for t in self.texts for p in t.parameters()], "lr": TEXT_RATE}]
        self.weights = [p for g in groups for p in g["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY)

    def curve(self) -> list[float]:
        """The loss of each step."""
        shape = buckets.Shape(4 // self.case.accumulate, self.case.accumulate, 1)
        walk = buckets.Epochs(self.buckets, SEED, shape).walk(buckets.Position())
        return [self.step(p.epoch, batch) for p, batch in itertools.islice(walk, STEPS)]

    def step(self, epoch: int, batch: tuple[int, ...]) -> float:
        """Forward, backward, one update."""
        pixels, ids = zip(*(self.picture(i) for i in batch), strict=True)
        draws = [self.draw(i, epoch, self.latent_size(pixels[0])) for i in batch]
        times = torch.tensor([d[0] for d in draws])
        noise, latent_noise = (torch.stack([d[k] for d in draws]) for k in (1, 2))
        with torch.no_grad():
            found = self.vae.encode(torch.stack(pixels)).latent_dist
            latents = (found.mean + found.std * latent_noise) * self.vae.config.scaling_factor
        hidden, pooled = self.text([self.caption(i, epoch) for i in batch])
        kept = self.kept[times].view(-1, 1, 1, 1)
        signal, spread = kept.sqrt().float(), (1 - kept).sqrt().float()
        extra = {"text_embeds": pooled, "time_ids": torch.tensor(ids, dtype=torch.float32)}
        seen = signal * latents + spread * noise
        answer = self.unet(seen, times, encoder_hidden_states=hidden, added_cond_kwargs=extra).sample
        target = noise if self.case.prediction == "epsilon" else signal * noise - spread * latents
        loss = (self.weight(times) * ((answer - target) ** 2).mean((1, 2, 3))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def weight(self, times: Any) -> Any:
        """How much each sample counts."""
        if self.case.gamma is None:
            return torch.ones(len(times))
        snr = self.kept[times] / (1 - self.kept[times])
        below = snr if self.case.prediction == "epsilon" else snr + 1
        return (torch.minimum(snr, torch.tensor(self.case.gamma)) / below).float()

    def picture(self, index: int) -> tuple[Any, list[int]]:
        """Pixels in [-1, 1] that fill the bucket from the middle of the picture, and SDXL's six numbers."""
        image, bucket = Image.open(self.files[index]).convert("RGB"), self.buckets[index]
        width, height = image.size
        scale = max(bucket.width / width, bucket.height / height)
        size = (round(width * scale), round(height * scale))
        left, top = (size[0] - bucket.width) // 2, (size[1] - bucket.height) // 2
        small = image.resize(size, Image.Resampling.BOX)
        pixels = small.crop((left, top, left + bucket.width, top + bucket.height))
        values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).float() / 127.5 - 1
        rows = values.view(bucket.height, bucket.width, 3)
        return rows.permute(2, 0, 1), [height, width, top, left, bucket.height, bucket.width]

    def latent_size(self, pixels: Any) -> tuple[int, int, int]:
        """Four channels, an eighth of each side."""
        return 4, pixels.shape[1] // 8, pixels.shape[2] // 8

    def draw(self, index: int, epoch: int, shape: tuple[int, ...]) -> tuple[int, Any, Any]:
        """Timestep, noise and the noise of the VAE's own distribution, as `objective` documents them."""
        bits = random_bits("noise", epoch, index)
        noise, latent_noise = torch.randn((2, *shape), generator=torch.Generator().manual_seed(bits))
        return int(1000 * ((bits >> 11) + 0.5) / 2**52), noise, latent_noise

    def caption(self, index: int, epoch: int) -> str:
        """Empty for some, else as it stands in its file."""
        if random_bits("caption", epoch, index) / 2**63 < DROPOUT:
            return ""
        return self.files[index].with_suffix(".txt").read_text().strip()

    def text(self, captions: list[str]) -> tuple[Any, Any]:
        """States before the last layer of both encoders side by side, and what the second one pools."""
        with torch.set_grad_enabled(self.case.text):
            told = []
            for tokenizer, encoder in zip(self.tokenizers, self.texts, strict=True):
                tokens = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
                told.append(encoder(tokens, output_hidden_states=True))
            return torch.cat([t.hidden_states[-2] for t in told], -1), told[1].text_embeds


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Builtin pictures, some of them cut to other shapes, and the builtin model."""
    folder = tmp_path_factory.mktemp("reference")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(PICTURES):
        image, caption = shapes.draw(number)
        if image.size == (128, 128):
            image = image.crop(CUTS[number % len(CUTS)])
        image.save(pictures / f"{number:02d}.png")
        (pictures / f"{number:02d}.txt").write_text(caption)
    return pictures, builtin.materialise("tiny", 0, folder / "home")


@pytest.mark.parametrize(
    "case",
    # a run takes as long as its imports; the other two hold all of the plain ones' formulas
    [pytest.param(c, id=n, marks=[] if c.gamma else [pytest.mark.long]) for n, c in CASES.items()],
)
def test_the_loss_curve_is_that_of_a_plain_loop(case: Case, parts: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, model = parts
    threads = torch.get_num_threads()
    with ranks.gang(tmp_path) as gang:
        ranks.start_alone(gang, tmp_path, case.body(pictures))
        try:
            torch.set_num_threads(1)  # the run beside it has the other core
            reference = Reference(case, pictures, model)
            curve = reference.curve()
        finally:
            torch.set_num_threads(threads)
        assert gang.wait() == [0], gang.text()
        found = gang.losses()
    assert len({(b.width, b.height) for b in reference.buckets}) > 1
    assert [found[step] for step in range(1, STEPS + 1)] == pytest.approx(curve, rel=1e-5)
