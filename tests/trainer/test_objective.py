"""Proves the objective against formulas written out here: draws, schedule, targets, losses, weights, denoising.

Also that random draws belong to samples and not to ranks, and that the weights of a step's parts add up.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from clusterft_trainer import buckets, config, objective  # noqa: E402
from clusterft_trainer.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.trainer
SHAPE = (4, 8, 8)
V_ZERO: dict[str, Any] = {"prediction": "v", "zero_terminal_snr": True}


def make(model: dict[str, Any] | None = None, **settings: Any) -> objective.Objective:
    """An objective for SDXL's schedule; `model` is what the model is said to be."""
    own = {"steps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "prediction": "epsilon"}
    body = config.Objective.model_validate(settings)
    return objective.build(body, **(own | {"zero_terminal_snr": False} | (model or {})))


def keys(count: int, seed: int = 5) -> list[int]:
    """Keys as the trainer makes them."""
    return [objective.key(seed, 2, i, "noise") for i in range(count)]


def latents_for(drawn: objective.Draw) -> Any:
    """Some latents of the right shape."""
    return torch.randn(drawn.noise.shape, generator=torch.Generator().manual_seed(9))


def at(made: objective.Objective, timesteps: list[int]) -> objective.Draw:
    """A draw whose timesteps are chosen by the test."""
    drawn, times = made.draw(keys(len(timesteps)), SHAPE), torch.tensor(timesteps)
    return objective.Draw(times, drawn.noise, drawn.seen, drawn.latent_noise, made.table[:, times])


# schedule


def test_the_schedule_is_sdxls() -> None:
    # ratio of noise to signal at both ends, as published for SDXL's Euler sampler
    kept = make().schedule.alphas_cumprod
    sigmas = ((1 - kept) / kept).sqrt()
    assert float(sigmas[-1]) == pytest.approx(14.6146, abs=1e-3)
    assert float(sigmas[0]) == pytest.approx(0.0292, abs=1e-4)


def test_zero_terminal_snr_leaves_the_first_step_and_empties_the_last() -> None:
    plain, rescaled = make().schedule.alphas_cumprod, make(V_ZERO).schedule.alphas_cumprod
    assert float(rescaled[-1]) == 0.0
    assert float(rescaled[0]) == pytest.approx(float(plain[0]), rel=1e-12)
    assert bool((rescaled[1:] < rescaled[:-1]).all())


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    assert torch.allclose(make(V_ZERO).schedule.alphas_cumprod, theirs, rtol=1e-9, atol=1e-15)


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"whole answer.*objective\.prediction: v"):
        make({"zero_terminal_snr": True})


def test_timesteps_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"timesteps\.last: 999.*499 or less"):
        make({"steps": 500})
    assert make({"steps": 500}, timesteps={"last": 499}).schedule.steps == 500


def test_settings_and_model_that_were_not_settled_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="ask for v"):
        make(prediction="v")


# draws


def test_a_draw_follows_the_documented_recipe() -> None:
    made = make(noise_offset=0.1, input_perturbation=0.2)
    number = int.from_bytes(hashlib.blake2b(b"noise:5:2:3", digest_size=8).digest()) >> 1
    drawn = made.draw(keys(5), SHAPE)
    source = torch.Generator().manual_seed(number)
    noise, latent_noise = torch.randn((2, *SHAPE), generator=source)
    noise = noise + 0.1 * torch.randn(4, generator=source)[:, None, None]
    seen = noise + 0.2 * torch.randn(SHAPE, generator=source)
    assert int(drawn.timesteps[3]) == int(1000 * ((number >> 11) + 0.5) / 2**52)
    assert torch.equal(drawn.latent_noise[3], latent_noise)
    assert torch.equal(drawn.noise[3], noise) and torch.equal(drawn.seen[3], seen)


def test_a_sample_draws_the_same_alone_and_in_company() -> None:
    made = make(noise_offset=0.1, input_perturbation=0.2)
    together = made.draw(keys(6), SHAPE)
    for i, sample_key in enumerate(keys(6)):
        alone = made.draw([sample_key], SHAPE)
        for name in ("timesteps", "noise", "seen", "latent_noise"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i]), name
    assert not torch.equal(together.noise[0], together.noise[1])
    assert not torch.equal(together.noise[0], together.latent_noise[0])


def test_offset_and_perturbation_leave_the_other_draws_as_they_are() -> None:
    plain, offset, perturbed = (
        make(**s).draw(keys(3), SHAPE) for s in ({}, {"noise_offset": 0.1}, {"input_perturbation": 0.1})
    )
    for other in (offset, perturbed):
        assert torch.equal(plain.latent_noise, other.latent_noise)
        assert torch.equal(plain.timesteps, other.timesteps)
    assert torch.equal(plain.noise, perturbed.noise) and plain.seen is plain.noise
    assert not torch.equal(perturbed.seen, perturbed.noise)


def test_the_noise_offset_is_one_number_for_each_channel() -> None:
    drawn = make(noise_offset=0.5).draw(keys(400), SHAPE)
    shift = drawn.noise - make().draw(keys(400), SHAPE).noise
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert float(shift[:, :, 0, 0].std()) == pytest.approx(0.5, rel=0.1)


def test_noise_is_normal_over_samples_and_places() -> None:
    noise = make().draw(keys(500), SHAPE).noise
    assert float(noise.mean()) == pytest.approx(0, abs=0.015) and float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float(noise[:, 0, 0, 0].std()) == pytest.approx(1, abs=0.1)


def test_keys_differ_in_every_part() -> None:
    parts = [(1, 1, 1, "noise"), (2, 1, 1, "noise"), (1, 2, 1, "noise"), (1, 1, 2, "noise")]
    parts += [(1, 1, 1, "caption"), (1, 11, 1, "noise"), (11, 1, 1, "noise")]
    found = {objective.key(*p) for p in parts}
    assert len(found) == len(parts) and all(0 <= k < 2**63 for k in found)


def test_timesteps_cover_the_whole_range_evenly() -> None:
    steps = make().draw(keys(4000), (1, 1, 1)).timesteps.float()
    assert steps.min() < 10 and steps.max() > 989
    assert float(steps.mean()) == pytest.approx(499.5, abs=4 * 288.7 / math.sqrt(4000))


@pytest.mark.parametrize("kind", ["uniform", "cubic", "logit-normal"])
def test_timesteps_stay_within_first_and_last_and_reach_both(kind: str) -> None:
    made = make(timesteps={"kind": kind, "first": 200, "last": 203})
    chances = [(k + 0.5) / 400 for k in range(400)]
    found = {made.timestep(c) for c in [*chances, 2**-53, 1 - 2**-53]}
    assert found == {200, 201, 202, 203}


def test_a_single_timestep_can_be_trained() -> None:
    made = make(timesteps={"first": 999, "last": 999})
    assert set(made.draw(keys(20), SHAPE).timesteps.tolist()) == {999}


def test_cubic_prefers_noisy_timesteps_as_its_paper_says() -> None:
    made = make(timesteps={"kind": "cubic"})
    steps = [made.timestep((k + 0.5) / 10000) for k in range(10000)]
    # P(t > 1 - u^3) with u uniform: three quarters of the mass lie above 1 - 0.75^3
    assert sum(s >= 1000 * (1 - 0.75**3) for s in steps) == pytest.approx(7500, abs=20)
    assert sum(steps) / len(steps) == pytest.approx(750 - 0.5, abs=1)  # mean of 1 - u^3 is 3/4


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.5, 0.5)])
def test_logit_normal_timesteps_are_normal_in_their_logit(mean: float, spread: float) -> None:
    made = make(timesteps={"kind": "logit-normal", "mean": mean, "spread": spread})
    steps = torch.tensor([made.timestep((k + 0.5) / 20000) for k in range(20000)]).double()
    logits = torch.logit((steps + 0.5) / 1000)
    assert float(logits.mean()) == pytest.approx(mean, abs=0.02)
    assert float(logits.std()) == pytest.approx(spread, abs=0.02)


def test_an_extreme_spread_does_not_overflow() -> None:
    made = make(timesteps={"kind": "logit-normal", "spread": 1e6})
    assert {made.timestep(c) for c in (1e-9, 1 - 1e-9)} == {0, 999}


def test_fixed_draws_spread_evenly_and_belong_to_seed_sample_and_level() -> None:
    made = make(timesteps={"kind": "cubic"}, input_perturbation=0.3)
    draws = [made.fixed_draw([4, 9], level, 4, 1, SHAPE) for level in range(4)]
    assert [d.timesteps.tolist() for d in draws] == [[125, 125], [375, 375], [625, 625], [875, 875]]
    assert all(d.seen is d.noise for d in draws), "held-out noise is not perturbed"
    again = made.fixed_draw([9], 2, 4, 1, SHAPE)
    assert torch.equal(again.noise[0], draws[2].noise[1])
    others = [draws[2].noise[0], draws[1].noise[1], made.fixed_draw([9], 2, 4, 2, SHAPE).noise[0]]
    assert not any(torch.equal(again.noise[0], other) for other in others)


def test_a_draw_moves_to_another_device_whole() -> None:
    made = make(V_ZERO, input_perturbation=0.1)
    moved = made.draw(keys(2), SHAPE).to("meta")
    tensors = (moved.timesteps, moved.noise, moved.seen, moved.latent_noise, moved.factors)
    assert all(t.device.type == "meta" for t in tensors)
    still = make().draw(keys(2), SHAPE).to("meta")
    assert still.seen is still.noise, "the same noise is moved twice"


# forward process, target and loss


@pytest.mark.parametrize("model", [{}, {"prediction": "v"}, V_ZERO])
def test_forward_process_and_target_are_the_papers(model: dict[str, Any]) -> None:
    made = make(model, input_perturbation=0.2)
    drawn = at(made, [0, 500, 998, 999])
    latents = latents_for(drawn)
    for i, step in enumerate(drawn.timesteps.tolist()):
        kept = float(made.schedule.alphas_cumprod[step])
        a, s = math.sqrt(kept), math.sqrt(1 - kept)
        seen = a * latents[i] + s * drawn.seen[i]
        wanted = drawn.noise[i] if made.prediction == "epsilon" else a * drawn.noise[i] - s * latents[i]
        assert torch.allclose(made.noisy(latents, drawn)[i], seen, atol=1e-6)
        assert torch.allclose(made.target(latents, drawn)[i], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("prediction", "settings", "formula"),
    [
        ("epsilon", {"min_snr": 5.0}, lambda snr: min(snr, 5) / snr),
        ("v", {"min_snr": 5.0}, lambda snr: min(snr, 5) / (snr + 1)),
        ("epsilon", {"debiased": True}, lambda snr: 1 / math.sqrt(min(snr, 1000))),
        ("v", {"debiased": True}, lambda snr: 1 / (min(snr, 1000) + 1)),
        ("epsilon", {}, lambda snr: 1.0),
    ],
)
def test_weights_are_the_papers(prediction: str, settings: dict[str, Any], formula: Any) -> None:
    made = make({"prediction": prediction}, **settings)
    kept = make().schedule.alphas_cumprod.tolist()
    expected = [formula(k / (1 - k)) for k in kept]
    assert made.table[2].tolist() == pytest.approx(expected, rel=1e-6)
    assert made.weighs == bool(settings)


def test_min_snr_weights_are_those_of_diffusers_training_script() -> None:
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = compute_snr(theirs, torch.arange(1000))
    counted = torch.stack([snr, torch.full_like(snr, 5.0)], 1).min(1)[0]
    for prediction, weight in (("epsilon", counted / snr), ("v", counted / (snr + 1))):
        mine = make({"prediction": prediction}, min_snr=5.0).table[2]
        assert torch.allclose(mine, weight, rtol=1e-4), prediction


@pytest.mark.parametrize("settings", [{"min_snr": 5.0}, {"debiased": True}, {"loss": "huber"}])
@pytest.mark.parametrize("of", ["trained", "plain"])
def test_a_terminal_snr_of_zero_gives_finite_losses_and_gradients(settings: dict[str, Any], of: str) -> None:
    made = make(V_ZERO, snr_of=of, huber_schedule="snr" if "loss" in settings else "constant", **settings)
    drawn = at(made, [999, 999, 500])
    latents = latents_for(drawn)
    # two of them with a prediction that is exactly right, where a square root has no slope
    prediction = made.target(latents, drawn).clone()
    prediction[1] += 1
    prediction.requires_grad_()
    losses = made.losses(prediction, latents, drawn)
    losses.sum().backward()
    assert bool(losses.isfinite().all()) and prediction.grad is not None
    assert bool(prediction.grad.isfinite().all())
    assert bool(made.table.isfinite().all())


def test_plain_weighs_by_the_schedule_before_it_was_rescaled() -> None:
    trained, plain = (make(V_ZERO, min_snr=5.0, snr_of=of).table[2] for of in ("trained", "plain"))
    assert float(trained[-1]) == 0.0
    assert float(plain[-1]) == pytest.approx(float(make({"prediction": "v"}, min_snr=5.0).table[2][-1]))
    assert float(plain[-1]) > 0.004


@pytest.mark.parametrize("loss", ["huber", "smooth-l1"])
@pytest.mark.parametrize("schedule", ["constant", "snr", "exponential"])
def test_huber_losses_are_those_of_diffusers_training_script(loss: str, schedule: str) -> None:
    made = make(loss=loss, huber_delta=0.2, huber_schedule=schedule)
    drawn = at(made, [3, 400, 990])
    latents = latents_for(drawn)
    prediction = drawn.noise + torch.tensor([0.01, 0.3, 4.0]).view(-1, 1, 1, 1)
    for i, step in enumerate(drawn.timesteps.tolist()):
        kept = float(made.schedule.alphas_cumprod[step])
        sigma = math.sqrt((1 - kept) / kept)
        delta = {
            "constant": 0.2,
            "snr": (1 - 0.2) / (1 + sigma) ** 2 + 0.2,
            "exponential": 0.2 ** (step / 1000),
        }[schedule]
        difference = [0.01, 0.3, 4.0][i]
        wanted = 2 * (math.sqrt(difference**2 + delta**2) - delta) * (delta if loss == "huber" else 1)
        assert float(made.losses(prediction, latents, drawn)[i]) == pytest.approx(wanted, rel=1e-4)


def test_losses_are_float32_and_per_sample() -> None:
    made = make()
    drawn = at(made, [100, 900])
    prediction = (drawn.noise + torch.tensor([1.0, 3.0]).view(-1, 1, 1, 1)).bfloat16()
    losses = made.losses(prediction, latents_for(drawn), drawn)
    assert losses.dtype == torch.float32 and losses.tolist() == pytest.approx([1.0, 9.0], rel=1e-2)
    exact = made.losses(drawn.noise + 2, latents_for(drawn), drawn)
    assert exact.tolist() == pytest.approx([4.0, 4.0], rel=1e-6)


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


# the way back


@pytest.mark.parametrize("model", [{}, {"prediction": "v"}, V_ZERO])
def test_exact_answers_take_denoising_back_to_the_picture(model: dict[str, Any]) -> None:
    made = make(model)
    drawn = at(made, [999])
    clean = latents_for(drawn)
    times = made.denoise_times(7)
    assert times[0] == 999 and times == sorted(times, reverse=True) and len(times) == 7
    latents = made.noisy(clean, drawn)
    for now, then in zip(times, [*times[1:], None], strict=True):
        answer = made.target(clean, at(made, [now]))
        latents = made.denoise(latents, answer, now, then)
    assert torch.allclose(latents, clean, atol=1e-3)


@pytest.mark.parametrize(("prediction", "zero"), [("epsilon", False), ("v", False), ("v", True)])
def test_denoising_is_ddim_of_diffusers_with_trailing_timesteps(prediction: str, zero: bool) -> None:
    from diffusers import DDIMScheduler

    made = make({"prediction": prediction, "zero_terminal_snr": zero})
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        rescale_betas_zero_snr=zero, timestep_spacing="trailing", set_alpha_to_one=True,
    )  # fmt: skip
    theirs.set_timesteps(5)
    times = made.denoise_times(5)
    assert times == theirs.timesteps.tolist() == [999, 799, 599, 399, 199]
    source = torch.Generator().manual_seed(1)
    mine = other = torch.randn((1, *SHAPE), generator=source)
    for now, then in zip(times, [*times[1:], None], strict=True):
        answer = torch.randn((1, *SHAPE), generator=source) * 0.1
        mine = made.denoise(mine, answer, now, then)
        other = theirs.step(answer, now, other).prev_sample
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-3), now


def test_as_many_steps_as_there_are_timesteps_visit_each_once() -> None:
    assert make().denoise_times(5000) == list(range(999, -1, -1))
    assert make().denoise_times(1) == [999]


# micro-conditioning


def test_time_ids_tell_the_crop_that_was_applied() -> None:
    bucket = buckets.Bucket(1024, 576)
    fit = buckets.fit(2000, 1000, bucket)
    assert objective.time_ids((2000, 1000), fit, bucket, "true") == [1000, 2000, 0, 64, 576, 1024]


@pytest.mark.parametrize(
    ("size", "bucket", "top", "left"),
    [
        ((2000, 1000), (1024, 576), 32, 0),  # wider than the bucket: 512 high inside of 576
        ((1000, 2000), (576, 1024), 0, 32),
        ((1000, 1000), (1024, 576), 0, 224),  # narrower: 576 wide inside of 1024
        ((1920, 1080), (1024, 576), 0, 0),
        ((1000, 1001), (1024, 1024), 0, 0),  # 1022.98 wide: half a pixel is rounded down
        ((1000, 1004), (1024, 1024), 0, 2),  # 1019.92 wide: 2.04
    ],
)
def test_time_ids_tell_kohyas_offset_if_asked(
    size: tuple[int, int], bucket: tuple[int, int], top: int, left: int
) -> None:
    target = buckets.Bucket(*bucket)
    ids = objective.time_ids(size, buckets.fit(*size, target), target, "kohya")
    assert ids == [size[1], size[0], top, left, target.height, target.width]
