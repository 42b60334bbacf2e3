"""Kinds of values that the fields of a preset have, and how strictly they are read."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a file in any folder, and leads nowhere else."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(name.encode()) < 200


def _not_a_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


NUMBER = BeforeValidator(_not_a_truth_value)
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[int, Field(gt=0), NUMBER]
NotNegative = Annotated[int, Field(ge=0), NUMBER]
PositiveFloat = Annotated[float, Field(gt=0), NUMBER]
Fraction = Annotated[float, Field(ge=0, le=1), NUMBER]
# At 1 nothing is kept, and what is kept is divided by 1 - rate.
DropRate = Annotated[float, Field(ge=0, lt=1), NUMBER]
NonNegative = Annotated[float, Field(ge=0), NUMBER]
# Whole in float32, and few enough for a table of all of them.
LabelValue = Annotated[int, Field(ge=-(2**24), le=2**24), NUMBER]
Range = tuple[float, float]
CropSide = Annotated[int, Field(ge=32), NUMBER]  # stride of the encoder
