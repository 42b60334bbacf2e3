"""A model as a Python object, and what it tells besides the mask: certainty, averages, pseudo-labels, ranking."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import small_network, small_preset
from scans import write_nifti
from stores import make_store, tiny_preset
from typer.testing import CliRunner

import sdm_cli
from sdm_cli.cli import app
from sdm_cli.config import PredictConfig
from sdm_cli.data.cases import Case
from sdm_cli.data.grid import SliceGrid, whole_grid
from sdm_cli.data.readers import read_image
from sdm_cli.data.store import SliceStore
from sdm_cli.data.volume import from_slices, read_nifti
from sdm_cli.data_config import GridConfig
from sdm_cli.errors import CheckpointError, ImageReadError, OutputError, PresetError
from sdm_cli.method.checkpoint import save_model
from sdm_cli.preset_files import load_preset
from sdm_cli.runs.extras import Extras
from sdm_cli.runs.inference import Maps, predict_scan, predict_slices
from sdm_cli.runs.likelihood import flips_of
from sdm_cli.runs.model import Model, load_model
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.pseudo_labels import PseudoLabels
from sdm_cli.runs.ranking import Doubt, doubt_of, inconsistency, ranked
from sdm_cli.runs.request import Wanted

PRESET = small_preset({"liver": 1, "spleen": 300})
OBLIQUE = np.array([[0, -2.0, 0.3, 5], [1.5, 0, 0, -20], [0, 0.2, -4, 90], [0, 0, 0, 1]])
NOISE = np.random.default_rng(0).integers(-500, 500, (21, 18, 5)).astype(np.int16)


def save_small(folder, preset=PRESET, seed=0):
    save_model(folder, small_network(preset, seed), preset)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "a.nii.gz"
    nib.save(nib.Nifti1Image(NOISE, OBLIQUE), path)
    return path


def predictor_of(forward, preset=PRESET):
    return Predictor(preset, "cpu", forward)


def logits_by_place(images):
    """Logits that depend on intensity and on place, so that a mirrored slice gives something else."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in images.shape[2:])
    return np.concatenate([0 * images - 0.9, images + rows[:, None] - 0.5, columns - images], 1)


# ---- the Python face ----


def test_the_package_gives_it_without_torch_on_import():
    code = (
        "import sys, sdm_cli; assert 'torch' not in sys.modules; sdm_cli.load_model; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = sdm_cli.load_modle


def test_a_file_and_its_voxels_give_the_same(folder, scan_file, tmp_path):
    model = sdm_cli.load_model(str(folder), device="cpu")
    found = model.predict(scan_file)
    again = model.predict(NOISE, affine=nib.load(scan_file).affine)
    assert found.mask.shape == NOISE.shape and found.mask.dtype == np.uint16
    assert set(np.unique(found.mask)) == {0, 1, 300}
    np.testing.assert_array_equal(again.mask, found.mask)
    assert again.confidence == found.confidence
    found.save(tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), found.mask)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    with pytest.raises(OutputError, match="exists"):
        found.save(tmp_path / "mask.nii.gz")


def test_volumes_are_those_of_the_voxels_found(folder):
    found = load_model(folder, "cpu").predict(NOISE, spacing_mm=(2, 3, 4))
    for name, value in found.classes.items():
        assert found.volumes_ml[name] == pytest.approx((found.mask == value).sum() * 0.024)
    nothing = replace(found, slices=np.zeros_like(found.slices))
    assert nothing.volumes_ml == {}


@pytest.mark.parametrize(
    ("voxels", "words", "message"),
    [
        (NOISE, {}, "give spacing_mm or affine"),
        (NOISE, {"spacing_mm": (1, 1, 1), "affine": np.eye(4)}, "give spacing_mm or affine"),
        (NOISE[0], {"spacing_mm": (1, 1, 1)}, r"\(18, 5\)"),
        (np.full((3, 3, 3), np.nan), {"spacing_mm": (1, 1, 1)}, "finite numbers"),
        (NOISE, {"affine": np.zeros((4, 4))}, "no affine"),
    ],
)
def test_arrays_of_which_too_little_is_known_are_refused(folder, voxels, words, message):
    with pytest.raises(ImageReadError, match=message):
        load_model(folder, "cpu").predict(voxels, **words)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, -2), (0, 1, 1), (1, 1, np.inf)])
def test_a_spacing_is_three_sizes(folder, spacing_mm):
    with pytest.raises(ImageReadError, match=r"spacing_mm is .*: give three sizes above 0, along x, y and z"):
        load_model(folder).predict(np.zeros((4, 4, 4)), spacing_mm=spacing_mm)


def test_nested_lists_are_an_array(folder):
    voxels = np.random.default_rng(0).random((20, 24, 2), np.float32)
    model, words = load_model(folder), {"spacing_mm": (1, 1, 1)}
    np.testing.assert_array_equal(
        model.predict(voxels.tolist(), **words).mask, model.predict(voxels.astype(np.float64), **words).mask
    )


def test_a_mask_is_saved_in_the_format_of_its_name(folder, scan_file, tmp_path):
    found = load_model(folder).predict(scan_file)
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.mha"):
        found.save(tmp_path / name)
        case = Case("a", tmp_path / name)
        np.testing.assert_array_equal(read_image(case, PRESET.data).voxels, found.mask)
    for name in ("a.png", "a", "a.mhd"):
        with pytest.raises(OutputError, match="give a name that ends in"):
            found.save(tmp_path / name)
    assert "array" not in repr(found)


def test_a_list_without_a_model_is_a_sentence():
    with pytest.raises(CheckpointError, match="no model in the list"):
        load_model([])


def test_a_file_knows_its_geometry_itself(folder, scan_file):
    with pytest.raises(ImageReadError, match=r"a\.nii\.gz says how its voxels lie"):
        load_model(folder, "cpu").predict(scan_file, spacing_mm=(1, 1, 1))


# ---- certainty ----


def test_maps_lie_on_the_scan_and_agree_with_each_other(folder, scan_file):
    model = load_model(folder, "cpu")
    plain = model.predict(scan_file)
    found = model.predict(scan_file, entropy=True, confidence_map=True, probabilities=True)
    np.testing.assert_array_equal(found.mask, plain.mask)
    assert found.confidence == plain.confidence
    likelihood = found.probabilities.astype(np.float64)
    assert likelihood.shape == (3, *NOISE.shape) and found.probabilities.dtype == np.float16
    np.testing.assert_allclose(likelihood.sum(0), 1, atol=2e-3)
    values = np.array([0, 1, 300])
    clear = np.sort(likelihood, 0)[-1] - np.sort(likelihood, 0)[-2] > 2e-3  # float16 rounds
    np.testing.assert_array_equal(values[likelihood.argmax(0)][clear], found.mask[clear])
    assert clear.mean() > 0.8
    np.testing.assert_allclose(found.confidence_map, likelihood.max(0), atol=1e-3)
    expected = -(likelihood * np.log(likelihood.clip(1e-12))).sum(0) / np.log(3)
    np.testing.assert_allclose(found.entropy, expected, atol=5e-3)
    assert found.entropy.min() >= 0 and found.entropy.max() <= 1
    assert found.confidence == pytest.approx(found.confidence_map[found.mask > 0].mean(), abs=5.1e-4)


def test_without_foreground_there_is_no_confidence():
    def forward(images):
        return np.concatenate([images * 0 + 1, images * 0, images * 0], 1)

    slices = np.zeros((3, 8, 9), np.uint16)
    assert predict_slices(predictor_of(forward), slices).confidence is None
    assert predict_scan([predictor_of(forward)], slices, whole_grid(slices.shape), (1, 1, 1)).confidence is None


@pytest.mark.parametrize("flips", [[()], [(), (-1,)]])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_a_sentence(value, flips):
    def forward(images):
        logits = np.concatenate([images * 0, images, -images], 1)
        logits[0, 1, 2, 3] = value
        return logits

    slices = np.zeros((3, 8, 9), np.uint16)
    with pytest.raises(CheckpointError, match="small gives numbers that are not finite: its weights are damaged"):
        predict_scan([predictor_of(forward)], slices, whole_grid(slices.shape), (1, 1, 1), flips)


def test_outside_of_the_grid_is_background_for_certain():
    grid = SliceGrid((3, 10, 12), ((1, 3), (2, 8), (3, 11)), (2, 9, 7))
    slices = np.random.default_rng(1).integers(0, 65536, grid.size).astype(np.uint16)
    maps = Maps(np.full(grid.scan, 9.0), np.full(grid.scan, 9.0), [np.full(grid.scan, 9.0) for _ in range(3)])
    found = predict_scan([predictor_of(logits_by_place)], slices, grid, (1, 1, 1), maps=maps)
    outside = np.ones(grid.scan, bool)
    outside[grid.window] = False
    assert not found.mask[outside].any() and found.mask.any()
    assert (maps.entropy[outside] == 0).all() and (maps.confidence[outside] == 1).all()
    assert [float(array[outside].mean()) for array in maps.probabilities] == [1, 0, 0]
    assert (maps.entropy[grid.window] > 0).all() and (maps.confidence[grid.window] < 1).all()


def test_probabilities_of_numpy_and_torch_go_back_to_the_scan_alike():
    torch = pytest.importorskip("torch")
    grid = SliceGrid((4, 20, 24), ((0, 4), (2, 20), (3, 23)), (3, 11, 33))
    slices = np.random.default_rng(2).integers(0, 65536, grid.size).astype(np.uint16)
    both = []
    for forward in (logits_by_place, lambda images: torch.from_numpy(logits_by_place(images))):
        maps = Maps(probabilities=[np.empty(grid.scan, np.float32) for _ in range(3)])
        mask = predict_scan([predictor_of(forward)], slices, grid, (1, 1, 1), maps=maps).mask
        both.append((mask, np.stack(maps.probabilities)))
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_allclose(both[0][1], both[1][1], atol=1e-6)
    # the published way back: bilinear in plane, then linear between slices
    likelihood = torch.from_numpy(
        logits_by_place(np.pad(slices[:, None] / np.float32(65535), ((0, 0), (0, 0), (0, 21), (0, 31))))
    )
    likelihood = likelihood[:, :, :11, :33].softmax(1)
    in_plane = torch.nn.functional.interpolate(likelihood, (18, 20), mode="bilinear", align_corners=False)
    low, high, share = grid.weights(0)
    expected = (
        in_plane[low]
        + (in_plane[high] - in_plane[low]) * torch.from_numpy(share.astype(np.float32))[:, None, None, None]
    )
    np.testing.assert_allclose(both[0][1][:, :, 2:20, 3:23], expected.transpose(0, 1).numpy(), atol=1e-5)


# ---- averages ----


def test_tta_is_the_mean_over_all_allowed_flips():
    preset = replace(PRESET, predict=PredictConfig(flips=("left-right", "back-front")))
    slices = np.random.default_rng(3).integers(0, 65536, (2, 32, 64)).astype(np.uint16)
    flips = flips_of(preset.predict.flips, "axial")
    assert flips == [(), (-2,), (-1,), (-2, -1)]
    maps = Maps(probabilities=[np.empty(slices.shape, np.float32) for _ in range(3)])
    predict_scan([predictor_of(logits_by_place)], slices, whole_grid(slices.shape), (1, 1, 1), flips, maps)
    expected = 0
    for axes in ((), (1,), (2,), (1, 2)):
        logits = logits_by_place((np.flip(slices, axes) / np.float32(65535))[:, None]).astype(np.float64)
        likelihood = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected += np.flip(likelihood, [axis + 1 for axis in axes]) / 4
    np.testing.assert_allclose(np.stack(maps.probabilities, 1), expected, atol=1e-6)


def test_tta_of_a_symmetric_network_changes_nothing():
    def forward(images):
        return np.concatenate([0.5 - images, images - 0.5, 0 * images - 9], 1)

    model = Model([predictor_of(forward, replace(PRESET, predict=PredictConfig(flips=("left-right",))))], tta=True)
    plain = Model([predictor_of(forward)])
    for name in ("mask", "confidence"):
        one, other = (getattr(m.predict(NOISE, spacing_mm=(1, 1, 1)), name) for m in (model, plain))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_tta_needs_a_preset_that_allows_it(folder):
    with pytest.raises(PresetError, match=r"allows no mirrored slices .*predict without --tta"):
        load_model(folder, "cpu", tta=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["predict.flips=[left-right]"], "left atrium would be found on the other side"),
        (
            ["predict.flips=[feet-head]", "data.slice_axis=axial"],
            "not in the plane of axial slices: give one of left-r",
        ),
        (["predict.flips=[back-front]", "data.slice_axis=stored"], "nothing is known of their directions"),
        (["predict.flips=[up]"], "up"),
    ],
)
def test_flips_that_cannot_be_right_are_refused(overrides, message):
    with pytest.raises(PresetError, match=message):
        load_preset("laseg-5-cpu", overrides)


def test_several_models_are_the_mean_of_their_probabilities(folder, tmp_path):
    other = save_small(tmp_path / "other", seed=1)
    paths = ([folder], [other], [folder, other])
    one, two, both = (
        load_model(path, "cpu").predict(NOISE, spacing_mm=(1, 1, 1), probabilities=True) for path in paths
    )
    mean = (one.probabilities.astype(float) + two.probabilities) / 2
    np.testing.assert_allclose(both.probabilities, mean, atol=2e-3)
    assert (one.mask != two.mask).any() and (both.mask != one.mask).any()
    same = load_model([folder, folder], "cpu").predict(NOISE, spacing_mm=(1, 1, 1))
    assert (same.mask == one.mask).mean() > 0.999  # ties alone


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"classes": {"liver": 1, "kidney": 300}}, "classes"),
        ({"classes": dict(reversed(PRESET.data.classes.items()))}, "classes"),
        ({"grid": GridConfig(short_side=40)}, r"grid\.short_side"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(folder, tmp_path, change, name):
    other = save_small(tmp_path / "other", replace(PRESET, data=replace(PRESET.data, **change)))
    with pytest.raises(CheckpointError, match=rf"other does not go with .*model \({name} "):
        load_model([folder, other], "cpu")


# ---- what is written beside the mask ----


def test_files_of_certainty_are_those_of_the_python_face(folder, scan_file, tmp_path):
    model, case = load_model(folder, "cpu"), Case("a", scan_file)
    extras = Extras(tmp_path, Wanted(uncertainty=True, probabilities=True), model)
    scan = model.prepare(read_nifti(scan_file), case)
    extras.write(extras.segment(model, scan, "a"), case, overwrite=False)
    expected = model.predict(scan_file, entropy=True, probabilities=True)
    entropy = nib.load(tmp_path / "entropy" / "a.nii.gz")
    assert entropy.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(entropy.dataobj), expected.entropy)
    np.testing.assert_allclose(entropy.affine, OBLIQUE, atol=1e-5)
    likelihood = np.load(tmp_path / "probabilities" / "a.npy", allow_pickle=False)
    np.testing.assert_array_equal(likelihood, expected.probabilities)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.nii.gz", "a.npy"]
    with pytest.raises(OutputError, match=r"entropy.a\.nii\.gz exists"):
        extras.require_free(["b", "a"], overwrite=False)
    extras.require_free(["b", "a"], overwrite=True)


def test_pseudo_labels_are_read_back_as_labels(folder, scan_file, tmp_path):
    model, case = load_model(folder, "cpu"), Case("a", scan_file)
    collected = PseudoLabels(tmp_path / "pseudo", PRESET.data, {"model": "small"})
    found = model.predict(scan_file, confidence_map=True)
    collected.add(found, case)
    collected.finish()
    tree = json.loads((tmp_path / "pseudo" / "dataset.json").read_text())
    assert tree["labels"] == {"background": 0, "liver": 1, "spleen": 300} and tree["numTraining"] == 1
    assert tree["sdm"]["model"] == "small"
    image = nib.load(tmp_path / "pseudo" / "imagesTr" / "a_0000.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), NOISE)
    assert image.get_data_dtype() == NOISE.dtype
    confidence = np.asanyarray(nib.load(tmp_path / "pseudo" / "confidence" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(confidence, found.confidence_map)
    store = preprocess(tmp_path / "pseudo", None, None, tmp_path / "store")
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["data"]["classes"] == {"liver": 1, "spleen": 300}
    label = SliceStore(store).reference_volume("a")
    values = np.array([0, 1, 300])[label]
    np.testing.assert_array_equal(from_slices(values, OBLIQUE, "axial"), found.mask)


def test_pseudo_labels_stay_out_of_other_data_sets(folder, scan_file, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset.json").write_text('{"labels": {"liver": 7}}')
    words = ("-i", scan_file, "--model", folder, "--pseudo")
    said = predict_small(*words, raw, "-o", tmp_path / "a", code=1).stderr
    assert f"{raw} is a data set of its own (dataset.json says so): give another folder" in " ".join(said.split())
    assert [path.name for path in raw.iterdir()] == ["dataset.json"]
    drafts = tmp_path / "drafts"
    predict_small(*words, drafts, "-o", tmp_path / "b")
    save_small(tmp_path / "other", seed=5)
    again = ("-i", tmp_path / "more.nii.gz", "--model", tmp_path / "other", "--pseudo", drafts, "-o", tmp_path / "c")
    shutil.copy(scan_file, tmp_path / "more.nii.gz")
    said = predict_small(*again, code=1).stderr
    assert f"{drafts} is pseudo-labels of another model" in " ".join(said.split())


def predict_small(*words, code=0):
    result = CliRunner().invoke(app, ["predict", *(str(word) for word in words), "-d", "cpu"])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_all_of_it(folder, tmp_path):
    for number in range(3):
        path = tmp_path / "scans" / f"{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.roll(NOISE, number, 0), OBLIQUE), path)
    other = save_small(tmp_path / "other", seed=1)
    words = ["-i", tmp_path / "scans", "-o", tmp_path / "masks", "--model", folder, "--model", other]
    extras = ["--uncertainty", "--save-probabilities", "--pseudo", tmp_path / "pseudo", "--rank"]
    result = predict_small(*words, *extras)
    assert "Label these next" in result.stdout and "nii.gz" not in result.stdout
    both = load_model([folder, other], "cpu").predict(tmp_path / "scans" / "1.nii.gz", probabilities=True, entropy=True)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "masks/1.nii.gz").dataobj), both.mask)
    np.testing.assert_array_equal(np.load(tmp_path / "masks/probabilities/1.npy"), both.probabilities)
    entropy = np.asanyarray(nib.load(tmp_path / "masks/entropy/1.nii.gz").dataobj)
    np.testing.assert_array_equal(entropy, both.entropy)
    lines = (tmp_path / "masks/ranking.csv").read_text().splitlines()
    assert lines[0] == "place,case,mean_entropy,slice_inconsistency" and len(lines) == 4
    journal = {
        row["case_id"]: row for row in map(json.loads, (tmp_path / "masks/predictions.jsonl").read_text().splitlines())
    }
    for place, name, mean, doubt in (line.split(",") for line in lines[1:]):
        assert journal[name]["entropy"] == float(mean) and journal[name]["inconsistency"] == float(doubt), place
    label = nib.load(tmp_path / "pseudo/labelsTr/2.nii.gz")
    np.testing.assert_array_equal(label.get_fdata(), nib.load(tmp_path / "masks/2.nii.gz").get_fdata())
    corrected = predict_small(*words, "--overwrite", "--pseudo", tmp_path / "pseudo", code=1)
    assert "may be corrected by now" in corrected.stderr
    assert "goes on with masks alone" in predict_small(*words, "--uncertainty", "--skip-existing", code=2).stderr
    predict_small(*words, *extras[:2], "--rank", "--overwrite")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rank", "--num-parts", "2"], 2, "--rank compares all cases"),
        (["--tta"], 1, "allows no mirrored slices"),
        (["--pseudo", "scans"], 1, "scans is where scans or masks are"),
        (["--pseudo", "scans/in"], 1, "scans/in is where scans or masks are"),
        (["--pseudo", "masks"], 1, "masks is where scans or masks are"),
    ],
)
def test_wishes_that_cannot_be_met_are_said(folder, scan_file, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    shutil.copy(scan_file, tmp_path / "scans")
    result = predict_small("-i", "scans", "-o", "masks", "--model", folder, *words, code=code)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "masks").exists()


def test_pseudo_labels_need_the_scans(tmp_path):
    store = make_store(tmp_path / "data")
    preset = tiny_preset()
    model = save_small(tmp_path / "model", preset)
    result = predict_small("-i", store, "-o", tmp_path / "masks", "--model", model, "--pseudo", tmp_path / "p", code=1)
    assert "--pseudo needs the scans" in result.stderr
    ranked_store = predict_small("-i", store, "-o", tmp_path / "masks", "--model", model, "--rank")
    assert "u0" in ranked_store.stdout and "l0" not in ranked_store.stdout  # those with a label need none
    assert "2 cases with a label left out of the ranking." in ranked_store.stderr


def test_cases_whose_label_lies_beside_them_are_not_ranked(folder, tmp_path):
    raw, masks = tmp_path / "raw", tmp_path / "masks"
    for number, name in enumerate("abc"):
        write_nifti(raw / f"imagesTr/{name}_0000.nii.gz", np.roll(NOISE, number, 0))
    write_nifti(raw / "labelsTr/b.nii.gz", np.zeros(NOISE.shape, np.uint8))
    result = predict_small("-i", raw, "-o", masks, "--model", folder, "--rank")
    assert "1 case with a label left out of the ranking." in result.stderr
    cases = [line.split(",")[1] for line in (masks / "ranking.csv").read_text().splitlines()[1:]]
    assert sorted(cases) == ["a", "c"] and (masks / "b.nii.gz").exists()
    for name in "ac":
        write_nifti(raw / f"labelsTr/{name}.nii.gz", np.zeros(NOISE.shape, np.uint8))
    result = predict_small("-i", raw, "-o", tmp_path / "all", "--model", folder, "--rank")
    assert "3 cases with a label left out of the ranking." in result.stderr
    assert result.stdout == "" and not (tmp_path / "all/ranking.csv").exists()


# ---- which case to label next ----


@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 2)))
@settings(max_examples=60, deadline=None)
def test_inconsistency_is_between_none_and_all(mask):
    value = inconsistency(mask)
    assert 0 <= value <= 1
    assert inconsistency(mask[::-1]) == pytest.approx(value)
    if mask.any():
        assert inconsistency(np.repeat(mask[:1], 3, 0)) == (0 if mask[0].any() else 1)
    else:
        assert value == 1


def test_structures_that_come_and_go_are_inconsistent():
    steady, flicker = np.ones((4, 3, 3), np.uint8), np.ones((4, 3, 3), np.uint8)
    flicker[1::2] = 0
    assert inconsistency(steady) == 0 and inconsistency(flicker) == 1
    moved = np.zeros((2, 1, 4), np.uint8)
    moved[0, 0, :2], moved[1, 0, 1:3] = 1, 1
    assert inconsistency(moved) == 0.5


def test_the_most_doubtful_case_comes_first(folder):
    doubts = [Doubt("a", 0.1, 0.1), Doubt("b", 0.9, 0.2), Doubt("c", 0.2, 0.3), Doubt("d", 0.9, 0.9)]
    assert [doubt.case_id for doubt in ranked(doubts)] == ["d", "b", "c", "a"]
    assert [doubt.case_id for doubt in ranked(list(reversed(doubts)))] == ["d", "b", "c", "a"]
    assert ranked([]) == [] and ranked(doubts[:1]) == doubts[:1]
    found = load_model(folder, "cpu").predict(NOISE, spacing_mm=(1, 1, 1), entropy=True, confidence_map=True)
    asked = (found.mask > 0) | (found.confidence_map < 0.99)
    doubt = doubt_of("a", found)
    assert doubt.entropy == pytest.approx(found.entropy[asked].mean(), rel=1e-5)
    assert doubt.inconsistency == inconsistency(found.slices)
    nothing = replace(found, slices=found.slices * 0, confidence_map=np.ones_like(found.confidence_map))
    assert doubt_of("b", nothing) == Doubt("b", 0, 1)
