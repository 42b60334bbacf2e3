"""AMOS 2022: the folders of MSD; the number of a case tells its modality."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdm_cli.data.cases import Case, some
from sdm_cli.data.layouts import folders
from sdm_cli.errors import ImageReadError

_CASE = re.compile(r"amos_(\d{4})")
_FIRST_MR = 500


def find(folder: Path, for_prediction: bool = False, strays: list[Path] | None = None) -> list[Case]:
    """Cases of `imagesTr` and `imagesVa`; of `imagesTs` for prediction alone.

    Raises:
        ImageReadError: a scan is not named like AMOS's; for prediction, such a scan has no domain.
    """
    cases = with_modality(folders.find(folder, None, for_prediction, strays))
    strangers = [case.case_id for case in cases if case.domain is None]
    if strangers and not for_prediction:
        raise ImageReadError(
            f"{folder} holds {some(strangers)}, not named like AMOS (amos_0001.nii.gz): move the scans away, or set "
            "data.layout: folders."
        )
    return cases


def with_modality(cases: Sequence[Case]) -> list[Case]:
    """The cases with `ct` or `mr` as domain."""
    return [replace(case, domain=_modality(case.case_id)) for case in cases]


def _modality(case_id: str) -> str | None:
    match = _CASE.fullmatch(case_id)
    if match is None:
        return None
    return "mr" if int(match[1]) >= _FIRST_MR else "ct"
