"""What the unlabeled scans bought, as a section of the page of a run: from the `gain.json` of its study."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import CheckpointError
from sdm_cli.method.checkpoint import weights_sha256
from sdm_cli.runs.html_page import section, sentences, table
from sdm_cli.runs.study_report import GAIN, gain_table
from sdm_cli.runs.torch_model import find_model


def gain_section(run: Path) -> Element | None:
    """Tables of the gain per class and per case over the labeled-only twin; of all seeds, where the study has several.

    Args:
        run: folder of a run, which is its study or lies in it.

    Returns:
        The section; none where no study measured the run as it is, or where its file is damaged.
    """
    path = next((folder / GAIN for folder in (run, run.parent) if (folder / GAIN).is_file()), None)
    if path is None:
        return None
    try:
        gain = parse_json(read_text(path))
        if weights_sha256(find_model(run)) not in gain["weights_sha256"]:  # of another run, or trained on since
            return None
        parts = [part for role, of_role in gain["roles"].items() for part in _of_role(role, of_role, gain["seeds"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, CheckpointError):
        return None  # a page without it is worth more than none
    return section("What the unlabeled scans bought", *parts) if parts else None


def _of_role(role: str, of_role: Mapping[str, Any], seeds: list[int]) -> Iterator[Element]:
    gains = gain_table(role, of_role, seeds)
    yield table(gains.title, ("", *gains.headings), gains.rows)
    yield sentences(gains.remarks)
    classes = list(of_role["per_class"])
    yield table(
        f"Gain of each {role} case, in points of Dice",
        ("case", *classes, "mean"),
        [
            (case["case_id"], *(_points(case["per_class"][name]) for name in classes), _points(case["mean"]))
            for case in of_role["per_case"]
        ],
        sortable=True,
    )


def _points(gain: float | None) -> str:
    return "-" if gain is None else f"{100 * gain:+.2f}"
