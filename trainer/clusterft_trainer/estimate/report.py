"""An Estimate as text for people and as JSON for programs. Pure; refuses to compute anything."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from clusterft_trainer.estimate import arithmetic
from clusterft_trainer.estimate.arithmetic import Term
from clusterft_trainer.estimate.predict import HEADROOM, Estimate, Option

_CAVEATS = (
    "Weights, gradients and optimizer state are exact. Activations are counted without workspaces of cuDNN and",
    f"gaps in the allocator, on an H200 up to 3 GiB each, for which {HEADROOM:.0%} of the memory stays free.",
    "The compiler's work, samples and held-out loss are not included.",
)


def to_json(estimate: Estimate) -> dict[str, Any]:
    """Schema 1; bytes, seconds and FLOPs without prefixes."""
    body = asdict(estimate)
    body["vram_total"] = arithmetic.total(estimate.vram)
    body["host_total"] = arithmetic.total(estimate.host)
    body["disk_total"] = arithmetic.total(estimate.disk)
    body["fits"] = estimate.fits
    body["flops"]["useful"] = estimate.flops.useful
    body["flops"]["recomputed"] = estimate.recomputed
    return body


def text(estimate: Estimate) -> str:
    """A page."""
    blocks = [_head(estimate), _memory(estimate), _storage(estimate), _speed(estimate), _advice(estimate)]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n\n" + "\n".join(_CAVEATS) + "\n"


def _head(estimate: Estimate) -> list[str]:
    site, (width, height) = estimate.site, estimate.size
    where = f"{site.nodes} x {site.slots} slots" + (f" of {site.gpu}" if site.gpu else "")
    lines = [f"{estimate.model}, {estimate.engine} on {where}, {width}x{height}, {estimate.batch} samples a step"]
    if estimate.assumed:
        lines.append(f"Note: {estimate.assumed}.")
    parts = [
        f"{part} {moving / 1e6:.0f} of {all_ / 1e6:.0f} M" for part, (all_, moving) in estimate.weights.items()
    ]
    return [*lines, "Trained weights: " + ", ".join(parts)]


def _memory(estimate: Estimate) -> list[str]:
    room = estimate.site.room
    total = arithmetic.total(estimate.vram)
    verdict = (
        "" if room is None else f"; {room / 1e9:.1f} GB may be used: " + ("fits" if total <= room else "TOO MUCH")
    )
    host = [f"Host memory of a node {_size(arithmetic.total(estimate.host))}", *_terms(estimate.host)]
    return [f"Memory of a slot {_size(total)}{verdict}", *_terms(estimate.vram), *host]


def _storage(estimate: Estimate) -> list[str]:
    sizes = f"Checkpoint {_size(estimate.checkpoint)}, export {_size(estimate.export)}"
    return [f"{sizes}, disk at most {_size(arithmetic.total(estimate.disk))}", *_terms(estimate.disk)]


def _speed(estimate: Estimate) -> list[str]:
    flops, time = estimate.flops, estimate.time
    again = f", {estimate.recomputed / 1e12:.2f} computed anew" if estimate.recomputed else ""
    lines = [
        f"A sample takes {flops.useful / 1e12:.2f} TFLOP (forward {flops.forward / 1e12:.2f}){again}; "
        f"frozen encoders {(flops.text + flops.vae) / 1e12:.2f} where not remembered",
        f"A slot sends {_size(time.sent)} for each step",
    ]
    parts = {"compute": time.compute, "communication": time.communication, "step": time.step}
    told = ", ".join(f"{name} {_seconds(value)}" for name, value in parts.items())
    lines.append(f"Time: {told}" + (f"; {time.images_per_second:.2f} img/s" if time.images_per_second else ""))
    if time.encoding:
        lines.append(f"In the first epoch encoding adds {_seconds(time.encoding)} to a step")
    lines.append(f"Assumed: {time.told}; reading pictures not included")
    if time.step is None:
        missing = [o for o, v in (("--gpu", time.compute), ("--link", time.communication)) if v is None]
        lines.append(f"Give {' and '.join(missing)} for the time of a step")
    return lines


def _advice(estimate: Estimate) -> list[str]:
    lines = ["Engines for these settings:", *(_option(option) for option in estimate.options)]
    if estimate.recommended:
        return [*lines, f"Recommended: {estimate.recommended}, the first of these that fits"]
    if estimate.site.room is None:
        return [*lines, "Give --gpu or --memory for a recommendation"]
    lines.append("None of them fits. What would:")
    if not estimate.remedies:
        return [*lines, "  nothing that was tried: more slots, larger cards, or learn.lora"]
    return lines + [
        f"  {' + '.join(remedy.changes)}  with {remedy.engine}: {_size(remedy.vram)}"
        for remedy in estimate.remedies
    ]


def _option(option: Option) -> str:
    if option.vram is None:
        return f"  {option.engine:<20} {option.refused}"
    fits = {None: "", True: "fits", False: "too much"}[option.fits]
    step = "" if option.step is None else f"{_seconds(option.step)} a step"
    return f"  {option.engine:<20} {_size(option.vram):>9}  {fits:<8}  {step}".rstrip()


def _terms(terms: tuple[Term, ...]) -> list[str]:
    return [f"  {term.name:<26} {_size(term.bytes):>9}  {term.why}" for term in terms]


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"
