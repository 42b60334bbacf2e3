"""The demo: phantoms that are worth a network, and the whole way with a few steps."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.splits import resolve_split
from sdm_cli.errors import OutputError
from sdm_cli.method.schedule import learning_rate
from sdm_cli.preset_files import load_preset
from sdm_cli.runs import phantoms as phantoms_module
from sdm_cli.runs.demo import overlay_row, run_demo
from sdm_cli.runs.phantoms import CLASSES, LABELED, LPS, N_CASES, OBLIQUE, make_phantoms


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_phantoms(folder)
    return folder


def _pair(phantoms, case_id):
    images, labels = ("imagesTr", "labelsTr") if case_id in LABELED else ("imagesUn", "truth")
    return nib.load(phantoms / images / f"{case_id}.nii.gz"), nib.load(phantoms / labels / f"{case_id}.nii.gz")


@pytest.fixture
def with_phantoms(phantoms, monkeypatch):
    """For a test of what the demo does with its scans."""
    monkeypatch.setattr("sdm_cli.runs.demo.make_phantoms", lambda folder: shutil.copytree(phantoms, folder))


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms_module, "N_CASES", 4)
    make_phantoms(tmp_path / "again")
    make_phantoms(tmp_path / "other", seed=1)
    again, other, whole = _files(tmp_path / "again"), _files(tmp_path / "other"), _files(phantoms)
    assert len(again) == 1 + 2 * 4 and again.items() <= whole.items()
    assert other.keys() == again.keys()
    assert {name for name in other if other[name] == again[name]} == {Path("dataset.json")}


def test_three_of_sixteen_cases_are_labeled_and_the_truth_is_not_found(phantoms):
    cases = find_cases(phantoms)
    assert len(cases) == N_CASES == 16
    assert {case.case_id for case in cases if case.label_path is not None} == set(LABELED)
    assert len(list((phantoms / "truth").iterdir())) == 13
    stored = {
        case.case_id: StoredCase(case.case_id, 1, 1, 1, (1.0, 1.0, 1.0), case.label_path is not None) for case in cases
    }
    split = resolve_split(load_preset("demo").data, stored, False)
    assert (len(split.labeled), len(split.unlabeled)) == (3, 13)
    assert {case_id[0] for case_id in split.labeled} == {"a", "b"}


def test_the_preset_and_the_dataset_file_name_the_classes_of_the_phantoms(phantoms):
    assert list(load_preset("demo").data.classes.items()) == list(CLASSES.items())
    # The overlay takes label values for class indices.
    assert list(CLASSES.values()) == list(range(1, len(CLASSES) + 1))
    assert json.loads((phantoms / "dataset.json").read_text())["labels"] == {"background": 0, **CLASSES}


def test_labels_lie_on_their_scans_and_show_every_organ(phantoms):
    for case in find_cases(phantoms):
        scan, label = _pair(phantoms, case.case_id)
        np.testing.assert_array_equal(scan.affine, label.affine)
        assert scan.shape == label.shape
        assert scan.header["qform_code"] == scan.header["sform_code"] == 1
        voxels = np.asarray(label.dataobj)
        assert voxels.dtype == np.uint8
        assert set(np.unique(voxels)) == {0, *CLASSES.values()}
        assert np.isfinite(np.asarray(scan.dataobj)).all()


def test_grids_differ_and_one_is_oblique_and_one_lps(phantoms):
    scans = {case.case_id: _pair(phantoms, case.case_id)[0] for case in find_cases(phantoms)}
    assert len({scan.shape for scan in scans.values()}) > 8
    assert "".join(nib.aff2axcodes(scans[LPS].affine)) == "LPS"
    others = {"".join(nib.aff2axcodes(scan.affine)) for case_id, scan in scans.items() if case_id != LPS}
    assert others == {"RAS"}
    oblique = {case_id for case_id, scan in scans.items() if nib.affines.obliquity(scan.affine).max() > 0.05}
    assert oblique == {OBLIQUE}


@pytest.mark.parametrize("case_id", [LPS, OBLIQUE, "a05"])
def test_organs_lie_on_the_right_side_in_millimetres(phantoms, case_id):
    _, label = _pair(phantoms, case_id)
    voxels = np.asarray(label.dataobj)
    right_mm = {
        name: (label.affine @ [*np.argwhere(voxels == value).mean(axis=0), 1])[0] for name, value in CLASSES.items()
    }
    assert right_mm["liver"] > 20 and right_mm["right kidney"] > 20
    assert right_mm["left kidney"] < -20 and abs(right_mm["spine"]) < 25


def test_intensity_alone_does_not_tell_the_organs(phantoms):
    # The best rule that sees one voxel's intensity at a time, told the truth of the very scan.
    for case_id in ("a05", "b05"):
        scan, label = _pair(phantoms, case_id)
        voxels, truth = np.asarray(scan.dataobj), np.asarray(label.dataobj)
        bins = np.digitize(voxels, np.quantile(voxels, np.linspace(0, 1, 101)[1:-1]))
        votes = np.stack([np.bincount(bins[truth == value], minlength=100) for value in range(len(CLASSES) + 1)])
        guess = votes.argmax(axis=0)[bins]
        dice = [
            2 * ((guess == value) & (truth == value)).sum() / ((guess == value).sum() + (truth == value).sum())
            for value in CLASSES.values()
        ]
        assert np.mean(dice) < 0.5


def test_phantoms_do_not_replace_a_folder(phantoms):
    before = _files(phantoms)
    with pytest.raises(OutputError, match="exists"):
        make_phantoms(phantoms)
    assert _files(phantoms) == before


@pytest.mark.parametrize("case_id", [LPS, OBLIQUE])
def test_the_overlay_shows_the_same_slice_of_scan_mask_and_label(phantoms, case_id):
    row = overlay_row(phantoms / "imagesUn", phantoms / "truth", phantoms / "truth", case_id)
    assert row.image.shape == row.prediction.shape == row.reference.shape
    np.testing.assert_array_equal(row.prediction, row.reference)
    # The first axis of a slice goes towards the patient's right, whatever the order in the file.
    towards_right = {value: np.argwhere(row.reference == value)[:, 0].mean() for value in (1, 4)}
    assert towards_right[1] > towards_right[4] + 5


def test_the_demo_does_not_touch_a_folder_with_content(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_whole_way_with_a_few_steps(tmp_path, capsys):
    output = tmp_path / "demo"
    few = ["train.steps=4", "train.pairs=2", "train.lr_warmup_steps=0", "train.validate_every_steps=4"]
    run_demo(output, [*few, "train.workers=0", "model.head_width=16"])
    summary = json.loads((output / "evaluation" / "summary.json").read_text())
    assert summary["n_cases"] == 13 and summary["missing_predictions"] == []
    assert set(summary["classes"].values()) == set(CLASSES)
    assert {name: group["n_cases"] for name, group in summary["per_domain"].items()} == {"scanner a": 6, "scanner b": 7}
    assert len(list((output / "masks").glob("*.nii.gz"))) == 13
    for name in ("overlays.png", "progress.png"):
        assert imread(output / name).ndim == 3
    out, err = capsys.readouterr()
    assert "liver" in out and "mean" in out and "scanner b" in out
    assert "sdm train --preset demo" in err
    written = [path for path in output.rglob("*.json*") if path.is_file()]
    assert {path.suffix for path in written} == {".json", ".jsonl"}
    for path in written:
        for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(
                text, parse_constant=lambda word, path=path: pytest.fail(f"{path} holds {word}, which is no JSON")
            )


def test_a_demo_stopped_in_training_says_how_to_go_on(with_phantoms, tmp_path, capsys, monkeypatch):
    def stop(step, total, train, original=learning_rate):
        os.kill(os.getpid(), signal.SIGINT)
        return original(step, total, train)

    monkeypatch.setattr("sdm_cli.runs.loop.learning_rate", stop)
    output = tmp_path / "demo"
    few = ["train.steps=2", "train.pairs=2", "train.lr_warmup_steps=0", "train.workers=0", "model.head_width=16"]
    with pytest.raises(KeyboardInterrupt):
        run_demo(output, few)
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()[-1]
    command = re.fullmatch(
        rf"The command to resume is sdm (train .* --resume); sdm demo itself begins anew, once {output} is .*", said
    )
    changes = [word for change in few for word in ("--set", change)]
    assert CliRunner().invoke(app, [*command[1].split(), *changes, "-d", "cpu"]).exit_code == 0


@pytest.mark.slow
def test_the_demo_reaches_what_it_promises(tmp_path, published_encoder):
    run_demo(tmp_path / "demo")
    summary = json.loads((tmp_path / "demo" / "evaluation" / "summary.json").read_text())
    assert summary["n_cases"] == 13 and summary["foreground_mean"]["Dice"] > 0.85
