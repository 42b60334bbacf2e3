"""The fingerprint of a folder: what is read, what is found, and that it is always the same."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine, label, rotation, voxels, write_laseg, write_nifti

from sdm_cli.data import measure, volume
from sdm_cli.data.cases import Case
from sdm_cli.data.fingerprint import Fingerprint
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.measure import take_fingerprint
from sdm_cli.errors import ImageReadError, PresetError
from sdm_cli.files import json_text

REAL = Path(__file__).parents[2] / "shared" / "data" / "nifti"


def folder_of(tmp_path: Path, *label_arrays: np.ndarray, low: int = 0) -> Path:
    """An nnU-Net folder with one labeled scan a label."""
    for i, array in enumerate(label_arrays):
        write_nifti(tmp_path / "imagesTr" / f"{i}_0000.nii.gz", voxels() + np.int16(low))
        write_nifti(tmp_path / "labelsTr" / f"{i}.nii.gz", array)
    return tmp_path


def fingerprint_of(folder: Path, labels: Path | None = None) -> Fingerprint:
    return take_fingerprint(folder, find_cases(folder, labels))


# Classes


def test_classes_are_the_values_found(tmp_path):
    found = fingerprint_of(folder_of(tmp_path, label(values=(1, 4)), label(values=(2,)))).classes
    assert found.values == {"class_1": 1, "class_2": 2, "class_4": 4}
    assert found.evidence == "one a value of the label files; name them"


@pytest.mark.parametrize(
    ("values", "classes", "ignored"),
    [((1, 2, 255), [1, 2], 255), ((255,), [255], None), ((127, 255), [127], 255)],
)
def test_255_is_ignored_beside_other_values_and_a_class_alone(tmp_path, values, classes, ignored):
    found = fingerprint_of(folder_of(tmp_path, label(values=values))).classes
    assert (list(found.values.values()), found.ignore_value) == (classes, ignored)


@pytest.mark.parametrize(
    "labels", ['{"background": 0, "liver": 1, "spleen": 2}', '{"0": "background", "2": "spleen", "1": "liver"}']
)
def test_classes_and_modality_of_dataset_json(tmp_path, labels):
    folder = folder_of(tmp_path, label())
    (tmp_path / "dataset.json").write_text(f'{{"labels": {labels}, "channel_names": {{"0": "CT"}}}}')
    found = fingerprint_of(folder)
    assert list(found.classes.values.items()) == [("liver", 1), ("spleen", 2)]
    assert (found.modality_claim, found.modality, found.is_disputed) == ("CT", "MR", True)


def test_the_ignore_label_of_dataset_json(tmp_path):
    folder = folder_of(tmp_path, label())
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "ignore": 2}}')
    found = fingerprint_of(folder)
    assert (found.classes.values, found.classes.ignore_value) == ({"liver": 1}, 2)
    assert found.foreground.class_cases == {"liver": 1}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ImageReadError, r"dataset\.json cannot be read"),
        ("[]", ImageReadError, "is not a JSON object"),
        ('{"labels": {"whole": [1, 2]}}', ImageReadError, "one whole number a class is supported"),
        ('{"labels": {"a": 1, "b": 1}}', PresetError, "share one label value"),
    ],
)
def test_a_dataset_json_that_cannot_be_used(tmp_path, text, error, message):
    folder = folder_of(tmp_path, label())
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(error, match=message):
        fingerprint_of(folder)


def test_labels_that_are_no_label_maps(tmp_path):
    write_nifti(tmp_path / "imagesTr" / "a_0000.nii.gz", voxels((10, 10, 4)))
    for array in (voxels((10, 10, 4)), -label((10, 10, 4), dtype="int16"), label((10, 10, 4), (70_000,), "int32")):
        write_nifti(tmp_path / "labelsTr" / "a.nii.gz", array)
        with pytest.raises(ImageReadError, match="do not look like classes"):
            fingerprint_of(tmp_path)


def test_a_folder_without_labels_has_no_classes(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", voxels())
    found = fingerprint_of(tmp_path)
    assert (found.classes.values, found.foreground) == ({}, None)
    assert "no label file" in found.classes.evidence


# Modality


def test_ct_is_recognised_by_air(tmp_path):
    found = fingerprint_of(folder_of(tmp_path, label(), label(), low=-1000))
    assert found.modality == "CT"
    assert found.modality_evidence.startswith("2 of 2 scans read have voxels below -500")


def test_anything_else_is_mr(tmp_path):
    found = fingerprint_of(folder_of(tmp_path, label(), low=-100))
    assert found.modality == "MR"
    assert found.modality_evidence.startswith("0 of 1 scans")


def test_one_dark_voxel_makes_no_ct(tmp_path):
    scan = np.full((20, 20, 20), 100, "int16")
    scan[0, 0, 0] = -900
    scan[5:9] = 200
    write_nifti(tmp_path / "a.nii.gz", scan)
    assert fingerprint_of(tmp_path).modality == "MR"


def test_ct_and_mr_in_one_folder_are_mixed(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", voxels() - np.int16(1000))
    write_nifti(tmp_path / "b.nii.gz", voxels())
    assert fingerprint_of(tmp_path).modality == "mixed"


@pytest.mark.parametrize(
    ("claim", "lows", "modality", "is_disputed"),
    [
        ("CT", (-1000, -1000), "CT", False),
        ("ct", (-1000, 0), "mixed", True),
        ("CT", (0, 0), "MR", True),
        ("MRI", (-1000, 0), "mixed", False),
        ("MRI", (-1000, -1000), "CT", True),
        ("T1", (0, 0), "MR", False),
        ("CECT", (-1000, -1000), "CT", False),
        ("Computed Tomography", (-1000, -1000), "CT", False),
        ("noNorm", (-1000, -1000), "CT", False),
        ("", (-1000, -1000), "CT", False),
        ("image", (0, 0), "MR", False),
        ("T2-FLAIR", (-1000, -1000), "CT", True),
    ],
)
def test_the_intensities_are_asked_whatever_dataset_json_says(tmp_path, claim, lows, modality, is_disputed):
    for case_id, low in zip("ab", lows, strict=True):
        write_nifti(tmp_path / f"{case_id}.nii.gz", voxels() + np.int16(low))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": claim}}))
    found = fingerprint_of(tmp_path)
    assert (found.modality_claim, found.modality, found.is_disputed) == (claim, modality, is_disputed)


# Geometry


def test_sizes_and_spacings_are_those_of_the_slices(tmp_path):
    """A coronal acquisition, a flipped and oblique one and one of another size, each in its own axis order."""
    matrices = [
        affine(axes=(0, 2, 1), spacing_mm=(0.7, 2.5, 1.1)),
        affine(flips=(-1, 1, 1), tilt=rotation(10)),
        affine(spacing_mm=(1.4, 1.1, 2.5)),
    ]
    for name, shape, matrix in zip("abc", [(6, 4, 5), (6, 5, 4), (8, 5, 9)], matrices, strict=True):
        write_nifti(tmp_path / f"{name}.nii.gz", voxels(shape), matrix)
    found = fingerprint_of(tmp_path)
    assert found.slice_axis == "axial"
    assert "coarsest spacing" in found.slice_axis_evidence
    assert [scan.size for scan in found.scans] == [(4, 6, 5), (4, 6, 5), (9, 8, 5)]
    assert np.allclose(found.scans[0].spacing_mm, (2.5, 0.7, 1.1))
    assert (found.size.least, found.size.median, found.size.most) == ((4, 6, 5), (4, 6, 5), (9, 8, 5))
    assert np.allclose(found.spacing_mm.most, (2.5, 1.4, 1.1))
    assert np.allclose(found.spacing_mm.median, (2.5, 0.7, 1.1))


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [
        ((1, 1, 1), "axial"),
        ((1, 1.9, 1), "axial"),
        ((0.8, 5, 0.8), "coronal"),
        ((5, 0.8, 0.8), "sagittal"),
        ((1, 2.5, 2.5), "axial"),
    ],
)
def test_the_slices_lie_across_a_coarse_spacing(tmp_path, spacing_mm, axis):
    write_nifti(tmp_path / "a.nii.gz", voxels(), affine(spacing_mm=spacing_mm))
    assert fingerprint_of(tmp_path).slice_axis == axis


# Foreground, domains, counts


def test_the_foreground_of_labeled_scans(tmp_path):
    scan, mask = np.full((10, 20, 4), 7, "int16"), np.zeros((10, 20, 4), "uint8")
    mask[2:5, 4:14] = 1
    mask[9, 19, 0] = 2
    scan[mask == 1], scan[mask == 2] = 100, 900
    matrix = np.diag([2.0, 0.5, 5, 1])
    write_nifti(tmp_path / "images" / "a.nii.gz", scan, matrix)
    write_nifti(tmp_path / "images" / "b.nii.gz", scan, matrix)
    write_nifti(tmp_path / "images" / "u.nii.gz", scan * 50, matrix)
    write_nifti(tmp_path / "labels" / "a.nii.gz", mask, matrix)
    write_nifti(tmp_path / "labels" / "b.nii.gz", np.where(mask == 2, 0, mask), matrix)
    found = fingerprint_of(tmp_path / "images", tmp_path / "labels")
    foreground = found.foreground
    assert (foreground.low, foreground.mean) == (100, pytest.approx(100 + 800 / 241))
    assert foreground.box_mm == (8 * 2.0, 16 * 0.5)
    assert foreground.class_volumes_ml == {"class_1": pytest.approx(0.6), "class_2": pytest.approx(0.005)}
    assert foreground.class_cases == {"class_1": 2, "class_2": 1}
    assert (found.n_scans(labeled=True), found.n_scans(labeled=False)) == (2, 1)
    assert (found.n_slices(labeled=True), found.n_slices(labeled=False)) == (8, 4)


def test_domains_are_counted(tmp_path):
    cases = [
        Case(name, write_nifti(tmp_path / f"{name}.nii.gz", voxels()), domain=domain)
        for name, domain in zip("abc", "YXY", strict=True)
    ]
    assert take_fingerprint(tmp_path, cases).domains == {"X": 1, "Y": 2}


def test_the_voxels_of_few_unlabeled_scans_are_read(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, label(), label())
    for i in range(30):
        write_nifti(folder / "imagesTr" / f"u{i}_0000.nii.gz", voxels())
    read = []

    def read_scan(case, data, original=measure.read_scan):
        read.append(case.case_id)
        return original(case, data)

    monkeypatch.setattr(measure, "read_scan", read_scan)
    found = fingerprint_of(folder)
    assert len(read) == len(set(read)) == found.n_scans_read == 22
    assert len(found.scans) == 32
    assert {"0", "1"} < set(read)
    first, read[:] = list(read), []
    assert fingerprint_of(folder) == found
    assert read == first


# Trouble


def test_scans_that_cannot_be_read_are_named_and_left_out(tmp_path):
    folder = folder_of(tmp_path, label(), label(), label() + 0.5, label((6, 5, 3)))
    (folder / "imagesTr" / "x_0000.nii.gz").write_text("no scan")
    cut = folder / "imagesTr" / "1_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-40])
    write_nifti(folder / "imagesTr" / "y_0000.nii.gz", voxels((6, 5, 4, 2)))
    write_nifti(folder / "imagesTr" / "z_0000.nii.gz", np.full((6, 5, 4), 3, "int16"))
    found = fingerprint_of(folder)
    assert list(found.unusable) == ["1", "2", "3", "x", "y", "z"]
    assert "not whole numbers" in found.unusable["2"]
    assert "data.frame" in found.unusable["y"]
    assert found.classes.values == {"class_1": 1, "class_2": 2}
    assert "is constant" in found.unusable["z"]
    assert ([scan.case_id for scan in found.scans], found.n_scans_read) == (["0"], 1)


def test_what_cannot_be_used_shapes_no_recipe(tmp_path):
    """Scans that fail in preprocessing, of a size and a spacing of their own, as far as they were read."""
    folder = folder_of(tmp_path, label(), label())
    large = {"matrix": np.diag([9.0, 9, 0.5, 1]), "path": folder / "imagesTr" / "x_0000.nii.gz"}
    expected = dataclasses.replace(fingerprint_of(folder), unusable={})
    for spoiled in (
        np.full((300, 200, 90), 7, "int16"),
        voxels((30, 20, 9, 2)),
        np.full((30, 20, 9), np.nan, "float32"),
    ):
        write_nifti(large["path"], spoiled, large["matrix"])
        found = fingerprint_of(folder)
        assert list(found.unusable) == ["x"]
        assert dataclasses.replace(found, unusable={}) == expected
    write_nifti(large["path"], voxels((30, 20, 9)), large["matrix"])
    write_nifti(folder / "labelsTr" / "x.nii.gz", label((30, 20, 9), (1, 3)), affine())
    found = fingerprint_of(folder)
    assert "another affine" in found.unusable["x"]
    assert dataclasses.replace(found, unusable={}) == expected


def test_label_values_that_dataset_json_does_not_name_shape_no_recipe(tmp_path):
    folder = folder_of(tmp_path, label(), label(values=(1, 7)))
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2}}')
    found = fingerprint_of(folder)
    assert "label values 7 that are no class" in found.unusable["1"]
    assert [scan.case_id for scan in found.scans] == ["0"]
    assert found.foreground.class_cases == {"liver": 1, "spleen": 1}


@pytest.mark.parametrize("dataset", [None, '{"labels": {"background": 0, "a": 1, "b": 2, "ignore": 255}}'])
def test_ignored_voxels_are_no_foreground(tmp_path, dataset):
    folder = folder_of(tmp_path, label(values=(1, 2)))
    expected = fingerprint_of(folder).foreground
    folder_of(tmp_path, label(values=(1, 2, 255, 255)))
    if dataset:
        (tmp_path / "dataset.json").write_text(dataset)
    found = fingerprint_of(folder)
    assert found.classes.ignore_value == 255
    assert dataclasses.astuple(found.foreground)[:4] == dataclasses.astuple(expected)[:4]


def test_a_mask_of_255_has_foreground(tmp_path):
    foreground = fingerprint_of(folder_of(tmp_path, label(values=(255,)))).foreground
    assert foreground.class_cases == {"class_255": 1}
    assert foreground.box_mm == pytest.approx((0.7, 3.3))


def test_the_voxels_of_each_file_are_read_once(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, label(), label())
    write_nifti(folder / "imagesTr" / "u_0000.nii.gz", voxels())
    opened = []

    def voxels_of(path, *args, original=volume.ArrayProxy, **kwargs):
        opened.append(Path(path).name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(volume, "ArrayProxy", voxels_of)
    fingerprint_of(folder)
    assert sorted(opened) == ["0.nii.gz", "0_0000.nii.gz", "1.nii.gz", "1_0000.nii.gz", "u_0000.nii.gz"]


def test_the_order_in_which_scans_are_measured_changes_nothing(tmp_path):
    folder = folder_of(tmp_path, label(), label(values=(4, 2)), label(values=(3,)) + 0.5)
    write_nifti(folder / "imagesTr" / "u_0000.nii.gz", voxels())
    cases = find_cases(folder)
    found = take_fingerprint(folder, cases, lambda work, tasks: [work(task) for task in reversed(tasks)])
    assert found.to_tree() == take_fingerprint(folder, cases).to_tree()
    assert list(found.unusable) == ["2"]


def test_hdf5_files_are_read_whole_for_their_size(tmp_path):
    write_laseg(tmp_path, "AAAA")
    found = fingerprint_of(tmp_path)
    assert [(scan.size, scan.spacing_mm) for scan in found.scans] == [((4, 6, 5), (1, 1, 1))]
    assert found.modality == "MR"


def test_nothing_that_can_be_read(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", voxels((6, 5, 4, 2)))
    (tmp_path / "b.nii.gz").write_text("no scan")
    with pytest.raises(ImageReadError, match=r"None of the 2 scans can be read; the first: .*a\.nii\.gz is 4D"):
        fingerprint_of(tmp_path)


def test_no_label_that_can_be_read(tmp_path):
    folder = folder_of(tmp_path, label() + 0.5, label((6, 5, 3)))
    write_nifti(folder / "imagesTr" / "u_0000.nii.gz", voxels())
    with pytest.raises(ImageReadError, match=r"None of the 2 scans with a label can be read; the first: .*not whole"):
        fingerprint_of(folder)


def test_json_holds_the_facts_and_a_summary(tmp_path):
    found = fingerprint_of(folder_of(tmp_path, label(), label()))
    tree = json.loads(json_text(found.to_tree()))
    assert tree["summary"]["labeled"] == {"scans": 2, "slices": 8}
    assert tree["scans"][1]["case_id"] == "1"
    assert tree["classes"]["values"] == {"class_1": 1, "class_2": 2}
    assert tree["foreground"]["class_cases"] == {"class_1": 2, "class_2": 2}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="the real scans are not here")
@pytest.mark.parametrize(("name", "modality"), [("ct", "CT"), ("mr", "MR")])
def test_real_scans_are_told_apart(tmp_path, name, modality):
    case = Case(name, REAL / f"{name}.nii.gz", REAL / f"{name}_labels.nii.gz")
    found = take_fingerprint(tmp_path, [case])
    assert found.modality == modality
    assert found.scans[0].spacing_mm == pytest.approx((3, 3, 3))
    image = np.asarray(nib.load(case.image_path).dataobj)
    assert image.min() <= found.foreground.low < found.foreground.mean < found.foreground.high <= image.max()
