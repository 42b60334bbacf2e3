"""`sdm check`: each thing that may be wrong planted alone, the repaired copies, the picture."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from official import write_nrrd
from scans import affine, edit_header, write_laseg, write_nifti
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.cases import Case
from sdm_cli.data.findings import sides
from sdm_cli.data.health import examine
from sdm_cli.data.hounsfield import SOFT_TISSUE_HU
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.measure import take_fingerprint
from sdm_cli.data.recipe import load_recipe
from sdm_cli.data.splits import resolve_split
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import SomeCasesFailed
from sdm_cli.preset_files import data_config_from_dict
from sdm_cli.runs.check_picture import _CHUNK
from sdm_cli.runs.phantoms import make_phantoms
from sdm_cli.runs.preprocess import preprocess

DATA = Path(__file__).parents[2] / "shared" / "data" / "nifti"
SHAPE = (36, 34, 6)
CLASSES = {"right kidney": 1, "left kidney": 2}
KEYS = {
    *("folder", "n_cases", "n_labeled", "n_unlabeled", "n_blocks", "n_warns", "findings", "shapes", "spacing_mm"),
    *("anisotropy", "orientations", "dtypes", "label_dtypes", "domains", "classes", "cases", "picture", "repaired"),
}


@pytest.fixture(autouse=True)
def without_rendering(request):
    """Pictures are drawn, but turned to pixels only for tests that look at them: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        if "pictures" not in request.fixturenames:
            patch.setattr(Figure, "savefig", lambda figure, path, **options: path.write_bytes(_CHUNK))
        yield


def sdm(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report_of(folder: Path, *options: object) -> tuple[dict, int]:
    """The report as JSON, and the exit code."""
    result = sdm("check", folder, "--json", "--workers", 1, "-o", folder.parent / "check.png", *options)
    assert result.exit_code in (0, 3), result.stderr
    return json.loads(result.stdout), result.exit_code


def image(case_id: str, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(ord(case_id)).integers(0, 500, SHAPE).astype(dtype)


def label(right: int = 1, left: int = 2) -> np.ndarray:
    """The patient's right is at the end of the first axis, which points there."""
    voxels = np.zeros(SHAPE, np.uint8 if max(right, left) < 256 else np.uint16)
    voxels[8:10, 3:6, 2:4] = right
    voxels[2:4, 3:6, 2:5] = left
    return voxels


def make_folder(folder: Path, with_json: bool = True) -> Path:
    """Two labeled and three unlabeled scans without any fault."""
    for case_id in "ab":
        write_nifti(folder / "imagesTr" / f"{case_id}.nii.gz", image(case_id))
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label())
    for case_id in "cde":
        write_nifti(folder / "imagesUn" / f"{case_id}.nii.gz", image(case_id))
    if with_json:
        write_json(folder, CLASSES)
    return folder


def write_json(folder: Path, classes: dict[str, int]) -> None:
    tree = {"channel_names": {"0": "MR"}, "labels": {"background": 0, **classes}}
    (folder / "dataset.json").write_text(json.dumps(tree))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


# --- what is planted: each changes a folder without faults --------------------------------------


def set_image(folder, voxels, matrix=None, case_id="b"):
    write_nifti(folder / "imagesTr" / f"{case_id}.nii.gz", voxels, matrix)


def set_label(folder, voxels, matrix=None):
    write_nifti(folder / "labelsTr" / "b.nii.gz", voxels, matrix)


def shifted(mm: float) -> np.ndarray:
    matrix = affine()
    matrix[0, 3] += mm
    return matrix


def halved() -> np.ndarray:
    """Twice as many voxels along the first axis, at the same place."""
    matrix = affine()
    matrix[0, 3] -= matrix[0, 0] / 4
    matrix[0, 0] /= 2
    return matrix


def turned(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same label at the same place, the first axis stored the other way round."""
    matrix = affine()
    matrix[0, 3] += (len(voxels) - 1) * matrix[0, 0]
    matrix[0, 0] *= -1
    return voxels[::-1].copy(), matrix


def with_nan(folder):
    voxels = image("b", "float32")
    voxels[0, 0, :2] = np.nan, np.inf
    set_image(folder, voxels)


def truncate(folder):
    path = folder / "imagesTr" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def one_class(folder, values):
    write_json(folder, {"tumour": 1})
    for case_id, value in zip("ab", values, strict=True):
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(value, value))


def gaps(folder):
    (folder / "dataset.json").unlink()
    for case_id in "ab":
        voxels = label(2, 4)
        voxels[5:7, 3:6, 2:4] = 1
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", voxels)


def duplicate(folder, source, target):
    for source_part, target_part in zip(source, target, strict=True):
        shutil.copy(folder / source_part, folder / target_part)


PLANTED = {
    "image that is cut off": (truncate, "unreadable", "blocks", "imagesTr/b.nii.gz cannot be read as NIfTI", None),
    "label that is no NIfTI": (
        lambda folder: (folder / "labelsTr" / "b.nii.gz").write_bytes(b"nothing"),
        *("unreadable", "blocks", "labelsTr/b.nii.gz cannot be read as NIfTI", None),
    ),
    "4D image": (
        lambda folder: set_image(folder, np.stack([image("b")] * 3, axis=-1)),
        *("four_dimensional", "blocks", "b.nii.gz is 4D (36 x 34 x 6 x 3)", None),
    ),
    "NaN": (with_nan, "not_finite", "blocks", "has 2 voxels that are NaN or infinite", "fill NaN"),
    "one NaN": (
        lambda folder: set_image(folder, np.where(np.arange(7344).reshape(SHAPE), image("b"), np.float32(np.nan))),
        *("not_finite", "blocks", "has 1 voxel that is NaN or infinite", "fill NaN"),
    ),
    "only NaN": (
        lambda folder: set_image(folder, np.full(SHAPE, np.nan, np.float32)),
        *("not_finite", "blocks", "has 7344 voxels that are NaN", None),
    ),
    "constant image": (
        lambda folder: set_image(folder, np.full(SHAPE, 7, np.int16)),
        *("constant", "blocks", "is constant: all voxels are 7", None),
    ),
    "label of another shape": (
        lambda folder: set_label(folder, label()[:, :, :5]),
        *("shape_mismatch", "blocks", "has shape 36 x 34 x 5, but its image 36 x 34 x 6", None),
    ),
    "label a little off": (
        lambda folder: set_label(folder, label(), shifted(0.2)),
        *("affine_mismatch", "blocks", "lies up to 0.2 mm away from its image", "header of the image"),
    ),
    "label of smaller voxels": (
        lambda folder: set_label(folder, np.repeat(label(), 2, axis=0), halved()),
        *("shape_mismatch", "blocks", "has shape 72 x 34 x 6, but its image 36 x 34 x 6", "grid of the image"),
    ),
    "label in another orientation": (
        lambda folder: set_label(folder, *turned(label())),
        *("affine_mismatch", "blocks", "the affines differ", "grid of the image"),
    ),
    "label far off": (
        lambda folder: set_label(folder, label(), shifted(40)),
        *("affine_mismatch", "blocks", "lies up to 40 mm away from its image", None),
    ),
    "label without a header": (
        lambda folder: set_label(folder, label(), np.eye(4)),
        *("affine_mismatch", "blocks", "the affines differ", "header of the image"),
    ),
    "label of floats": (
        lambda folder: set_label(folder, label().astype(np.float32)),
        *("label_float", "warns", "stores its label values as float32", "whole numbers"),
    ),
    "label that was interpolated": (
        lambda folder: set_label(folder, label() * np.float32(0.75)),
        *("label_not_whole", "blocks", "not whole numbers (1.5, say)", None),
    ),
    "label that is infinite": (
        lambda folder: set_label(folder, np.where(label() == 1, np.float32(np.inf), label())),
        *("label_not_whole", "blocks", "not whole numbers (inf, say)", None),
    ),
    "scale that no float holds": (
        lambda folder: edit_header(folder / "imagesTr" / "b.nii.gz", scl_slope=1e37, scl_inter=0),
        *("not_finite", "blocks", "voxels that are NaN or infinite", "fill NaN"),
    ),
    "empty label": (
        lambda folder: set_label(folder, label(0, 0)),
        *("empty_label", "warns", "is empty: all voxels are background", None),
    ),
    "mask of 255 beside others": (
        lambda folder: one_class(folder, (1, 255)),
        *("mask_255", "blocks", "255 is its only foreground", "value 255 to the class"),
    ),
    "unknown value": (
        lambda folder: set_label(folder, label(1, 9)),
        *("unknown_values", "blocks", "has label values 9 that are no class (classes: 1 right kidney", None),
    ),
    "left and right": (
        lambda folder: set_label(folder, label(2, 1)),
        *("sides_swapped", "blocks", "left and right look swapped (kidney), or the header is mirrored", None),
    ),
    "copy of a labeled scan, unlabeled": (
        lambda folder: duplicate(folder, ["imagesTr/a.nii.gz"], ["imagesUn/b2.nii.gz"]),
        *("duplicate", "blocks", "has the voxels of", "leave out"),
    ),
    "copy of an unlabeled scan": (
        lambda folder: duplicate(folder, ["imagesUn/c.nii.gz"], ["imagesUn/c2.nii.gz"]),
        *("duplicate", "warns", "imagesUn/c2.nii.gz has the voxels of", "leave out"),
    ),
    "copy with its label": (
        lambda folder: duplicate(
            folder, ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], ["imagesTr/b.nii.gz", "labelsTr/b.nii.gz"]
        ),
        *("duplicate", "warns", "imagesTr/b.nii.gz has the voxels of", "leave out"),
    ),
    "spacing": (
        lambda folder: write_nifti(
            folder / "imagesUn" / "c.nii.gz", image("c"), affine(spacing_mm=(0.7, 1.1, 9.0))
        ),
        *("spacing_outlier", "warns", "3.6 times off the median (0.7 x 1.1 x 2.5 mm)", None),
    ),
    "pixels that no scanner makes": (
        lambda folder: write_nifti(
            folder / "imagesUn" / "c.nii.gz", image("c"), affine(spacing_mm=(700, 1100, 9.0))
        ),
        *("pixel_size", "blocks", "imagesUn/c.nii.gz has pixels of 700 x 1100 mm, which no scanner makes", None),
    ),
    "few pixels": (
        lambda folder: write_nifti(folder / "imagesUn" / "c.nii.gz", image("c")[:20]),
        *("small", "warns", "imagesUn/c.nii.gz has slices of 20 x 34 pixels, less than 32 a side", None),
    ),
    "one slice": (
        lambda folder: write_nifti(folder / "imagesUn" / "c.nii.gz", image("c")[:, :, :1]),
        *("single_slice", "warns", "imagesUn/c.nii.gz is a single slice (36 x 34 x 1)", None),
    ),
    "2D file": (
        lambda folder: write_nifti(folder / "imagesUn" / "c.nii.gz", image("c")[:, :, 0]),
        *("single_slice", "warns", "imagesUn/c.nii.gz is a single slice (36 x 34 x 1)", None),
    ),
    "orientation": (
        lambda folder: write_nifti(folder / "imagesUn" / "c.nii.gz", image("c"), affine(flips=(-1, -1, 1))),
        *("orientation_outlier", "warns", "is stored as LPS, most others as RAS", None),
    ),
}  # fmt: skip
OF_THE_SET = {
    "label without an image": (
        lambda folder: write_nifti(folder / "labelsTr" / "zz.nii.gz", label()),
        *("label_without_image", "blocks", "labelsTr/zz.nii.gz has no image of the same name"),
    ),
    "gaps": (gaps, "gaps", "warns", "The label values 1, 2, 4 leave gaps (3)"),
    "class that is in no label": (
        lambda folder: write_json(folder, {**CLASSES, "spleen": 3}),
        *("absent_class", "warns", "No label has a voxel of spleen"),
    ),
    "CT beside MR": (
        lambda folder: write_nifti(folder / "imagesUn" / "c.nii.gz", image("c") - 1000),
        *("mixed_modalities", "warns", "c holds the air of CT (below -500), unlike 4 others, and no domain tells them"),
    ),
    "no air in what is called CT": (
        lambda folder: (folder / "dataset.json").write_text(
            json.dumps({"modality": {"0": "CT"}, "labels": {"background": 0, **CLASSES}})
        ),
        *("modality_claim", "warns", "dataset.json calls the scans CT, but 0 of 5 scans read have voxels below -500"),
    ),
    "dataset.json": (
        lambda folder: (folder / "dataset.json").write_text("{"),
        *("dataset_json", "blocks", "dataset.json cannot be read"),
    ),
}


# --- the report --------------------------------------------------------------------------------


def test_a_folder_without_faults_passes(tmp_path, pictures):
    folder = make_folder(tmp_path / "raw")
    report, code = report_of(folder)
    assert code == 0
    assert report.keys() == KEYS
    assert report["findings"] == []
    assert (report["n_cases"], report["n_labeled"], report["n_unlabeled"]) == (5, 2, 3)
    assert report["orientations"] == {"RAS": 5}
    assert report["dtypes"] == {"int16": 5}
    assert report["label_dtypes"] == {"uint8": 2}
    assert report["spacing_mm"]["median"] == pytest.approx([0.7, 1.1, 2.5])
    assert report["anisotropy"]["max"] == pytest.approx(2.5 / 0.7)
    assert report["shapes"]["min"] == list(SHAPE)
    right, left = report["classes"]
    assert (right["name"], right["value"], right["n_cases"]) == ("right kidney", 1, 2)
    assert right["volume_ml"]["median"] == pytest.approx(12 * 0.7 * 1.1 * 2.5 / 1000)
    assert left["volume_ml"]["max"] == pytest.approx(18 * 0.7 * 1.1 * 2.5 / 1000)
    case = report["cases"][0]
    assert case["case_id"] == "a"
    assert case["intensity"]["min"] == image("a").min()
    assert case["intensity"]["mean"] == pytest.approx(image("a").mean())
    assert case["intensity"]["median"] == pytest.approx(np.median(image("a")), abs=1)
    assert set(case["label_volumes_ml"]) == {"1", "2"}
    assert report["cases"][2]["label_volumes_ml"] is None
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", OF_THE_SET)
def test_each_fault_of_the_set_is_found_alone_and_the_copies_do_not_block(name, tmp_path):
    plant, code, severity, words = OF_THE_SET[name]
    folder = make_folder(tmp_path / "raw")
    plant(folder)
    report, exit_code = report_of(folder, "--repair", tmp_path / "out")
    (finding,) = report["findings"]
    assert (finding["code"], finding["severity"], finding["case_id"]) == (code, severity, None)
    assert words in finding["message"]
    assert exit_code == (3 if severity == "blocks" else 0)
    assert report["n_cases"] == 5
    assert report_of(tmp_path / "out")[1] == 0
    preprocess(tmp_path / "out", None, None, tmp_path / "store")


def test_one_scan_with_two_labels_is_left_to_a_person(tmp_path):
    folder = make_folder(tmp_path / "raw")
    duplicate(folder, ["imagesTr/a.nii.gz"], ["imagesTr/b.nii.gz"])
    voxels = label()
    voxels[2, 3, 2] = 0
    set_label(folder, voxels)
    report, code = report_of(folder)
    assert code == 3
    assert [(finding["case_id"], finding["fix"]) for finding in report["findings"]] == [("a", None), ("b", None)]
    assert "one scan with two different labels" in report["findings"][0]["message"]


def test_a_copy_is_found_under_another_orientation_and_dtype(tmp_path):
    folder = make_folder(tmp_path / "raw")
    turned = image("c")[::-1, ::-1].astype(np.float32)
    write_nifti(folder / "imagesUn" / "f.nii.gz", turned, affine(flips=(-1, -1, 1)))
    report, _ = report_of(folder)
    assert "duplicate" in {finding["code"] for finding in report["findings"]}


def test_labels_are_missing_or_empty_everywhere(tmp_path):
    folder = make_folder(tmp_path / "raw")
    for case_id in "ab":
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(0, 0))
    assert "no_foreground" in {finding["code"] for finding in report_of(folder)[0]["findings"]}
    shutil.rmtree(folder / "labelsTr")
    report, code = report_of(folder)
    assert code == 3
    assert [finding["code"] for finding in report["findings"]] == ["no_label"]


def test_all_labeled_needs_a_split(tmp_path):
    folder = make_folder(tmp_path / "raw")
    shutil.rmtree(folder / "imagesUn")
    report, code = report_of(folder)
    assert code == 3
    (finding,) = report["findings"]
    assert (finding["code"], finding["severity"]) == ("no_unlabeled", "blocks")
    assert "sdm split --store STORE --labeled N" in finding["repair"]
    store, split = preprocess(folder, None, None, tmp_path / "store"), tmp_path / "split.yaml"
    assert sdm("split", "--store", store, "--labeled", 1, "-o", split).exit_code == 0
    assert len(
        resolve_split(load_recipe(store, [f"data.split={split}"]).data, SliceStore(store).cases, False).unlabeled
    )
    preset = tmp_path / "own.yaml"
    preset.write_text(f"base: {store}/preset.yaml\ndata: {{split: {split}}}\n")
    assert report_of(folder, "--preset", preset)[1] == 0


def test_a_few_dark_voxels_make_no_ct_as_for_the_recipe(tmp_path):
    folder = make_folder(tmp_path / "raw", with_json=False)
    dark = image("c")
    dark[5, 5, 3] = -3000
    write_nifti(folder / "imagesUn" / "c.nii.gz", dark)
    report, code = report_of(folder)
    assert (code, report["findings"]) == (0, [])
    dark[:4] = -3000
    write_nifti(folder / "imagesUn" / "c.nii.gz", dark)
    assert [finding["code"] for finding in report_of(folder)[0]["findings"]] == ["mixed_modalities"]
    assert take_fingerprint(folder, find_cases(folder)).modality == "mixed"


def test_broken_headers_are_accused_however_many_they_are_and_no_good_scan(tmp_path):
    folder = make_folder(tmp_path / "raw")
    for broken in ("cde", "abcde"):
        for path in [*folder.glob(f"images*/[{broken}].nii.gz"), *folder.glob(f"labels*/[{broken}].nii.gz")]:
            write_nifti(path, voxels_of(path), affine(spacing_mm=(700, 1100, 2500)))
        report, code = report_of(folder)
        assert code == 3
        assert [(finding["case_id"], finding["code"]) for finding in report["findings"]] == [
            (case_id, "pixel_size") for case_id in broken
        ]


def test_microscopy_is_accused_of_nothing(tmp_path):
    folder = make_folder(tmp_path / "raw")
    for path in [*folder.glob("images*/*.nii.gz"), *folder.glob("labels*/*.nii.gz")]:
        write_nifti(path, voxels_of(path), affine(spacing_mm=(0.004, 0.004, 0.03)))
    assert report_of(folder)[1] == 0


def test_one_stray_scan_makes_no_microscopy_odd(tmp_path):
    folder = make_folder(tmp_path / "raw")
    for path in [*folder.glob("images*/[a-d].nii.gz"), *folder.glob("labels*/*.nii.gz")]:
        write_nifti(path, voxels_of(path), affine(spacing_mm=(0.004, 0.004, 0.03)))
    report, code = report_of(folder)
    assert [(finding["case_id"], finding["code"]) for finding in report["findings"]] == [("e", "spacing_outlier")]
    assert code == 0


def test_another_channel_is_a_finding_of_its_case(tmp_path):
    folder = make_folder(tmp_path / "raw")
    (folder / "imagesTr" / "b.nii.gz").rename(folder / "imagesTr" / "b_0000.nii.gz")
    write_nifti(folder / "imagesTr" / "b_0001.nii.gz", image("x"))
    (folder / "imagesTr" / "a.nii.gz").rename(folder / "imagesTr" / "a_0000.nii.gz")
    report, code = report_of(folder)
    (finding,) = report["findings"]
    assert (code, report["n_cases"], finding["case_id"], finding["severity"]) == (3, 5, "b", "blocks")
    assert "imagesTr/b_0001.nii.gz is another channel of case b" in finding["message"]


def test_a_voxel_size_that_no_file_stores_is_unknown(tmp_path):
    write_laseg(tmp_path / "raw", "one", SHAPE)
    report, _ = report_of(tmp_path / "raw")
    assert (report["spacing_mm"], report["anisotropy"], report["cases"][0]["spacing_mm"]) == (None, None, None)
    said = sdm("check", tmp_path / "raw", "--workers", 1, "-o", tmp_path / "check.png").stdout
    assert "unknown" in said and "1 x 1 x 1" not in said
    preset = tmp_path / "own.yaml"
    preset.write_text("data: {classes: {a: 1}, spacing_mm: [1.0, 1.0, 2.0]}\ntrain: {steps: 1}\n")
    assert report_of(tmp_path / "raw", "--preset", preset)[0]["cases"][0]["spacing_mm"] == [1, 1, 2]


def test_domains_of_a_table(tmp_path):
    folder = make_folder(tmp_path / "raw")
    table = tmp_path / "domains.csv"
    table.write_text("case,domain\na,x\nb,y\nc,y\nd,x\ne,\n")
    report, code = report_of(folder, "--domains", table)
    assert code == 0
    assert [(entry["domain"], entry["n_cases"]) for entry in report["domains"]] == [("x", 2), ("y", 2), (None, 1)]
    assert [finding["message"] for finding in report["findings"]] == ["e has no domain, unlike the others."]
    table.write_text("case,domain\na,x\n")
    report, code = report_of(folder, "--domains", table)
    assert code == 3
    assert "has no line of b, c, d, e" in report["findings"][0]["message"]


def test_a_preset_names_the_classes_and_its_values_may_leave_gaps(tmp_path):
    folder = make_folder(tmp_path / "raw", with_json=False)
    for case_id in "ab":
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(205, 420))
    preset = tmp_path / "heart.yaml"
    preset.write_text("data:\n  classes: {myocardium: 205, left atrium: 420}\ntrain: {steps: 1}\n")
    report, code = report_of(folder, "--preset", preset)
    assert code == 0
    assert report["findings"] == []
    assert [entry["name"] for entry in report["classes"]] == ["myocardium", "left atrium"]


def test_plain_folders_with_a_stray_label(tmp_path):
    make_folder(tmp_path / "raw")
    write_nifti(tmp_path / "raw" / "labelsTr" / "zz.nii.gz", label())
    images, labels = tmp_path / "raw" / "imagesTr", tmp_path / "raw" / "labelsTr"
    result = sdm("check", images, "--labels", labels, "--json", "--workers", 1, "-o", tmp_path)
    report = json.loads(result.stdout)
    assert result.exit_code == 3
    assert "label_without_image" in {finding["code"] for finding in report["findings"]}
    assert report["n_labeled"] == 2


def test_the_table_stays_readable_with_numbers_beyond_float32(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "imagesUn" / "c.nii.gz", image("c") * 1e300)
    result = sdm("check", folder, "--workers", 1, "-o", tmp_path)
    assert result.exit_code == 0
    assert "0 .. 4.97e+302" in result.stdout


def test_two_files_of_one_case_are_a_finding_and_all_else_is_checked(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "imagesTr" / "a.nii", image("x"))
    write_nifti(folder / "labelsTr" / "b.nii", label())
    (folder / "imagesUn" / "c.nii.gz").write_bytes(b"nothing")
    report, code = report_of(folder, "--repair", tmp_path / "out")
    assert code == 3
    found = {finding["case_id"]: finding for finding in report["findings"]}
    assert found.keys() == {"a", "b", "c"}
    assert {finding["severity"] for finding in found.values()} == {"blocks"}
    assert "imagesTr/a.nii and " in found["a"]["message"]
    assert "are both case a." in found["a"]["message"]
    assert "labelsTr/b.nii and " in found["b"]["message"]
    assert found["a"]["repair"] == "Rename or remove one."
    assert report["repaired"]["n_cases"] == 2


def test_headers_that_had_to_be_mended_are_findings_and_no_raw_lines(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "imagesUn" / "患者.nii.gz", image("f"))
    unplaced = {"sform_code": 0, "qform_code": 0}
    edit_header(folder / "imagesUn" / "c.nii.gz", pixdim=0, **unplaced)
    edit_header(folder / "imagesUn" / "d.nii.gz", **unplaced | {"qform_code": 77})
    edit_header(folder / "imagesUn" / "e.nii.gz", pixdim=0)  # its sform tells all
    command = [sys.executable, "-m", "sdm_cli", "check", str(folder), "--json", "-o", str(tmp_path), "--workers", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr.splitlines() == [f"6 scans in {folder}, 2 with a label."]
    findings = json.loads(result.stdout)["findings"]
    messages = {finding["code"]: finding["message"] for finding in findings if finding["case_id"] in ("c", "d")}
    assert f"{folder}/imagesUn/c.nii.gz stores a voxel size of 0: 1 mm is assumed." == messages["no_spacing"]
    assert "d.nii.gz has a header that breaks the standard (qform_code 77 not valid)" in messages["header"]
    assert not {"no_spacing", "header"} & {finding["code"] for finding in findings if finding["case_id"] == "e"}


def test_files_that_hold_image_and_label(tmp_path):
    folder = tmp_path / "raw"
    for case_id in ("one", "two"):
        write_laseg(folder, case_id, SHAPE)
    report, code = report_of(folder, "--repair", tmp_path / "out")
    found = {finding["code"]: finding["message"] for finding in report["findings"]}
    assert found.keys() == {"duplicate", "no_unlabeled", "no_spacing"}
    assert "mri_norm2.h5: 1 mm is assumed, for the volumes in ml too" in found["no_spacing"]
    assert code == 3  # none of the two is unlabeled
    assert report["repaired"]["n_cases"] == 1
    assert nib.load(tmp_path / "out" / "imagesTr" / "one_0000.nii.gz").shape == SHAPE


def test_workers_change_nothing(tmp_path):
    folder = make_folder(tmp_path / "raw")
    truncate(folder)
    one, _ = report_of(folder)
    result = sdm("check", folder, "--json", "--workers", 2, "-o", tmp_path / "check.png")
    assert json.loads(result.stdout) == one


def test_the_table_says_it_in_words(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "raw")
    truncate(folder)
    monkeypatch.chdir(tmp_path)
    result = sdm("check", "raw", "--workers", 1)
    assert result.exit_code == 3
    assert "5 scans in raw: 2 labeled, 3 not" in result.stdout
    assert "right kidney" in result.stdout
    assert "imagesTr/b.nii.gz cannot be read as NIfTI" in result.stdout
    assert "a person must decide: --repair leaves the case out" in " ".join(result.stdout.split())
    assert "1 to repair before training" in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "Error: 1 finding blocks training on raw: repair what is listed as blocking."
    )
    with_nan(folder)
    result = sdm("check", "raw", "--workers", 1)
    assert result.stderr.splitlines()[-1].endswith(
        "repair what is listed as blocking, or write repaired copies with --repair OUT."
    )
    assert (tmp_path / "check.png").is_file()


def test_sides_are_told_by_names():
    classes = {"right kidney": 2, "left kidney": 3, "adrenal_gland_left": 13, "adrenal_gland_right": 12, "liver": 6}
    assert sides(classes) == [(2, 3, "kidney"), (12, 13, "adrenal gland")]
    assert sides({"right ventricle": 1, "left ventricle": 3}) == []


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real scans")
@pytest.mark.parametrize("is_named_right", [True, False])
def test_sides_of_a_real_scan(is_named_right):
    values = (2, 3) if is_named_right else (3, 2)
    data = data_config_from_dict({"classes": dict(zip(("kidney_right", "kidney_left"), values, strict=True))}, "test")
    health = examine(Case("ct", DATA / "ct.nii.gz", DATA / "ct_labels.nii.gz"), data)
    assert [finding.code for finding in health.findings] == ([] if is_named_right else ["sides_swapped"])


# --- the copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_each_fault_of_a_case_is_found_alone_and_the_copies_are_free_of_it(name, tmp_path):
    plant, code, severity, words, fix = PLANTED[name]
    folder = make_folder(tmp_path / "raw")
    plant(folder)
    report, exit_code = check_copies(folder)
    finding = report["findings"][0]
    assert {found["code"] for found in report["findings"]} == {code}
    assert finding["severity"] == severity
    assert words in finding["message"]
    assert finding["repair"].endswith(".")
    assert finding["fix"] == fix
    assert finding["case_id"] in ("b", "b2", "c", "c2")
    assert exit_code == (3 if severity == "blocks" else 0)
    assert report["n_cases"] == len(report["cases"]) >= 5


def check_copies(folder: Path) -> tuple[dict, int]:
    """Repair, and look at the copies and the originals; the report and the exit code."""
    before = snapshot(folder)
    output = folder.parent / "out"
    report, exit_code = report_of(folder, "--repair", output)
    assert snapshot(folder) == before
    again, code = report_of(output)
    assert code == 0
    assert not [finding for finding in again["findings"] if finding["fix"] is not None]
    assert again["n_cases"] == report["repaired"]["n_cases"]
    preprocess(output, None, None, folder.parent / "store")
    record = json.loads((output / "repairs.json").read_text())
    assert record["complete"] is True
    assert record["left_out"] == report["repaired"]["left_out"]
    for finding in report["findings"]:
        if finding["severity"] == "blocks" and finding["fix"] is None:
            assert finding["message"] in {entry["reason"] for entry in record["left_out"]}
        elif finding["fix"] not in (None, "leave out"):
            assert finding["fix"] in record["cases"][finding["case_id"]]["fixes"]
    return report, exit_code


def repaired(folder: Path) -> Path:
    output = folder.parent / "out"
    report_of(folder, "--repair", output)
    return output


def test_what_has_no_fault_is_copied_to_the_last_byte(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "imagesUn" / "f.nii", image("f"))
    output = repaired(folder)
    assert (output / "imagesTr" / "a_0000.nii.gz").read_bytes() == (folder / "imagesTr" / "a.nii.gz").read_bytes()
    assert (output / "labelsTr" / "a.nii.gz").read_bytes() == (folder / "labelsTr" / "a.nii.gz").read_bytes()
    copy = nib.load(output / "imagesUn" / "f_0000.nii.gz")
    assert copy.header == nib.load(folder / "imagesUn" / "f.nii").header
    assert np.array_equal(np.asarray(copy.dataobj), image("f"))
    tree = json.loads((output / "dataset.json").read_text())
    assert tree["labels"] == {"background": 0, **CLASSES}
    assert tree["channel_names"] == {"0": "MR"}
    assert tree["numTraining"] == 2


def test_nan_becomes_the_lowest_finite_value(tmp_path):
    folder = make_folder(tmp_path / "raw")
    with_nan(folder)
    original = nib.load(folder / "imagesTr" / "b.nii.gz")
    copy = nib.load(repaired(folder) / "imagesTr" / "b_0000.nii.gz")
    voxels, expected = np.asarray(copy.dataobj), np.asarray(original.dataobj).copy()
    expected[0, 0, :2] = image("b")[~np.isin(np.arange(7344).reshape(SHAPE), [0, 1])].min()
    assert voxels.dtype == np.float32
    assert np.array_equal(voxels, expected)
    assert np.array_equal(copy.affine, original.affine)
    assert copy.header == original.header


@pytest.mark.parametrize(("values", "expected"), [((1, 255), 1), ((255, 255), 1)])
def test_255_becomes_the_class(tmp_path, values, expected):
    folder = make_folder(tmp_path / "raw")
    one_class(folder, values)
    copy = voxels_of(repaired(folder) / "labelsTr" / "b.nii.gz")
    assert np.array_equal(copy, (label() > 0) * expected)


def test_masks_of_255_alone_only_warn_without_named_classes(tmp_path):
    folder = make_folder(tmp_path / "raw")
    one_class(folder, (255, 255))
    (folder / "dataset.json").unlink()
    report, code = report_of(folder)
    assert code == 0
    assert [finding["code"] for finding in report["findings"]] == ["mask_255", "mask_255"]
    assert np.unique(voxels_of(repaired(folder) / "labelsTr" / "a.nii.gz")).tolist() == [0, 1]


def with_values(folder: Path, *values_of_labels: tuple[int, int]) -> Path:
    """Without names of classes."""
    (folder / "dataset.json").unlink()
    for case_id, values in zip("ab", values_of_labels, strict=True):
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(*values))
    return folder


def test_255_beside_other_values_is_left_out_as_preprocess_does(tmp_path):
    folder = with_values(make_folder(tmp_path / "raw"), (1, 2), (1, 255))
    report, code = report_of(folder)
    (finding,) = report["findings"]
    assert (code, finding["code"], finding["severity"], finding["fix"]) == (0, "ignored_255", "warns", None)
    assert "labelsTr/b.nii.gz, and is left out of losses and scores" in finding["message"]
    assert SliceStore(preprocess(folder, None, None, tmp_path / "store")).data.ignore_value == 255


@pytest.mark.parametrize(
    ("others", "severity", "fix"),
    [
        ((1, 1), "warns", "value 255 to the class"),
        ((1, 2), "blocks", None),  # nobody knows which class it is, and the others count as background there
        ((255, 255), "warns", "value 255 to the class"),
    ],
)
def test_a_mask_of_255_without_named_classes_blocks_beside_several(others, severity, fix, tmp_path, capsys):
    folder = with_values(make_folder(tmp_path / "raw"), others, (255, 255))
    report, code = report_of(folder)
    assert code == (3 if severity == "blocks" else 0)
    assert {(finding["code"], finding["severity"], finding["fix"]) for finding in report["findings"]} == {
        ("mask_255", severity, fix)
    }
    left_out = SliceStore(preprocess(folder, None, None, tmp_path / "store")).data.ignore_value == 255
    said = capsys.readouterr().err
    assert ("nothing but 255, which is left out of losses and scores, is labeled in b" in said) == left_out
    assert "empty" not in said
    assert ("left out of losses" in report["findings"][0]["message"]) == left_out


@pytest.mark.parametrize("values", [(1, 255), (255, 255)])
def test_a_255_that_dataset_json_does_not_name_blocks_as_preprocess_refuses_it(values, tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    set_label(folder, label(*values))
    report, code = report_of(folder)
    assert (code, [finding["case_id"] for finding in report["findings"]]) == (3, ["b"])
    with pytest.raises(SomeCasesFailed):
        preprocess(folder, None, None, tmp_path / "store")
    assert "failed: b: " in capsys.readouterr().err


def test_gaps_are_closed_and_recorded(tmp_path):
    folder = make_folder(tmp_path / "raw")
    gaps(folder)
    original = voxels_of(folder / "labelsTr" / "a.nii.gz")
    output = repaired(folder)
    copy = voxels_of(output / "labelsTr" / "a.nii.gz")
    assert np.array_equal(copy, np.where(original == 4, 3, original))
    assert json.loads((output / "repairs.json").read_text())["label_values"] == {"4": 3}


def test_gaps_of_named_classes_are_closed_in_dataset_json_too(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_json(folder, {"spleen": 2, "liver": 5})
    for case_id in "ab":
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(2, 5))
    output = repaired(folder)
    assert json.loads((output / "dataset.json").read_text())["labels"] == {"background": 0, "spleen": 1, "liver": 2}
    assert np.array_equal(voxels_of(output / "labelsTr" / "a.nii.gz"), label(1, 2))


def test_a_label_takes_the_header_of_its_image_and_whole_numbers(tmp_path):
    folder = make_folder(tmp_path / "raw")
    set_label(folder, label().astype(np.float64), shifted(0.3))
    copy = nib.load(repaired(folder) / "labelsTr" / "b.nii.gz")
    assert np.array_equal(copy.affine, nib.load(folder / "imagesTr" / "b.nii.gz").affine)
    assert copy.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(copy.dataobj), label())


@pytest.mark.parametrize("stored", [turned(label()), (np.repeat(label(), 2, axis=0), halved())])
def test_a_label_on_another_grid_of_the_same_place_is_resampled(stored, tmp_path):
    folder = make_folder(tmp_path / "raw")
    set_label(folder, *stored)
    copy = nib.load(repaired(folder) / "labelsTr" / "b.nii.gz")
    assert np.array_equal(copy.affine, nib.load(folder / "imagesTr" / "b.nii.gz").affine)
    assert np.array_equal(np.asarray(copy.dataobj), label())


def test_sides_of_a_label_on_another_grid_are_those_of_its_own_header(tmp_path):
    folder = make_folder(tmp_path / "raw")
    set_label(folder, *turned(label(2, 1)))
    report, _ = report_of(folder, "--repair", tmp_path / "out")
    assert {finding["code"] for finding in report["findings"]} == {"affine_mismatch", "sides_swapped"}
    assert [entry["case_id"] for entry in report["repaired"]["left_out"]] == ["b"]


def test_domains_and_patients_of_copies_reach_the_store(tmp_path):
    """ACDC names patients and no domain, sites are domains without patients."""
    sites = tmp_path / "sites"
    for site in "AB":
        write_nifti(sites / site / "a01.nii.gz", image(site))
    result = sdm("check", sites, "--repair", tmp_path / "out", "--workers", 1, "-o", tmp_path)
    table = tmp_path / "out" / "domains.csv"
    assert f"--domains {table}" in result.stdout
    assert "and --domains" in result.stderr
    store = preprocess(tmp_path / "out", None, None, tmp_path / "store", domains=table)
    assert {case_id: case.domain for case_id, case in SliceStore(store).cases.items()} == {"A_a01": "A", "B_a01": "B"}

    for frame in ("01", "02"):
        path = tmp_path / "acdc" / "patient001" / f"patient001_frame{frame}.nii.gz"
        write_nifti(path, image(frame[1]))
        write_nifti(path.with_name(f"patient001_frame{frame}_gt.nii.gz"), label())
    (tmp_path / "acdc" / "patient001" / "Info.cfg").write_text("ED: 1\nES: 2\n")
    report, _ = report_of(tmp_path / "acdc", "--repair", tmp_path / "copies")
    store = preprocess(
        tmp_path / "copies", None, None, tmp_path / "hearts", domains=Path(report["repaired"]["domains"])
    )
    assert {case.patient for case in SliceStore(store).cases.values()} == {"patient001"}


def test_domains_come_along(tmp_path):
    folder = make_folder(tmp_path / "raw")
    table = tmp_path / "domains.csv"
    table.write_text("case,domain,patient\na,x,p\nb,y,q\nc,y,\nd,x,\ne,x,\n")
    output = tmp_path / "out"
    report_of(folder, "--domains", table, "--repair", output)
    again, code = report_of(output, "--domains", output / "domains.csv")
    assert code == 0
    assert [(entry["domain"], entry["n_cases"]) for entry in again["domains"]] == [("x", 3), ("y", 2)]


def test_own_keys_of_dataset_json_come_along(tmp_path):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "labelsTr" / "b.nii.gz", label()[:5])  # cannot be repaired
    own = {"domains": {**dict.fromkeys("abc", "x"), **dict.fromkeys("de", "y")}, "slice_axis": "coronal"}
    tree = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**tree, "sdm": own}))
    output = tmp_path / "out"
    report, _ = report_of(folder, "--repair", output)
    assert [(entry["domain"], entry["n_cases"]) for entry in report["domains"]] == [("x", 3), ("y", 2)]
    assert json.loads((output / "dataset.json").read_text())["sdm"]["domains"] == {
        "a": "x",
        "c": "x",
        "d": "y",
        "e": "y",
    }
    again, code = report_of(output)
    assert (code, [entry["domain"] for entry in again["domains"]]) == (0, ["x", "y"])


def test_copies_replace_copies_only_when_asked(tmp_path):
    folder = make_folder(tmp_path / "raw")
    output = repaired(folder)
    options = ("--workers", 1, "-o", tmp_path, "--repair", output)
    result = sdm("check", folder, *options)
    assert result.exit_code == 1
    assert "replace the copies with --overwrite" in result.stderr
    (folder / "imagesUn" / "e.nii.gz").unlink()
    assert sdm("check", folder, *options, "--overwrite").exit_code == 0
    assert not (output / "imagesUn" / "e_0000.nii.gz").exists()
    assert (output / "imagesUn" / "d_0000.nii.gz").is_file()


@pytest.mark.parametrize("where", ["raw", "raw/copies", ".", "other"])
def test_copies_never_go_among_the_originals_or_other_files(where, tmp_path):
    folder = make_folder(tmp_path / "raw")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    result = sdm("check", folder, "-o", tmp_path, "--repair", tmp_path / where, "--overwrite")
    assert result.exit_code == 1
    assert "choose another folder" in result.stderr
    assert snapshot(tmp_path) == before


# --- the picture -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [("x.jpg", "give a name that ends in .png"), ("raw", "among the originals"), ("raw/a.png", "among")],
)
def test_the_picture_is_a_png_outside_the_scans(output, words, tmp_path):
    folder = make_folder(tmp_path / "raw")
    before = snapshot(tmp_path)
    result = sdm("check", folder, "--workers", 1, "-o", tmp_path / output)
    assert result.exit_code == 1
    assert words in result.stderr
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "x.jpg").exists()


def test_only_a_picture_of_sdm_check_is_replaced_unasked(tmp_path, pictures):
    folder, picture = make_folder(tmp_path / "raw"), tmp_path / "check.png"
    command = ["check", folder, "-o", picture, "--workers", 1]
    picture.write_bytes(b"a picture of somebody else's")
    refused = sdm(*command)
    assert refused.exit_code == 1 and not refused.stdout
    assert f"Error: {picture} exists and is no picture of sdm check: choose another place with -o" in refused.stderr
    assert picture.read_bytes() == b"a picture of somebody else's"
    for options in (["--overwrite"], []):  # the second one meets the picture of the first
        assert sdm(*command, *options).exit_code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("spacing_mm", "sides"), [((0.7, 6.0, 1.1), (36, 6)), ((0.7, 1.1, 6.0), (36, 34))])
def test_slices_are_drawn_across_the_coarsest_spacing(spacing_mm, sides, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "raw")
    for path in folder.glob("*/*.nii.gz"):
        write_nifti(path, voxels_of(path), affine(spacing_mm=spacing_mm))
    shown = []
    monkeypatch.setattr("sdm_cli.runs.check.draw_check", lambda path, title, healths, drawn, *_: shown.extend(drawn))
    report_of(folder)
    assert {health.thumbnail.image.shape for health in shown} == {sides}


def test_films_and_nrrd_are_drawn_along_the_axis_of_the_recipe(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("sdm_cli.runs.check.draw_check", lambda path, title, healths, drawn, *_: shown.extend(drawn))
    films, matrix = tmp_path / "films", affine(spacing_mm=(0.7, 6.0, 1.1))
    write_nifti(films / "A0S9V9" / "A0S9V9_sa.nii.gz", np.stack([image("a")] * 4, -1), matrix)
    (films / "table.csv").write_text("External code,Vendor,ED,ES\nA0S9V9,A,0,3\n")
    scans = tmp_path / "scans"
    (scans / "one").mkdir(parents=True)
    write_nrrd(scans / "one" / "lgemri.nrrd", image("b"), (0.7, 6.0, 1.1))
    for folder in (films, scans):
        report_of(folder)
        assert take_fingerprint(folder, find_cases(folder)).slice_axis == "coronal"
        assert {health.thumbnail.image.shape for health in shown} == {(36, 6)}
        shown.clear()


def test_the_window_of_ct_is_for_scans_that_are_ct(tmp_path, monkeypatch):
    """Some dark pixels of a slice make none; air outside the slice that is drawn does."""
    dark, ct = image("c"), image("d")
    dark[:7, 0, 3] = -3000
    ct[:, :, 0] = -1000
    windows = []

    def imshow(axes, pixels, *args, original=Axes.imshow, **options):
        windows.extend([(options["vmin"], options["vmax"])] if "vmin" in options else [])
        return original(axes, pixels, *args, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    for voxels in (dark, ct):
        write_nifti(tmp_path / "raw" / "x.nii.gz", voxels)
        report_of(tmp_path / "raw")
    assert [window == SOFT_TISSUE_HU for window in windows] == [False, True]


@pytest.mark.parametrize("arguments", [(".",), (".", "--labels", "../labels"), ("../scans", "--labels", "../labels")])
def test_from_within_the_scans_the_picture_goes_above_them(arguments, tmp_path, monkeypatch):
    raw = make_folder(tmp_path / "raw", with_json=False)
    scans, labels = (raw / "imagesTr").rename(tmp_path / "scans"), (raw / "labelsTr").rename(tmp_path / "labels")
    before = {**snapshot(scans), **snapshot(labels)}
    for place in (scans, labels) if ".." in arguments[0] else (scans,):
        monkeypatch.chdir(place)
        result = sdm("check", *arguments, "--workers", 1)
        assert f"Picture: {tmp_path}/check.png" in result.stdout
    assert {**snapshot(scans), **snapshot(labels)} == before


def test_the_picture_does_not_go_among_the_labels(tmp_path):
    raw = make_folder(tmp_path / "raw", with_json=False)
    result = sdm("check", raw / "imagesTr", "--labels", raw / "labelsTr", "-o", raw / "labelsTr")
    assert result.exit_code == 1
    assert "labelsTr/check.png lies among the originals" in result.stderr


def test_the_picture_holds_forty_cases_at_most(tmp_path, pictures):
    folder = tmp_path / "raw"
    random = np.random.default_rng(0)
    for i in range(45):
        write_nifti(folder / f"case{i:02d}.nii.gz", random.normal(size=(6, 5, 4)).astype(np.float32))
    result = sdm("check", folder, "--workers", 1, "-o", tmp_path / "many.png")
    assert result.exit_code == 3  # no label at all
    assert (tmp_path / "many.png").stat().st_size > 10_000
    assert "the first 20; --json lists all 45" in result.stdout


def test_phantoms_of_the_demo_pass(tmp_path):
    make_phantoms(tmp_path / "phantoms")
    shutil.rmtree(tmp_path / "phantoms" / "truth")
    report, code = report_of(tmp_path / "phantoms")
    assert code == 0
    assert [finding["code"] for finding in report["findings"]] == ["orientation_outlier"]


def test_nothing_can_be_read(tmp_path):
    folder = make_folder(tmp_path / "raw")
    for path in folder.rglob("*.nii.gz"):
        path.write_bytes(b"nothing")
    report, code = report_of(folder, "--repair", tmp_path / "out")
    assert code == 3
    assert report["shapes"] is None
    assert report["repaired"]["n_cases"] == 0
    assert Path(report["picture"]).is_file()
