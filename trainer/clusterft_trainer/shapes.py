"""The builtin picture set: coloured shapes with true captions, drawn the same on every machine.

Owns the drawing. Refuses randomness that is not seeded by the picture's number.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 90),
    "blue": (38, 84, 200),
    "yellow": (240, 190, 30),
}
GROUNDS = {"white": (250, 250, 250), "grey": (205, 208, 212)}
SHAPES = ("circle", "square", "triangle")
# Most pictures are square; the others make the aspect buckets of a demo real.
_SIZES = ((128, 128),) * 6 + ((128, 64), (64, 128))
_FINE = 4  # drawn this much larger, then averaged: clean edges


def draw(number: int) -> tuple[Image.Image, str]:
    """Picture `number` of the set and its caption; captions go through all combinations in turn."""
    source = random.Random(f"clusterft shapes {number}")
    shape = SHAPES[number % len(SHAPES)]
    colour = list(COLOURS)[number // len(SHAPES) % len(COLOURS)]
    ground = source.choice(list(GROUNDS))
    width, height = source.choice(_SIZES)
    image = Image.new("RGB", (width * _FINE, height * _FINE), GROUNDS[ground])
    radius = min(width, height) * _FINE * source.uniform(0.30, 0.36)
    x = width * _FINE / 2 + source.uniform(-0.03, 0.03) * width * _FINE
    y = height * _FINE / 2 + source.uniform(-0.03, 0.03) * height * _FINE
    pencil, fill = ImageDraw.Draw(image), COLOURS[colour]
    if shape == "circle":
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        side = radius * 0.9
        pencil.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    else:
        corners = [(x, y - radius), (x + radius, y + radius * 0.8), (x - radius, y + radius * 0.8)]
        pencil.polygon(corners, fill=fill)
    small = image.resize((width, height), Image.Resampling.BOX)
    return small, f"a {colour} {shape} on {ground}"
