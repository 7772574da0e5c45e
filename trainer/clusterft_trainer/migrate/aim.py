"""Rules for the training objective: prediction, loss, weighting, noise, timesteps.

Owns where kohya's meaning of a number differs from ours. Refuses weightings that ours does not have.
"""

from __future__ import annotations

from clusterft_trainer.migrate.case import Case
from clusterft_trainer.migrate.sheet import Sheet

_LAST = 999  # SDXL's noisiest timestep
_LOSSES = {"l2": "mse", "mse": "mse", "huber": "huber", "smooth_l1": "smooth-l1"}
_WITHOUT_LIMIT = 1e6  # a gamma that no SNR reaches


def prediction(sheet: Sheet, case: Case) -> None:
    """What the model predicts; kohya does not ask the model file."""
    if not case.kohya:
        return
    v = sheet.switch("v_parameterization")
    sheet.put(
        "train.objective.prediction",
        "v" if v else "epsilon",
        "v_parameterization",
        say="kohya does not ask the file",
    )
    zero = sheet.switch("zero_terminal_snr")
    sheet.put("train.objective.zero_terminal_snr", zero, "zero_terminal_snr")
    _weighting(sheet, v=v, zero=zero)


def _weighting(sheet: Sheet, *, v: bool, zero: bool) -> None:
    gamma = sheet.number("min_snr_gamma")
    debiased = sheet.switch("debiased_estimation_loss")
    like_noise = sheet.switch("scale_v_pred_loss_like_noise_pred")
    if gamma and gamma > 0:
        sheet.put("train.objective.min_snr", gamma, "min_snr_gamma")
        if debiased:
            sheet.leave(
                "debiased_estimation_loss", "not possible", "kohya multiplies both weights; min_snr_gamma is kept"
            )
        if like_noise:
            reason = "kohya multiplies both weights; min_snr_gamma is kept"
            sheet.leave("scale_v_pred_loss_like_noise_pred", "not possible", reason)
    elif gamma:
        sheet.leave("min_snr_gamma", "unreadable", "is below 0")
    elif like_noise and v:
        # SNR / (SNR + 1) is min-SNR's weight for v without a limit; kohya's limit of 1000 changes 0.02 %.
        sheet.put("train.objective.min_snr", _WITHOUT_LIMIT, "scale_v_pred_loss_like_noise_pred")
        sheet.comments["train.objective.min_snr"] = "SNR / (SNR + 1): scale_v_pred_loss_like_noise_pred"
        if debiased:
            sheet.leave("debiased_estimation_loss", "not possible", "one weighting at a time")
    elif debiased:
        sheet.put("train.objective.debiased", True, "debiased_estimation_loss")
    if like_noise and not v:
        sheet.leave("scale_v_pred_loss_like_noise_pred", "not needed", "it needs v_parameterization")
    weighted = sheet.get("train.objective.min_snr") or sheet.get("train.objective.debiased")
    if weighted and zero:
        sheet.put("train.objective.snr_of", "plain", say="kohya weighs by the SNR before it is rescaled")


def loss(sheet: Sheet, case: Case) -> None:
    """How a difference counts."""
    asked = (sheet.text("loss_type") or "l2").lower()
    ours = _LOSSES.get(asked)
    if ours is None:
        sheet.leave("loss_type", "not possible", "mse, huber and smooth-l1 are what there is; mse is written")
    kind = ours or "mse"
    flags = ("huber_c", "huber_schedule", "huber_scale")
    if kind == "mse":
        for name in flags:
            if sheet.given(name) and asked not in ("l2", "mse"):
                sheet.leave(name, "not needed", "the loss that is written has no delta")
        return
    sheet.put("train.objective.loss", kind, "loss_type")
    bend = sheet.number("huber_c")
    scale = sheet.number("huber_scale")
    shape = sheet.text("huber_schedule") or "snr"
    delta = 0.1 if bend is None else bend
    if scale not in (None, 1.0):
        if shape == "constant" and scale is not None:
            delta *= scale
        elif shape != "snr":  # kohya does not heed it there
            sheet.leave("huber_scale", "not possible", "the delta is scaled under huber_schedule constant only")
    if delta <= 0:
        sheet.leave("huber_c", "unreadable", "is not above 0")
        delta = 0.1
    sheet.put("train.objective.huber_delta", delta, "huber_c", say="" if bend else "kohya's default")
    say = "" if sheet.given("huber_schedule") else "kohya's default"
    sheet.put("train.objective.huber_schedule", shape, "huber_schedule", say=say)


def noise(sheet: Sheet, case: Case) -> None:
    """What noise is drawn, and for which timesteps."""
    for name, key in (("noise_offset", "noise_offset"), ("ip_noise_gamma", "input_perturbation")):
        value = sheet.number(name)
        if value:
            sheet.put(f"train.objective.{key}", value, name)
    first, end = sheet.whole("min_timestep"), sheet.whole("max_timestep")
    if first is None and end is None:
        return
    low = 0 if first is None else first
    high = _LAST + 1 if end is None else end
    # kohya draws below max_timestep; where the two meet, it takes that one alone.
    last = high - 1 if low < high else high
    low = min(low, last)
    for name, value in (("min_timestep", low), ("max_timestep", last)):
        if not 0 <= value <= _LAST:
            sheet.leave(name, "unreadable", f"timesteps go from 0 to {_LAST}")
            return
    if low:
        sheet.put("train.objective.timesteps.first", low, "min_timestep")
    if last != _LAST:
        sheet.put("train.objective.timesteps.last", last, "max_timestep", say="kohya draws below max_timestep")
