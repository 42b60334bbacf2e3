"""Evaluation: masks on disk and models, what is written, and what is refused."""

import csv
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.cases import Case
from sdm_cli.data.itk import write_itk_mask
from sdm_cli.data.manifest import Manifest, write_manifest
from sdm_cli.data.splits import load_split
from sdm_cli.data.store import SliceStore, write_case
from sdm_cli.data.volume import Geometry, read_nifti, slice_spacing_mm, write_mask
from sdm_cli.errors import CheckpointError, ImageReadError, OutputError, SomeCasesFailed, SplitError, StoreError
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.method.network import build_network
from sdm_cli.preset_files import load_preset, preset_from_dict
from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
from sdm_cli.runs.metrics import Measure
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.score_table import show_summary
from sdm_cli.runs.summary import require_all_scored

SPACING_MM = (1.5, 2.0, 5.0)


def _save(path, voxels, spacing_mm=SPACING_MM, shift_mm=0.0):
    affine = np.diag([*spacing_mm, 1.0])
    affine[0, 3] = shift_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), affine), path)


def _box(start, value=1, side=4, shape=(16, 12, 8)):
    voxels = np.zeros(shape, np.uint8)
    voxels[tuple(slice(first, first + side) for first in start)] = value
    return voxels


@pytest.fixture
def masks(tmp_path):
    """Three labels of values 2 and 7; masks of two of them and of one case more."""
    labels, predictions = tmp_path / "labels", tmp_path / "masks"
    _save(labels / "perfect.nii.gz", _box((2, 2, 2), 2) + _box((9, 2, 2), 7))
    _save(predictions / "perfect.nii.gz", _box((2, 2, 2), 2) + _box((9, 2, 2), 7))
    _save(labels / "shifted.nii.gz", _box((2, 2, 2), 2))
    _save(predictions / "shifted.nii.gz", _box((2, 4, 2), 2))
    _save(labels / "without-mask.nii.gz", _box((2, 2, 2), 2))
    _save(predictions / "without-label.nii.gz", _box((2, 2, 2), 2))
    return predictions, labels


def test_masks_are_scored_case_by_case_in_mm(masks):
    predictions, labels = masks
    summary = evaluate_predictions(predictions, labels)
    assert summary["classes"] == {"2": "class_2", "7": "class_7"}
    perfect, shifted, missing = summary["metric_per_case"]
    assert [case["case_id"] for case in (perfect, shifted, missing)] == ["perfect", "shifted", "without-mask"]
    for label in ("2", "7"):
        assert perfect["metrics"][label]["Dice"] == perfect["metrics"][label]["IoU"] == 1
        assert perfect["metrics"][label]["HD95"] == perfect["metrics"][label]["ASD"] == 0
    assert shifted["metrics"]["2"]["Dice"] == pytest.approx(0.5)
    assert shifted["metrics"]["2"]["IoU"] == pytest.approx(1 / 3)
    assert shifted["metrics"]["2"]["HD95"] == 4.0  # two voxels of 2 mm
    assert shifted["metrics"]["7"]["Dice"] is None and shifted["metrics"]["7"]["n_ref"] == 0
    in_voxels = evaluate_predictions(predictions, labels, measure=Measure("voxel"), overwrite=True)
    assert in_voxels["metric_per_case"][1]["metrics"]["2"]["HD95"] == 2.0


def test_a_missing_mask_is_listed_and_scored_zero(masks, capsys):
    summary = evaluate_predictions(*masks)
    missing = summary["metric_per_case"][2]
    assert summary["missing_predictions"] == ["without-mask"]
    assert summary["predictions_without_label"] == ["without-label"]
    assert missing["prediction_file"] is None
    assert missing["metrics"]["2"]["Dice"] == 0 and missing["metrics"]["2"]["HD95"] is None
    stderr = capsys.readouterr().err
    assert "no mask of without-mask" in stderr and "no label of without-label" in stderr


def test_undefined_values_are_counted_and_never_averaged(masks):
    summary = evaluate_predictions(*masks)
    two, seven = summary["mean"]["2"], summary["mean"]["7"]
    assert two["Dice"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert two["std"]["Dice"] == pytest.approx(np.std([1, 0.5, 0]))
    assert two["HD95"] == pytest.approx((0 + 4) / 2)
    volumes = {"volume_difference_ml": 3, "volume_difference_percent": 3}
    assert two["n_defined"] == {"Dice": 3, "IoU": 3, "HD95": 2, "ASD": 2, "NSD": 3, **volumes}
    assert (two["n_missed"], two["n_invented"]) == (1, 0)
    assert seven["Dice"] == 1 and seven["n_defined"]["Dice"] == 1
    assert summary["foreground_mean"]["Dice"] == pytest.approx((0.5 + 1) / 2)
    # Pooled: of class 2, 64 + 32 of three boxes of 64 are found, and 32 are false.
    assert summary["pooled"]["per_class"]["2"]["pooled_iou"] == pytest.approx(96 / (192 + 32))
    assert summary["pooled"]["pooled_iou"] == pytest.approx((96 / 224 + 1) / 2)


def test_an_invented_structure_scores_zero(tmp_path):
    _save(tmp_path / "labels/a.nii.gz", _box((2, 2, 2), 1))
    _save(tmp_path / "masks/a.nii.gz", _box((2, 2, 2), 1) + _box((9, 2, 2), 3))
    summary = evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    assert summary["mean"]["3"]["Dice"] == 0 and summary["mean"]["3"]["n_invented"] == 1
    assert summary["mean"]["3"]["HD95"] is None


def test_the_files_hold_what_is_returned(masks):
    predictions, labels = masks
    summary = evaluate_predictions(predictions, labels)
    assert json.loads((predictions / "summary.json").read_text()) == summary
    with (predictions / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    assert rows[0]["case"] == "perfect" and rows[0]["class"] == "class_2" and float(rows[0]["dice"]) == 1
    assert rows[3]["hd95_mm"] == "" and rows[3]["dice"] == ""  # class 7 is absent from case shifted
    assert not [path for path in predictions.iterdir() if path.name.startswith(".")]


def test_results_are_not_replaced_unasked(masks, tmp_path):
    evaluate_predictions(*masks)
    with pytest.raises(OutputError, match=r"summary\.json holds the results of an earlier evaluation: .*--overwrite"):
        evaluate_predictions(*masks)
    evaluate_predictions(*masks, output=tmp_path / "elsewhere")
    evaluate_predictions(*masks, overwrite=True)


def test_a_preset_names_the_classes_and_the_ignored_value(tmp_path, capsys):
    preset = preset_from_dict(
        {"data": {"classes": {"liver": 2}, "background_values": [5], "ignore_value": 9}, "train": {"steps": 1}}, "test"
    )
    label, mask = _box((2, 2, 2), 2), _box((2, 2, 2), 2)
    label[0, 0, 0], label[9:12], mask[9:12] = 5, 9, 2
    _save(tmp_path / "labels/a.nii.gz", label)
    _save(tmp_path / "masks/a.nii.gz", mask)
    summary = evaluate_predictions(tmp_path / "masks", tmp_path / "labels", preset)
    assert summary["classes"] == {"2": "liver"}
    assert summary["mean"]["2"]["Dice"] == 1
    _save(tmp_path / "masks/a.nii.gz", _box((2, 2, 2), 3))
    with pytest.raises(SomeCasesFailed, match=r"None of the 1 cases .*\(a\)"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels", preset, overwrite=True)
    assert "masks/a.nii.gz has label values 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("voxels", "changes"),
    [
        (_box((2, 2, 2))[:-1], {}),
        (_box((2, 2, 2)), {"spacing_mm": (1.5, 2.0, 4.0)}),
        (_box((2, 2, 2)), {"shift_mm": 3}),
    ],
)
def test_a_mask_on_another_grid_fails_alone(tmp_path, capsys, voxels, changes):
    labels, masks = tmp_path / "labels", tmp_path / "masks"
    _save(labels / "a.nii.gz", _box((2, 2, 2)))
    _save(masks / "a.nii.gz", voxels, **changes)
    with pytest.raises(SomeCasesFailed, match="None of the 1 cases"):
        evaluate_predictions(masks, labels)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"masks/a\.nii\.gz is not on the voxel grid of \S+labels/a\.nii\.gz", said)
    assert not (masks / "summary.json").exists()
    _save(labels / "b.nii.gz", _box((2, 2, 2)))
    _save(masks / "b.nii.gz", _box((2, 2, 2)))
    result = CliRunner().invoke(
        app, ["evaluate", "--predictions", str(masks), "--labels", str(labels), "--workers", "1"]
    )
    assert result.exit_code == 4 and "class_1" in result.stdout  # the table of the others is shown
    assert re.search(r"1 of 2 cases could not be scored \(a\).*--overwrite", result.stderr)
    summary = json.loads((masks / "summary.json").read_text())
    (failure,) = summary["failed"]
    assert failure["case_id"] == "a" and "not on the voxel grid" in failure["reason"]
    assert summary["n_cases"] == 1 and summary["mean"]["1"]["Dice"] == 1
    assert [case["case_id"] for case in summary["metric_per_case"]] == ["b"]


@pytest.mark.parametrize("folder", ["labels", "masks"])
def test_a_damaged_file_fails_alone(tmp_path, folder):
    for name in ("a", "b"):
        _save(tmp_path / f"labels/{name}.nii.gz", _box((2, 2, 2)))
        _save(tmp_path / f"masks/{name}.nii.gz", _box((2, 2, 2)))
    damaged = tmp_path / folder / "a.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:60])
    summary = evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    assert summary == json.loads((tmp_path / "masks/summary.json").read_text())
    with pytest.raises(SomeCasesFailed, match=r"1 of 2 cases"):
        require_all_scored(summary)
    assert str(damaged) in summary["failed"][0]["reason"] and summary["foreground_mean"]["Dice"] == 1


def test_a_damaged_case_of_a_store_fails_alone(run, tmp_path):
    split = {"labeled": ["a"], "unlabeled": ["b"], "test": ["e", "c", "d"]}
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "split": split}))
    _make_store(tmp_path / "other", RunFolder(run).read_config()[0], {"c": True, "d": True, "e": True})
    damaged = tmp_path / "other" / "cases" / "c.h5"
    damaged.write_bytes(damaged.read_bytes()[:500])
    summary = evaluate_model(run, tmp_path / "other", device="cpu", workers=2)  # which score what is predicted here
    assert summary["split"]["cases"] == ["e", "c", "d"]
    assert [case["case_id"] for case in summary["metric_per_case"]] == ["e", "d"]
    assert summary["failed"][0]["case_id"] == "c" and str(damaged) in summary["failed"][0]["reason"]
    assert summary == evaluate_model(run, tmp_path / "other", device="cpu", overwrite=True)


def test_folders_that_cannot_be_matched_are_named(tmp_path):
    _save(tmp_path / "labels/a.nii.gz", _box((2, 2, 2)))
    with pytest.raises(ImageReadError, match="masks is not a folder"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ImageReadError, match="masks holds no NIfTI, NRRD or MetaImage file"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    _save(tmp_path / "masks/b.nii.gz", _box((2, 2, 2)))
    with pytest.raises(ImageReadError, match=r"no mask with the name of a label \(b against a\)"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    _save(tmp_path / "masks/b.nii", _box((2, 2, 2)))
    with pytest.raises(ImageReadError, match="are both case b"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels")


def test_labels_of_sites_have_the_ids_of_their_scans(tmp_path):
    """As `sdm predict` names masks: with the site where two sites have a scan of one name, labeled or not."""
    masks, labels = tmp_path / "masks", tmp_path / "labels"
    for name in ("A_a", "B_a", "B_b"):
        _save(masks / f"{name}.nii.gz", _box((2, 2, 2)))
    for names in (["A/a", "B/a"], ["A/a"]):
        shutil.rmtree(labels, ignore_errors=True)
        for name in names:
            _save(labels / f"{name}.nii.gz", _box((2, 2, 2)))
        summary = evaluate_predictions(masks, labels, overwrite=True)
        assert [case["case_id"] for case in summary["metric_per_case"]] == [name.replace("/", "_") for name in names]
        assert summary["foreground_mean"]["Dice"] == 1
    _save(labels / "A" / "a.nii", _box((2, 2, 2)))
    with pytest.raises(ImageReadError, match=r"labels/A/a\.nii and .* are both case A_a: rename or remove one"):
        evaluate_predictions(masks, labels, overwrite=True)


def test_labels_of_sites_with_names_of_their_own(tmp_path):
    for name in ("a", "b"):
        _save(tmp_path / "masks" / f"{name}.nii.gz", _box((2, 2, 2)))
        _save(tmp_path / "labels" / f"site{name}" / f"{name}.nii.gz", _box((2, 2, 2)))
    assert evaluate_predictions(tmp_path / "masks", tmp_path / "labels")["missing_predictions"] == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageReadError, match=r"empty holds no .*: check the path of the labels"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "empty", overwrite=True)


@pytest.mark.parametrize("with_table", [False, True])
def test_masks_are_scored_by_domain_and_the_worst_is_named(tmp_path, with_table):
    """Domains are subfolders of the labels, or stand in a table."""
    site_of = {"a": "north", "b": "north", "c": "south"}
    for case_id, site in site_of.items():
        _save(tmp_path / "labels" / ("" if with_table else site) / f"{case_id}.nii.gz", _box((2, 2, 2)))
        _save(tmp_path / "masks" / f"{case_id}.nii.gz", _box((2, 4 if site == "south" else 2, 2)))
    command = [
        "evaluate",
        "--predictions",
        str(tmp_path / "masks"),
        "--labels",
        str(tmp_path / "labels"),
        "--workers",
        "1",
    ]
    if with_table:
        lines = ["case,domain", *(f"{case_id},{site}" for case_id, site in site_of.items())]
        (tmp_path / "sites.csv").write_text("\n".join(lines))
        command += ["--domains", str(tmp_path / "sites.csv")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert {name: group["n_cases"] for name, group in summary["per_domain"].items()} == {"north": 2, "south": 1}
    assert summary["per_domain"]["south"]["foreground_mean"]["Dice"] == 0.5
    assert [case["domain"] for case in summary["metric_per_case"]] == ["north", "north", "south"]
    assert summary["worst_domain"] == "south" and "south (lowest Dice)" in result.stdout and "north" in result.stdout


def _scan(dtype):
    """Noise in a body within air, as 8-bit grey values or as real numbers; few enough values to be classes."""
    random = np.random.default_rng(0)
    body = _box((1, 1, 1), 1, side=6) > 0
    return np.where(body, random.uniform(20, 220, body.shape), 0 if dtype == np.uint8 else -1024.0).astype(dtype)


@pytest.mark.parametrize("with_preset", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("option", ["--predictions", "--labels"])
def test_a_folder_of_scans_is_no_folder_of_masks(masks, tmp_path, option, dtype, with_preset):
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(nib.Nifti1Image(_scan(dtype), np.diag([*SPACING_MM, 1])), scans / "perfect.nii.gz")
    folders = dict(zip(("--predictions", "--labels"), masks, strict=True)) | {option: scans}
    command = ["evaluate", *(str(word) for pair in folders.items() for word in pair)]
    result = CliRunner().invoke(app, [*command, *(["--preset", "laseg-5"] if with_preset else [])])
    assert result.exit_code == 1 and not result.stdout
    assert re.search(
        rf"Error: {scans} holds scans, not masks \(perfect.nii.gz has \d+ different values.*\): ", result.stderr
    )
    assert not (masks[0] / "summary.json").exists()


def test_many_thin_structures_are_masks(tmp_path):
    stripes = np.zeros((16, 12, 8), np.uint8)
    stripes[:, 1:11] = 1 + np.arange(16)[:, None, None] // 2 + 8 * (np.arange(8) // 2)
    for folder in ("labels", "masks"):
        _save(tmp_path / folder / "a.nii.gz", stripes)
    assert len(evaluate_predictions(tmp_path / "masks", tmp_path / "labels")["classes"]) == 32


def test_empty_labels_are_refused(tmp_path):
    _save(tmp_path / "labels/a.nii.gz", np.zeros((16, 12, 8)))
    _save(tmp_path / "masks/a.nii.gz", np.zeros((16, 12, 8)))
    with pytest.raises(ImageReadError, match="0 different values"):
        evaluate_predictions(tmp_path / "masks", tmp_path / "labels")


def test_the_table_and_the_json_go_to_stdout(masks, capsys):
    summary = evaluate_predictions(*masks)
    capsys.readouterr()
    show_summary(summary)
    out, err = capsys.readouterr()
    assert "class_2" in out and "50.00 +- 40.82" in out and "pooled" in out and not err
    show_summary(summary, as_json=True)
    assert json.loads(capsys.readouterr().out) == summary


def test_any_number_of_workers_gives_the_same_results_in_the_order_of_the_cases(tmp_path):
    masks, labels = tmp_path / "masks", tmp_path / "labels"
    for shift, name in enumerate(("b", "a", "failed", "c", "missing")):
        _save(labels / f"{name}.nii.gz", _box((2, 2, 2)))
        _save(masks / f"{name}.nii.gz", _box((2 + shift, 2, 2)), shift_mm=int(name == "failed"))
    (masks / "missing.nii.gz").unlink()
    for folder, start in ((masks, 40), (labels, 42)):  # by far the slowest, and the first
        _save(folder / "0.nii.gz", _box((start, 40, 40), side=60, shape=(120, 120, 120)))
    one = evaluate_predictions(masks, labels, output=tmp_path / "first")
    two = evaluate_predictions(masks, labels, output=tmp_path / "second", workers=2)
    assert one == two
    assert [case["case_id"] for case in two["metric_per_case"]] == ["0", "a", "b", "c", "missing"]
    assert [failure["case_id"] for failure in two["failed"]] == ["failed"]
    first, second = ((tmp_path / name / "per_case.csv").read_text() for name in ("first", "second"))
    assert first == second


def test_a_mask_on_another_grid_is_resampled_when_asked(tmp_path, capsys):
    """A mask of a third of the spacing that ends within the cube: each voxel has the value of its place, or 0."""
    _save(tmp_path / "labels/same.nii.gz", _box((2, 2, 2)))
    _save(tmp_path / "masks/same.nii.gz", _box((2, 2, 2)))
    _save(tmp_path / "labels/fine.nii.gz", _box((2, 2, 2)))
    fine = np.kron(_box((2, 2, 2)), np.ones((3, 3, 3), np.uint8))[:12]  # four voxels of the label; the cube has six
    affine = np.diag([*np.divide(SPACING_MM, 3), 1.0])
    affine[:3, 3] = -np.divide(SPACING_MM, 3)  # three small voxels lie around one
    affine[:, 3] += 11 * affine[:, 0]
    affine[:, 0] *= -1  # and in the opposite order along the first axis
    nib.save(nib.Nifti1Image(np.ascontiguousarray(fine[::-1]), affine), tmp_path / "masks/fine.nii.gz")
    folders = (tmp_path / "masks", tmp_path / "labels")
    failed = evaluate_predictions(*folders, output=tmp_path / "without")["failed"]
    assert [failure["case_id"] for failure in failed] == ["fine"] and "--resample" in failed[0]["reason"]
    capsys.readouterr()
    summary = evaluate_predictions(*folders, output=tmp_path / "with", resample=True)
    by_id = {case["case_id"]: case for case in summary["metric_per_case"]}
    assert by_id["fine"]["resampled"] is True and "resampled" not in by_id["same"]
    counts = by_id["fine"]["metrics"]["1"]
    assert (counts["TP"], counts["FP"], counts["FN"]) == (2 * 4 * 4, 0, 2 * 4 * 4)
    assert "fine: the mask was on another grid" in capsys.readouterr().err
    show_summary(summary)
    assert "Resampled from another grid to that of the label: fine" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_is_no_distance_is_refused(masks, tolerance):
    folders = ("--predictions", str(masks[0]), "--labels", str(masks[1]))
    result = CliRunner().invoke(app, ["evaluate", *folders, "--tolerance", tolerance])
    assert result.exit_code == 1 and "--tolerance" in result.stderr and not (masks[0] / "summary.json").exists()


def test_the_tolerance_is_that_of_the_unit_and_stands_with_the_scores(tmp_path, capsys):
    _save(tmp_path / "labels/a.nii.gz", _box((2, 2, 2)))
    _save(tmp_path / "masks/a.nii.gz", _box((3, 2, 2)))  # 1.5 mm off
    folders = (tmp_path / "masks", tmp_path / "labels")
    in_mm = evaluate_predictions(*folders, output=tmp_path / "mm", measure=Measure(tolerance=1.4))
    in_voxels = evaluate_predictions(*folders, output=tmp_path / "voxel", measure=Measure("voxel", 1.0))
    assert in_mm["foreground_mean"]["NSD"] < 1 == in_voxels["foreground_mean"]["NSD"]
    assert (in_mm["tolerance"], in_mm["unit"]) == (1.4, "mm")
    assert "nsd_1.4_mm" in (tmp_path / "mm" / "per_case.csv").read_text()
    show_summary(in_mm)
    shown = " ".join(capsys.readouterr().out.split())
    assert "NSD 1.4 mm %" in shown and "within 1.4 mm of the other" in shown
    assert "missed or invented scores Dice, Jaccard and NSD 0" in shown


def test_results_among_the_masks_are_never_read_as_data(masks):
    assert evaluate_predictions(*masks) == evaluate_predictions(*masks, overwrite=True)


@pytest.mark.parametrize("kind", ["labels", "scans"])
def test_results_do_not_go_among_labels_or_scans(masks, tmp_path, kind):
    predictions, labels = masks
    _save(tmp_path / "scans" / "perfect.nii.gz", _box((2, 2, 2)))
    command = ["--predictions", str(predictions), "--labels", str(labels), "--scans", str(tmp_path / "scans")]
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["evaluate", *command, "-o", str(tmp_path / "masks" / ".." / kind)])
    assert result.exit_code == 1 and f"is the folder of the {kind}: choose another one" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffixes", [(".mha", ".nii.gz"), (".nii.gz", ".nrrd"), (".nrrd", ".mha")])
def test_masks_and_labels_of_other_formats_have_the_scores_of_nifti(masks, tmp_path, suffixes):
    """As `sdm predict --format input` writes them."""
    expected = evaluate_predictions(*masks)["metric_per_case"]
    folders = (tmp_path / "other-masks", tmp_path / "other-labels")
    for folder, own, suffix in zip(folders, masks, suffixes, strict=True):
        for path in own.glob("*.nii.gz"):
            mask, name = read_nifti(path), path.name.removesuffix(".nii.gz")
            if suffix == ".nii.gz":
                write_mask(folder / path.name, mask.voxels, mask.geometry)
            else:
                write_itk_mask(folder / f"{name}{suffix}", mask.voxels, mask.geometry)
    summary = evaluate_predictions(*folders)
    keys = ("case_id", "metrics")
    assert [[case[key] for key in keys] for case in summary["metric_per_case"]] == [
        [case[key] for key in keys] for case in expected
    ]
    assert summary["missing_predictions"] == ["without-mask"]
    (folders[0] / "shifted.mhd").touch()
    with pytest.raises(ImageReadError, match="are both case shifted"):
        evaluate_predictions(*folders, overwrite=True)


def test_one_case_has_no_deviation(pictures, tmp_path, capsys):
    for folder in ("masks", "labels"):
        _save(tmp_path / folder / "a.nii.gz", _box((2, 2, 2)))
    summary = evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    assert set(summary["mean"]["1"]["std"].values()) == set(summary["foreground_mean"]["std"].values()) == {None}
    show_summary(summary)
    rows = [line for line in capsys.readouterr().out.splitlines() if "class_1" in line or "mean " in line]
    assert "100.00" in rows[0] and not any("+-" in row for row in rows if "Per volume" not in row)
    page = (tmp_path / "masks" / "report.html").read_text(encoding="utf-8")
    assert "<b>100.0</b>" in page and "100.0 \u00b1" not in page


def test_scores_are_kept_where_the_page_cannot_be_written(pictures, masks, tmp_path):
    (tmp_path / "out" / "report.html").mkdir(parents=True)  # a folder is in its way
    command = ["--predictions", str(masks[0]), "--labels", str(masks[1]), "-o", str(tmp_path / "out"), "--overwrite"]
    result = CliRunner().invoke(app, ["evaluate", *command])
    assert result.exit_code == 1 and "report.html cannot be written" in result.stderr
    assert f"The scores are in {tmp_path / 'out' / 'summary.json'}; replace them with --overwrite." in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["n_cases"] == 3


@pytest.fixture
def run(tmp_path):
    """A run with a tiny random network, and its store: labeled a; unlabeled b, c (c without label); test d."""
    split = tmp_path / "split.yaml"
    split.write_text("labeled: [a]\nunlabeled: [b, c]\ntest: [d]\n")
    preset = load_preset(
        _preset_file(tmp_path),
        [f"data.split={split}", "model.encoder=mit-b0", "model.head_width=16", "train.select_on=labeled"],
    )
    store = tmp_path / "store"
    _make_store(store, preset, {"a": True, "b": True, "c": False, "d": True})
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.create(preset, store, {"split": asdict(load_split(str(split)))})
    save_model(folder.best, build_network(preset.model, preset.data.n_classes).eval(), preset, chosen_on="labeled")
    return folder.path


def _preset_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    tree = {"data": {"classes": {"liver": 1, "spleen": 4}}, "train": {"steps": 1, "crop": [32, 32]}}
    path.write_text(yaml.safe_dump({**tree, "method": {"patch": 8}}))
    return str(path)


def _make_store(store, preset, cases):
    geometry = Geometry(np.diag([*SPACING_MM, 1.0]), (20, 24, 3))
    random = np.random.default_rng(0)
    stored = {}
    for case_id, has_label in cases.items():
        case = Case(case_id, store / case_id, domain="north" if case_id < "c" else "south")
        image = random.integers(0, 65536, (3, 20, 24)).astype(np.uint16)
        label = random.integers(0, 3, (3, 20, 24)).astype(np.uint8) if has_label else None
        stored[case_id] = write_case(store, case, image, label, geometry, preset.data, [])
    write_manifest(store, Manifest(preset.data, stored, complete=True))


def test_a_run_is_scored_on_its_own_store_with_its_provenance(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)  # the newest run below runs/ is taken, its store from config.yaml
    summary = evaluate_model(device="cpu")
    assert (run / "evaluation" / "test" / "summary.json").is_file()
    assert (run / "evaluation" / "test" / "per_case.csv").is_file()
    assert summary["split"]["cases"] == ["d"] and summary["split"]["role"] == "test"
    assert len(summary["split"]["hash"]) == 12
    assert summary["protocol"]["name"] == "clean"
    assert summary["protocol"]["checkpoint_chosen_on"] == "labeled"
    assert not summary["protocol"]["reported_cases_chose_checkpoint"]
    assert summary["classes"] == {"1": "liver", "4": "spleen"}
    assert list(summary["per_domain"]) == ["south"] and summary["worst_domain"] is None
    (case,) = summary["metric_per_case"]
    assert case["domain"] == "south"
    assert sum(case["metrics"]["1"][key] for key in ("TP", "FP", "FN", "TN")) == 3 * 20 * 24
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate_model(run, device="cpu")


def test_the_distances_of_a_store_use_its_spacing(run):
    assert slice_spacing_mm(np.diag([*SPACING_MM, 1.0]), "axial") == (5.0, 1.5, 2.0)
    in_mm = evaluate_model(run, device="cpu")["metric_per_case"][0]["metrics"]
    in_voxels = evaluate_model(run, measure=Measure("voxel"), overwrite=True, device="cpu")["metric_per_case"][0][
        "metrics"
    ]
    for label in ("1", "4"):
        assert in_mm[label]["Dice"] == in_voxels[label]["Dice"]
        if in_mm[label]["ASD"]:
            assert in_voxels[label]["ASD"] < in_mm[label]["ASD"] <= 5 * in_voxels[label]["ASD"]


def test_a_model_folder_writes_beside_itself_and_a_checkpoint_into_its_run(run, tmp_path):
    evaluate_model(run / "checkpoints" / "best", device="cpu")
    assert (run / "evaluation" / "test-best" / "summary.json").is_file()
    model = tmp_path / "model"
    (run / "checkpoints" / "best").rename(model)
    evaluate_model(model, tmp_path / "store", device="cpu")
    assert (tmp_path / "model-evaluation" / "test" / "summary.json").is_file()


def test_a_case_without_label_is_named_and_left_out_only_when_asked(run, capsys):
    with pytest.raises(SplitError, match=r"lacks 1 of the 2 unlabeled cases, or their labels \(c\).*--allow-missing"):
        evaluate_model(run, role="unlabeled", device="cpu")
    summary = evaluate_model(run, role="unlabeled", allow_missing=True, device="cpu")
    assert summary["split"]["cases"] == ["b"]
    assert "going on without 1 of the 2 unlabeled cases" in capsys.readouterr().err


def test_roles_are_those_of_the_training_whatever_the_split_file_says_today(run, tmp_path):
    before = evaluate_model(run, device="cpu")["split"]
    (tmp_path / "split.yaml").write_text("labeled: [d]\nunlabeled: [b, c]\ntest: [a]\n")
    after = evaluate_model(run, device="cpu", overwrite=True)["split"]
    assert after["cases"] == ["d"] and after["hash"] == before["hash"]
    shutil.copytree(run / "checkpoints" / "best", tmp_path / "copy")
    elsewhere = evaluate_model(tmp_path / "copy", tmp_path / "store", device="cpu")["split"]
    assert elsewhere["cases"] == ["a"] and elsewhere["hash"] != before["hash"]


def test_a_model_says_what_chose_it(run, tmp_path, capsys):
    best, last, foreign = run / "checkpoints" / "best", run / "checkpoints" / "last", tmp_path / "copy"
    network, preset = load_model(best)
    save_model(last, network, preset, chosen_on="last step")
    save_model(foreign, network, preset)
    for path, chosen_on, words in (
        (run, "labeled", "chosen on the labeled cases"),
        (best, "labeled", "chosen on the labeled cases"),
        (last, "last step", "checkpoint of the last step"),
        (foreign, None, "what chose the checkpoint is not known"),
    ):
        summary = evaluate_model(path, tmp_path / "store", device="cpu")
        assert summary["protocol"]["checkpoint_chosen_on"] == chosen_on
        assert summary["protocol"]["reported_cases_chose_checkpoint"] is (None if chosen_on is None else False)
        show_summary(summary)
        assert words in " ".join(capsys.readouterr().out.split())
        assert words in ((best if path == run else path) / "README.md").read_text()


def test_a_model_can_be_named_by_a_dot(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run / "checkpoints" / "best")
    assert evaluate_model(Path(), tmp_path / "store", device="cpu")["n_cases"] == 1
    assert (run / "evaluation" / "test-best" / "summary.json").is_file()


def test_a_role_without_cases_says_what_to_do(run, tmp_path):
    with pytest.raises(SplitError, match=r"trained without validation cases.*--split unlabeled"):
        evaluate_model(run, role="validation", device="cpu")
    preset = RunFolder(run).read_config()[0]
    bare = tmp_path / "bare"
    _make_store(bare, preset, {"d": False})
    with pytest.raises(SplitError, match="no label of the test cases"):
        evaluate_model(run, bare, device="cpu")
    other = tmp_path / "other"
    _make_store(other, preset, {"x": True})
    with pytest.raises(SplitError, match=r"none of the 1 test cases.*--store"):
        evaluate_model(run, other, device="cpu")
    assert not (run / "evaluation").exists()


def test_a_store_of_test_cases_alone_can_be_evaluated(run, tmp_path):
    _make_store(tmp_path / "tests-only", RunFolder(run).read_config()[0], {"d": True})
    assert evaluate_model(run, tmp_path / "tests-only", device="cpu")["n_cases"] == 1


def test_a_store_made_with_other_settings_is_refused(run, tmp_path):
    preset = load_preset(_preset_file(tmp_path), ["data.normalize.percentiles=[1, 99]"])
    _make_store(tmp_path / "other", preset, {"d": True})
    with pytest.raises(StoreError, match="other settings"):
        evaluate_model(run, tmp_path / "other", device="cpu")


def test_without_any_run_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run"):
        evaluate_model(device="cpu")


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_a_resampled_store_is_scored_on_the_scans_grid_or_as_published(tmp_path, protocol):
    """By the voxels of the reference that were counted: those of the label file, or those of the smaller slices."""
    preset = tiny_preset(data={"grid": {"spacing_mm": [2.0, 2.0]}}, protocol=protocol)
    store = SliceStore(make_store(tmp_path, preset))
    save_model(tmp_path / "model", build_network(preset.model, preset.data.n_classes).eval(), preset)
    split = tmp_path / "split.yaml"
    split.write_text("labeled: [l0]\nunlabeled: [u0]\ntest: [l1]\n")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["preset"]["data"]["split"] = str(split)
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    summary = evaluate_model(tmp_path / "model", store.path, device="cpu")
    label = nib.load(tmp_path / "labels/l1.nii.gz").get_fdata()
    on_grid = store.label_volume("l1")
    assert on_grid.shape == (3, 20, 18)
    for value in (1, 2):
        expected = (label == value).sum() if protocol == "clean" else (on_grid == value).sum()
        assert summary["mean"][str(value)]["n_ref"] == expected
    words = "the scans' own" if protocol == "clean" else "the slices that the network sees"
    assert words in summary["protocol"]["grid"]
