"""Any grid there and back, and preprocessing killed at any moment: what is read is right, or is refused."""

import random
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import write_nifti
from stores import scan, tiny_preset

from sdm_cli.data.cases import Case
from sdm_cli.data.readers import read_image, read_label
from sdm_cli.data.slices import make_slices
from sdm_cli.data.store import SliceStore, case_path, open_store
from sdm_cli.data.volume import from_slices, read_nifti, to_slices, write_mask
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import StoreError
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.preprocess import preprocess

CLASSES = {"a": 3, "b": 200, "c": 41}


@st.composite
def affines(draw):
    """Any axes that are far enough from lying in one plane: rotated, mirrored, sheared, of any spacing."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    shear = np.eye(3) + np.triu(generator.uniform(-0.3, 0.3, (3, 3)), 1)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ shear @ np.diag(np.exp(generator.uniform(-1.5, 1.5, 3)))
    matrix[:3, 3] = generator.uniform(-300, 300, 3)
    return matrix


@settings(deadline=None, max_examples=60)
@given(
    affines(),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.sampled_from(["uint8", "int16", ">i2", "uint16", ">u2", "int32", "float32", ">f4", "float64"]),
    st.sampled_from(["uint8", "int16", ">u2", "int32", "float32", ">f8"]),
    st.sampled_from(["axial", "coronal", "sagittal", "stored"]),
    st.integers(0, 2**32 - 1),
)
def test_a_label_on_any_grid_comes_back_the_same(
    tmp_path_factory, matrix, shape, image_dtype, label_dtype, plane, seed
):
    folder = tmp_path_factory.mktemp("grid")
    generator = np.random.default_rng(seed)
    values = generator.choice([0, *CLASSES.values()], shape).astype(label_dtype)
    image = generator.integers(0, 250, shape).astype(image_dtype)
    case = Case(
        "a",
        write_nifti(folder / "images/a.nii.gz", image, matrix),
        write_nifti(folder / "labels/a.nii.gz", values, matrix),
    )
    data = DataConfig(classes=CLASSES, slice_axis=plane)
    volume = read_image(case, data)
    assert np.array_equal(volume.voxels, image)
    indices = read_label(case, data, volume.geometry)
    slices = to_slices(indices, volume.geometry.affine, plane)
    stored, grid = make_slices(case, volume, data)
    assert grid.is_identity and stored.shape == slices.shape
    back = np.array([0, *CLASSES.values()], np.uint16)[from_slices(slices, volume.geometry.affine, plane)]
    write_mask(folder / "mask.nii.gz", back, volume.geometry)
    assert np.array_equal(read_nifti(folder / "mask.nii.gz").voxels, values)
    scan_header, mask_header = (nib.load(folder / name) for name in ("images/a.nii.gz", "mask.nii.gz"))
    assert np.array_equal(scan_header.affine, mask_header.affine)


def whole_case(store, case_id):
    return store.image_volume(case_id), store.label_volume(case_id), store.reference_volume(case_id)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills as Linux does")
def test_preprocessing_killed_at_random_moments_never_leaves_a_store_that_reads_wrongly(tmp_path):
    for i in range(24):
        image, label = scan(i, (160, 150, 40))
        write_nifti(tmp_path / "images" / f"c{i:02}.nii.gz", image, np.diag([1.0, 1, 3, 1]))
        write_nifti(tmp_path / "labels" / f"c{i:02}.nii.gz", label, np.diag([1.0, 1, 3, 1]))
    (tmp_path / "tiny.yaml").write_text(str(preset_to_dict(tiny_preset())).replace("None", "null"))
    expected = SliceStore(preprocess(tmp_path / "images", tmp_path / "labels", tiny_preset(), tmp_path / "expected"))
    store, moments = tmp_path / "store", random.Random(0)
    words = [
        "preprocess",
        "-i",
        "images",
        "--labels",
        "labels",
        "--preset",
        "tiny.yaml",
        "-o",
        "store",
        "--workers",
        "2",
    ]
    command, since = [sys.executable, "-m", "sdm_cli", *words], time.perf_counter()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    whole = time.perf_counter() - since  # however fast the machine is
    shutil.rmtree(store)
    killed = 0
    for _ in range(60):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(moments.uniform(0.2, 0.8) * whole)
        is_over = process.poll() is not None
        process.kill()
        error = process.communicate()[1]
        assert not is_over or process.returncode == 0, error
        killed += not is_over
        files = {path.stem for path in (store / "cases").glob("*.h5")}
        try:
            cases = open_store(store).cases
        except StoreError:  # unfinished, or not begun: refused; but what has its final name is whole
            cases = expected.cases.keys() & files
        opened = SliceStore.__new__(SliceStore)
        opened.__dict__ = {**expected.__getstate__(), "path": store}
        for case_id in cases:
            assert case_path(store, case_id).is_file()
            for mine, theirs in zip(whole_case(opened, case_id), whole_case(expected, case_id), strict=True):
                assert np.array_equal(mine, theirs)
        if is_over and killed >= 20:
            break
        if is_over:  # finished before the twentieth kill: begin again
            shutil.rmtree(store)
    assert killed >= 20
