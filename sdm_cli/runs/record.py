"""The record of a run, `metrics.jsonl`: what its lines are, and reading them.

A line is one JSON object: losses and class shares of a step (`loss`), a validation (`validation`), or an alarm
(`collapse`, see there). Knows neither the folder nor the classes of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import CheckpointError, reason_of

RECORD_EVERY = 10
"""Steps between two lines of losses; reading a loss makes the device wait."""

_Name = Annotated[str, Field(pattern=r"^\P{Cc}*$")]  # of a class; it reaches terminals
_Shares = dict[_Name, Annotated[float, Field(ge=0)]] | None
_Score = Annotated[float, Field(ge=0, le=1)] | None


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Validation(_Checked):
    dice: _Score
    pooled_iou: _Score
    per_class: dict[_Name, _Score]


class _Line(_Checked):
    """What is read again of a line; whatever else stands in it is left as it is."""

    step: int = Field(ge=0, lt=2**53)
    loss: float = 0.0
    loss_labeled: float | None = None
    loss_unlabeled: float | None = None
    loss_consistency: float | None = None
    lr: float | None = None
    labeled_share: _Shares = None
    pseudo_share: _Shares = None
    class_weights: _Shares = None
    validation: _Validation = _Validation(dice=None, pooled_iou=None, per_class={})
    collapse: dict[_Name, Any] = {}


class Record(NamedTuple):
    """What a record says.

    Attributes:
        entries: its lines, in their order.
        damaged: how many whole lines are no lines of a record; half a last line, which a kill leaves, is not counted.
    """

    entries: list[dict[str, Any]]
    damaged: int


def read_record(path: Path) -> Record:
    """Read a record; one that is missing says nothing yet.

    Raises:
        CheckpointError: it is there and cannot be read, or is too large.
    """
    try:
        lines = read_text(path, errors="replace").splitlines(keepends=True) if path.exists() else []
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({reason_of(error)}): put an intact copy in its place, or move it away."
        ) from None
    entries, damaged = [], 0
    for line in lines:
        try:
            entry = parse_json(line)
            _Line.model_validate(entry)
            entries.append(entry)
        except ValueError:  # pydantic's among them
            damaged += line.endswith("\n")
    return Record(entries, damaged)


def score_of(validation: Mapping[str, Any], protocol: str) -> float | None:
    """What chooses the best validation: pooled IoU as published (method.md section 3); ours is Dice of volumes."""
    score: float | None = validation["pooled_iou" if protocol == "paper" else "dice"]
    return score
