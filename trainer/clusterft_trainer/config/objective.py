"""Settings of the training objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clusterft_trainer.config.base import Section

Timestep = Annotated[int, Field(ge=0, lt=1000)]


class Timesteps(Section):
    """Which noise levels are trained how often."""

    kind: Literal["uniform", "logit-normal", "cubic"] = Field(
        "uniform", description="cubic prefers noisy ones; logit-normal those around a mean"
    )
    first: Timestep = Field(0, description="least noisy timestep that is trained")
    last: Timestep = Field(999, description="noisiest timestep that is trained")
    mean: float = Field(0.0, description="of logit-normal; above 0 prefers noisy ones")
    spread: Annotated[float, Field(gt=0)] = Field(1.0, description="of logit-normal")

    @model_validator(mode="after")
    def _in_order(self) -> Timesteps:
        if self.first > self.last:
            raise ValueError(f"first ({self.first}) must not lie behind last ({self.last})")
        if self.kind != "logit-normal" and (self.mean, self.spread) != (0.0, 1.0):
            raise ValueError("mean and spread belong to kind: logit-normal")
        return self


class Objective(Section):
    """What the model learns to predict, and how much each noise level counts."""

    prediction: Literal["auto", "epsilon", "v"] = Field(
        "auto", description="auto: what the model file says of itself"
    )
    zero_terminal_snr: bool | None = Field(
        None, description="rescale the schedule so that the last timestep is pure noise; null: what the model says"
    )
    min_snr: Annotated[float, Field(gt=0)] | None = Field(
        None, description="gamma of min-SNR weighting; 5 is usual"
    )
    debiased: bool = Field(False, description="weight by 1 / sqrt(SNR) (epsilon) or 1 / (SNR + 1) (v)")
    snr_of: Literal["trained", "plain"] = Field(
        "trained", description="plain: weigh by the schedule before zero_terminal_snr rescaled it, as kohya does"
    )
    loss: Literal["mse", "huber", "smooth-l1"] = "mse"
    huber_delta: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="where huber and smooth-l1 turn linear"
    )
    huber_schedule: Literal["constant", "snr", "exponential"] = Field(
        "constant", description="how the delta falls with the noise"
    )
    noise_offset: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="noise that is equal over a whole channel"
    )
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="more noise on what the model sees, but not on what it shall predict"
    )
    timesteps: Timesteps = Timesteps()

    @model_validator(mode="after")
    def _one_weighting(self) -> Objective:
        if self.min_snr is not None and self.debiased:
            raise ValueError("min_snr and debiased are two weightings: choose one")
        if self.loss == "mse" and (self.huber_delta, self.huber_schedule) != (0.1, "constant"):
            raise ValueError("huber_delta and huber_schedule need loss: huber or smooth-l1")
        return self
