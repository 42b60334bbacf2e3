"""What the unlabeled scans bought, as a section of the page of a run: from the `gain.json` of its study."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sdm_cli.data.cases import counted
from sdm_cli.documents import parse_json, read_text
from sdm_cli.runs.html_page import section, sentences, table
from sdm_cli.runs.study_report import GAIN, MEAN, gain_cells, verdict


def gain_section(run: Path) -> Element | None:
    """Tables of the gain per class and per case over the labeled-only twin; of all seeds, where the study has several.

    Args:
        run: folder of a run, which is its study or lies in it.

    Returns:
        The section; none without a study, or where its file is damaged.
    """
    for folder in (run, run.parent):
        try:
            gain = parse_json(read_text(folder / GAIN))
            parts = [part for role, of_role in gain["roles"].items() for part in _of_role(role, of_role, gain["seeds"])]
            return section("What the unlabeled scans bought", *parts)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # a report without it is worth more than none
    return None


def _of_role(role: str, of_role: Mapping[str, Any], seeds: list[int]) -> Iterator[Element]:
    named = [*of_role["per_class"].items(), (MEAN, of_role["mean"])]
    of_seeds = f"{counted(len(seeds), 'seed')}: {', '.join(str(seed) for seed in seeds)}"
    yield table(
        f"Dice % of {counted(of_role['n_cases'], f'{role} case')} beside the labeled-only training ({of_seeds})",
        ("", "Dice", "labeled only", "gain [95 %]", "cases"),
        [(*gain_cells(name, entry), str(entry["n_cases"])) for name, entry in named],
    )
    yield sentences([verdict(of_role["mean"]), *of_role["remarks"]])
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
