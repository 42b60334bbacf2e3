"""Geometry: to slices and back, NIfTI in, aligned NIfTI out."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import SPACING_MM, affine, label, rotation, voxels, write_nifti

from sdm_cli.data.volume import (
    Geometry,
    from_slices,
    read_nifti,
    read_nifti_geometry,
    slice_spacing_mm,
    to_slices,
    write_mask,
)
from sdm_cli.errors import ImageReadError, OutputError

PLANES = ("axial", "coronal", "sagittal")
DATA = Path(__file__).parents[2] / "shared" / "data" / "nifti"

orientations = st.tuples(
    st.permutations([0, 1, 2]).map(tuple), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.integers(-35, 35)
)


@settings(deadline=None)
@given(orientations, st.sampled_from((*PLANES, "stored")), st.tuples(*[st.integers(1, 6)] * 3))
def test_from_slices_undoes_to_slices(orientation, plane, shape):
    axes, flips, degrees = orientation
    matrix = affine(axes, flips, tilt=rotation(degrees, axis=0) @ rotation(degrees / 2, axis=2))
    scan = voxels(shape)
    slices = to_slices(scan, matrix, plane)
    assert np.array_equal(from_slices(slices, matrix, plane), scan)
    assert slices.size == scan.size


@settings(deadline=None)
@given(orientations, st.sampled_from(PLANES))
def test_slices_do_not_depend_on_how_the_scan_is_stored(orientation, plane):
    """A RAS scan stored with other axes, directions and tilt gives the same slices and spacing."""
    axes, flips, degrees = orientation
    ras = voxels((6, 5, 4))
    stored = ras.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    spacing = tuple(SPACING_MM[axis] for axis in axes)
    matrix = affine(axes, flips, spacing, tilt=rotation(degrees, axis=1))
    assert np.array_equal(to_slices(stored, matrix, plane), to_slices(ras, affine(), plane))
    assert slice_spacing_mm(matrix, plane) == pytest.approx(slice_spacing_mm(affine(), plane))


@pytest.mark.parametrize(("plane", "order"), [("axial", (2, 0, 1)), ("coronal", (1, 0, 2)), ("sagittal", (0, 1, 2))])
def test_slices_of_a_ras_scan_stack_along_the_plane(plane, order):
    scan = voxels((6, 5, 4))
    assert np.array_equal(to_slices(scan, affine(), plane), scan.transpose(order))
    assert slice_spacing_mm(affine(), plane) == pytest.approx([SPACING_MM[axis] for axis in order])


def test_stored_slices_are_not_turned():
    """Short-axis scans lie across all planes: the closest axial axis would often be one within the slice."""
    scan = voxels((6, 5, 4))
    tilted = affine(flips=(1, -1, 1), tilt=rotation(60, axis=0) @ rotation(40, axis=2))
    for matrix in (affine(), tilted):
        assert np.array_equal(to_slices(scan, matrix, "stored"), scan.transpose(2, 0, 1))
        assert slice_spacing_mm(matrix, "stored") == pytest.approx((2.5, 0.7, 1.1))
    assert slice_spacing_mm(tilted, "axial")[0] != pytest.approx(2.5)


def test_a_flipped_scan_is_turned():
    """LPS: both axes of an axial slice are reversed, the stacking is not."""
    scan = voxels((6, 5, 4))
    assert np.array_equal(to_slices(scan, affine(flips=(-1, -1, 1)), "axial"), scan[::-1, ::-1].transpose(2, 0, 1))


def test_a_sheared_header_is_read_and_kept(tmp_path):
    matrix = affine(flips=(-1, -1, 1))
    matrix[0, 1] += 0.2  # no rotation: SimpleITK refuses it
    matrix[2, 0] -= 0.1
    volume = read_nifti(write_nifti(tmp_path / "a.nii.gz", voxels(), matrix))
    assert np.array_equal(from_slices(to_slices(volume.voxels, matrix, "axial"), matrix, "axial"), voxels())
    write_mask(tmp_path / "mask.nii.gz", label(), volume.geometry)
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", ">i2", "<u2", ">u2", ">u4", "int64", ">i8", "uint64", ">f4", "float64"]
)
def test_every_number_type_is_read_as_written(tmp_path, dtype):
    scan = voxels((6, 5, 4), dtype) + np.dtype(dtype).type(7)
    image = nib.Nifti1Image(scan, affine(), dtype=scan.dtype)
    big_endian = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    big_endian.set_data_dtype(scan.dtype)
    nib.save(nib.Nifti1Image(scan, image.affine, big_endian, dtype=scan.dtype), tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii")
    assert stored.header.endianness == big_endian.endianness
    read = read_nifti(tmp_path / "a.nii").voxels
    assert np.array_equal(read, scan)
    assert read.dtype.isnative
    assert read.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("dtype", ["<i2", ">u2", "<i8"])
def test_slope_and_intercept_are_applied(tmp_path, dtype):
    scan = voxels((6, 5, 4), dtype)
    header = nib.Nifti1Header(endianness=dtype[0])
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(scan, affine(), header, dtype=scan.dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -1024], f"{dtype[0]}f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    assert nib.load(path).get_data_dtype() == np.dtype(dtype)
    read = read_nifti(path).voxels
    assert np.array_equal(read, scan.astype(float) * 0.5 - 1024)
    assert read.dtype == np.float32
    cine = np.stack([scan, scan + 1], 3)
    nib.save(nib.Nifti1Image(cine, affine(), header, dtype=scan.dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -1024], f"{dtype[0]}f4").tobytes()
    path.write_bytes(content)
    assert np.array_equal(read_nifti(path, frame=1).voxels, (scan + 1).astype(float) * 0.5 - 1024)


def test_a_3d_image_stored_as_4d_is_3d(tmp_path):
    volume = read_nifti(write_nifti(tmp_path / "a.nii.gz", voxels((6, 5, 4, 1))))
    assert volume.voxels.shape == volume.geometry.shape == (6, 5, 4)


def test_a_single_slice_stored_as_2d_is_a_volume(tmp_path):
    volume = read_nifti(write_nifti(tmp_path / "a.nii.gz", voxels((6, 5))))
    assert volume.geometry.shape == (6, 5, 1)


def test_the_mask_of_a_2d_image_is_2d(tmp_path):
    scan = read_nifti(write_nifti(tmp_path / "a.nii.gz", voxels((6, 5)), np.diag([2.0, 3, 1, 1])))
    write_mask(tmp_path / "mask.nii.gz", np.ones((6, 5, 1), np.uint8), scan.geometry)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (6, 5)
    assert np.array_equal(mask.affine, nib.load(tmp_path / "a.nii.gz").affine)


def test_a_4d_image_needs_a_frame(tmp_path):
    path = write_nifti(tmp_path / "cine.nii.gz", voxels((6, 5, 4, 3)))
    with pytest.raises(ImageReadError, match=r"cine\.nii\.gz is 4D \(6 x 5 x 4 x 3\): split it.*data\.frame"):
        read_nifti(path)
    assert np.array_equal(read_nifti(path, frame=2).voxels, voxels((6, 5, 4, 3))[..., 2])
    with pytest.raises(ImageReadError, match=r"frames 0 to 2, but frame 3 is asked for: correct data\.frame"):
        read_nifti(path, frame=3)


def test_a_5d_image_is_refused_unless_its_last_axes_are_empty(tmp_path):
    with pytest.raises(ImageReadError, match="5D"):
        read_nifti(write_nifti(tmp_path / "a.nii.gz", voxels((3, 3, 3, 2, 2))), frame=0)
    path = write_nifti(tmp_path / "b.nii.gz", voxels((3, 3, 3, 2, 1)))
    assert np.array_equal(read_nifti(path, frame=1).voxels, voxels((3, 3, 3, 2))[..., 1])


def test_a_truncated_file_is_named(tmp_path):
    path = write_nifti(tmp_path / "cut.nii.gz", np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype("int16"))
    content = path.read_bytes()
    for kept in (len(content) // 2, 40, 0):
        path.write_bytes(content[:kept])
        with pytest.raises(ImageReadError, match=r"cut\.nii\.gz cannot be read as NIfTI"):
            read_nifti(path)


def test_a_text_file_is_no_nifti(tmp_path):
    for name in ("notes.nii.gz", "notes.nii"):
        (tmp_path / name).write_text("nothing to see\n" * 100)
        with pytest.raises(ImageReadError, match=f"{name} cannot be read as NIfTI"):
            read_nifti(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"gone\.nii does not exist"):
        read_nifti(tmp_path / "gone.nii")


def test_a_flat_affine_is_refused(tmp_path):
    path = write_nifti(tmp_path / "flat.nii", voxels())
    content = bytearray(path.read_bytes())
    content[312:328] = bytes(16)  # srow_z
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match="no usable affine"):
        read_nifti(path)


def test_colour_images_are_refused(tmp_path):
    path = write_nifti(tmp_path / "rgb.nii.gz", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(ImageReadError, match="only grey images"):
        read_nifti(path)


def test_a_file_without_voxels_is_refused(tmp_path):
    with pytest.raises(ImageReadError, match=r"has no voxels \(0 x 5 x 4\)"):
        read_nifti(write_nifti(tmp_path / "none.nii.gz", np.zeros((0, 5, 4), "int16")))


def test_a_surface_in_nifti_clothes_is_refused(tmp_path):
    """CIFTI-2 files end in .nii too."""
    brain = nib.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4), name="cortex_left")
    image = nib.Cifti2Image(np.zeros((1, 8), "float32"), (nib.cifti2.ScalarAxis(["thickness"]), brain))
    nib.save(image, tmp_path / "a.dscalar.nii")
    with pytest.raises(ImageReadError, match=r"is no NIfTI volume \(but CIFTI-2\)"):
        read_nifti(tmp_path / "a.dscalar.nii")


def test_metres_become_millimetres_and_the_mask_keeps_metres(tmp_path):
    image = nib.Nifti1Image(voxels(), np.diag([0.001, 0.001, 0.002, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii.gz")
    geometry = read_nifti(tmp_path / "a.nii.gz").geometry
    assert geometry.spacing_mm == pytest.approx((1, 1, 2))
    write_mask(tmp_path / "mask.nii.gz", label(), geometry)
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize("codes", [(0, 2), (1, 0), (1, 2), (3, 4), (0, 0)])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mask_has_the_header_of_its_scan(tmp_path, codes, endianness, kind):
    scan = kind(voxels(), affine((1, 0, 2), (-1, 1, 1), tilt=rotation(20)), kind.header_class(endianness=endianness))
    scan.header.set_qform(affine(tilt=rotation(7)), code=codes[0])
    scan.header.set_sform(affine((1, 0, 2), (-1, 1, 1), tilt=rotation(20)), code=codes[1])
    scan.header.set_xyzt_units("mm", "msec")
    scan.header["descrip"] = b"a scanner"
    scan.header["cal_max"] = 3000
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    kind(voxels(), None, scan.header).to_filename(tmp_path / "scan.nii.gz")

    write_mask(tmp_path / "mask.nii.gz", label(), read_nifti(tmp_path / "scan.nii.gz").geometry)

    source, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    assert type(mask) is kind
    assert np.array_equal(np.asarray(mask.dataobj), label())
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, source.affine)
    assert np.array_equal(mask.header.get_sform(), source.header.get_sform())
    assert np.array_equal(mask.header.get_qform(coded=False), source.header.get_qform(coded=False))
    for key in ("qform_code", "sform_code", "xyzt_units", "pixdim", "dim"):
        assert np.array_equal(mask.header[key], source.header[key]), key
    assert mask.header["cal_max"] == 0
    assert not mask.header.extensions and mask.header["descrip"] == b""  # either may name the patient


def test_the_mask_of_a_scaled_scan_is_not_scaled(tmp_path):
    scan = nib.Nifti1Image(np.linspace(-1, 1, 120).reshape(6, 5, 4), affine())
    scan.set_data_dtype(np.int16)
    nib.save(scan, tmp_path / "scan.nii.gz")
    assert nib.load(tmp_path / "scan.nii.gz").dataobj.slope != 1
    write_mask(tmp_path / "mask.nii.gz", label(), read_nifti(tmp_path / "scan.nii.gz").geometry)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)
    assert np.array_equal(np.asarray(mask.dataobj), label())


def test_large_label_values_are_16_bit(tmp_path):
    mask = label(values=(205, 420), dtype="int32")
    write_mask(tmp_path / "mask.nii.gz", mask, Geometry(affine(), (6, 5, 4)))
    stored = nib.load(tmp_path / "mask.nii.gz")
    assert stored.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(stored.dataobj), mask)
    assert stored.header.get_xyzt_units()[0] == "mm"


def test_a_mask_is_not_replaced_unasked(tmp_path):
    target, geometry = tmp_path / "mask.nii.gz", Geometry(affine(), (6, 5, 4))
    write_mask(target, label(), geometry)
    with pytest.raises(OutputError, match=r"mask\.nii\.gz exists"):
        write_mask(target, label(), geometry)
    write_mask(target, label(values=(3,)), geometry, overwrite=True)
    assert np.asarray(nib.load(target).dataobj).max() == 3


def test_a_full_disk_leaves_the_old_mask(tmp_path, monkeypatch):
    target, geometry = tmp_path / "mask.nii.gz", Geometry(affine(), (6, 5, 4))
    write_mask(target, label(), geometry)
    before = target.read_bytes()

    def fail(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OutputError, match=r"mask\.nii\.gz cannot be written \(No space left on device\)"):
        write_mask(target, label(values=(3,)), geometry, overwrite=True)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_mask(tmp_path / "file" / "mask.nii.gz", label(), Geometry(affine(), (6, 5, 4)))


def test_a_mask_of_another_grid_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(ValueError, match="not on the grid"):
        write_mask(tmp_path / "mask.nii.gz", label((4, 5, 6)), Geometry(affine(), (6, 5, 4)))


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="the real scans are not here")
@pytest.mark.parametrize("name", ["ct", "mr"])
def test_real_scans_go_to_slices_and_back(tmp_path, name):
    volume = read_nifti(DATA / f"{name}.nii.gz")
    matrix = volume.geometry.affine
    slices = to_slices(volume.voxels, matrix, "axial")
    assert np.array_equal(from_slices(slices, matrix, "axial"), volume.voxels)
    assert slice_spacing_mm(matrix, "axial") == pytest.approx((3, 3, 3), abs=1e-3)
    write_mask(tmp_path / "mask.nii.gz", (volume.voxels > 100).astype("uint8"), volume.geometry)
    source, mask = nib.load(DATA / f"{name}.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    for key in ("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b", "pixdim"):
        assert np.array_equal(mask.header[key], source.header[key]), key


def test_a_header_of_negative_size_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii", voxels())
    content = bytearray(path.read_bytes())
    content[42:44] = (-5).to_bytes(2, "little", signed=True)
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"a\.nii has no voxels \(-5 x 5 x 4\)"):
        read_nifti_geometry(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_of_absurd_size_is_named(tmp_path, name):
    path = write_nifti(tmp_path / name, voxels())
    opened = gzip.open if name.endswith("gz") else open
    with opened(path, "rb") as file:
        content = bytearray(file.read())
    content[42:48] = struct.pack("<3h", 32000, 31000, 30000)
    with opened(path, "wb") as file:
        file.write(bytes(content))
    with pytest.raises(
        ImageReadError, match=r"memory \(its header says 32000 x 31000 x 30000 voxels\): repair its header"
    ):
        read_nifti(path)


def test_a_header_of_a_size_beyond_all_numbers_is_named(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti2Image(voxels(), affine()), path)
    content = bytearray(path.read_bytes())
    content[24:48] = struct.pack("<3q", 2**40, 2**40, 2**10)
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"does not fit into memory \(its header says 1099511627776 x "):
        read_nifti(path)
