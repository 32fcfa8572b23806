"""The types of settings, and the base class of a section of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.ASCII | re.IGNORECASE)


def _number(value: object) -> object:
    """YAML reads `5e-6` as a string; accept it where a number is meant (but not all that float() accepts)."""
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


AsNumber = BeforeValidator(_number)
Number = Annotated[float, Field(allow_inf_nan=False), AsNumber]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AsNumber]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AsNumber]
Fraction = Annotated[float, Field(ge=0, le=1), AsNumber]
UnitFraction = Annotated[float, Field(gt=0, le=1), AsNumber]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TaskIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generators take."""
NAME_LENGTH = 100
"""Characters of a name that folders and files are called by; file systems take 255 with what is added."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=NAME_LENGTH)]

Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"]
SUITES: tuple[Suite, ...] = get_args(Suite)
TASKS_PER_SUITE = 10


def require_distinct(name: str, values: Collection[object]) -> None:
    """Raise ValueError if a list of settings has a value twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{name} {list(values)} repeat")


class Section(BaseModel):
    """A group of settings: unknown keys and wrong types are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
