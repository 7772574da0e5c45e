"""What all sections of the settings share: strictness, and the few types that have a unit."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["fp16", "bf16", "fp32"]

_CADENCE = re.compile(r"\s*(\d+)\s*(min|minutes?|steps?|epochs?)\s*")
_UNITS = {"min": "minutes", "minute": "minutes", "step": "steps", "epoch": "epochs"}


class Section(BaseModel):
    """Base of every section: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Span(Section):
    """A length of training or of time; written as '15min', '200 steps' or '1 epoch'."""

    count: PositiveInt
    unit: Literal["minutes", "steps", "epochs"]

    def __str__(self) -> str:
        """As it is written in a job."""
        return f"{self.count} {self.unit}"


def _parse_span(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = _CADENCE.fullmatch(value)
    if found is None:
        raise ValueError("write it as '15min', '200 steps' or '1 epoch'")
    return {"count": int(found[1]), "unit": _UNITS.get(found[2], found[2])}


Cadence = Annotated[Span, BeforeValidator(_parse_span), PlainSerializer(str)]
