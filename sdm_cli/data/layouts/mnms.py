"""M&Ms: `<code>/<code>_sa.nii.gz` and `<code>_sa_gt.nii.gz`, films of which two frames are annotated.

A table names the two frames (end diastole and end systole) and the vendor of each subject. The table decides, not the
films: an unlabeled film would not tell, and the frame is part of the id by which splits and scores know a case.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from sdm_cli.data.cases import Case, nifti_stem
from sdm_cli.data.layouts.mnms_table import Subject, read_table
from sdm_cli.data.layouts.search import files_below, named_twice, nifti_named

_CODE = re.compile(r"(?:[A-Z]\d){3}")
_LEVELS = 5  # OpenDataset/Training/Labeled/vendorA/centre1/A0S9V9/, from within OpenDataset


def find(folder: Path) -> list[Case]:
    """Two cases a subject, `<code>_sa_<frame>`; empty where the folder is of another layout.

    A subject that the table lacks, or names no two frames of, is one case, which fails when it is read.

    Raises:
        ImageReadError: there is no table, or it cannot be read.
    """
    scans = sorted({path.parent for path in files_below(folder, "*_sa.nii*", _LEVELS) if _is_film(path)})
    if not scans:
        return []
    table, subjects = read_table(folder)
    return [case for scan in scans for case in _cases_of(scan, table, subjects)]


def _is_film(path: Path) -> bool:
    code = path.parent.name
    return _CODE.fullmatch(code) is not None and nifti_stem(path) == f"{code}_sa"


def _cases_of(scan: Path, table: Path, subjects: Mapping[str, Subject]) -> list[Case]:
    code = scan.name
    film = nifti_named(scan, f"{code}_sa") or scan / f"{code}_sa.nii.gz"
    label = nifti_named(scan, f"{code}_sa_gt")
    subject = subjects.get(code)
    if subject is None:
        return [Case(f"{code}_sa", film, label, patient=code, problem=f"{table} has no row of {code}: add it.")]
    frames = subject.frames
    if frames is None:
        said = f"ED {subject.ed or 'empty'} and ES {subject.es or 'empty'}"
        problem = f"{table} gives {code} {said}, not two different frames counted from 0: correct its row."
        return [Case(f"{code}_sa", film, label, subject.vendor, code, problem=problem)]
    twice = named_twice(scan, f"{code}_sa", f"{code}_sa_gt")
    return [Case(f"{code}_sa_{frame}", film, label, subject.vendor, code, frame, twice) for frame in frames]
