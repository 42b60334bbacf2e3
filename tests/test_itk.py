"""NRRD, MetaImage and DICOM: where their voxels lie, what is refused in one sentence, and no word of a header."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom import NAME, PATIENT, STRAIGHT, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import rotation, voxels, write_nifti

from sdm_cli.data.cases import Case
from sdm_cli.data.dicom import read_dicom, read_dicom_geometry
from sdm_cli.data.itk import read_itk, read_itk_geometry, suffix_of_mask, write_itk_mask
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import read_geometry, read_image
from sdm_cli.data.volume import read_nifti
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError, OutputError

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
TURNED = tuple(np.ravel(rotation(20, 0) @ rotation(-30, 2)).tolist())


def write_itk(path, array, spacing_mm=(0.7, 1.1, 2.5), directions=STRAIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing_mm)
    image.SetOrigin((20.0, -30.0, 5.0))
    image.SetDirection(directions)
    image.SetMetaData("PatientName", NAME)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize(
    "directions", [STRAIGHT, TURNED, (0, 0, 1, -1, 0, 0, 0, 1, 0)], ids=["straight", "turned", "permuted"]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_scan_lies_where_its_nifti_lies(tmp_path, suffix, directions):
    """ITK's own NIfTI writer is the judge."""
    array = voxels()
    path = write_itk(tmp_path / f"a{suffix}", array, directions=directions)
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "a.nii.gz"))
    expected, found = read_nifti(tmp_path / "a.nii.gz"), read_itk(path)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    assert found.voxels.dtype == array.dtype
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(read_itk_geometry(path).affine, found.geometry.affine)
    assert read_geometry(Case("a", path), DataConfig()).shape == array.shape


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(st.floats(-180, 180), st.floats(-180, 180)),
    spacing_mm=st.tuples(*[st.floats(0.05, 20)] * 3),
    suffix=st.sampled_from([".nrrd", ".mha"]),
    largest=st.sampled_from([7, 300]),
)
def test_a_mask_lies_on_its_scan(tmp_path_factory, angles, spacing_mm, suffix, largest):
    folder = tmp_path_factory.mktemp("mask")
    directions = np.ravel(rotation(angles[0], 0) @ rotation(angles[1], 2)).tolist()
    scan = read_itk(write_itk(folder / f"scan{suffix}", voxels(), spacing_mm, directions))
    mask = (voxels() % 3 * largest // 2).astype(np.uint16)
    write_itk_mask(folder / f"mask{suffix}", mask, scan.geometry)
    found, image = read_itk(folder / f"mask{suffix}"), sitk.ReadImage(str(folder / f"mask{suffix}"))
    np.testing.assert_array_equal(found.voxels, mask)
    assert found.voxels.dtype == (np.uint8 if largest < 256 else np.uint16)
    np.testing.assert_allclose(found.geometry.affine, scan.geometry.affine, rtol=1e-6, atol=1e-6)
    assert not [key for key in image.GetMetaDataKeys() if image.GetMetaData(key) == NAME]


def test_a_mask_replaces_nothing_unasked(tmp_path):
    scan = read_itk(write_itk(tmp_path / "a.mha", voxels()))
    mask = np.zeros(scan.geometry.shape, np.uint8)
    with pytest.raises(OutputError, match=r"a\.mha exists"):
        write_itk_mask(tmp_path / "a.mha", mask, scan.geometry)
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_itk_mask(tmp_path / "taken" / "a.mha", mask, scan.geometry)
    write_itk_mask(tmp_path / "a.mha", mask, scan.geometry, overwrite=True)
    assert not read_itk(tmp_path / "a.mha").voxels.any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mha", "taken"]
    assert [suffix_of_mask(tmp_path / f"a{suffix}") for suffix in SUFFIXES] == [".nrrd", ".nrrd", ".mha", ".mha"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_a_damaged_file_is_one_sentence_without_a_word_of_its_header(tmp_path, suffix, capfd):
    path = write_itk(tmp_path / f"a{suffix}", voxels((9, 8, 7)))
    whole = path.read_bytes()
    header = whole.replace(b"short", NAME.encode()).replace(b"SHORT", NAME.encode())
    for content in (whole[:-60], b"", NAME.encode() + b" nonsense", header):
        path.write_bytes(content)
        with pytest.raises(
            ImageReadError, match=rf"a\{suffix} cannot be read as (NRRD|MetaImage) \(.*again\.$"
        ) as caught:
            read_itk(path)
        assert NAME not in str(caught.value) and "ITK" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ImageReadError, match="does not exist"):
        read_itk(tmp_path / f"b{suffix}")


# ---- DICOM ----


@pytest.mark.parametrize("directions", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_a_series_lies_where_its_nifti_lies(tmp_path, directions):
    """ITK's own series reader and NIfTI writer are the judge, where nothing is tilted."""
    array = voxels((6, 5, 12))
    folder = write_series(tmp_path / "ct", array, directions=directions)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    sitk.WriteImage(sitk.ReadImage(names), str(tmp_path / "a.nii.gz"))
    expected, found = read_nifti(tmp_path / "a.nii.gz"), read_dicom(folder)
    np.testing.assert_array_equal(found.voxels, array)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(read_dicom_geometry(folder).affine, found.geometry.affine)


def test_a_tilted_gantry_is_a_sheared_affine(tmp_path):
    geometry = read_dicom_geometry(write_series(tmp_path / "ct", voxels(), shear_mm=0.8))
    np.testing.assert_allclose(geometry.affine[:3, 2], [0, -0.8, 2.5], atol=1e-5)
    np.testing.assert_allclose(geometry.affine @ [1, 1, 1, 1], [-20 - 0.7, 30 - 1.1 - 0.8, 5 + 2.5, 1], atol=1e-5)


def test_names_of_slices_mean_nothing(tmp_path):
    folder = write_series(tmp_path / "ct", voxels())
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{(7 * number) % 11}")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README.txt").write_text("hello")
    np.testing.assert_array_equal(read_dicom(folder).voxels, voxels())


def test_a_scan_of_one_slice(tmp_path):
    found = read_dicom(write_series(tmp_path / "ct", voxels((6, 5, 1))))
    assert found.geometry.shape == (6, 5, 1)
    assert found.geometry.spacing_mm == pytest.approx((0.7, 1.1, 2.5))


def spoiled(folder, what):
    files = sorted(folder.iterdir())
    if what == "missing":
        files[4].unlink()
    elif what == "doubled":
        write_series(folder, voxels((6, 5, 9)), series="1.2.3.5", **{"0020|000e": "1.2.3"})
    elif what == "two series":
        write_series(folder, voxels((6, 5, 3)), series="1.2.4")
    elif what == "localiser":
        write_series(folder, voxels((7, 7, 1)), series="1.2.4", **{"0020|000e": "1.2.3"})
    elif what == "claims":  # 40000 x 40000 pixels
        for path in files:
            content = path.read_bytes()
            for tag in (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00"):  # rows, columns
                at = content.index(tag) + 8
                content = content[:at] + (40000).to_bytes(2, "little") + content[at + 2 :]
            path.write_bytes(content)
    elif what == "cut":
        files[0].write_bytes(files[0].read_bytes()[:600])
    elif what == "voxels":
        write_series(folder, voxels((64, 64, 9)), compressed=True)
        whole = files[0].read_bytes()
        start = whole.index(b"\xff\x4f\xff\x51")  # of JPEG 2000
        files[0].write_bytes(whole[: start + 4] + b"\xff" * 200 + whole[start + 204 :])
    elif what == "frames":
        for path in files[1:]:
            path.unlink()
        image = sitk.GetImageFromArray(voxels((6, 5, 4), "uint16").transpose(2, 1, 0))
        sitk.WriteImage(image, str(files[0]))
    elif what == "colour":
        image = sitk.GetImageFromArray(np.zeros((1, 5, 6, 3), np.uint8), isVector=True)
        sitk.WriteImage(image, str(files[0]))
    else:
        for path in files:
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", r"missing or unevenly spaced slices \(5 mm between .*, elsewhere 2\.5 mm\): export"),
        ("doubled", "several slices at one place"),
        ("two series", r"holds 2 DICOM series \(of 9, 3 files\): move each into a folder"),
        ("localiser", r"slices of other sizes or directions .*: move the localiser"),
        ("claims", r"does not fit into memory|40000 x 40000 x 9 voxels, and the file can hold"),
        ("cut", r"001\.dcm cannot be read as an image of DICOM"),
        ("voxels", "slices that cannot be decoded: copy or export"),
        ("frames", r"holds 4 frames \(6 x 5 x 4\).*: convert it to NIfTI"),
        ("colour", "is no grey image"),
        ("empty", "holds no DICOM files"),
    ],
)
def test_what_is_no_volume_is_refused_in_a_sentence(tmp_path, what, said, capfd):
    folder = spoiled(write_series(tmp_path / "ct", voxels((6, 5, 9))), what)
    with pytest.raises(ImageReadError, match=said) as caught:
        read_dicom(folder)
    assert str(folder) in str(caught.value)
    assert NAME not in str(caught.value) and PATIENT not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# ---- what a folder holds ----


def test_a_folder_of_everything(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", voxels())
    write_itk(tmp_path / "b.nrrd", voxels())
    write_itk(tmp_path / "c.mhd", voxels())
    write_series(tmp_path / "p1" / "study" / "ct", voxels())
    write_series(tmp_path / "p2" / "study" / "ct", voxels())
    write_series(tmp_path / "p3", voxels())
    cases = find_cases(tmp_path, for_prediction=True)
    assert [case.case_id for case in cases] == ["a", "b", "c", "p1_study_ct", "p2_study_ct", "p3"]
    for case in cases:
        np.testing.assert_array_equal(read_image(case, DataConfig()).voxels, voxels())
    assert [case.case_id for case in find_cases(tmp_path / "p1", for_prediction=True)] == ["ct"]
    assert [case.case_id for case in find_cases(tmp_path / "p3", for_prediction=True)] == ["p3"]
    assert [case.case_id for case in find_cases(tmp_path / "b.nrrd", for_prediction=True)] == ["b"]
    assert [case.case_id for case in find_cases(tmp_path)] == ["a"]  # training reads NIfTI


def test_two_forms_of_one_scan_are_named(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", voxels())
    write_itk(tmp_path / "a.nrrd", voxels())
    (case,) = find_cases(tmp_path, for_prediction=True)
    with pytest.raises(ImageReadError, match=r"a\.nii\.gz and .*a\.nrrd are both case a"):
        read_image(case, DataConfig())


def test_a_file_of_a_series_is_refused_with_the_remedy(tmp_path):
    folder = write_series(tmp_path / "ct", voxels())
    with pytest.raises(ImageReadError, match="give the folder of its series"):
        find_cases(sorted(folder.iterdir())[0], for_prediction=True)
