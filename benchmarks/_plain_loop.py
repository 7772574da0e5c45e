"""The training loop that a diffusers user has, in the manner of train_text_to_image_sdxl.py: the UNet, in float32.

Owns the baseline of step.py: the same order of work and the same imports as that script, less `datasets` and
torchvision, whose part is done by PIL and lists. Knows nothing of clusterft. A line for each finished step goes to
stdout. Refuses to be clever: whatever the script does in a step is done here.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from diffusers.utils import check_min_version, is_wandb_available
from diffusers.utils.import_utils import is_xformers_available
from huggingface_hub import create_repo, upload_folder
from packaging import version
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PretrainedConfig

# Imported as the script imports them, and used by it only where its options ask for more than this loop does.
USUAL = (StableDiffusionXLPipeline, EMAModel, compute_snr, is_wandb_available, create_repo, upload_folder)

logger = get_logger(__name__)


def text_encoder(model: str, folder: str) -> Any:
    """The class that the folder names, with its weights."""
    kind = PretrainedConfig.from_pretrained(model, subfolder=folder).architectures[0]
    return getattr(transformers, kind).from_pretrained(model, subfolder=folder)


def encode_prompts(captions: list[str], tokenizers: list[Any], encoders: list[Any]) -> tuple[Any, Any]:
    """States of both text encoders side by side, and the pooled ones of the second."""
    states, pooled = [], None
    with torch.no_grad():
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            length = tokenizer.model_max_length
            ids = tokenizer(
                captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            told = encoder(ids.to(encoder.device), output_hidden_states=True)
            pooled = told[0]
            states.append(told.hidden_states[-2])
    return torch.cat(states, -1).cpu(), pooled.cpu()


def encode_pictures(paths: list[Path], vae: Any) -> Any:
    """Latents, scaled, of pictures that all have the size they are trained in."""
    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1 for path in paths]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().to(vae.device, dtype=vae.dtype)
    with torch.no_grad():
        latents = vae.encode(batch).latent_dist.sample()
    return (latents * vae.config.scaling_factor).cpu()


def precompute(options: argparse.Namespace, vae: Any, encoders: list[Any], tokenizers: list[Any]) -> list[Any]:
    """What the script's two passes of Dataset.map leave: one example for each picture."""
    paths = sorted(options.pictures.glob("*.png"))
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    states, pooled = encode_prompts(captions, tokenizers, encoders)
    size = options.batch
    latents = torch.cat([encode_pictures(paths[i : i + size], vae) for i in range(0, len(paths), size)])
    side = (options.resolution, options.resolution)
    return [
        {
            "model_input": latents[i],
            "prompt_embeds": states[i],
            "pooled_prompt_embeds": pooled[i],
            "original_sizes": side,
            "crop_top_lefts": (0, 0),
        }
        for i in range(len(paths))
    ]


def collate(examples: list[Any]) -> dict[str, Any]:
    """Tensors are stacked; the script first makes them of Python lists, which a reader of tensors is spared."""
    stacked = {
        name: torch.stack([example[name] for example in examples])
        for name in ("model_input", "prompt_embeds", "pooled_prompt_embeds")
    }
    return stacked | {
        name: [example[name] for example in examples] for name in ("original_sizes", "crop_top_lefts")
    }


def prepare(options: argparse.Namespace) -> tuple[Any, ...]:
    """Everything up to the loop."""
    folder, model = Path(options.output, "logs"), str(options.model)
    accelerator = Accelerator(
        gradient_accumulation_steps=1,
        mixed_precision="no",
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(options.output), logging_dir=str(folder)),
    )
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", level=logging.INFO)
    logger.info(accelerator.state, main_process_only=False)
    transformers.utils.logging.set_verbosity_warning()
    diffusers.utils.logging.set_verbosity_info()
    set_seed(options.seed)
    os.makedirs(options.output, exist_ok=True)
    tokenizers = [
        AutoTokenizer.from_pretrained(model, subfolder=name, use_fast=False)
        for name in ("tokenizer", "tokenizer_2")
    ]
    noise_scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    encoders = [text_encoder(model, name) for name in ("text_encoder", "text_encoder_2")]
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    for frozen in (vae, *encoders):
        frozen.requires_grad_(False)
        frozen.to(accelerator.device, dtype=torch.float32)
    unet.train()
    if is_xformers_available() and version.parse(accelerate.__version__) < version.parse("0.16.0"):
        raise SystemExit("accelerate is too old")
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=options.rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
    )
    if options.cache is not None and options.cache.is_file():
        examples = torch.load(options.cache)
    else:
        examples = precompute(options, vae, encoders, tokenizers)
        if options.cache is not None:
            torch.save(examples, options.cache)
    del encoders, tokenizers, vae
    gc.collect()
    loader = torch.utils.data.DataLoader(examples, shuffle=True, collate_fn=collate, batch_size=options.batch)
    lr_scheduler = get_scheduler(
        "constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=options.steps
    )
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    accelerator.init_trackers("text2image-fine-tune-sdxl", config={"steps": options.steps})
    return accelerator, unet, optimizer, loader, lr_scheduler, noise_scheduler


def train(options: argparse.Namespace) -> None:
    """The loop itself."""
    accelerator, unet, optimizer, loader, lr_scheduler, noise_scheduler = prepare(options)
    bar = tqdm(range(options.steps), desc="Steps", disable=not accelerator.is_local_main_process)
    done = 0
    for _ in range(math.ceil(options.steps / len(loader))):
        train_loss = 0.0
        for batch in loader:
            with accelerator.accumulate(unet):
                loss = losses(accelerator, unet, noise_scheduler, batch, options.resolution)
                average = accelerator.gather(loss.repeat(options.batch)).mean()
                train_loss += average.item()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                bar.update(1)
                done += 1
                accelerator.log({"train_loss": train_loss}, step=done)
                train_loss = 0.0
            bar.set_postfix(step_loss=loss.detach().item(), lr=lr_scheduler.get_last_lr()[0])
            tell(done)
            if done >= options.steps:
                return


def losses(accelerator: Any, unet: Any, noise_scheduler: Any, batch: Any, resolution: int) -> Any:
    """The loss of one batch."""
    latents = batch["model_input"].to(accelerator.device)
    noise = torch.randn_like(latents)
    count = noise_scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, count, (latents.shape[0],), device=latents.device)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)

    def time_ids(size: tuple[int, ...], crop: tuple[int, ...]) -> Any:
        ids = torch.tensor([list(size + crop + (resolution, resolution))])
        return ids.to(accelerator.device, dtype=torch.float32)

    ids = torch.cat(
        [time_ids(s, c) for s, c in zip(batch["original_sizes"], batch["crop_top_lefts"], strict=True)]
    )
    told = batch["prompt_embeds"].to(accelerator.device)
    extra = {"time_ids": ids, "text_embeds": batch["pooled_prompt_embeds"].to(accelerator.device)}
    prediction = unet(noisy, timesteps, told, added_cond_kwargs=extra).sample
    return F.mse_loss(prediction.float(), noise.float(), reduction="mean")


def tell(step: int) -> None:
    """A finished step."""
    print(json.dumps({"step": step}), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a diffusers folder")
    parser.add_argument("pictures", type=Path, help="square PNG files with a caption beside each")
    parser.add_argument("output", type=Path)
    parser.add_argument("--cache", type=Path, help="file for what is precomputed; read where it is there")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    check_min_version("0.22.0.dev0")
    train(parse())
