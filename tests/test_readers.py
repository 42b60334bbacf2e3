"""Layouts of folders, and what is said about images and labels that do not fit."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scans import affine, label, rotation, voxels, write_laseg, write_nifti

from sdm_cli.data.cases import Case, nifti_stem
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import label_values, read_image, read_label
from sdm_cli.data.volume import Geometry
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError

DATA = Path(__file__).parents[2] / "shared" / "data"
TWO_CLASSES = DataConfig(classes={"liver": 1, "spleen": 2})
GRID = Geometry(affine(), (6, 5, 4))


def ids(cases: list[Case]) -> dict[str, bool]:
    """Case id -> whether it has a label."""
    return {case.case_id: case.label_path is not None for case in cases}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# Layouts


def test_one_scan_with_two_labels_names_both(tmp_path):
    scan = write_nifti(tmp_path / "a.nii.gz", voxels())
    for suffix in ("nii", "nii.gz"):
        write_nifti(tmp_path / "gt" / f"a.{suffix}", label())
    with pytest.raises(ImageReadError, match=r"gt/a\.nii and .*gt/a\.nii\.gz are both case a: rename or remove one"):
        find_cases(scan, tmp_path / "gt")


def test_a_plain_folder_without_labels(tmp_path):
    touch(tmp_path / "b.nii", tmp_path / "a.nii.gz", tmp_path / "readme.txt")
    assert ids(find_cases(tmp_path)) == {"a": False, "b": False}


def test_a_plain_folder_with_some_labels(tmp_path):
    touch(tmp_path / "images" / "a.nii.gz", tmp_path / "images" / "b.nii.gz", tmp_path / "labels" / "b.nii")
    assert ids(find_cases(tmp_path / "images", tmp_path / "labels")) == {"a": False, "b": True}


def test_only_the_suffix_is_taken_off_a_name(tmp_path):
    touch(*(tmp_path / name for name in ("p.1.2.nii.gz", "nii.gz.nii", "P 2.NII.GZ", "a.nii.gz.nii.gz")))
    assert list(ids(find_cases(tmp_path))) == ["P 2", "a.nii.gz", "nii.gz", "p.1.2"]
    assert nifti_stem(Path("x/p.1.nii.gz")) == "p.1"


def test_hidden_files_are_ignored(tmp_path):
    touch(*(tmp_path / name for name in ("a.nii.gz", "._a.nii.gz", ".b.nii.gz", "c.nii.gz")))
    touch(tmp_path / "labels" / "._a.nii.gz", tmp_path / "labels" / "c.nii.gz")
    assert ids(find_cases(tmp_path, tmp_path / "labels")) == {"a": False, "c": True}


def test_a_broken_link_is_a_case_so_that_reading_names_it(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone")
    (case,) = find_cases(tmp_path)
    with pytest.raises(ImageReadError, match=r"a\.nii\.gz does not exist"):
        read_image(case, DataConfig())


def test_nnunet_raw(tmp_path):
    touch(tmp_path / "imagesTr" / "a_0000.nii.gz", tmp_path / "imagesTr" / "b_0000.nii.gz")
    touch(
        tmp_path / "labelsTr" / "a.nii.gz",
        tmp_path / "imagesUn" / "u_0000.nii.gz",
        tmp_path / "imagesTs" / "t_0000.nii.gz",
    )
    assert ids(find_cases(tmp_path)) == {"a": True, "b": False, "u": False}


def test_nnunet_raw_for_prediction_has_its_test_scans(tmp_path):
    touch(tmp_path / "imagesTr" / "a_0000.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
    touch(tmp_path / "imagesTs" / "t_0000.nii.gz", tmp_path / "labelsTs" / "t.nii.gz")
    assert ids(find_cases(tmp_path, for_prediction=True)) == {"a": True, "t": False}
    (tmp_path / "only").mkdir()
    (tmp_path / "imagesTs").rename(tmp_path / "only" / "imagesTs")
    assert ids(find_cases(tmp_path / "only", for_prediction=True)) == {"t": False}
    with pytest.raises(ImageReadError, match="holds no scans"):
        find_cases(tmp_path / "only")


def test_nnunet_raw_with_labels_elsewhere(tmp_path):
    touch(tmp_path / "raw" / "imagesTr" / "a_0000.nii.gz", tmp_path / "mine" / "a.nii.gz")
    (case,) = find_cases(tmp_path / "raw", tmp_path / "mine")
    assert case.label_path == tmp_path / "mine" / "a.nii.gz"


def test_nnunet_with_unlabeled_scans_only(tmp_path):
    touch(tmp_path / "imagesUn" / "u_0000.nii.gz")
    assert ids(find_cases(tmp_path)) == {"u": False}


def test_a_second_channel_is_a_problem_of_its_case(tmp_path):
    touch(
        *(tmp_path / "imagesTr" / f"{name}.nii.gz" for name in ("a_0000", "a_0001", "a_0002", "b_0000")),
        tmp_path / "labelsTr" / "a.nii.gz",
    )
    a, b = find_cases(tmp_path)
    assert (a.case_id, b.case_id, b.problem) == ("a", "b", None)
    assert "a_0001.nii.gz is another channel of case a: one channel is supported, so keep only" in a.problem
    with pytest.raises(ImageReadError, match=r"a_0001\.nii\.gz is another channel of case a"):
        read_image(a, DataConfig())


def test_msd_and_amos_names_keep_their_number(tmp_path):
    for name in ("amos_0000.nii.gz", "amos_0001.nii.gz", "amos_0500.nii.gz"):
        touch(tmp_path / "imagesTr" / name)
    touch(
        tmp_path / "imagesVa" / "amos_0008.nii.gz",
        tmp_path / "labelsVa" / "amos_0008.nii.gz",
        tmp_path / "labelsTr" / "amos_0001.nii.gz",
    )
    assert ids(find_cases(tmp_path)) == {"amos_0000": False, "amos_0001": True, "amos_0008": True, "amos_0500": False}


def test_the_images_of_nnunet_alone_lose_their_channel(tmp_path):
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "b_0000.nii.gz")
    assert list(ids(find_cases(tmp_path))) == ["a", "b"]
    assert find_cases(tmp_path / "a_0000.nii.gz")[0].case_id == "a"


def test_numbered_scans_of_a_plain_folder_are_cases(tmp_path):
    touch(tmp_path / "scan_0000.nii.gz", tmp_path / "scan_0001.nii.gz")
    assert list(ids(find_cases(tmp_path))) == ["scan_0000", "scan_0001"]


def test_btcv_ids_are_the_numbers(tmp_path):
    touch(
        tmp_path / "img" / "img0001.nii.gz",
        tmp_path / "img" / "img0040.nii.gz",
        tmp_path / "label" / "label0001.nii.gz",
    )
    assert ids(find_cases(tmp_path)) == {"0001": True, "0040": False}


def test_laseg_in_the_folder_or_its_parent(tmp_path):
    write_laseg(tmp_path / "2018LA_Seg_Training Set", "AAAA")
    write_laseg(tmp_path / "2018LA_Seg_Training Set", "BBBB", with_label=False)
    assert (
        ids(find_cases(tmp_path))
        == ids(find_cases(tmp_path / "2018LA_Seg_Training Set"))
        == {"AAAA": True, "BBBB": False}
    )
    (case,) = find_cases(tmp_path / "2018LA_Seg_Training Set" / "AAAA" / "mri_norm2.h5")
    assert case.case_id == "AAAA"


def test_one_file(tmp_path):
    touch(tmp_path / "a.nii.gz", tmp_path / "labels" / "a.nii.gz", tmp_path / "notes.txt")
    assert ids(find_cases(tmp_path / "a.nii.gz")) == {"a": False}
    assert ids(find_cases(tmp_path / "a.nii.gz", tmp_path / "labels")) == {"a": True}
    with pytest.raises(ImageReadError, match=r"notes\.txt is no NIfTI, NRRD or MetaImage file"):
        find_cases(tmp_path / "notes.txt")


# Folders that cannot be used


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ImageReadError, match="nowhere does not exist"):
        find_cases(tmp_path / "nowhere")
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(ImageReadError, match="nolabels is not a folder"):
        find_cases(tmp_path, tmp_path / "nolabels")


@pytest.mark.parametrize("folder", [".", "imagesTr"])
def test_an_empty_folder_is_named(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(ImageReadError, match="holds no scans"):
        find_cases(tmp_path)


def test_a_folder_without_labels_is_no_labels_folder(tmp_path):
    write_nifti(tmp_path / "images/a.nii.gz", voxels())
    (tmp_path / "labels").mkdir()
    with pytest.raises(ImageReadError, match="labels holds no"):
        find_cases(tmp_path / "images", tmp_path / "labels")


def test_two_files_of_one_case_stop_that_case_alone(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    first, other = find_cases(tmp_path)
    with pytest.raises(ImageReadError, match=r"a\.nii and .*a\.nii\.gz are both case a"):
        read_image(first, DataConfig())
    assert (other.case_id, other.problem) == ("b", None)


def test_one_case_in_two_folders(tmp_path):
    touch(tmp_path / "imagesTr" / "a_0000.nii.gz", tmp_path / "imagesUn" / "a_0000.nii.gz")
    (case,) = find_cases(tmp_path)
    with pytest.raises(ImageReadError, match=r"imagesTr.* and .*imagesUn.* are both case a"):
        read_image(case, DataConfig())


def test_two_labels_of_one_case(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "labels" / "a.nii", tmp_path / "labels" / "a.nii.gz")
    (case,) = find_cases(tmp_path, tmp_path / "labels")
    with pytest.raises(ImageReadError, match=r"labels.* are both case a"):
        read_image(case, DataConfig())


def test_a_label_without_an_image(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "labels" / "a_seg.nii")
    with pytest.raises(ImageReadError, match=r"a_seg\.nii has no image of the same name"):
        find_cases(tmp_path, tmp_path / "labels")


# Images


def test_an_image_comes_with_its_geometry(tmp_path):
    volume = read_image(Case("a", write_nifti(tmp_path / "a.nii.gz", voxels())), DataConfig())
    assert np.array_equal(volume.voxels, voxels())
    assert np.allclose(volume.geometry.affine, affine())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path, value):
    scan = voxels(dtype="float32")
    scan[0, 0, :2] = value
    case = Case("a", write_nifti(tmp_path / "a.nii.gz", scan))
    with pytest.raises(ImageReadError, match=r"a\.nii\.gz has 2 voxels that are NaN or infinite"):
        read_image(case, DataConfig())


def test_laseg_takes_its_spacing_from_the_preset(tmp_path):
    (case,) = find_cases(write_laseg(tmp_path, "AAAA").parents[1])
    assert read_image(case, DataConfig(spacing_mm=(0.625, 0.625, 1.25))).geometry.spacing_mm == (0.625, 0.625, 1.25)
    volume = read_image(case, DataConfig())
    assert volume.geometry.spacing_mm == (1, 1, 1)
    assert volume.geometry.shape == (6, 5, 4)
    assert np.array_equal(read_label(case, DataConfig(classes={"atrium": 1}), volume.geometry), label(values=(1,)))


def test_a_truncated_hdf5_is_named(tmp_path):
    path = write_laseg(tmp_path, "AAAA")
    path.write_bytes(path.read_bytes()[:-100])
    (case,) = find_cases(tmp_path)
    with pytest.raises(ImageReadError, match=r"mri_norm2\.h5 cannot be read as HDF5 .*truncated"):
        read_image(case, DataConfig())


def test_a_missing_hdf5_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"a\.h5 does not exist"):
        read_image(Case("a", tmp_path / "a.h5"), DataConfig())


@pytest.mark.parametrize(
    ("key", "array", "message"), [("picture", voxels(), "has no 'image'"), ("image", voxels((3, 3)), "not a volume")]
)
def test_an_hdf5_without_a_volume_is_named(tmp_path, key, array, message):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file[key] = array
    with pytest.raises(ImageReadError, match=message):
        read_image(Case("a", path), DataConfig())


# Labels


def labeled(tmp_path: Path, array: np.ndarray, matrix: np.ndarray | None = None) -> Case:
    return Case("a", tmp_path / "a.nii.gz", write_nifti(tmp_path / "labels" / "a.nii.gz", array, matrix))


@pytest.mark.parametrize("dtype", ["int16", ">u2", "int64", "float32", "float64"])
def test_label_values_become_class_indices(tmp_path, dtype):
    """Class order is the preset's, not that of the values."""
    data = DataConfig(classes={"lv": 500, "myo": 205}, background_values=(420,), ignore_value=850)
    values = (500, 205, 420, 850)
    case = labeled(tmp_path, label(values=values, dtype=dtype))
    expected = label(values=(1, 2, 0, 255))
    indices = read_label(case, data, GRID)
    assert np.array_equal(indices, expected)
    assert indices.dtype == np.uint8


def test_a_negative_value_can_be_background(tmp_path):
    case = labeled(tmp_path, label(values=(1, -1), dtype="int16"))
    data = DataConfig(classes={"liver": 1}, background_values=(-1,))
    assert np.array_equal(read_label(case, data, GRID), label(values=(1, 0)))


def test_whole_float_labels_are_accepted_with_rounding(tmp_path):
    case = labeled(tmp_path, label(dtype="float64") * 1.0000001)
    assert np.array_equal(read_label(case, TWO_CLASSES, GRID), label())


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_float_labels_that_are_not_whole_are_refused(tmp_path, value):
    soft = label(dtype="float32")
    soft[0, 0, 0] = value
    with pytest.raises(ImageReadError, match=rf"a\.nii\.gz has label values that are not whole numbers \({value:g}"):
        read_label(labeled(tmp_path, soft), TWO_CLASSES, GRID)


def test_unknown_values_are_named(tmp_path):
    case = labeled(tmp_path, label(values=(1, 2, 3, 7)))
    with pytest.raises(
        ImageReadError, match=r"label values 3, 7 that are no class \(classes: 1 liver, 2 spleen\): add them"
    ):
        read_label(case, TWO_CLASSES, GRID)


def test_255_suggests_ignoring(tmp_path):
    case = labeled(tmp_path, label(values=(1, 255)))
    with pytest.raises(ImageReadError, match=r"label values 255 that are no class .*data\.ignore_value: 255"):
        read_label(case, TWO_CLASSES, GRID)
    assert 255 in read_label(case, DataConfig(classes={"liver": 1}, ignore_value=255), GRID)
    assert np.array_equal(read_label(case, DataConfig(classes={"a": 255, "b": 1}), GRID), label(values=(2, 1)))


def test_huge_label_values_are_refused(tmp_path):
    with pytest.raises(ImageReadError, match=r"label values 70000"):
        read_label(labeled(tmp_path, label(values=(1, 70000), dtype="int32")), TWO_CLASSES, GRID)
    with pytest.raises(ImageReadError, match="beyond 2"):
        read_label(labeled(tmp_path, label(values=(1, 2**40), dtype="int64")), TWO_CLASSES, GRID)


def test_a_label_of_another_shape(tmp_path):
    with pytest.raises(ImageReadError, match=r"has shape 6 x 5 x 3, but its image 6 x 5 x 4"):
        read_label(labeled(tmp_path, label((6, 5, 3))), TWO_CLASSES, GRID)


@pytest.mark.parametrize(
    "matrix", [affine(flips=(-1, 1, 1)), affine(tilt=rotation(2)), affine(spacing_mm=(0.7, 1.1, 2.6))]
)
def test_a_label_of_another_affine(tmp_path, matrix):
    with pytest.raises(ImageReadError, match=r"mm away from its image \(another affine\)"):
        read_label(labeled(tmp_path, label(), matrix), TWO_CLASSES, GRID)


def test_rounding_of_an_affine_is_no_other_affine(tmp_path):
    matrix = affine()
    matrix[:3, 3] += 1e-3
    assert np.array_equal(read_label(labeled(tmp_path, label(), matrix), TWO_CLASSES, GRID), label())


def test_label_values_of_the_cases_that_can_be_read(tmp_path):
    broken = write_nifti(tmp_path / "c.nii.gz", label() + 0.5)
    cases = [
        Case("a", tmp_path, write_nifti(tmp_path / "a.nii.gz", label(values=(1, 4)))),
        Case("b", tmp_path, write_nifti(tmp_path / "b.nii.gz", label(values=(4,)))),
        Case("c", tmp_path, broken),
        Case("d", tmp_path),
    ]
    assert label_values(cases) == {1, 4}


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="the real scans are not here")
def test_real_laseg_files_are_read():
    cases = find_cases(DATA / "laseg")
    assert len(cases) == 40
    data = DataConfig(classes={"left atrium": 1}, spacing_mm=(0.625, 0.625, 0.625))
    volume = read_image(cases[0], data)
    indices = read_label(cases[0], data, volume.geometry)
    assert indices.shape == volume.voxels.shape == (183, 140, 88)
    assert set(np.unique(indices)) == {0, 1}
