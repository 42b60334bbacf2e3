"""MMWHS 2017: `ct_train/ct_train_1001_image.nii.gz` with `ct_train_1001_label.nii.gz` beside it, and the same of MR.

The test scans (`ct_test/ct_test_2001_image.nii.gz`) have no labels that can be read.
"""

import re
from pathlib import Path

from sdm_cli.data.cases import Case, nifti_stem
from sdm_cli.data.layouts.search import files_below, named_twice, nifti_named

_FILE = re.compile(r"((ct|mr)_(?:train|test)_\d{4})_(?:image|label)")
_LEVELS = 2


def find(folder: Path) -> list[Case]:
    """Cases of one folder or of one for each modality; empty where the folder is of another layout.

    Modality is domain. The image of a lone label is a case too, which fails when it is read.
    """
    names = [(path.parent, _FILE.fullmatch(nifti_stem(path))) for path in files_below(folder, "*_*_*.nii*", _LEVELS)]
    scans = sorted({(parent, match[1], match[2]) for parent, match in names if match is not None})
    return [
        Case(
            case_id,
            nifti_named(parent, f"{case_id}_image") or parent / f"{case_id}_image.nii.gz",
            nifti_named(parent, f"{case_id}_label"),
            domain=modality,
            patient=case_id,
            problem=named_twice(parent, f"{case_id}_image", f"{case_id}_label"),
        )
        for parent, case_id, modality in scans
    ]
