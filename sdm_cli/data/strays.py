"""The cases of a folder, and its labels without an image as findings that do not stop the rest."""

from pathlib import Path

from sdm_cli.data.cases import Case
from sdm_cli.data.findings import Finding
from sdm_cli.data.layouts import find_cases
from sdm_cli.data_config import Layout


def find_cases_and_strays(folder: Path, labels: Path | None, layout: Layout) -> tuple[list[Case], list[Finding]]:
    """The cases of a folder, and a finding for each label that has no image.

    Raises:
        ImageReadError: the folder cannot be read for another reason.
    """
    strays: list[Path] = []
    cases = find_cases(folder, labels, layout, strays=strays)
    repair = "Rename or remove the label."
    findings = [
        Finding("blocks", "label_without_image", None, f"{path} has no image of the same name.", repair)
        for path in strays
    ]
    return cases, findings
