"""Prediction: no voxel depends on the batch, and a mask lies on its scan however that was stored."""

import dataclasses
import os
import resource
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from models import small_network, small_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.errors import (
    CheckpointError,
    ExitCode,
    ImageReadError,
    OutputError,
    PresetError,
    SdmError,
    SomeCasesFailed,
)
from sdm_cli.method.checkpoint import save_model
from sdm_cli.runs import predict as predict_module
from sdm_cli.runs.inference import Segmentation, predict_slices
from sdm_cli.runs.likelihood import padded
from sdm_cli.runs.predict import predict
from sdm_cli.runs.predictor import Predictor, load_predictor
from sdm_cli.runs.request import Request
from sdm_cli.runs.torch_model import find_model, network_predictor, resolve_device

CPU = torch.device("cpu")
PRESET = small_preset({"liver": 1, "spleen": 7, "aorta": 5, "kidney": 3})
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "nifti"


def small_predictor(stages=(4,), seed=0):
    preset = dataclasses.replace(PRESET, model=dataclasses.replace(PRESET.model, messenger_stages=stages))
    return network_predictor(small_network(preset, seed), preset, CPU)


def slice_mask(predictor, slices, batch_size=None):
    return predict_slices(predictor, slices, batch_size).mask


def noise_slices(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def phantom_ct(shape=(40, 35, 7), seed=0):
    """Balls and noise in Hounsfield units."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    voxels = np.full(shape, -1000.0)
    for hounsfield in (-50, 40, 120, 400):
        centre = rng.uniform(0.2, 0.8, 3) * shape
        voxels[np.linalg.norm(grid - centre[:, None, None, None], axis=0) < rng.uniform(5, 14)] = hounsfield
    return (voxels + rng.normal(0, 20, shape)).astype(np.int16)


AFFINE = np.array([[1.5, 0, 0, -30], [0, 1.25, 0, 12], [0, 0, 4, -100], [0, 0, 0, 1.0]])


def save_scan(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def voxels_of(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, small_network(PRESET), PRESET)
    return folder


# ---- the batch never changes a voxel ----


@pytest.mark.parametrize("stages", [(), (4,), (1, 2, 3, 4)])
@pytest.mark.parametrize("shape", [(11, 40, 56), (16, 7, 5), (5, 97, 65)])
def test_batch_size_changes_no_voxel_of_an_untrained_network(stages, shape):
    predictor = small_predictor(stages)
    slices = noise_slices(shape)
    alone = slice_mask(predictor, slices, batch_size=1)
    assert len(np.unique(alone)) > 1
    for batch_size in (2, 3, 4, 5, 8, 16, None):
        np.testing.assert_array_equal(slice_mask(predictor, slices, batch_size), alone, err_msg=str(batch_size))


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_a_batch_changes_no_voxel(seed):
    """A network full of near ties whose rounding depends on the batch, much more than that of a real one."""

    def forward(images):
        generator = torch.Generator().manual_seed(seed)
        images, levels = torch.from_numpy(images), torch.tensor([-0.7, 1.0, 0.2, 1.0])[:, None, None]
        logits = levels + 1e-6 * torch.randn(4, *images.shape[2:], generator=generator) + 0 * images
        rounding = torch.Generator().manual_seed(len(images))
        return logits + (1e-6 * torch.randn(logits.shape, generator=rounding) if len(images) > 1 else 0)

    predictor = Predictor(PRESET, "cpu", forward)
    slices = noise_slices((9, 33, 40))
    alone = slice_mask(predictor, slices, batch_size=1)
    assert not np.array_equal(forward(np.zeros((9, 1, 64, 64), np.float32)).argmax(1)[:, :33, :40].numpy(), alone)
    for batch_size in (2, 4, 9):
        np.testing.assert_array_equal(slice_mask(predictor, slices, batch_size), alone)


def test_rounding_stays_far_below_the_tolerance_of_ties():
    """The measurement behind the tolerance (3e-5 of the largest logit), repeated on this machine."""
    network = small_network(PRESET)
    images = torch.rand(8, 1, 64, 64)
    with torch.inference_mode():
        alone = torch.cat([network.predict(image[None]) for image in images])
        for batch_size in (2, 3, 8):
            batched = torch.cat([network.predict(chunk) for chunk in images.split(batch_size)])
            assert (batched - alone).abs().max() < 0.5e-5 * alone.abs().max()


def test_surrounding_autocast_changes_no_voxel():
    predictor, slices = small_predictor(), noise_slices((4, 40, 40))
    expected = slice_mask(predictor, slices)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(slice_mask(predictor, slices), expected)


def test_clear_slices_are_predicted_once_and_ties_twice():
    sizes = []

    def forward(images):
        sizes.append(len(images))
        clear = images.max((1, 2, 3)) > 0.5
        logits = np.zeros((len(images), 4, *images.shape[2:]), np.float32)
        logits[clear, 2] = 1
        return logits

    slices = np.zeros((4, 32, 32), np.uint16)
    slices[:3] = 65535
    mask = slice_mask(Predictor(PRESET, "cpu", forward), slices, batch_size=4)
    assert sizes == [4, 1]
    np.testing.assert_array_equal(mask[:, 0, 0], [2, 2, 2, 0])


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 7), (2, 31, 33), (1, 32, 32), (3, 100, 64)])
def test_any_size_is_padded_and_cut_off_again(size):
    predictor = small_predictor()
    slices = noise_slices(size)
    expected = predictor.forward(padded(slices, predictor.preset))[:, :, : size[1], : size[2]].argmax(1).numpy()
    mask = slice_mask(predictor, slices)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_batches_keep_to_the_budget_of_pixels():
    shapes = []

    def forward(images):
        shapes.append(tuple(images.shape))
        return np.stack([images[:, 0], -images[:, 0] - 1], 1)

    slice_mask(Predictor(PRESET, "cpu", forward), np.full((100, 60, 64), 65535, np.uint16))
    slice_mask(Predictor(PRESET, "cpu", forward), np.full((3, 500, 512), 65535, np.uint16))
    assert shapes == [(16, 1, 64, 64)] * 6 + [(4, 1, 64, 64)] + [(1, 1, 512, 512)] * 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("not enough memory")])
def test_a_batch_that_does_not_fit_is_halved(error):
    sizes, base = [], small_predictor()

    def forward(images):
        sizes.append(len(images))
        if len(images) > 2:
            raise error
        return base.forward(images)

    slices = noise_slices((9, 32, 32))
    mask = slice_mask(dataclasses.replace(base, forward=forward), slices, batch_size=8)
    np.testing.assert_array_equal(mask, slice_mask(base, slices, batch_size=1))
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_slice_that_does_not_fit_is_one_sentence(error):
    def forward(images):
        raise error

    with pytest.raises(SdmError, match=r"slice of 32 x 30 pixels .* memory of meta: give -d cpu\.$"):
        slice_mask(Predictor(PRESET, "meta", forward), noise_slices((4, 32, 30)))


def test_a_cpu_out_of_memory_halves_the_batch_too_and_ends_in_one_sentence():
    base = small_predictor()

    def forward(images, largest=2):
        if len(images) > largest:
            torch.empty(2**60, dtype=torch.uint8)
        return base.forward(images)

    slices = noise_slices((9, 32, 30))
    mask = slice_mask(dataclasses.replace(base, forward=forward), slices, batch_size=8)
    np.testing.assert_array_equal(mask, slice_mask(base, slices, batch_size=1))
    nothing_fits = dataclasses.replace(base, forward=lambda images: forward(images, largest=0))
    with pytest.raises(SdmError, match=r"^A slice of 32 x 30 pixels .* memory of cpu: use a machine with more\.$"):
        slice_mask(nothing_fits, slices)


def test_another_runtime_error_is_not_taken_for_memory():
    def forward(images):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        slice_mask(Predictor(PRESET, "cpu", forward), noise_slices((4, 32, 30)))


# ---- the mask lies on the scan ----


def stored_as(voxels, affine, axes, flips):
    """The same scan in another axis order and direction, and the function that stores any array so."""

    def store(array):
        return np.ascontiguousarray(np.flip(array, flips).transpose(axes))

    index = np.zeros((4, 4))
    for new, old in enumerate(axes):
        index[old, new] = -1 if old in flips else 1
        index[old, 3] = voxels.shape[old] - 1 if old in flips else index[old, 3]
    index[3, 3] = 1
    return store(voxels), affine @ index, store


def rotated(affine, degrees):
    angle = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned = affine.copy()
    turned[:3] = x @ z @ affine[:3]
    return turned


def sheared(affine):
    shear = np.eye(4)
    shear[0, 1], shear[1, 2] = 0.06, -0.04
    return affine @ shear


VARIANTS = {
    "LPS": ((0, 1, 2), (0, 1), lambda affine: affine),
    "permuted": ((2, 0, 1), (), lambda affine: affine),
    "PIR": ((1, 2, 0), (1, 2), lambda affine: affine),
    "oblique": ((0, 1, 2), (), lambda affine: rotated(affine, 20)),
    "oblique LPI": ((0, 1, 2), (0, 1, 2), lambda affine: rotated(affine, -18)),
    "sheared": ((0, 1, 2), (), sheared),
    "sheared ASL": ((1, 2, 0), (0,), sheared),
}


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_another_storage_gives_the_same_mask(tmp_path, slice_axis, variant):
    preset = dataclasses.replace(PRESET, data=dataclasses.replace(PRESET.data, slice_axis=slice_axis))
    save_model(tmp_path / "model", small_network(PRESET), preset)
    axes, flips, bend = VARIANTS[variant]
    voxels = phantom_ct()
    changed, affine, store = stored_as(voxels, AFFINE, axes, flips)
    save_scan(tmp_path / "scans" / "ras.nii.gz", voxels)
    save_scan(tmp_path / "scans" / "changed.nii.gz", changed, bend(affine))
    written = predict(Request(tmp_path / "scans", tmp_path / "masks", tmp_path / "model"))
    assert written == [tmp_path / "masks" / "changed.nii.gz", tmp_path / "masks" / "ras.nii.gz"]
    mask = voxels_of(tmp_path / "masks" / "ras.nii.gz")
    assert set(np.unique(mask)) <= {0, 1, 3, 5, 7}
    assert len(np.unique(mask)) > 2
    np.testing.assert_array_equal(voxels_of(tmp_path / "masks" / "changed.nii.gz"), store(mask))
    scan, result = nib.load(tmp_path / "scans" / "changed.nii.gz"), nib.load(tmp_path / "masks" / "changed.nii.gz")
    np.testing.assert_array_equal(result.affine, scan.affine)
    assert result.shape == scan.shape


def test_header_of_the_scan_is_kept(tmp_path, model):
    image = nib.Nifti1Image(phantom_ct(), None)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"scanner 7"
    image.set_qform(rotated(AFFINE, 10), code=1)
    image.set_sform(sheared(rotated(AFFINE, 10)), code=2)
    image.header.set_slope_inter(2.0, -5.0)
    (tmp_path / "scans").mkdir()
    nib.save(image, tmp_path / "scans" / "a.nii")
    predict(Request(tmp_path / "scans" / "a.nii", tmp_path / "masks", model))
    scan, mask = nib.load(tmp_path / "scans" / "a.nii"), nib.load(tmp_path / "masks" / "a.nii.gz")
    for code in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "srow_x", "qoffset_z"):
        np.testing.assert_array_equal(mask.header[code], scan.header[code], err_msg=code)
    assert mask.header.get_data_dtype() == np.uint8
    assert mask.header.get_slope_inter() in ((1.0, 0.0), (None, None))


def test_large_label_values_make_a_16_bit_mask(tmp_path):
    preset = small_preset({"myocardium": 205, "left ventricle": 500, "right ventricle": 600})
    save_model(tmp_path / "model", small_network(preset), preset)
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct())
    predict(Request(tmp_path / "scans", tmp_path / "masks", tmp_path / "model"))
    mask = nib.load(tmp_path / "masks" / "a.nii.gz")
    assert mask.get_data_dtype() == np.uint16
    assert set(np.unique(np.asanyarray(mask.dataobj))) <= {0, 205, 500, 600}


@pytest.mark.parametrize("shape", [(5, 7, 1), (1, 1, 1), (33, 65, 3), (31, 2, 40)])
def test_scans_of_any_size(tmp_path, model, shape):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((70, 70, 50))[tuple(slice(0, size) for size in shape)])
    (mask,) = predict(Request(tmp_path / "scans", tmp_path / "masks", model))
    assert nib.load(mask).shape == shape


def test_a_constant_scan_is_predicted_too_with_a_warning(tmp_path, model, capsys):
    save_scan(tmp_path / "scans" / "a.nii.gz", np.zeros((20, 20, 2), np.int16))
    assert len(predict(Request(tmp_path / "scans", tmp_path / "masks", model))) == 1
    assert "a.nii.gz is constant (all voxels 0)" in " ".join(capsys.readouterr().err.split())


def test_masks_without_any_structure_are_told(tmp_path, monkeypatch, model, capsys):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    monkeypatch.setattr(
        "sdm_cli.runs.model.predict_scan",
        lambda _predictors, slices, *_: Segmentation(np.zeros(slices.shape, np.uint8), None),
    )
    predict(Request(tmp_path / "scans", tmp_path / "masks", model))
    assert "1 of 1 masks are empty (a)" in " ".join(capsys.readouterr().err.split())


def test_a_domain_is_refused_by_a_model_that_knows_none(tmp_path, model):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    with pytest.raises(PresetError, match="leave --domain out"):
        predict(Request(tmp_path / "scans", tmp_path / "masks", model, domain="scanner A"))
    assert not (tmp_path / "masks").exists()


def test_volumes_of_laseg_become_nifti(tmp_path):
    preset = small_preset(spacing_mm=(0.625, 0.625, 0.625))
    save_model(tmp_path / "model", small_network(preset), preset)
    (tmp_path / "scans" / "CASE").mkdir(parents=True)
    with h5py.File(tmp_path / "scans" / "CASE" / "mri_norm2.h5", "w") as file:
        file["image"] = phantom_ct((33, 20, 4)).astype(np.float32)
    (mask,) = predict(Request(tmp_path / "scans", tmp_path / "masks", tmp_path / "model"))
    assert mask.name == "CASE.nii.gz"
    assert nib.load(mask).shape == (33, 20, 4)
    np.testing.assert_allclose(nib.load(mask).header.get_zooms(), 0.625)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/nifti")
@pytest.mark.parametrize("name", ["ct", "mr"])
def test_real_scans_in_other_storage_give_the_same_mask(tmp_path, model, name):
    scan = nib.load(REAL / f"{name}.nii.gz")
    voxels, affine = np.asanyarray(scan.dataobj), scan.affine
    cut = tuple(slice(0, min(size, 100)) for size in voxels.shape[:2])
    voxels = voxels[cut][:, :, ::4]
    affine = affine @ np.diag([1, 1, 4, 1.0])
    save_scan(tmp_path / "scans" / "as-is.nii.gz", voxels, affine)
    stores = {}
    for variant, (axes, flips, bend) in VARIANTS.items():
        changed, moved, stores[variant] = stored_as(voxels, affine, axes, flips)
        save_scan(tmp_path / "scans" / f"{variant}.nii.gz", changed, bend(moved))
    predict(Request(tmp_path / "scans", tmp_path / "masks", model))
    mask = voxels_of(tmp_path / "masks" / "as-is.nii.gz")
    assert len(np.unique(mask)) > 2
    for variant, store in stores.items():
        np.testing.assert_array_equal(voxels_of(tmp_path / "masks" / f"{variant}.nii.gz"), store(mask), err_msg=variant)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/nifti")
def test_masks_of_real_scans_have_their_geometry(tmp_path, model):
    for name in ("ct", "mr"):
        predict(Request(REAL / f"{name}.nii.gz", tmp_path, model, device="cpu"))
        scan, mask = nib.load(REAL / f"{name}.nii.gz"), nib.load(tmp_path / f"{name}.nii.gz")
        assert mask.shape == scan.shape
        for code in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_d"):
            np.testing.assert_array_equal(mask.header[code], scan.header[code], err_msg=code)


# ---- folders, flags and failures ----


def test_masks_of_equal_names_of_two_sites_are_called_like_their_cases(tmp_path, model):
    for site in "AB":
        (tmp_path / "sites" / site).mkdir(parents=True)
        save_scan(tmp_path / "sites" / site / "a01.nii.gz", phantom_ct())
    written = predict(Request(tmp_path / "sites", tmp_path / "masks", model))
    assert [path.name for path in written] == ["A_a01.nii.gz", "B_a01.nii.gz"]


def test_the_test_scans_of_an_nnunet_folder_are_predicted_too(tmp_path, model):
    save_scan(tmp_path / "raw" / "imagesTr" / "a_0000.nii.gz", phantom_ct((20, 20, 2)))
    save_scan(tmp_path / "raw" / "imagesTs" / "t_0000.nii.gz", phantom_ct((20, 20, 2)))
    masks = predict(Request(tmp_path / "raw", tmp_path / "masks", model))
    assert [mask.name for mask in masks] == ["a.nii.gz", "t.nii.gz"]


def test_one_bad_scan_does_not_stop_the_rest(tmp_path, model, capsys):
    scans = tmp_path / "scans"
    for name in ("a", "b", "c"):
        save_scan(scans / f"{name}.nii.gz", phantom_ct((20, 20, 2)))
    (scans / "b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes()[:300])
    with pytest.raises(SomeCasesFailed, match=r"1 of 3 scans got no mask \(b\)"):
        predict(Request(scans, tmp_path / "masks", model))
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert str(scans / "b.nii.gz") in capsys.readouterr().err
    with pytest.raises(ImageReadError, match=r"b\.nii\.gz"):
        predict(Request(scans / "b.nii.gz", tmp_path / "masks", model))
    command = ["predict", "-i", str(scans), "-o", str(tmp_path / "others"), "--model", str(model)]
    assert CliRunner().invoke(app, command).exit_code == ExitCode.SOME_CASES_FAILED


def test_a_stopped_cohort_says_how_far_it_is_and_goes_on(tmp_path, model, monkeypatch):
    for name in "abc":
        save_scan(tmp_path / "scans" / f"{name}.nii.gz", phantom_ct())
    arguments = ["predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "masks"), "--model", str(model)]
    with monkeypatch.context() as stopped:
        stopped.setattr(predict_module, "read_image", stop_at("b", predict_module.read_image))
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "Stopped with 1 of 3 masks written: the same command with --skip-existing goes on" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--skip-existing"])
    assert result.exit_code == 0 and [Path(line).name for line in result.stdout.split()] == ["b.nii.gz", "c.nii.gz"]


def stop_at(case_id, read):
    def reading(case, data):
        if case.case_id == case_id:
            raise KeyboardInterrupt
        return read(case, data)

    return reading


def test_existing_masks_are_kept_or_replaced_only_when_told(tmp_path, model, capsys):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    save_scan(tmp_path / "scans" / "b.nii.gz", phantom_ct((20, 20, 2)))
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.nii.gz").write_text("mine")
    with pytest.raises(OutputError, match="--skip-existing"):
        predict(Request(tmp_path / "scans", masks, model))
    assert [path.name for path in masks.iterdir()] == ["a.nii.gz"]
    assert predict(Request(tmp_path / "scans", masks, model, existing="keep")) == [masks / "b.nii.gz"]
    assert (masks / "a.nii.gz").read_text() == "mine"
    assert "1 of 2 masks exist" in capsys.readouterr().err
    assert predict(Request(tmp_path / "scans", masks, model, existing="keep")) == []
    with pytest.raises(OutputError, match=r"a\.nii\.gz is not replaced"):
        predict(Request(tmp_path / "scans", masks, model, existing="replace"))
    (masks / "a.nii.gz").unlink()
    assert len(predict(Request(tmp_path / "scans", masks, model, existing="replace"))) == 2
    assert nib.load(masks / "a.nii.gz").shape == (20, 20, 2)


@pytest.mark.parametrize("as_file", [True, False])
def test_masks_never_go_where_the_scans_are(tmp_path, model, as_file):
    scan = save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    before = scan.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    for output in (tmp_path / "scans", tmp_path / "link", tmp_path / "masks" / ".." / "scans"):
        with pytest.raises(OutputError, match="another folder"):
            predict(Request(scan if as_file else tmp_path / "scans", output, model, existing="replace"))
    assert scan.read_bytes() == before


@pytest.mark.parametrize(
    ("scan", "output", "is_refused"),
    [
        ("siteA/a", "masks", True),  # the next run would take it for a domain
        ("imagesTr/a_0000", "imagesTs", True),
        ("a", "imagesTs", True),
        ("a", "masks", False),
        ("imagesTr/a_0000", "masks", False),
    ],
)
def test_masks_never_go_where_a_later_run_would_take_them_for_scans(tmp_path, model, scan, output, is_refused):
    folder = tmp_path / "scans"
    save_scan(folder / f"{scan}.nii.gz", phantom_ct((20, 20, 2)))
    command = ["predict", "-i", str(folder), "-o", str(folder / output), "--model", str(model), "--overwrite"]
    results = [CliRunner().invoke(app, command) for _ in range(2)]
    assert [result.exit_code for result in results] == [1 if is_refused else 0] * 2
    assert (folder / output).exists() != is_refused
    if is_refused:
        said = f"Error: {folder / output} lies in {folder}, where a later run would take the masks for scans"
        assert said in results[0].stderr
    else:
        assert results[0].stdout == results[1].stdout == f"{folder / output / 'a.nii.gz'}\n"


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "taken"])
def test_the_output_is_a_folder(tmp_path, model, name):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    (tmp_path / "taken").write_text("x")
    with pytest.raises(OutputError, match="give the folder"):
        predict(Request(tmp_path / "scans", tmp_path / name, model))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, model):
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    with pytest.raises(OutputError, match=r"^/proc/masks.* cannot be written"):
        predict(Request(tmp_path / "scans", Path("/proc/masks"), model))


def test_a_full_disk_ends_the_work_and_leaves_no_half_mask(tmp_path, model):
    for name in ("a", "b"):
        save_scan(tmp_path / "scans" / f"{name}.nii.gz", phantom_ct((40, 40, 8)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.nii\.gz cannot be written"):
            predict(Request(tmp_path / "scans", tmp_path / "masks", model))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "masks").iterdir()) == []


def test_missing_scans_and_models_are_named(tmp_path, model):
    with pytest.raises(ImageReadError, match="nothing"):
        predict(Request(tmp_path / "nothing", tmp_path / "masks", model))
    save_scan(tmp_path / "scans" / "a.nii.gz", phantom_ct((20, 20, 2)))
    with pytest.raises(CheckpointError, match="no such run or model; give the folder of one"):
        predict(Request(tmp_path / "scans", tmp_path / "masks", tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="no such file; make one by `sdm export`"):
        predict(Request(tmp_path / "scans", tmp_path / "masks", tmp_path / "nothing.onnx"))
    assert not (tmp_path / "masks").exists()


# ---- which model, which device ----


def test_a_run_gives_its_best_model_else_its_last(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_model(run)
    save_model(run / "checkpoints" / "last", small_network(PRESET), PRESET)
    assert find_model(run) == run / "checkpoints" / "last"
    save_model(run / "checkpoints" / "best", small_network(PRESET, seed=1), PRESET)
    assert find_model(run) == run / "checkpoints" / "best"
    assert find_model(run / "checkpoints" / "last") == run / "checkpoints" / "last"
    os.rename(run / "checkpoints" / "best", run / "checkpoints" / ".best.old")  # noqa: PTH104
    assert load_predictor(run, "cpu").preset == PRESET


def test_devices_have_their_usual_names(monkeypatch):
    assert resolve_device("cpu") == CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device() == torch.device("cuda")
    assert resolve_device("gpu") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("GPU:1") == resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SdmError, match=r"cuda:2 is not here \(2 GPUs"):
        resolve_device("cuda:2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SdmError, match="gpu is not here"):
        resolve_device("gpu")
    for name in ("tpu", "cuda:x", "cpu:1", "", "cuda:-1"):
        with pytest.raises(SdmError, match="There is no device"):
            resolve_device(name)
