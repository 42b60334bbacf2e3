"""Two evaluations side by side: what is paired, what is said of it, and what is refused."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.runs.evaluate import evaluate_predictions
from sdm_cli.runs.metrics import Measure


def evaluated(folder, *shifts, names=None, **options):
    """An evaluation of one cube of 4 voxels a case, its mask `shift` voxels off; in steps of 1.5 mm."""
    for name, shift in zip(names or [f"case-{index}" for index in range(len(shifts))], shifts, strict=True):
        for kind, start in (("labels", 2), ("masks", 2 + shift)):
            voxels = np.zeros((16, 8, 8), np.uint8)
            voxels[start : start + 4, 2:6, 2:6] = 1
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 2.0, 5.0, 1.0])), folder / kind / f"{name}.nii.gz")
    return evaluate_predictions(folder / "masks", folder / "labels", output=folder, **options)


def change(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def compared(first, second, *options):
    return CliRunner().invoke(app, ["evaluate", str(first), "--compare", str(second), *options])


def test_cases_are_paired_and_all_is_written_and_shown(tmp_path):
    evaluated(tmp_path / "good", 0, 0, 0, 0, 0, 1, 9)
    evaluated(tmp_path / "bad", 1, 1, 2, 2, 3, 3, 0)
    result = compared(tmp_path / "good", tmp_path / "bad", "--json")
    assert result.exit_code == 0, result.output
    comparison = json.loads(result.stdout)
    folder = tmp_path / "good" / "against-bad"
    assert comparison == json.loads((folder / "comparison.json").read_text())
    dice = np.array([1, 1, 1, 1, 1, 0.75, 0]) - np.array([0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 1])
    entry = comparison["metrics"]["Dice"]["per_class"]["class_1"]
    assert entry["difference"] == pytest.approx(dice.mean()) and entry["low"] < dice.mean() < entry["high"]
    assert entry["n_cases"] == 7 and entry["p"] == entry["p_holm"] and 0.05 < entry["p"] < 1
    differences = [case["classes"]["class_1"]["Dice"]["difference"] for case in comparison["per_case"]]
    assert differences == pytest.approx(dice)
    hd95 = comparison["metrics"]["HD95"]["per_class"]["class_1"]
    assert (hd95["first"], hd95["second"]) == pytest.approx((1.5 * 10 / 7, 1.5 * 12 / 7))
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert len(rows) == 7 * 4 and rows[0]["metric"] == "Dice" and float(rows[0]["difference"]) == 0.25
    again = compared(tmp_path / "good", tmp_path / "bad")
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    shown = compared(tmp_path / "good", tmp_path / "bad", "--overwrite")
    assert shown.exit_code == 0 and f"{100 * dice.mean():+.2f} [" in shown.stdout and "Wilcoxon" in shown.stdout


def test_a_run_stands_for_its_evaluation_of_the_split(tmp_path):
    evaluated(tmp_path / "run" / "evaluation" / "validation", 0, 1)
    evaluated(tmp_path / "other", 1, 1)
    result = compared(tmp_path / "run", tmp_path / "other", "--split", "validation")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "evaluation" / "validation" / "against-other" / "comparison.json").is_file()
    refused = compared(tmp_path / "run", tmp_path / "other")
    assert refused.exit_code == 1 and f"sdm evaluate {tmp_path / 'run'} --split test" in refused.stderr


def test_a_missed_structure_counts_in_dice_and_in_no_distance(tmp_path):
    evaluated(tmp_path / "one", 0, 0)
    evaluated(tmp_path / "two", 0, 0)
    (tmp_path / "two/masks/case-1.nii.gz").unlink()
    evaluate_predictions(tmp_path / "two/masks", tmp_path / "two/labels", output=tmp_path / "two", overwrite=True)
    metrics = json.loads(compared(tmp_path / "one", tmp_path / "two", "--json").stdout)["metrics"]
    assert {name: entry["mean"]["n_cases"] for name, entry in metrics.items()} == {
        "Dice": 2,
        "NSD": 2,
        "HD95": 1,
        "ASD": 1,
    }
    assert metrics["NSD"]["mean"]["difference"] == 0.5 and metrics["HD95"]["mean"]["difference"] == 0
    assert metrics["HD95"]["mean"]["low"] is None


def test_what_a_dash_means_and_where_the_files_are_is_said(tmp_path):
    evaluated(tmp_path / "one", 0, 1, 1)
    evaluated(tmp_path / "two", 1, 2, 9)
    result = compared(tmp_path / "one", tmp_path / "two")
    shown = " ".join(result.stdout.split())
    assert "p: Wilcoxon's signed-rank test, - with fewer than 6 differences that are not zero" in shown
    assert "means over the cases that have the score on both sides" in shown
    folder = tmp_path / "one" / "against-two"
    assert f"{folder / 'comparison.json'} and {folder / 'comparison.csv'}" in result.stderr
    assert (folder / "comparison.csv").is_file()
    said = CliRunner().invoke(app, ["evaluate", "--help"]).stdout
    assert "against-<name of the second>" in " ".join(said.split())


@pytest.mark.parametrize(("tolerance", "words"), [(1.0, "1 voxel"), (2.0, "2 voxels")])
def test_a_tolerance_of_one_is_singular(tmp_path, tolerance, words):
    for name in ("one", "two"):
        evaluated(tmp_path / name, 0, measure=Measure("voxel", tolerance))
    shown = compared(tmp_path / "one", tmp_path / "two").stdout
    assert f"NSD {words} %" in shown and f"NSD within {words}." in " ".join(shown.split())


def test_what_makes_a_comparison_doubtful_is_said_beside_it(tmp_path):
    evaluated(tmp_path / "one", 0, 0, names=["a", "b"])
    other = evaluated(tmp_path / "two", 0, 1, names=["a", "c"])
    other["metric_per_case"][0]["metrics"]["1"]["n_ref"] += 1
    change(tmp_path / "one", split={"name": "s", "role": "test", "hash": "123"}, protocol={"name": "paper"})
    change(
        tmp_path / "two",
        split={"name": "s", "role": "test", "hash": "456"},
        protocol={"name": "clean"},
        metric_per_case=other["metric_per_case"],
    )
    result = compared(tmp_path / "one", tmp_path / "two")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for words in ("splits: 123 and 456", "protocols: paper and clean", "scored against differ in a", "left out: b, c"):
        assert words in result.stderr and words in shown


def test_what_cannot_be_compared_is_refused_with_the_remedy(tmp_path):
    one = evaluated(tmp_path / "one", 0)
    evaluated(tmp_path / "voxels", 0, measure=Measure("voxel"))
    evaluated(tmp_path / "tolerance", 0, measure=Measure(tolerance=2.0))
    evaluated(tmp_path / "others", 0, names=["other"])
    metrics = one["metric_per_case"][0]["metrics"]["1"]
    without = {key: value for key, value in metrics.items() if key != "NSD"}
    for name, changes in {
        "classes": {"classes": {"1": "liver"}},
        "old": {"metric_per_case": [{"case_id": "case-0", "metrics": {"1": without}}]},
        "words": {"metric_per_case": [{"case_id": "case-0", "metrics": {"1": {**metrics, "Dice": "high"}}}]},
        "infinite": {"metric_per_case": [{"case_id": "case-0", "metrics": {"1": {**metrics, "HD95": float("inf")}}}]},
        "huge": {"metric_per_case": [{"case_id": "case-0", "metrics": {"1": {**metrics, "Dice": 10**400}}}]},
        "split": {"split": 5},
        "no number": {"tolerance": "x"},
        "no unit": {"unit": ["mm"]},
        "no names": {"classes": {"1": ["liver"]}},
    }.items():
        evaluated(tmp_path / name, 0)
        change(tmp_path / name, **changes)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("[1")
    (tmp_path / "run").mkdir()
    refused = {
        "voxels": "--unit",
        "tolerance": "1.0 and 2.0",
        "others": "share no case (case-0; other)",
        "classes": "1 class_1 and 1 liver",
        **dict.fromkeys(
            ("old", "words", "infinite", "huge", "split", "no number", "no unit", "no names", "broken"),
            "evaluate again",
        ),
        "run": "--split test",
        "absent": "does not exist",
    }
    for name, words in refused.items():
        result = compared(tmp_path / "one", tmp_path / name)
        assert result.exit_code == 1 and words in result.stderr, (name, result.output, result.exception)
        assert len(result.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "one").glob("against-*"))


def test_a_comparison_takes_nothing_that_scores(tmp_path):
    evaluated(tmp_path / "one", 0)
    folders = ("--predictions", str(tmp_path), "--labels", str(tmp_path))
    for options in (folders, ("--store", str(tmp_path))):
        assert compared(tmp_path / "one", tmp_path / "one", *options).exit_code == 2
    assert CliRunner().invoke(app, ["evaluate", "--compare", str(tmp_path / "one")]).exit_code == 2
