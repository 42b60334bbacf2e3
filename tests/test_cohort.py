"""A cohort through `sdm predict`: whatever form it has, however it is shared out, whatever goes wrong on the way."""

import errno
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom import NAME, PATIENT, write_series
from models import SDM, small_network, small_preset
from scans import write_nifti
from stores import make_store, tiny_preset
from test_itk import write_itk
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.config import PredictConfig
from sdm_cli.data.dicom import read_dicom_geometry
from sdm_cli.data.itk import read_itk
from sdm_cli.data.layouts import find_cases
from sdm_cli.data_config import GridConfig
from sdm_cli.errors import ExitCode, OutputError
from sdm_cli.method.checkpoint import save_model, weights_sha256
from sdm_cli.runs import predict as predict_module
from sdm_cli.runs.journal import Journal, written_masks
from sdm_cli.runs.model import Model, Prediction

PRESET = small_preset({"liver": 1, "spleen": 7, "aorta": 5, "kidney": 3})
SHAPE = (20, 24, 2)
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "nifti"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, small_network(PRESET), PRESET)
    return folder


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def write_scans(folder, names="abc", shape=SHAPE):
    for seed, name in enumerate(names):
        write_nifti(folder / f"{name}.nii.gz", noise(seed, shape))
    return folder


def arguments(source, masks, model, *more):
    return ["predict", "-i", str(source), "-o", str(masks), "--model", str(model), "-d", "cpu", *more]


def sdm(*words, stdin=None):
    return CliRunner().invoke(app, arguments(*words), input=stdin)


def records(masks, name="predictions.jsonl"):
    return [json.loads(line) for line in (masks / name).read_text().splitlines()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what goes in, what comes out ----


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "scans"
    write_nifti(folder / "a.nii.gz", noise())
    write_itk(folder / "b.nrrd", noise())
    write_itk(folder / "c.mhd", noise())
    write_series(folder / "p1", noise(), shear_mm=0.4)
    return folder


@pytest.mark.parametrize(
    ("form", "suffix_b", "suffix_c"), [("nifti", ".nii.gz", ".nii.gz"), ("input", ".nrrd", ".mha")]
)
def test_every_format_gets_a_mask_on_its_own_grid(tmp_path, mixed, model, form, suffix_b, suffix_c):
    masks = tmp_path / "masks"
    result = sdm(mixed, masks, model, "--format", form)
    assert result.exit_code == 0 and result.stderr == ""
    files = ["a.nii.gz", f"b{suffix_b}", f"c{suffix_c}", "p1.nii.gz"]
    assert [Path(line).name for line in result.stdout.split()] == files
    assert names_in(masks) == sorted([*files, "predictions.jsonl"])
    grids = {
        "a.nii.gz": nib.load(mixed / "a.nii.gz").affine,
        f"b{suffix_b}": read_itk(mixed / "b.nrrd").geometry.affine,
        f"c{suffix_c}": read_itk(mixed / "c.mhd").geometry.affine,
        "p1.nii.gz": read_dicom_geometry(mixed / "p1").affine,
    }
    for name, affine in grids.items():
        if name.endswith(".nii.gz"):
            found, voxels = nib.load(masks / name).affine, np.asarray(nib.load(masks / name).dataobj)
        else:
            found, voxels = read_itk(masks / name).geometry.affine, read_itk(masks / name).voxels
        np.testing.assert_allclose(found, affine, atol=1e-4)
        assert voxels.shape == SHAPE and len(np.unique(voxels)) > 2


def test_the_journal_says_what_became_of_each_case(tmp_path, mixed, model):
    masks, began = tmp_path / "masks", datetime.now(UTC).replace(microsecond=0)
    sdm(mixed, masks, model)
    lines = records(masks)
    assert [line["input"] for line in lines] == ["a.nii.gz", "b.nrrd", "c.mhd", "p1"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    for line in lines:
        told = datetime.fromisoformat(line["time"])
        assert told.tzinfo == UTC and began <= told <= datetime.now(UTC)
        assert line["status"] == "written" and line["mask"] == f"{line['case_id']}.nii.gz"
        assert line["weights_sha256"] == [weights_sha256(model)]
        assert set(line["seconds"]) == {"read", "network", "write"}
        assert 0.2 <= line["confidence"] <= 1  # of five classes the best
        image = nib.load(masks / line["mask"])
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        voxels = np.asarray(image.dataobj)
        counted = {name: (voxels == value).sum() * voxel_ml for name, value in PRESET.data.classes.items()}
        assert line["volumes_ml"] == pytest.approx({name: ml for name, ml in counted.items() if ml}, abs=1e-3)


def test_no_word_of_a_header_goes_anywhere(tmp_path, mixed, model, capfd):
    masks = tmp_path / "masks"
    spoiled = tmp_path / "scans"
    write_series(spoiled / "p1", noise())
    write_series(spoiled / "p2", noise(shape=(20, 24, 5)))
    sorted((spoiled / "p2").iterdir())[2].unlink()
    broken = write_itk(spoiled / "c.mha", noise())
    broken.write_bytes(broken.read_bytes()[:-100])
    said = [
        sdm(source, masks, model, "--format", "input", "--overwrite", *more)
        for source in (mixed, spoiled)
        for more in (("--dry-run",), ())
    ]
    assert [result.exit_code for result in said] == [0, 0, 4, 4]
    texts = [result.output for result in said] + list(capfd.readouterr())
    for path in masks.iterdir():
        content = path.read_bytes()
        texts.append((gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin1"))
    assert len(texts) > 8
    for text in texts:
        assert NAME not in text and PATIENT not in text


def test_a_list_on_stdin(tmp_path, mixed, model):
    write_scans(tmp_path / "more", "xy")
    lines = [
        f"{mixed / 'a.nii.gz'}",
        "",
        "# not this one",
        f"  {mixed / 'p1'}",
        f"{tmp_path / 'more'}",
        "absent.nii.gz",
    ]
    result = sdm("-", tmp_path / "masks", model, stdin="\n".join(lines))
    assert result.exit_code == ExitCode.SOME_CASES_FAILED
    assert "1 of 5 scans got no mask (absent.nii.gz)" in result.stderr
    assert names_in(tmp_path / "masks") == ["a.nii.gz", "p1.nii.gz", "predictions.jsonl", "x.nii.gz", "y.nii.gz"]


def test_two_cases_of_one_name_in_a_list_are_named(tmp_path, model):
    write_scans(tmp_path / "one", "a")
    write_scans(tmp_path / "two", "a")
    listed = f"{tmp_path / 'one'}\n{tmp_path / 'two' / 'a.nii.gz'}\n"
    result = sdm("-", tmp_path / "masks", model, stdin=listed)
    assert result.exit_code == 1
    assert "one/a.nii.gz and" in result.stderr and "two/a.nii.gz are both case a" in result.stderr
    for nothing in ("", "\n# none\n"):
        assert "stdin has no path" in sdm("-", tmp_path / "masks", model, stdin=nothing).stderr
    assert not (tmp_path / "masks").exists()


def test_the_cases_of_a_store_are_predicted_from_its_slices(tmp_path):
    preset = tiny_preset(data={"grid": {"spacing_mm": [1.7, 1.3]}})
    store = make_store(tmp_path, preset, n_labeled=1, n_unlabeled=1)
    save_model(tmp_path / "model", small_network(preset), preset)
    result = sdm(store, tmp_path / "from-store", tmp_path / "model")
    assert result.exit_code == 0, result.output
    sdm(tmp_path / "images", tmp_path / "from-scans", tmp_path / "model")
    for name in ("l0.nii.gz", "u0.nii.gz"):
        stored, read = (nib.load(tmp_path / folder / name) for folder in ("from-store", "from-scans"))
        np.testing.assert_array_equal(np.asarray(stored.dataobj), np.asarray(read.dataobj))
        np.testing.assert_array_equal(stored.affine, read.affine)
    damaged = store / "cases" / "u0.h5"
    damaged.write_bytes(damaged.read_bytes()[:500])
    result = sdm(store, tmp_path / "others", tmp_path / "model")
    assert result.exit_code == 4 and str(damaged) in result.stderr
    assert [path.name for path in (tmp_path / "others").glob("*.nii.gz")] == ["l0.nii.gz"]
    other = tiny_preset(data={"normalize": {"scale": "volume"}})
    save_model(tmp_path / "other", small_network(other), other)
    result = sdm(store, tmp_path / "masks", tmp_path / "other")
    assert result.exit_code == 1 and "was made with other settings than the model" in result.stderr


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/nifti")
@pytest.mark.parametrize("name", ["ct", "mr"])
def test_a_real_scan_has_one_mask_in_all_formats(tmp_path, model, name):
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    scan = nib.load(REAL / f"{name}.nii.gz")
    array, image = np.asarray(scan.dataobj), sitk.ReadImage(str(REAL / f"{name}.nii.gz"))
    write_nifti(scans / "a.nii.gz", array, scan.affine)
    for file in ("b.mha", "c.nrrd"):
        write_itk(scans / file, array, image.GetSpacing(), image.GetDirection())
    write_series(scans / "d", np.rint(array).astype(np.int16), image.GetSpacing(), image.GetDirection())
    assert sdm(scans, masks, model).exit_code == 0
    expected = np.asarray(nib.load(masks / "a.nii.gz").dataobj)
    assert len(np.unique(expected)) > 2
    for case_id in "bcd":
        np.testing.assert_array_equal(np.asarray(nib.load(masks / f"{case_id}.nii.gz").dataobj), expected)


# ---- again, in parts, and only looked at ----


def test_masks_of_earlier_runs_are_kept_or_replaced_and_nothing_else(tmp_path, model):
    scans, masks = write_scans(tmp_path / "scans"), tmp_path / "masks"
    sdm(scans / "a.nii.gz", masks, model)
    (masks / "b.nii.gz").write_text("mine")
    before = (masks / "a.nii.gz").stat().st_mtime_ns
    result = sdm(scans, masks, model, "--overwrite")
    assert result.exit_code == 1
    assert "b.nii.gz is not replaced, since no predictions.jsonl beside it says" in result.stderr
    result = sdm(scans, masks, model, "--skip-existing")
    assert result.exit_code == 0 and "2 of 3 masks exist and are kept." in result.stderr
    assert (masks / "b.nii.gz").read_text() == "mine" and (masks / "a.nii.gz").stat().st_mtime_ns == before
    assert [(line["case_id"], line["status"]) for line in records(masks)] == [
        ("a", "written"),
        ("a", "kept"),
        ("b", "kept"),
        ("c", "written"),
    ]
    weights = [line["weights_sha256"] for line in records(masks)]
    assert weights[0] == weights[1] == weights[3] and weights[2] is None
    said = " ".join(result.stderr.split())
    assert "1 of the 2 masks that are kept are not known to be of this model (b)" in said
    # A mask that was only kept is still not ours.
    assert "b.nii.gz is not replaced" in sdm(scans, masks, model, "--overwrite").stderr
    (masks / "b.nii.gz").unlink()
    assert sdm(scans, masks, model, "--overwrite").exit_code == 0
    assert (masks / "a.nii.gz").stat().st_mtime_ns > before


def test_masks_of_another_model_are_kept_under_its_name(tmp_path, model):
    scans, masks, other = write_scans(tmp_path / "scans"), tmp_path / "masks", tmp_path / "other"
    save_model(other, small_network(PRESET, seed=7), PRESET)
    sdm(scans, masks, other, "--num-parts", "2", "--part-id", "0")
    result = sdm(scans, masks, model, "--skip-existing")
    said = " ".join(result.stderr.split())
    assert "2 of the 2 masks that are kept are not known to be of this model (a, c): predict them again" in said
    earlier = records(masks, "predictions-0-of-2.jsonl")
    lines = {line["case_id"]: line for line in records(masks)}
    assert [lines[name]["weights_sha256"] for name in "ac"] == [line["weights_sha256"] for line in earlier]
    assert lines["b"]["weights_sha256"] != lines["a"]["weights_sha256"]


def test_a_part_without_a_case_says_so(tmp_path, model):
    scans = write_scans(tmp_path / "scans")
    result = sdm(scans, tmp_path / "masks", model, "--num-parts", "5", "--part-id", "4")
    assert result.exit_code == 0
    assert "there are 3 cases, so part 4 has none" in result.stderr


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_share_the_cases_out(tmp_path, model, count):
    scans, masks = write_scans(tmp_path / "scans", "abcde"), tmp_path / "masks"
    taken = []
    for index in range(count):
        result = sdm(scans, masks, model, "--num-parts", str(count), "--part-id", str(index))
        assert result.exit_code == 0
        taken.append([Path(line).name[0] for line in result.stdout.split()])
        name = "predictions.jsonl" if count == 1 else f"predictions-{index}-of-{count}.jsonl"
        assert [line["case_id"] for line in records(masks, name)] == taken[-1]
    assert taken == [list("abcde")[index::count] for index in range(count)]
    assert sdm(scans, masks, model, "--overwrite").exit_code == 0  # what a part wrote is known


def test_parts_count_from_zero(tmp_path, model):
    for words in (("--num-parts", "2", "--part-id", "2"), ("--part-id", "1"), ("--num-parts", "0")):
        assert sdm(tmp_path, tmp_path / "masks", model, *words).exit_code == ExitCode.USAGE


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, mixed, model):
    masks = tmp_path / "masks"
    sdm(mixed / "a.nii.gz", masks, model)
    before = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    result = sdm(mixed, masks, model, "--dry-run", "--skip-existing", "--format", "input")
    assert result.exit_code == 0 and "Nothing was written." in result.stderr
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["a", "a.nii.gz", "20 x 24 x 2", "a.nii.gz", "kept"],
        ["b", "b.nrrd", "20 x 24 x 2", "b.nrrd", "written"],
        ["c", "c.mhd", "20 x 24 x 2", "c.mha", "written"],
        ["p1", "p1", "20 x 24 x 2", "p1.nii.gz", "written"],
    ]
    assert re.search(r"3 scans, up to \d+\.\d GB of memory", result.stdout)
    assert before == {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    assert sdm(mixed, masks, model, "--dry-run").exit_code == 1  # as without --dry-run


def test_a_dry_run_names_what_cannot_be_read(tmp_path, model):
    scans = write_scans(tmp_path / "scans")
    (scans / "b.nii.gz").write_bytes(b"nonsense")
    result = sdm(scans, tmp_path / "masks", model, "--dry-run")
    assert result.exit_code == ExitCode.SOME_CASES_FAILED
    assert "1 of 3 scans cannot be read (b)" in result.stderr
    assert not (tmp_path / "masks").exists()


@pytest.fixture(scope="module")
def mirrored_model(tmp_path_factory):
    """Of a preset that allows mirrored slices, and resamples."""
    preset = replace(PRESET, predict=PredictConfig(flips=("left-right",)))
    preset = replace(preset, data=replace(preset.data, grid=GridConfig(crop="body", spacing_mm=(1.6, 1.6))))
    folder = tmp_path_factory.mktemp("mirrored") / "model"
    save_model(folder, small_network(preset), preset)
    return folder


def test_a_dry_run_counts_what_is_written_besides_masks(tmp_path, mirrored_model):
    """8 bytes a voxel for each map of certainty, 2 for each class, 4 for a scan that is read again, 8 for a ranking."""
    shape = (448, 448, 100)
    write_nifti(tmp_path / "scans" / "a.nii", np.zeros(shape, np.uint8), np.diag([0.8, 0.8, 2, 1.0]))

    def claimed(*more):
        result = sdm(tmp_path / "scans", tmp_path / "masks", mirrored_model, "--dry-run", *more)
        assert result.exit_code == 0 and "Nothing was written." in result.stderr
        assert not (tmp_path / "masks").exists()
        return float(re.search(r"1 scan, up to (\d+\.\d) GB of memory", result.stdout)[1])

    claimed("--tta")  # what is measured only grows
    plain, entropy, likelihood = claimed(), claimed("--uncertainty"), claimed("--save-probabilities")
    everything = claimed("--rank", "--pseudo", str(tmp_path / "pseudo"), "--tta")
    assert entropy - plain == pytest.approx(8 * np.prod(shape) / 1e9, abs=0.11)
    assert likelihood - plain == pytest.approx(2 * PRESET.data.n_classes * np.prod(shape) / 1e9, abs=0.11)
    assert everything - plain == pytest.approx(28 * np.prod(shape) / 1e9, abs=0.11)


@pytest.mark.parametrize(
    ("shape", "grid", "tried"),
    [
        ((300, 300, 40), {}, (2 * (1 + 4), 300, 300)),  # batches of one, and 7.2 mm are four slices of 2 mm
        ((60, 60, 40), {}, (2 * (16 + 4), 60, 60)),
        ((60, 60, 30), {}, (30, 60, 60)),
        ((300, 300, 40), {"size": (80, 320, 320)}, (2 * (1 + 8), 320, 320)),
    ],
)
def test_a_dry_run_holds_two_batches_and_the_slices_that_are_averaged(tmp_path, monkeypatch, shape, grid, tried):
    data = replace(PRESET.data, grid=GridConfig(**grid))
    preset = replace(PRESET, data=data, predict=PredictConfig(smooth_mm=2.4))
    save_model(tmp_path / "model", small_network(preset), preset)
    write_nifti(tmp_path / "scans" / "a.nii", np.zeros(shape, np.uint8), np.diag([0.8, 0.8, 2, 1.0]))
    scans = []
    segment = Model.segment
    monkeypatch.setattr(Model, "segment", lambda self, scan: scans.append(scan) or segment(self, scan))
    assert sdm(tmp_path / "scans", tmp_path / "masks", tmp_path / "model", "--dry-run").exit_code == 0
    (scan,) = scans
    assert scan.slices.shape == scan.grid.size == tried
    of_grid = shape[2] / grid["size"][0] if grid else 1
    assert scan.grid.scan[0] == round(tried[0] * of_grid)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_folder_that_a_file_stands_in_the_way_of_is_refused_before_the_work(tmp_path, model, more):
    scans = write_scans(tmp_path / "scans", "a")
    (tmp_path / "notes").write_text("")
    result = sdm(scans, tmp_path / "notes" / "new" / "masks", model, *more)
    assert result.exit_code == 1 and f"{tmp_path / 'notes'} is a file: give another folder" in result.stderr


def test_a_dry_run_refuses_what_the_prediction_would_refuse(tmp_path, model, mirrored_model):
    scans, masks = write_scans(tmp_path / "scans"), tmp_path / "masks"
    assert sdm(scans, masks, model, "--uncertainty", "--pseudo", str(tmp_path / "pseudo")).exit_code == 0
    for mask in masks.glob("*.nii.gz"):
        mask.unlink()
    refused = {
        ("--uncertainty",): "entropy/a.nii.gz exists: give another folder, or replace it with --overwrite.",
        ("--pseudo", str(tmp_path / "pseudo")): "and may be corrected by now: give another folder to --pseudo.",
        ("--pseudo", str(scans / "pseudo")): "is where scans or masks are: give --pseudo a folder of its own.",
        ("--tta",): "allows no mirrored slices",
    }
    for words, sentence in refused.items():
        for more in ((), ("--dry-run",)):
            result = sdm(scans, masks, model, *words, *more)
            assert result.exit_code == 1 and sentence in " ".join(result.stderr.split())
    assert sdm(scans, masks, model, "--dry-run", "--uncertainty", "--overwrite").exit_code == 0
    assert sdm(scans, masks, mirrored_model, "--dry-run", "--tta").exit_code == 0
    assert names_in(masks) == ["entropy", "predictions.jsonl"]


# ---- what goes wrong ----


def test_a_bad_scan_is_reported_and_the_rest_goes_on(tmp_path, model):
    scans, masks = write_scans(tmp_path / "scans", "abcd"), tmp_path / "masks"
    (scans / "a.nii.gz").write_bytes(b"nonsense")
    (scans / "c.nii.gz").write_bytes((scans / "c.nii.gz").read_bytes()[:300])
    result = sdm(scans, masks, model)
    assert result.exit_code == ExitCode.SOME_CASES_FAILED
    assert "2 of 4 scans got no mask (a, c)" in result.stderr
    assert [(line["case_id"], line["status"]) for line in records(masks)] == [
        ("a", "failed"),
        ("b", "written"),
        ("c", "failed"),
        ("d", "written"),
    ]
    assert all(f"{line['case_id']}.nii.gz cannot be read" in line["reason"] for line in records(masks)[::2])
    assert "the same command with --skip-existing goes on with the others." in result.stderr
    write_scans(scans, "abcd")
    assert sdm(scans, masks, model, "--skip-existing").exit_code == 0
    assert [line["status"] for line in records(masks)[4:]] == ["kept", "kept", "written", "written"]


def test_the_way_to_go_on_works_with_what_was_asked_for(tmp_path, model):
    """Maps, a ranking and pseudo-labels of the cases that `--skip-existing` keeps would be missing."""
    scans, masks = write_scans(tmp_path / "scans"), tmp_path / "masks"
    (scans / "b.nii.gz").write_bytes(b"nonsense")
    result = sdm(scans, masks, model, "--rank", "--pseudo", str(tmp_path / "pseudo"))
    assert result.exit_code == ExitCode.SOME_CASES_FAILED
    said = " ".join(result.stderr.split())
    assert "(b): repair them as the warnings say; the same command with --overwrite and another folder for" in said
    assert said.endswith("for --pseudo starts over.") and "--skip-existing" not in said
    write_scans(scans)
    result = sdm(scans, masks, model, "--rank", "--pseudo", str(tmp_path / "again"), "--overwrite")
    assert result.exit_code == 0, result.output
    assert len((masks / "ranking.csv").read_text().splitlines()) == 4
    (scans / "b.nii.gz").write_bytes(b"nonsense")
    said = sdm(scans, masks, model, "--uncertainty", "--overwrite").stderr
    assert said.strip().endswith("the same command with --overwrite starts over.")


def test_pseudo_labels_of_a_stopped_prediction_are_a_data_set(tmp_path, model, monkeypatch):
    scans, pseudo = write_scans(tmp_path / "scans", "abc"), tmp_path / "pseudo"
    read = predict_module.read_image

    def reading(case, data):
        if case.case_id == "c":
            raise KeyboardInterrupt
        return read(case, data)

    monkeypatch.setattr(predict_module, "read_image", reading)
    result = sdm(scans, tmp_path / "masks", model, "--pseudo", str(pseudo))
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "Stopped with 2 of 3 masks written" in result.stderr
    assert names_in(pseudo / "labelsTr") == ["a.nii.gz", "b.nii.gz"]
    assert names_in(pseudo / "imagesTr") == ["a_0000.nii.gz", "b_0000.nii.gz"]
    told = json.loads((pseudo / "dataset.json").read_text())
    assert told["numTraining"] == 2 and told["labels"]["kidney"] == 3
    assert [(case.case_id, case.label_path is not None) for case in find_cases(pseudo)] == [("a", True), ("b", True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_whole_masks_with_their_lines(tmp_path, model, number, monkeypatch):
    scans, masks = write_scans(tmp_path / "scans", "abcdefghijklmnopqrst"), tmp_path / "masks"

    def append(journal, line, real=Journal.append):
        real(journal, line)
        if line["case_id"] == "b":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Journal, "append", append)
    before = signal.getsignal(number)
    result = sdm(scans, masks, model)
    assert result.exit_code == ExitCode.INTERRUPTED and signal.getsignal(number) == before
    found = [path.name for path in masks.glob("*.nii.gz")]
    assert 2 <= len(found) < 20
    assert f"Stopped with {len(found)} of 20 masks written" in result.stderr
    assert names_in(masks) == sorted([*found, "predictions.jsonl"])
    assert sorted(line["mask"] for line in records(masks)) == sorted(found)


def test_two_processes_share_a_cohort_and_agree_on_its_end(tmp_path, model):
    scans, masks = write_scans(tmp_path / "scans", "abcde"), tmp_path / "masks"
    (scans / "d.nii.gz").write_bytes(b"nonsense")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", SDM]
    result = subprocess.run(
        [*launch, *arguments(scans, masks, model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode != 0
    assert result.stderr.count("warning: d: ") == 1 and result.stderr.count("1 of 5 scans got no mask (d)") == 1
    assert f"exitcode  : {ExitCode.SOME_CASES_FAILED.value}" in result.stderr
    lines = [[line["case_id"] for line in records(masks, f"predictions-{rank}-of-2.jsonl")] for rank in (0, 1)]
    assert lines == [list("abc"), list("de")]


def test_maps_of_an_earlier_run_are_not_taken_for_those_of_this_one(tmp_path, model):
    scans, masks = write_scans(tmp_path / "scans"), tmp_path / "masks"
    assert sdm(scans, masks, model, "--rank", "--save-probabilities").exit_code == 0
    said = " ".join(sdm(scans, masks, model, "--uncertainty", "--overwrite").stderr.split())
    assert f"{masks}/probabilities, {masks}/ranking.csv of an earlier run stay as they are" in said
    every = ("--rank", "--save-probabilities", "--uncertainty", "--overwrite")
    assert "of an earlier run" not in sdm(scans, masks, model, *every).stderr


def test_a_full_disk_ends_probabilities_with_a_sentence(tmp_path, model, monkeypatch):
    """Their file is mapped, and a page without a block on the disk would end the process."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    result = sdm(write_scans(tmp_path / "scans"), tmp_path / "masks", model, "--save-probabilities")
    assert result.exit_code == 1
    assert "a.npy cannot be written (No space left on device)" in " ".join(result.stderr.split())
    assert names_in(tmp_path / "masks" / "probabilities") == []


def test_blocks_of_probabilities_are_taken_before_they_are_filled(tmp_path, model, monkeypatch):
    taken, real = [], os.posix_fallocate
    monkeypatch.setattr("os.posix_fallocate", lambda *words: (taken.append(words[1:]), real(*words)))
    assert sdm(write_scans(tmp_path / "scans", "a"), tmp_path / "masks", model, "--save-probabilities").exit_code == 0
    assert taken == [(0, (tmp_path / "masks" / "probabilities" / "a.npy").stat().st_size)]


def test_pseudo_labels_that_cannot_be_written_leave_no_scan_alone(tmp_path, model, monkeypatch):
    def save(found, path, overwrite=False):
        raise OutputError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(Prediction, "save", save)
    pseudo = tmp_path / "pseudo"
    assert sdm(write_scans(tmp_path / "scans"), tmp_path / "masks", model, "--pseudo", str(pseudo)).exit_code == 1
    assert names_in(pseudo / "imagesTr") == names_in(pseudo / "confidence") == []


def test_a_scan_without_orientation_is_predicted_with_a_warning(tmp_path, model):
    scans = write_scans(tmp_path / "scans", "ab")
    image = nib.load(scans / "b.nii.gz")
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, scans / "b.nii.gz")
    result = sdm(scans, tmp_path / "masks", model)
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "b.nii.gz says neither how it lies nor" in said and "a.nii.gz says" not in said


def test_masks_do_not_go_into_a_store(tmp_path, model):
    store = make_store(tmp_path / "data", n_labeled=1, n_unlabeled=1)
    for output in (store, store / "masks"):
        result = sdm(write_scans(tmp_path / "scans"), output, model)
        assert result.exit_code == 1
        assert f"{output} is in the store {store}: give a folder beside it" in " ".join(result.stderr.split())
    assert not (store / "masks").exists()


def test_a_journal_goes_on_after_a_line_that_was_cut(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"mask": "a.nii.gz", "status": "written"}\n{"mask": "b.n')
    (tmp_path / "predictions-0-of-2.jsonl").write_bytes(b'7\n\n{"mask": "d.nii.gz", "status": "kept"}\n\xff')
    Journal(tmp_path).append({"mask": "c.nii.gz", "status": "written"})
    assert set(written_masks(tmp_path)) == {"a.nii.gz", "c.nii.gz"}
    assert (tmp_path / "predictions.jsonl").read_text().count("\n") == 3


def test_the_latest_line_of_all_journals_says_what_made_a_mask(tmp_path):
    for name, time, weights in (("predictions-0-of-2", "11:00", "new"), ("predictions", "10:00", "old")):
        line = {"time": f"2026-01-01T{time}:00+00:00", "mask": "a.nii.gz", "status": "written"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**line, "weights_sha256": [weights]}) + "\n")
    assert written_masks(tmp_path) == {"a.nii.gz": ["new"]}
