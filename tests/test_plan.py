"""The planned recipe: each rule at its border, the file that says why, and the way from a folder to masks."""

import dataclasses
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import write_laseg, write_nifti
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.classes import FoundClasses
from sdm_cli.data.fingerprint import Fingerprint, Foreground, ScanFacts
from sdm_cli.data.pixels import odd_pixels
from sdm_cli.data.plan import machine_memory_bytes, plan_preset
from sdm_cli.data.recipe import load_recipe, recipe_text
from sdm_cli.data.store import open_store
from sdm_cli.data_config import IGNORE
from sdm_cli.errors import PresetError, StoreError
from sdm_cli.preset_files import load_preset
from sdm_cli.runs import predict as runs_predict
from sdm_cli.runs.model import Model
from sdm_cli.runs.predict import predict
from sdm_cli.runs.predictor import Predictor
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.request import Request
from sdm_cli.runs.train import train

GIB = 2**30
FOREGROUND = Foreground(-20.4, 180.2, 70.0, (120.0, 90.0), {"liver": 1500.0, "spleen": 0.25}, {"liver": 2, "spleen": 1})


def scan(case_id: str, size=(50, 180, 140), spacing_mm=(3.0, 0.8, 0.8), labeled=False, domain=None) -> ScanFacts:
    return ScanFacts(case_id, size, spacing_mm, labeled, domain)


def fingerprint(*scans: ScanFacts, **changes) -> Fingerprint:
    usual = Fingerprint(
        scans=scans or (scan("a", labeled=True), scan("b")),
        unusable={},
        modality="MR",
        modality_evidence="0 of 2 scans read",
        slice_axis="axial",
        slice_axis_evidence="the usual one",
        classes=FoundClasses({"liver": 1, "spleen": 2}, None, "named by dataset.json"),
        foreground=FOREGROUND,
        n_scans_read=2,
    )
    return dataclasses.replace(usual, **changes)


def planned(*scans: ScanFacts, memory_bytes: int = 16 * GIB, **changes):
    return plan_preset(fingerprint(*scans, **changes), "mine", memory_bytes).preset


# Rules


def test_mr_is_scaled_between_percentiles_of_each_volume():
    normalize = planned().data.normalize
    assert (normalize.percentiles, normalize.scale, normalize.window_hu) == ((0.5, 99.5), "volume", None)
    assert planned(modality="mixed").data.normalize == normalize


@pytest.mark.parametrize(("claim", "modality"), [("CT", "mixed"), ("CT", "MR"), ("MRI", "CT")])
def test_where_dataset_json_and_the_intensities_disagree_each_scan_is_scaled_alone_and_it_is_said(claim, modality):
    plan = plan_preset(fingerprint(modality=modality, modality_claim=claim), "mine", GIB)
    assert plan.preset.data.normalize == planned().data.normalize
    words = f"dataset.json calls the scans {claim}, but 0 of 2 scans read"
    assert words in plan.sections["data"]["normalize.percentiles"].reason
    assert [doubt.startswith(words) for doubt in plan.doubts] == [True]
    assert words in recipe_text(plan).replace("\n# ", " ").replace("  ", " ")
    assert not plan_preset(fingerprint(modality="CT", modality_claim="CT"), "mine", GIB).doubts


@pytest.mark.parametrize(
    ("low", "high", "window"),
    [
        (-20.4, 180.2, (-25, 185)),
        (-995, 371, (-995, 375)),
        (-3024, 5000, (-1000, 2000)),
        (40, 60, (-50, 150)),
        (50, 50, (-50, 150)),
        (-1000, -990, (-1000, -800)),
        (1990, 3000, (1800, 2000)),
        (-2000, -1500, (-1000, -800)),
    ],
)
def test_the_window_of_ct_is_that_of_its_structures(low, high, window):
    foreground = dataclasses.replace(FOREGROUND, low=low, high=high)
    normalize = planned(modality="CT", foreground=foreground).data.normalize
    assert (normalize.window_hu, normalize.scale) == (window, "window")


def test_ct_without_labels_is_windowed_to_soft_tissue():
    changes = {"foreground": None, "classes": FoundClasses({}, None, "none")}
    assert planned(modality="CT", **changes).data.normalize.window_hu == (-160, 240)


@pytest.mark.parametrize(("other_mm", "target"), [(0.8, None), (1.0, None), (1.01, (0.8, 0.8)), (0.6, (0.8, 0.8))])
def test_slices_are_resampled_to_the_median_when_spacings_differ(other_mm, target):
    scans = [scan("a"), scan("b", labeled=True), scan("c", spacing_mm=(3.0, 0.8, other_mm))]
    assert planned(*scans).data.grid.spacing_mm == target


def test_slices_that_are_too_large_are_made_coarser():
    large = scan("a", size=(40, 1024, 768), spacing_mm=(3.0, 0.3, 0.3), labeled=True)
    preset = planned(large, dataclasses.replace(large, case_id="b", labeled=False))
    assert preset.data.grid.spacing_mm == (0.6, 0.6)
    assert preset.train.crop == (512, 384)


@pytest.mark.parametrize(
    ("height", "width", "crop", "patch"),
    [(180, 140, (192, 160), 20), (6, 5, (32, 32), 4), (512, 512, (512, 512), 64), (33, 64, (64, 64), 8)],
)
def test_the_crop_holds_the_slices(height, width, crop, patch):
    preset = planned(scan("a", labeled=True, size=(9, height, width)))
    assert (preset.train.crop, preset.method.patch) == (crop, patch)


def test_the_crop_is_that_of_the_resampled_slices():
    scans = [scan("a"), scan("b", labeled=True), scan("c", size=(50, 180, 140), spacing_mm=(3.0, 1.6, 1.6))]
    assert planned(*scans).train.crop == (384, 288)


@pytest.mark.parametrize(
    ("side", "memory_gib", "pairs"), [(512, 64, 8), (512, 16, 5), (512, 4, 1), (512, 0.1, 1), (128, 4, 8)]
)
def test_pairs_fit_the_memory(side, memory_gib, pairs):
    facts = scan("a", labeled=True, size=(9, side, side))
    assert planned(facts, memory_bytes=int(memory_gib * GIB)).train.pairs == pairs


@pytest.mark.parametrize(
    ("n_slices", "memory_gib", "encoder"),
    [
        (999, 500, "mit-b0"),
        (1000, 31, "mit-b0"),
        (1000, 32, "mit-b1"),
        (5000, 63, "mit-b1"),
        (5000, 64, "mit-b2"),
    ],
)
def test_the_encoder_grows_with_labels_and_memory(n_slices, memory_gib, encoder):
    facts = scan("a", labeled=True, size=(n_slices, 64, 64))
    assert planned(facts, memory_bytes=memory_gib * GIB).model.encoder == encoder


@pytest.mark.parametrize(
    ("n_slices", "steps"), [(0, 1500), (6000, 1500), (6001, 1750), (20_000, 5000), (10**6, 10_000)]
)
def test_steps_are_two_passes_between_bounds(n_slices, steps):
    facts = [scan("a", labeled=True, size=(9, 64, 64)), scan("b", size=(n_slices, 64, 64))]
    assert planned(*(facts if n_slices else facts[:1])).train.steps == steps


@pytest.mark.parametrize(
    ("n_slices", "reason"),
    [
        (80, "at least 1500; 2 passes over 80 unlabeled slices would be 20"),
        (20_000, "2 passes over 20000 unlabeled slices, in whole 250s"),
        (10**6, "at most 10000; 2 passes over 1000000 unlabeled slices would be 250000"),
    ],
)
def test_the_reason_for_the_steps_is_true(n_slices, reason):
    facts = [scan("a", labeled=True, size=(9, 64, 64)), scan("b", size=(n_slices, 64, 64))]
    assert plan_preset(fingerprint(*facts), "mine", 16 * GIB).sections["train"]["steps"].reason == reason


@pytest.mark.parametrize("broken_mm", [1000.0, 0.001])
def test_one_broken_pixel_size_decides_nothing(broken_mm):
    scans = [scan("a", labeled=True), scan("b"), scan("c", spacing_mm=(3.0, 0.9, 0.8))]
    expected = planned(*scans)
    plan = plan_preset(fingerprint(*scans, scan("x", spacing_mm=(3.0, 0.8, broken_mm))), "mine", 16 * GIB)
    assert plan.preset.data == expected.data
    assert plan.preset.train.crop == expected.train.crop
    assert f"do not count for spacing and crop: x (0.8 x {broken_mm:g} mm); repair the headers" in " ".join(plan.notes)
    assert planned(*scans, scan("x", spacing_mm=(3.0, 8.0, 8.0))).data.grid.spacing_mm is not None, "10 times is usual"


@pytest.mark.parametrize("n_broken", [1, 2, 5])
def test_pixels_that_no_scanner_makes_decide_nothing_however_many_they_are(n_broken):
    broken = [scan(f"x{i}", spacing_mm=(3.0, 1000.0, 1000.0)) for i in range(n_broken)]
    preset = planned(scan("a", labeled=True), scan("b", spacing_mm=(3.0, 1.2, 1.2)), *broken)
    assert (preset.data.grid.spacing_mm, preset.train.crop) == ((1.0, 1.0), (224, 192))


def test_of_halves_with_pixels_that_there_are_nobody_knows_which_is_wrong():
    halves = plan_preset(fingerprint(scan("a"), scan("x", spacing_mm=(3.0, 15.0, 15.0))), "mine", 16 * GIB)
    assert "do not count" not in " ".join(halves.notes)


@pytest.mark.parametrize("mm", [0.004, 1000.0])
def test_a_folder_of_one_size_is_planned_as_it_is_also_where_no_scanner_makes_it(mm):
    assert planned(*(scan(name, spacing_mm=(0.03, mm, mm)) for name in "ab")).data.grid.spacing_mm is None


@pytest.mark.parametrize("stray_mm", [1.0, 30.0])
def test_one_stray_scan_decides_nothing_for_microscopy(stray_mm):
    cells = [scan(name, spacing_mm=(0.03, 0.004, 0.004)) for name in "abcd"]
    stray = scan("x", spacing_mm=(3.0, stray_mm, stray_mm))
    plan = plan_preset(fingerprint(*cells, stray), "mine", 16 * GIB)
    assert plan.preset.data.grid.spacing_mm is None
    assert f"do not count for spacing and crop: x ({stray_mm:g} x {stray_mm:g} mm)" in " ".join(plan.notes)


@pytest.mark.parametrize(
    ("sizes", "odd"),
    [
        ([1, 1, 0.004], [2]),
        ([1, 0.004, 0.004], []),
        ([1, 0.004], []),  # nobody knows
        ([0.004, 0.004], []),
        ([1, 30, 0.004, 0.004], [1]),
        ([30, 30, 1, 0.004], [0, 1]),
        ([30, 30], [0, 1]),
        ([0.01, 20], []),
        ([], []),
    ],
)
def test_small_pixels_are_odd_where_few_have_them_large_ones_always(sizes, odd):
    assert odd_pixels([(mm, 1 if mm > 20 else mm) for mm in sizes]) == odd


def test_an_assumed_voxel_size_is_said(tmp_path):
    for case_id in ("AAAA", "BBBB"):
        write_laseg(tmp_path / "raw", case_id)
    store = preprocess(tmp_path / "raw", None, None, tmp_path / "store")
    text = " ".join((store / "preset.yaml").read_text().replace("#", " ").split())
    assert "2 of 2 scans (HDF5) store no voxel size: 1 mm is assumed" in text
    assert "data.spacing_mm says otherwise" in text
    assert "spacing_mm: [1.0, 1.0, 1.0] (x, y, z) assumed, since none is stored in 2 scans" in text
    assert "of 0.006 ml (median; voxel size assumed)" in text
    assert "assumed" not in recipe_text(plan_preset(fingerprint(), "mine", GIB))
    recipe = store / "preset.yaml"
    recipe.write_text(recipe.read_text().replace("[1.0, 1.0, 1.0]", "[0.5, 0.5, 2.0]"))
    preprocess(tmp_path / "raw", None, load_recipe(store), store, overwrite=True)
    assert open_store(store).cases["AAAA"].spacing_mm == (2.0, 0.5, 0.5)


@pytest.mark.parametrize("n_classes", [0, 1, 2])
def test_class_weights_need_two_structures(n_classes):
    classes = FoundClasses({f"class_{i}": i for i in range(1, n_classes + 1)}, None, "found")
    assert planned(classes=classes).method.class_weights == (n_classes > 1)


def test_the_model_is_that_of_laseg_5_cpu_with_u2l_and_the_optimiser_adamw():
    theirs, ours = load_preset("laseg-5-cpu"), planned(scan("a", labeled=True, size=(9, 128, 128)))
    assert ours.model == dataclasses.replace(theirs.model, messenger_stages=(4,))
    assert (ours.method.l2u, ours.method.use_unlabeled, ours.method.labeled_only_fraction) == (True, True, 0.2)
    train = ours.train
    assert (train.optimizer, train.lr, train.lr_warmup_steps, train.weight_decay) == ("adamw", 5e-4, 100, 0.01)
    assert (train.head_lr_factor, train.average, train.crop) == (1.0, 0.99, theirs.train.crop)


def test_memory_is_told_by_the_machine(monkeypatch):
    assert machine_memory_bytes() > GIB / 4
    monkeypatch.delattr("os.sysconf")
    assert machine_memory_bytes() == 8 * GIB


# The file


# YAML holds no control characters and no surrogates, and neither do names of structures.
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


def facts() -> st.SearchStrategy[Fingerprint]:
    side, mm = st.integers(1, 900), st.floats(0.05, 9)
    scans = st.builds(
        ScanFacts, PRINTABLE, st.tuples(side, side, side), st.tuples(mm, mm, mm), st.booleans(), PRINTABLE
    )
    return st.builds(
        fingerprint,
        scans=st.lists(scans, min_size=1, max_size=4).map(tuple),
        modality=st.sampled_from(["CT", "MR", "mixed"]),
        modality_evidence=st.text(max_size=300),
        slice_axis=st.sampled_from(["axial", "coronal", "sagittal"]),
        classes=st.builds(
            FoundClasses,
            st.dictionaries(PRINTABLE, st.integers(1, 5), max_size=3).filter(
                lambda classes: len(set(classes.values())) == len(classes)
            ),
            st.sampled_from([None, IGNORE]),
            st.text(max_size=100),
        ),
        foreground=st.one_of(
            st.none(),
            st.builds(
                Foreground,
                low=st.floats(-3000, 0),
                high=st.floats(0, 3000),
                mean=st.just(0.0),
                box_mm=st.just((9.0, 9.0)),
                class_volumes_ml=st.just({}),
                class_cases=st.just({}),
            ),
        ),
    )


@settings(max_examples=150, deadline=None)
@given(facts(), PRINTABLE.filter(lambda name: not {"/", "\\"} & set(name)), st.integers(1, 2**40))
def test_the_recipe_reads_back_exactly(tmp_path_factory, found, name, memory_bytes):
    plan = plan_preset(found, f"x{name}", memory_bytes)
    path = tmp_path_factory.mktemp("recipe") / "preset.yaml"
    path.write_text(recipe_text(plan), encoding="utf-8")
    assert load_preset(str(path)) == plan.preset


def test_every_value_has_its_reason():
    changes = {"classes": FoundClasses({"liver": 1, "spleen": 2}, IGNORE, "named by dataset.json"), "modality": "CT"}
    text = recipe_text(plan_preset(fingerprint(scan("a"), scan("b", spacing_mm=(3, 2, 2)), **changes), "mine", GIB))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 112
    for before, line in itertools.pairwise(lines):
        is_value = not line.lstrip().startswith("#") and line.strip() and not line.endswith(":")
        assert not is_value or "  # " in line or before.lstrip().startswith("#"), line
    assert "    liver: 1  # scans with it: 2, of 1500 ml (median)" in lines
    assert yaml.safe_load(text)["data"]["grid"] == {"spacing_mm": [1.4, 1.4]}


def test_what_is_to_be_known_of_the_folder_is_said():
    def notes(*scans, **changes):
        return " ".join(plan_preset(fingerprint(*scans, **changes), "mine", GIB).notes)

    assert "Domains: siteA 1, siteB 1. No rule follows from them" in notes(
        scan("a", labeled=True, domain="siteA"), scan("b", domain="siteB")
    )
    assert "Domains" not in notes()
    assert "Every scan has a label: training needs unlabeled ones" in notes(scan("a", labeled=True))
    assert "There is no label yet" in notes(classes=FoundClasses({}, None, "none"), foreground=None)
    assert "Left out, since they cannot be used as they are: a, b, c, d, e and 2 more." in notes(
        unusable=dict.fromkeys("abcdefg", "broken")
    )
    assert "a factor of 1 between scans, at most 1.25: the slices keep the scans' own pixels" in notes()


# From a folder to masks


def ball(shape, spacing_mm) -> np.ndarray:
    """A ball of 20 mm radius, off the centre of the field of view; made in mm, so that it is the same on any grid."""
    x, y, z = (mm * (np.arange(n) + 0.5) for n, mm in zip(shape, spacing_mm, strict=True))
    return (x[:, None, None] - 45) ** 2 + (y[:, None] - 38) ** 2 + (z - 32) ** 2 < 20**2


GRIDS = {"l0": (1.0, 1.0, 4.0), "u0": (1.0, 1.0, 4.0), "u1": (1.7, 1.7, 4.0), "l1": (1.3, 1.3, 4.0)}


def make_folder(folder: Path) -> Path:
    """Scans of one field of view and structure, of different pixel sizes; some with labels."""
    for i, (case_id, spacing_mm) in enumerate(GRIDS.items()):
        shape = tuple(round(length / mm) for length, mm in zip((90, 76, 64), spacing_mm, strict=True))
        inside = ball(shape, spacing_mm)
        noise = np.random.default_rng(i).normal(0, 20, shape)
        matrix = np.diag([-spacing_mm[0], *spacing_mm[1:], 1.0])
        write_nifti(
            folder / "imagesTr" / f"{case_id}_0000.nii.gz", (100 + 800 * inside + noise).astype("int16"), matrix
        )
        if case_id.startswith("l"):
            write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", inside.astype("uint8"), matrix)
    return folder


@pytest.fixture(scope="module")
def planned_store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    return preprocess(make_folder(folder / "raw"), None, None, folder / "store")


def test_different_pixel_sizes_are_resampled(planned_store):
    store = open_store(planned_store)
    assert store.data.grid.spacing_mm == (1.15, 1.15)
    for case_id in GRIDS:
        assert store.cases[case_id].spacing_mm == pytest.approx((4, 1.15, 1.15), rel=0.02)
        assert store.geometry(case_id).spacing_mm == pytest.approx(GRIDS[case_id])


def test_the_same_folder_has_the_same_recipe(planned_store, tmp_path):
    again = preprocess(make_folder(tmp_path / "raw"), None, None, tmp_path / "store")
    for name in ("preset.yaml", "fingerprint.json"):
        assert (again / name).read_bytes() == (planned_store / name).read_bytes()


def test_masks_lie_on_the_structures_of_the_scans(planned_store, tmp_path, monkeypatch):
    """A network that thresholds intensities finds the ball: on each scan's own grid, within a pixel."""

    def forward(images: np.ndarray) -> np.ndarray:
        return np.concatenate([0.5 - images, images - 0.5], 1) * np.float32(20)

    predictor = Predictor(load_recipe(planned_store), "cpu", forward)
    monkeypatch.setattr(runs_predict, "load_model", lambda *_: Model([predictor]))
    raw = make_folder(tmp_path / "raw")
    masks = predict(Request(raw, tmp_path / "masks", tmp_path / "model"))
    assert [path.name for path in masks] == [f"{case_id}.nii.gz" for case_id in sorted(GRIDS)]
    for path in masks:
        case_id = path.name.removesuffix(".nii.gz")
        scan_file = nib.load(raw / "imagesTr" / f"{case_id}_0000.nii.gz")
        mask_file = nib.load(path)
        assert np.array_equal(mask_file.affine, scan_file.affine)
        mask, truth = np.asarray(mask_file.dataobj) == 1, np.asarray(scan_file.dataobj) > 500
        assert mask.shape == truth.shape
        spacing_mm = np.array(GRIDS[case_id][:2])
        for z in np.flatnonzero((mask | truth).any((0, 1))):
            wrong = np.argwhere(mask[..., z] != truth[..., z])
            border = np.argwhere(truth[..., z] ^ _eroded(truth[..., z]))
            distances = np.abs((wrong[:, None] - border) * spacing_mm).max(-1).min(1)
            assert distances.max(initial=0) <= max(1.15, spacing_mm[0])
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.97


def _eroded(plane: np.ndarray) -> np.ndarray:
    padded = np.pad(plane, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & plane


def test_a_planned_store_trains_and_predicts(planned_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--set", "train.steps=2", "--set", "train.pairs=1", "--set", "train.workers=0", "-d", "cpu"]
    result = CliRunner().invoke(app, ["train", "--store", str(planned_store), *arguments])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "store" / "checkpoints" / "last").is_dir()
    raw = make_folder(tmp_path / "raw")
    masks = predict(Request(raw, tmp_path / "masks", tmp_path / "runs" / "store", "cpu"))
    for path in masks:
        scan_file = nib.load(raw / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert nib.load(path).shape == scan_file.shape
        assert np.array_equal(nib.load(path).affine, scan_file.affine)


def test_train_says_what_to_give():
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 2
    assert "--store STORE" in result.output
    assert "--preset NAME|FILE" in result.output


def test_a_store_without_a_recipe_needs_a_preset(planned_store, tmp_path):
    preset = load_recipe(planned_store)
    store = preprocess(make_folder(tmp_path / "raw"), None, preset, tmp_path / "store")
    with pytest.raises(PresetError, match=r"store has no preset\.yaml, since it was made with a preset: name that one"):
        load_recipe(store)
    with pytest.raises(StoreError, match="is no slice store: make one"):
        load_recipe(tmp_path / "absent")


def test_a_recipe_whose_data_was_changed_does_not_fit_its_store(tmp_path):
    store = preprocess(make_folder(tmp_path / "raw"), None, None, tmp_path / "store")
    recipe = store / "preset.yaml"
    recipe.write_text(recipe.read_text().replace("[1.15, 1.15]", "[1.0, 1.0]"))
    with pytest.raises(PresetError, match="was made with other settings than preset store has"):
        train(load_recipe(store), store, tmp_path / "run", "cpu")
    preprocess(tmp_path / "raw", None, load_recipe(store), store, overwrite=True)
    assert open_store(store).data == load_recipe(store).data
