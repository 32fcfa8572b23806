"""The types of settings, and the base class of a section of them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: object) -> object:
    """YAML reads `5e-6` as a string; accept it where a number is meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


AsNumber = BeforeValidator(_number)
Number = Annotated[float, Field(allow_inf_nan=False), AsNumber]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AsNumber]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AsNumber]
Fraction = Annotated[float, Field(ge=0, le=1), AsNumber]
UnitFraction = Annotated[float, Field(gt=0, le=1), AsNumber]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TaskIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"]
SUITES: tuple[Suite, ...] = get_args(Suite)
TASKS_PER_SUITE = 10


class Section(BaseModel):
    """A group of settings: unknown keys and wrong types are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
