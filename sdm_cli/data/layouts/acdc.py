"""ACDC 2017: `patient001/patient001_frame01.nii.gz`, `..._frame01_gt.nii.gz` and `Info.cfg`.

The two annotated frames of a patient (end diastole and end systole) are two cases; the film `..._4d.nii.gz` is none.
"""

import re
from pathlib import Path

from sdm_cli.data.cases import Case, nifti_stem
from sdm_cli.data.layouts.search import files_below, named_twice, nifti_files, nifti_named
from sdm_cli.documents import read_text
from sdm_cli.errors import reason_of

_FRAME = re.compile(r"(patient\d{3})_frame\d{2}(_gt)?")
_INFO = "Info.cfg"
_LEVELS = 3  # database/training/patient001/


def find(folder: Path) -> list[Case]:
    """Cases of `training`, `testing` or the patients' folders themselves; empty where the folder is of another layout.

    `Info.cfg` counts frames from 1, as the files do.
    """
    frames = [path for path in files_below(folder, "patient*_frame*.nii*", _LEVELS) if _is_frame(path)]
    return [case for patient in sorted({path.parent for path in frames}) for case in _cases_of(patient)]


def _is_frame(path: Path) -> bool:
    match = _FRAME.fullmatch(nifti_stem(path))
    return match is not None and match[1] == path.parent.name


def _cases_of(patient: Path) -> list[Case]:
    """The frames that are there and those that `Info.cfg` names, which fail when they are read."""
    there = {nifti_stem(path).removesuffix("_gt") for path in nifti_files(patient) if _is_frame(path)}
    named, problem = _named_frames(patient)
    if there == {f"{patient.name}_frame{number}" for number in ("01", "02")}:
        named = set()  # as SSL4MIS numbers them: first and second, whatever the time
    cases = []
    for case_id in sorted(there | named):
        image = nifti_named(patient, case_id)
        lacking = None
        if image is None:
            wanted_by = _INFO if case_id in named else f"{case_id}_gt"
            lacking = f"{patient} has no {case_id}.nii.gz, which {wanted_by} asks for: download the patient again."
        path = image or patient / f"{case_id}.nii.gz"
        label = nifti_named(patient, f"{case_id}_gt")
        twice = named_twice(patient, case_id, f"{case_id}_gt")
        cases.append(Case(case_id, path, label, patient=patient.name, problem=problem or lacking or twice))
    return cases


def _named_frames(patient: Path) -> tuple[set[str], str | None]:
    """Ids of the frames of `Info.cfg`, and what is wrong with it; none of both where there is no such file."""
    path = patient / _INFO
    if not path.exists():
        return set(), None
    try:
        text = read_text(path, errors="replace")
    except (OSError, ValueError) as error:
        return set(), f"{path} cannot be read ({reason_of(error)}): check its permissions."
    frames = [re.search(rf"^{name}:\s*(\d+)\s*$", text, re.MULTILINE) for name in ("ED", "ES")]
    if None in frames:
        return set(), (
            f"{path} has no lines like ED: 1 and ES: 12: download it again, or delete it to take every frame there is."
        )
    return {f"{patient.name}_frame{int(frame[1]):02d}" for frame in frames if frame is not None}, None
