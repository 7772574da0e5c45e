"""Proves that random draws belong to samples and not to ranks, and that the loss weights add up."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from clusterft_trainer import buckets, objective  # noqa: E402

pytestmark = pytest.mark.trainer
SCHEDULE = objective.scaled_linear(1000, 0.00085, 0.012)


def test_the_schedule_is_sdxls() -> None:
    # ratio of noise to signal at both ends, as published for SDXL's Euler sampler
    kept = SCHEDULE.alphas_cumprod
    sigmas = ((1 - kept) / kept).sqrt()
    assert float(sigmas[-1]) == pytest.approx(14.6146, abs=1e-3)
    assert float(sigmas[0]) == pytest.approx(0.0292, abs=1e-4)


def test_a_sample_draws_the_same_alone_and_in_company() -> None:
    keys = [objective.key(5, 2, i, "noise") for i in range(6)]
    together = objective.draw(keys, (4, 8, 8), SCHEDULE)
    for i, sample_key in enumerate(keys):
        alone = objective.draw([sample_key], (4, 8, 8), SCHEDULE)
        assert torch.equal(alone.noise[0], together.noise[i])
        assert torch.equal(alone.latent_noise[0], together.latent_noise[i])
        assert alone.timesteps[0] == together.timesteps[i]
    assert not torch.equal(together.noise[0], together.noise[1])
    assert not torch.equal(together.noise[0], together.latent_noise[0])


def test_keys_differ_in_every_part() -> None:
    parts = [(1, 1, 1, "noise"), (2, 1, 1, "noise"), (1, 2, 1, "noise"), (1, 1, 2, "noise")]
    parts += [(1, 1, 1, "caption"), (1, 11, 1, "noise"), (11, 1, 1, "noise")]
    keys = {objective.key(*p) for p in parts}
    assert len(keys) == len(parts) and all(0 <= k < 2**63 for k in keys)


def test_timesteps_cover_the_whole_range_evenly() -> None:
    keys = [objective.key(0, 0, i, "noise") for i in range(4000)]
    steps = objective.draw(keys, (1, 1, 1), SCHEDULE).timesteps.float()
    assert steps.min() < 10 and steps.max() > 989
    assert float(steps.mean()) == pytest.approx(499.5, abs=4 * 288.7 / math.sqrt(4000))


@pytest.mark.parametrize("cut", [(4, 1, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4), (2, 2, 1)])
@pytest.mark.parametrize("real", [1, 3, 4])
def test_the_parts_of_a_step_add_up_to_the_mean(cut: tuple[int, int, int], real: int) -> None:
    shape = buckets.Shape(*cut)
    losses = torch.rand(10, generator=torch.Generator().manual_seed(3))
    batch = tuple(range(real))
    total, copies = 0.0, shape.world * shape.accumulate
    for rank in range(shape.world):
        for slots in buckets.share(batch, shape, rank):
            mine = torch.stack([losses[s.index] for s in slots])
            weights = torch.tensor([float(s.weight) for s in slots])
            total += float(objective.weighted(mine, weights, real, copies)) / copies
    assert total == pytest.approx(float(losses[:real].mean()), rel=1e-6)


def test_exact_noise_takes_denoising_back_to_the_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn((1, 4, 8, 8), generator=generator)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    times = objective.denoise_times(SCHEDULE, 7)
    assert times[0] == 999 and times == sorted(times, reverse=True) and len(times) == 7
    latents = objective.noisy(clean, noise, torch.tensor([999]), SCHEDULE)
    for now, then in zip(times, [*times[1:], None], strict=True):
        latents = objective.denoise(latents, noise, now, then, SCHEDULE)
    assert torch.allclose(latents, clean, atol=1e-3)


def test_time_ids_tell_the_crop_that_was_applied() -> None:
    bucket = buckets.Bucket(1024, 576)
    fit = buckets.fit(2000, 1000, bucket)
    assert objective.time_ids(2000, 1000, fit, bucket) == [1000, 2000, 0, 64, 576, 1024]


def test_losses_are_float32_and_per_sample() -> None:
    prediction = torch.zeros((2, 4, 2, 2), dtype=torch.bfloat16)
    noise = torch.stack([torch.ones(4, 2, 2), torch.full((4, 2, 2), 3.0)])
    losses = objective.sample_losses(prediction, noise)
    assert losses.dtype == torch.float32 and losses.tolist() == [1.0, 9.0]
