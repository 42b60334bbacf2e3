"""`sdm preprocess`: whole folders, failures of single cases, kills and full disks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from scans import affine, edit_header, label, rotation, voxels, write_laseg, write_nifti
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.config import Preset
from sdm_cli.data import store as data_store
from sdm_cli.data.cases import Case
from sdm_cli.data.doubts import centres_x_mm
from sdm_cli.data.manifest import VERSION, read_manifest
from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data.recipe import load_recipe
from sdm_cli.data.slices import make_slices
from sdm_cli.data.store import SliceStore, case_path, open_store
from sdm_cli.data.volume import Geometry, Volume, to_slices
from sdm_cli.errors import ExitCode, ImageReadError, OutputError, PresetError, SomeCasesFailed, StoreError
from sdm_cli.preset_files import load_preset, preset_from_dict
from sdm_cli.runs import preprocess as preprocess_module
from sdm_cli.runs.preprocess import preprocess

DATA = Path(__file__).parents[2] / "shared" / "data"


def preset(**data: object) -> Preset:
    tree = {"dataset": "phantom", "classes": {"liver": 1, "spleen": 2}, **data}
    return preset_from_dict({"data": tree, "train": {"steps": 1}}, "test")


def make_folder(folder: Path, labeled: str = "ab", unlabeled: str = "cd") -> Path:
    """An nnU-Net folder of scans that differ in orientation."""
    for i, case_id in enumerate(labeled + unlabeled):
        matrix = affine(flips=(-1 if i % 2 else 1, 1, 1), tilt=rotation(3 * i))
        write_nifti(folder / "imagesTr" / f"{case_id}_0000.nii.gz", voxels() * (i + 1), matrix)
        if case_id in labeled:
            write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(), matrix)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_folder_becomes_a_store(tmp_path):
    folder = make_folder(tmp_path / "raw")
    path = preprocess(folder, None, preset(), tmp_path / "store", workers=1)
    store = open_store(path)
    assert path == tmp_path / "store"
    assert {case_id: case.labeled for case_id, case in store.cases.items()} == {
        "a": True,
        "b": True,
        "c": False,
        "d": False,
    }
    assert store.data == preset().data
    for case_id in "ab":
        image = nib.load(folder / "imagesTr" / f"{case_id}_0000.nii.gz")
        slices = normalize_slices(to_slices(np.asarray(image.dataobj), image.affine, "axial"), store.data.normalize)
        assert np.array_equal(store.image_volume(case_id), slices)
        assert np.array_equal(store.label_volume(case_id), to_slices(label(), image.affine, "axial"))
        assert np.array_equal(store.geometry(case_id).affine, image.affine)
        header = store.geometry(case_id).header
        kept = set(header.keys()) - {"vox_offset", "scl_slope", "scl_inter"}  # where and how its file had the voxels
        assert all(header[name].tobytes() == image.header[name].tobytes() for name in kept)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["cases", "manifest.json"]
    assert len(list((tmp_path / "store" / "cases").iterdir())) == 4


def test_the_slice_axis_is_the_presets(tmp_path):
    path = preprocess(make_folder(tmp_path / "raw"), None, preset(slice_axis="sagittal"), tmp_path / "store")
    case = open_store(path).cases["a"]
    assert (case.n_slices, case.height, case.width) == (6, 5, 4)


def test_several_workers_make_the_same_store(tmp_path):
    folder = make_folder(tmp_path / "raw")
    one = preprocess(folder, None, preset(), tmp_path / "one", workers=1)
    two = preprocess(folder, None, preset(), tmp_path / "two", workers=2)
    contents = [{name: content for name, (content, _) in snapshot(path).items()} for path in (one, two)]
    assert contents[0] == contents[1]


def test_several_workers_plan_the_same_recipe(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "raw")
    shared = []

    def share_out(work, items, workers, note="", original=preprocess_module.in_processes):
        shared.append((work.func.__name__, len(items), workers))
        return original(work, items, workers, note)

    monkeypatch.setattr(preprocess_module, "in_processes", share_out)
    one = preprocess(folder, None, None, tmp_path / "one" / "store", workers=1)
    two = preprocess(folder, None, None, tmp_path / "two" / "store", workers=2)
    contents = [{name: content for name, (content, _) in snapshot(path).items()} for path in (one, two)]
    assert contents[0] == contents[1]
    assert shared == [(work, 4, workers) for workers in (1, 2) for work in ("measure_case", "make_case")]


def test_the_default_store_is_named_by_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preprocess(make_folder(tmp_path / "raw"), None, preset()) == Path("stores/phantom")
    assert open_store(tmp_path / "stores" / "phantom").cases


def test_without_a_preset_the_default_store_is_named_by_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("liver", "heart"):
        assert preprocess(make_folder(tmp_path / name)) == Path("stores") / name
        assert load_preset(f"stores/{name}/preset.yaml").name == name
    monkeypatch.chdir(tmp_path / "liver")
    assert preprocess(Path()) == Path("stores/liver")


def test_the_scans_are_not_touched(tmp_path):
    folder = make_folder(tmp_path / "raw")
    before = snapshot(folder)
    preprocess(folder, None, None, tmp_path / "store")
    assert snapshot(folder) == before


def test_no_torch_is_imported():
    code = "import sys, sdm_cli.runs.preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# LASeg


def test_laseg_becomes_a_store(tmp_path, capsys):
    for case_id in ("AAAA", "BBBB"):
        write_laseg(tmp_path / "2018LA_Seg_Training Set", case_id)
    atrium = preset(classes={"atrium": 1}, spacing_mm=[0.625, 0.625, 0.625])
    store = open_store(preprocess(tmp_path, None, atrium, tmp_path / "store"))
    assert store.cases["BBBB"].spacing_mm == (0.625, 0.625, 0.625)
    assert np.array_equal(store.label_volume("AAAA"), label(values=(1,)).transpose(2, 0, 1))
    assert store.geometry("AAAA").header is None
    assert "voxel size" not in capsys.readouterr().err
    preprocess(tmp_path, None, preset(classes={"atrium": 1}), tmp_path / "other")
    assert "warning: the HDF5 files store no voxel size; 1 mm is assumed" in capsys.readouterr().err


def test_listed_cases_that_are_missing_are_named(tmp_path, capsys):
    preprocess(make_folder(tmp_path / "raw"), None, preset(split="laseg-5"), tmp_path / "store")
    said = capsys.readouterr().err
    assert "split laseg-5 lists 100 cases not in the store" in said
    assert "06SR5RBREL16DQ6M8LWS" in said


# Without a preset


def test_what_was_found_is_said_and_the_recipe_written(tmp_path, capsys):
    store = preprocess(make_folder(tmp_path / "raw"), None, None, tmp_path / "mine")
    said = capsys.readouterr().err
    assert "4 scans in" in said
    assert "Labeled scans: 2 (8 slices); unlabeled: 2 (8 slices); voxels were read of 4." in said
    assert f"The recipe, with a reason for each value: {store}/preset.yaml" in said
    assert sorted(path.name for path in store.iterdir()) == [
        "cases",
        "fingerprint.json",
        "manifest.json",
        "preset.yaml",
    ]
    written = load_preset(str(store / "preset.yaml"))
    assert written.name == written.data.dataset == "mine"
    assert written.data == open_store(store).data
    assert written.data.classes == {"class_1": 1, "class_2": 2}
    assert (written.train.crop, written.method.patch, written.method.class_weights) == ((32, 32), 4, True)


def test_a_store_in_the_working_folder_has_the_name_of_that_folder(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "raw")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    preprocess(folder, None, None, Path())
    assert load_preset("preset.yaml").name == "mine"


def test_the_written_preset_fits_its_store_and_is_kept(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    file = store / "preset.yaml"
    file.write_text(file.read_text().replace("class_1", "liver").replace("steps: 1500", "steps: 99"))
    preprocess(folder, None, None, store)
    assert load_preset(str(file)).train.steps == 99
    preprocess(folder, None, load_preset(str(file)), store, overwrite=True)
    assert open_store(store).data.class_names == ("liver", "class_2")
    assert load_preset(str(file)).train.steps == 99


def test_a_store_made_anew_with_a_preset_has_it_for_its_recipe(tmp_path):
    """As the recipe advises: a corrected copy, which then trains with --store alone."""
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    copy = tmp_path / "copy.yaml"
    text = (store / "preset.yaml").read_text()
    assert "slice_axis: axial" in text
    text = text.replace("class_1", "liver").replace("steps: 1500", "steps: 99").replace("axis: axial", "axis: coronal")
    copy.write_text(text)
    wanted = load_preset(str(copy))
    assert wanted.data.class_names == ("liver", "class_2")
    for arguments in (["--preset", str(copy)], ["--preset", str(copy), "--overwrite"], []):
        result = CliRunner().invoke(app, ["preprocess", "-i", str(folder), "-o", str(store), *arguments])
        refused = arguments == ["--preset", str(copy)]
        assert (result.exit_code == 1) == refused, result.output
        assert (load_recipe(store) == wanted) != refused
        assert (load_recipe(store).data == open_store(store).data) and (store / "fingerprint.json").exists() == refused


def test_a_recipe_corrected_in_place_is_not_passed_over(tmp_path):
    folder = make_folder(tmp_path / "raw")
    recipe = preprocess(folder, None, None, tmp_path / "mine") / "preset.yaml"
    recipe.write_text(recipe.read_text().replace("axis: axial", "axis: coronal"))
    arguments = ["preprocess", "-i", str(folder), "-o", str(tmp_path / "mine")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "slice_axis is axial there, coronal here" in " ".join(result.stderr.split())
    remedy = ["--preset", str(recipe), "--overwrite"]
    assert " ".join(remedy) in " ".join(result.stderr.split())
    assert CliRunner().invoke(app, [*arguments, *remedy]).exit_code == 0
    assert open_store(tmp_path / "mine").data.slice_axis == "coronal"


def test_a_recipe_corrected_in_place_is_kept_with_its_comments(tmp_path):
    folder = make_folder(tmp_path / "raw")
    recipe = preprocess(folder, None, None, tmp_path / "mine") / "preset.yaml"
    text = recipe.read_text().replace("class_1", "liver") + "# remark of mine\n"
    recipe.write_text(text)
    arguments = ["preprocess", "-i", str(folder), "-o", str(tmp_path / "mine"), "--preset", str(recipe), "--overwrite"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert recipe.read_text() == text
    assert open_store(tmp_path / "mine").data.class_names == ("liver", "class_2")


def test_a_preset_that_builds_on_the_recipe_it_replaces_can_still_be_read(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {store}/preset.yaml\ndata: {{slice_axis: coronal}}\n")
    wanted = load_preset(str(own))
    preprocess(folder, None, wanted, store, overwrite=True)
    assert load_recipe(store) == load_preset(str(own)) == wanted


def test_a_finished_store_says_that_it_keeps_its_recipe(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    before = snapshot(store)
    (tmp_path / "own.yaml").write_text(f"base: {store}/preset.yaml\ntrain: {{steps: 77}}\n")
    steps = load_recipe(store).train.steps
    for name, said in (
        ("own.yaml", f"{store} keeps its recipe (train.steps is {steps}, not 77): --overwrite"),
        ("mine/preset.yaml", ""),
    ):
        capsys.readouterr()
        preprocess(folder, None, load_preset(str(tmp_path / name)), store)
        told = capsys.readouterr().err
        assert said in told and ("keeps its recipe" in told) == bool(said)
        assert snapshot(store)["preset.yaml"] == before["preset.yaml"]


def test_a_preset_replaces_the_recipe_of_a_run_that_was_stopped_before_its_manifest(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    shutil.rmtree(store / "cases")
    (store / "manifest.json").unlink()
    preprocess(folder, None, preset(), store)
    assert load_recipe(store) == preset()


def test_a_stopped_run_goes_on_with_the_settings_of_its_store(tmp_path, capsys, monkeypatch):
    """What the folder has become since, and the machine, change nothing; growth is said."""
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    before = snapshot(store)
    case_path(store, "b").unlink()
    write_nifti(folder / "imagesTr" / "wide_0000.nii.gz", voxels((70, 60, 4)), affine(spacing_mm=(3, 3, 2.5)))
    write_nifti(folder / "labelsTr" / "wide.nii.gz", label((70, 60, 4)), affine(spacing_mm=(3, 3, 2.5)))
    monkeypatch.setattr("sdm_cli.runs.preprocess.take_fingerprint", None)
    capsys.readouterr()
    preprocess(folder, None, None, store)
    said = capsys.readouterr().err
    assert (
        f"{store} goes on with its recipe, which was planned without wide: for a new plan choose another store" in said
    )
    after = snapshot(store)
    assert list(open_store(store).cases) == ["a", "b", "c", "d", "wide"]
    for name in ("preset.yaml", "fingerprint.json"):
        assert after[name] == before[name]
    monkeypatch.undo()
    preprocess(folder, None, None, store, overwrite=True)
    assert snapshot(store)["preset.yaml"] != before["preset.yaml"]
    assert open_store(store).data.grid.spacing_mm == (0.7, 1.1)


@pytest.mark.parametrize("left", [(), ("fingerprint.json",), ("fingerprint.json", "preset.yaml")])
def test_a_run_that_was_stopped_before_its_manifest_plans_anew(tmp_path, left):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, None, tmp_path / "mine")
    before = {name: content for name, (content, _) in snapshot(store).items()}
    for name in before.keys() - set(left):
        (store / name).unlink()
    (store / "cases").rmdir()
    (store / ".tmp-1-preset.yaml").write_text("half a rec")
    preprocess(folder, None, None, store)
    assert {name: content for name, (content, _) in snapshot(store).items()} == before


def test_a_preset_of_ones_own_in_the_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "preset.yaml").write_text("name: years of work")
    with pytest.raises(OutputError, match="mine exists and is no slice store"):
        preprocess(make_folder(tmp_path / "raw"), None, None, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["preset.yaml"]


def test_labels_that_come_later_need_a_new_plan(tmp_path):
    folder = make_folder(tmp_path / "raw", labeled="", unlabeled="cd")
    store = preprocess(folder, None, None, tmp_path / "mine")
    make_folder(folder)
    with pytest.raises(StoreError, match="mine was made when there was no label: start it anew with --overwrite"):
        preprocess(folder, None, None, store)
    preprocess(folder, None, None, store, overwrite=True)
    assert open_store(store).data.n_classes == 3


def test_a_preset_without_classes_meets_labels(tmp_path):
    with pytest.raises(PresetError, match=r"data\.classes is empty, but there are label files"):
        preprocess(make_folder(tmp_path / "raw"), None, preset(classes={}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


# One bad case does not spoil the folder


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD_IMAGES = {
    "truncated": (truncated, "cannot be read as NIfTI"),
    "text": (lambda path: path.write_text("no scan"), "cannot be read as NIfTI"),
    "4d": (lambda path: write_nifti(path, voxels((6, 5, 4, 2))), r"is 4D .*data\.frame"),
    "nan": (lambda path: write_nifti(path, np.full((6, 5, 4), np.nan, "float32")), "120 voxels that are NaN"),
    "constant": (lambda path: write_nifti(path, np.full((6, 5, 4), 3, "int16")), r"is constant \(all voxels 3\)"),
    "shape": (lambda path: write_nifti(path, voxels((6, 5, 3))), "has shape 6 x 5 x 4, but its image 6 x 5 x 3"),
    "affine": (lambda path: write_nifti(path, voxels(), affine(tilt=rotation(40))), "another affine"),
    "link": (lambda path: (path.unlink(), path.symlink_to("gone")), "does not exist"),
}
BAD_LABELS = {
    "values": (lambda path: write_nifti(path, label(values=(1, 9))), "label values 9 that are no class"),
    "ignored": (lambda path: write_nifti(path, label(values=(1, 255))), r"data\.ignore_value: 255"),
    "soft": (lambda path: write_nifti(path, label(dtype="float32") / 3), "not whole numbers"),
    "half": (truncated, "cannot be read as NIfTI"),
}


@pytest.mark.parametrize("trouble", [*BAD_IMAGES, *BAD_LABELS])
def test_a_bad_case_is_named_and_the_others_are_done(tmp_path, capsys, trouble):
    folder = make_folder(tmp_path / "raw")
    spoil, reason = {**BAD_IMAGES, **BAD_LABELS}[trouble]
    spoil(folder / ("labelsTr/a.nii.gz" if trouble in BAD_LABELS else "imagesTr/a_0000.nii.gz"))
    with pytest.raises(SomeCasesFailed, match=r"1 of 4 cases failed .*, 3 are in") as caught:
        preprocess(folder, None, preset(), tmp_path / "store")
    assert caught.value.exit_code == ExitCode.SOME_CASES_FAILED == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: a: ")]
    assert re.search(reason, line), line
    assert list(open_store(tmp_path / "store").cases) == ["b", "c", "d"]

    make_folder(tmp_path / "raw2")
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes((tmp_path / "raw2" / name).read_bytes())
    kept = snapshot(tmp_path / "store")["cases/b.h5"]
    preprocess(folder, None, preset(), tmp_path / "store")
    assert list(open_store(tmp_path / "store").cases) == ["a", "b", "c", "d"]
    assert snapshot(tmp_path / "store")["cases/b.h5"] == kept


def test_a_bad_case_fails_in_a_worker_too(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    truncated(folder / "imagesTr" / "c_0000.nii.gz")
    truncated(folder / "imagesTr" / "a_0000.nii.gz")
    with pytest.raises(SomeCasesFailed, match="2 of 4"):
        preprocess(folder, None, preset(), tmp_path / "store", workers=2)
    failed = [line.split(":")[1] for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert failed == [" a", " c"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_voxel_size_of_0_is_said(tmp_path, capfd, workers):
    folder = make_folder(tmp_path / "raw")
    path = folder / "imagesTr" / "c_0000.nii.gz"
    edit_header(path, pixdim=0, sform_code=0, qform_code=0)
    edit_header(folder / "imagesTr" / "d_0000.nii.gz", pixdim=0)  # its sform tells
    preprocess(folder, None, preset(), tmp_path / "store", workers)
    warned = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert warned == [f"warning: {path} stores a voxel size of 0: 1 mm is assumed; write the true one into its header"]


def test_a_second_file_of_a_stored_case_is_named_and_costs_no_finished_case(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    write_nifti(folder / "imagesTr" / "a_0000.nii", voxels())
    with pytest.raises(SomeCasesFailed, match=r"1 of 4 cases failed .*, 4 are in"):
        preprocess(folder, None, preset(), store)
    assert "are both case a: rename or remove one. What the store has of it is kept." in capsys.readouterr().err


def test_a_case_beyond_memory_is_named(tmp_path, capsys, monkeypatch):
    def fail(voxels, affine, slice_axis):
        raise MemoryError

    monkeypatch.setattr("sdm_cli.data.slices.to_slices", fail)
    with pytest.raises(SomeCasesFailed, match="4 of 4"):
        preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / "store")
    said = (
        "c_0000.nii.gz does not fit into memory (its header says 6 x 5 x 4 voxels of 0.7 x 1.1 x 2.5 mm): repair its "
    )
    assert f"{said}header if that size is wrong, else use fewer --workers or more memory." in capsys.readouterr().err


def test_a_folder_of_bad_cases_only(tmp_path):
    folder = make_folder(tmp_path / "raw", labeled="", unlabeled="a")
    truncated(folder / "imagesTr" / "a_0000.nii.gz")
    with pytest.raises(ImageReadError, match=r"None of the 1 scans can be read; the first: .*cannot be read as NIfTI"):
        preprocess(folder, None, None, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(SomeCasesFailed, match="1 of 1 cases failed"):
        preprocess(folder, None, preset(), tmp_path / "store")
    with pytest.raises(StoreError, match="has no cases"):
        open_store(tmp_path / "store")


def test_a_folder_that_cannot_be_used_makes_no_store(tmp_path):
    for folder in ("gone", "."):
        with pytest.raises(ImageReadError):
            preprocess(tmp_path / folder, None, preset(), tmp_path / "store")
    assert not (tmp_path / "store").exists()


# Continuing, extending, starting anew


def test_one_scan_is_a_singular(tmp_path, capsys):
    folder, store = make_folder(tmp_path / "raw", "a", ""), tmp_path / "store"
    for _ in range(2):
        preprocess(folder, None, preset(), store)
    preprocess(make_folder(tmp_path / "others", "b", ""), None, preset(), store)
    said = capsys.readouterr().err
    assert f"1 scan in {folder}, 1 with a label." in said and "Finished already: 1 case." in said
    assert f"{store} also keeps a, not of this folder" in said


def test_finished_cases_are_not_made_again(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    before = snapshot(store)
    case_path(store, "b").unlink()
    preprocess(folder, None, preset(), store)
    after = snapshot(store)
    assert {
        name: kept for name, kept in after.items() if "cases" in name and "b.h5" not in name
    }.items() <= before.items()
    assert after["cases/b.h5"][0] == before["cases/b.h5"][0]
    assert "Finished already: 3 cases." in capsys.readouterr().err


def test_a_truncated_case_file_is_made_again(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    truncated(case_path(store, "b"))
    preprocess(folder, None, preset(), store)
    assert open_store(store).cases["b"].labeled


def test_a_changed_scan_is_made_again(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    before = open_store(store).image_volume("c")
    path = folder / "imagesTr" / "c_0000.nii.gz"
    write_nifti(path, voxels()[:, ::-1] ** 2 % 1000, nib.load(path).affine)
    write_nifti(folder / "labelsTr" / "c.nii.gz", label(), nib.load(path).affine)
    preprocess(folder, None, preset(), store)
    assert open_store(store).cases["c"].labeled
    assert not np.array_equal(open_store(store).image_volume("c"), before)


def test_a_changed_scan_that_is_bad_leaves_no_stale_case(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    truncated(folder / "imagesTr" / "c_0000.nii.gz")
    with pytest.raises(SomeCasesFailed):
        preprocess(folder, None, preset(), store)
    assert list(open_store(store).cases) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("trouble", "workers"),
    [("does not exist", 1), ("cannot be reached (Not a directory)", 1), ("cannot be reached (Not a directory)", 2)],
)
def test_scans_out_of_reach_cost_no_finished_case(tmp_path, capsys, trouble, workers):
    """The scans are links, and their disk is unplugged."""
    make_folder(tmp_path / "disk", labeled="ab", unlabeled="cd")
    folder = make_folder(tmp_path / "raw", labeled="ab", unlabeled="cd")
    for part in ("imagesTr/c_0000", "imagesTr/a_0000", "labelsTr/b"):
        path = folder / f"{part}.nii.gz"
        path.unlink()
        path.symlink_to(tmp_path / "disk" / f"{part}.nii.gz")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    before = snapshot(store)
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    if "Not a" in trouble:
        (tmp_path / "disk").write_text("")
    capsys.readouterr()
    for _ in range(2):
        with pytest.raises(SomeCasesFailed, match=r"3 of 4 cases failed .*, 4 are in"):
            preprocess(folder, None, preset(), store, workers=workers)
    assert (
        snapshot(store / "cases").items()
        == {name.removeprefix("cases/"): file for name, file in before.items() if "cases" in name}.items()
    )
    assert list(open_store(store).cases) == ["a", "b", "c", "d"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: b: ")]
    assert said == [said[0]] * 2
    assert f"labelsTr/b.nii.gz {trouble}" in said[0]
    assert said[0].endswith("What the store has of it is kept.")
    (tmp_path / "disk").unlink(missing_ok=True)
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    preprocess(folder, None, preset(), store)
    assert snapshot(store)["cases/c.h5"] == before["cases/c.h5"]


def test_another_folder_extends_the_store(tmp_path, capsys):
    store = preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / "store")
    preprocess(make_folder(tmp_path / "more", "e", "f"), None, preset(), store)
    assert list(open_store(store).cases) == list("abcdef")
    assert "also keeps a, b, c, d, not of this folder;" in capsys.readouterr().err


def test_cases_of_another_folder_are_not_replaced(tmp_path):
    store = preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / "store")
    preprocess(make_folder(tmp_path / "more", "e", ""), None, preset(), store)
    before = snapshot(store)
    for labeled, unlabeled in (("be", "cf"), ("", "c")):
        other = make_folder(tmp_path / f"other{labeled}", labeled, unlabeled)
        (case_path(store, "e").parent / ".tmp-1").write_text("")
        with pytest.raises(
            StoreError, match=rf"of the names .*c.*, from another folder than {other}: .* -o, .*--overwrite"
        ):
            preprocess(other, None, preset(), store)
        assert snapshot(store) == before
    write_nifti(tmp_path / "more" / "imagesTr" / "a_0000.nii.gz", voxels())
    with pytest.raises(StoreError, match=f"holds other scans of the names a, from another folder than {tmp_path}/more"):
        preprocess(tmp_path / "more", None, preset(), store)
    preprocess(other, None, preset(), store, overwrite=True)
    assert list(open_store(store).cases) == ["c"]


def test_a_folder_that_was_moved_is_no_other(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    before = snapshot(store / "cases")
    moved = folder.rename(tmp_path / "elsewhere")
    preprocess(moved, None, preset(), store)
    assert snapshot(store / "cases") == before
    write_nifti(moved / "imagesTr" / "c_0000.nii.gz", voxels() ** 2)
    preprocess(moved, None, preset(), store)
    assert f"{store} has other files of c than {moved}; made again" in capsys.readouterr().err
    assert {name for name, file in snapshot(store / "cases").items() if file != before[name]} == {"c.h5"}


@pytest.mark.parametrize(("first", "then"), [("im/a.nii.gz", "im"), ("im", "im/a.nii.gz"), (".", "im"), ("im", ".")])
def test_a_changed_scan_has_the_same_place_from_whichever_folder_it_is_given(tmp_path, first, then):
    scans = tmp_path / "scans"
    path = write_nifti(scans / "im" / "a.nii.gz", voxels())
    store = preprocess(scans / first, None, preset(), tmp_path / "store")
    before = open_store(store).image_volume("a")
    write_nifti(path, voxels() ** 2 % 1000)
    preprocess(scans / then, None, preset(), store)
    assert not np.array_equal(open_store(store).image_volume("a"), before)


def test_a_store_tells_nothing_of_the_folders_above_its_scans(tmp_path):
    store = preprocess(make_folder(tmp_path / "Erika Mustermann"), None, preset(), tmp_path / "store")
    assert not [path for path in store.rglob("*") if path.is_file() and b"Mustermann" in path.read_bytes()]


@pytest.mark.parametrize("data", [{}, None])
@pytest.mark.parametrize("from_within", [False, True])
def test_why_a_case_failed_is_kept_without_the_folders_above_it(tmp_path, capsys, monkeypatch, data, from_within):
    scans, labels = tmp_path / "Erika Mustermann" / "scans", tmp_path / "Erika Mustermann" / "gt"
    for case_id in "abc":
        write_nifti(scans / "site" / f"{case_id}.nii.gz", voxels((40, 36, 3)))
        write_nifti(labels / f"{case_id}.nii.gz", label((40, 36, 3), (1,)))
    (scans / "site" / "c.nii.gz").write_bytes(b"cut")
    write_nifti(labels / "b.nii.gz", label((40, 36, 4), (1,)))
    monkeypatch.chdir(scans)
    folder = Path() if from_within else scans
    with pytest.raises(SomeCasesFailed):
        preprocess(folder, labels, None if data is None else preset(**data), tmp_path / "store")
    assert "Mustermann" in capsys.readouterr().err  # the person who gave the folder sees all of it
    kept = [path.read_text() for path in (tmp_path / "store").rglob("*.*") if path.suffix in (".json", ".yaml")]
    assert not [text for text in kept if "Mustermann" in text]
    failed = read_manifest(tmp_path / "store").failed
    assert failed["b"].startswith("b.nii.gz has shape 40 x 36 x 4") and failed["c"].startswith("site/c.nii.gz cannot")


def test_another_folder_of_the_same_name_does_not_go_on_with_the_store_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "A" / "scans")
    make_folder(tmp_path / "B" / "scans", "e", "f")
    store = preprocess(Path("A/scans"))
    before = snapshot(store)
    with pytest.raises(StoreError, match=r"stores/scans was made from another folder than B/scans: .* -o"):
        preprocess(Path("B/scans"))
    assert snapshot(store) == before
    make_folder(tmp_path / "A" / "scans", "", "g")
    assert list(open_store(preprocess(Path("A/scans"))).cases) == ["a", "b", "c", "d", "g"]
    (tmp_path / "A" / "scans").rename(tmp_path / "scans")
    preprocess(Path("scans"))
    preprocess(Path("B/scans"), store=store)
    assert list(open_store(store).cases) == ["a", "b", "c", "d", "e", "f", "g"]


def test_the_store_of_one_scan_has_the_name_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_nifti(tmp_path / "scans" / "a.nii.gz", voxels())
    assert preprocess(path) == Path("stores/scans")


def test_another_domain_is_not_called_other_files(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    table = tmp_path / "domains.csv"
    for domain in "xy":
        table.write_text(f"case,domain\na,{domain}\nb,x\nc,x\nd,x\n")
        preprocess(folder, None, preset(), tmp_path / "store", domains=table)
    assert open_store(tmp_path / "store").cases["a"].domain == "y"
    said = capsys.readouterr().err
    assert f"has another domain or patient of a than {folder}; made again" in said and "other files" not in said


def test_a_store_that_does_not_know_its_folders_is_continued(tmp_path, capsys):
    """As an older sdm wrote it."""
    store = preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / "store")
    for path in (store / "cases").iterdir():
        with h5py.File(path, "r+") as file:
            del file.attrs["place"]
    preprocess(make_folder(tmp_path / "other", "a", "c"), None, preset(), store)
    assert f"{store} has other files of a, c than {tmp_path}/other; made again" in capsys.readouterr().err
    assert list(open_store(store).cases) == ["a", "b", "c", "d"]


def test_a_case_file_is_opened_once(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    case_path(store, "b").unlink()
    opened = []

    def open_case(path, original=data_store.open_file):
        opened.append(path.stem)
        return original(path)

    monkeypatch.setattr(data_store, "open_file", open_case)
    before = read_manifest(store)
    preprocess(folder, None, preset(), store)
    assert sorted(opened) == ["a", "c", "d"]
    assert read_manifest(store) == before


def test_a_store_of_other_settings_is_not_touched(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    before = snapshot(store)
    changed = preset(normalize={"scale": "volume"})
    with pytest.raises(StoreError, match=r"made with other settings \(normalize\.\w+ is .*\): .*--overwrite"):
        preprocess(folder, None, changed, store)
    assert snapshot(store) == before
    preprocess(folder, None, changed, store, overwrite=True)
    assert open_store(store).data.normalize.scale == "volume"


def test_another_split_is_no_other_setting(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(split="laseg-5"), tmp_path / "store")
    kept = case_path(store, "a").stat().st_mtime_ns
    preprocess(folder, None, preset(split="laseg-10"), store)
    assert case_path(store, "a").stat().st_mtime_ns == kept


def test_overwrite_starts_anew(tmp_path):
    store = preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / "store")
    preprocess(make_folder(tmp_path / "more", "e", "f"), None, preset(), store, overwrite=True)
    assert list(open_store(store).cases) == ["e", "f"]
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["e.h5", "f.h5"]


def test_a_store_of_a_newer_version_is_not_touched(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, None, preset(), tmp_path / "store")
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"version": {VERSION}', '"version": 7'))
    before = snapshot(store)
    with pytest.raises(StoreError, match="newer sdm"):
        preprocess(folder, None, preset(), store)
    assert snapshot(store) == before


def test_a_damaged_manifest_is_made_anew_from_the_cases(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, preset=preset(), store=tmp_path / "store")
    before = read_manifest(store)
    (store / "manifest.json").write_text("{")
    preprocess(folder, preset=preset(), store=store)
    assert read_manifest(store) == before
    said = capsys.readouterr().err
    assert "manifest.json is damaged and is made anew" in said and "Finished already: 4 cases." in said
    (store / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"made with other settings.*--overwrite"):
        preprocess(folder, preset=preset(slice_axis="coronal"), store=store)
    assert len(list((store / "cases").glob("*.h5"))) == 4


@pytest.mark.parametrize("damage", ["{", '{"format": "sdm-store", "version": 2}'])
@pytest.mark.parametrize("planned", [True, False])
def test_the_message_about_a_damaged_manifest_names_what_repairs_it(tmp_path, damage, planned):
    folder = make_folder(tmp_path / "raw")
    chosen = None if planned else preset()
    store = preprocess(folder, None, chosen, tmp_path / "mine")
    before = snapshot(store)
    (store / "manifest.json").write_text(damage)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged .* again \(sdm preprocess, without --overwrite\)"):
        open_store(store)
    preprocess(folder, None, chosen, store)
    after = snapshot(store)
    assert after.pop("manifest.json")[0] == before.pop("manifest.json")[0]
    assert after == before


def test_labels_are_not_lost_by_a_folder_that_comes_without(tmp_path):
    folder = make_folder(tmp_path / "raw")
    store = preprocess(folder, preset=preset(), store=tmp_path / "store")
    shutil.rmtree(folder / "labelsTr")
    with pytest.raises(StoreError, match=r"has labels of a, b, which this folder comes without.*--labels"):
        preprocess(folder, preset=preset(), store=store)
    assert sum(case.labeled for case in read_manifest(store).cases.values()) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_store_is_not_touched(tmp_path, overwrite):
    other = tmp_path / "other"
    (other / "cases").mkdir(parents=True)
    (other / "manifest.json").write_text('{"name": "a web page"}')
    (other / "cases" / "thesis.h5").write_text("years of work")
    before = snapshot(other)
    with pytest.raises(OutputError, match="other exists and is no slice store"):
        preprocess(make_folder(tmp_path / "raw"), None, preset(), other, overwrite=overwrite)
    assert snapshot(other) == before


def test_what_the_index_shows_to_be_wrong_is_said_each_time(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw", "abcde", "fgh")
    twice = {"f": "a", "h": "g", "d": "c", "e": "c"}  # a leak, a copy, other labels
    for copy, original in twice.items():
        shutil.copy(folder / "imagesTr" / f"{original}_0000.nii.gz", folder / "imagesTr" / f"{copy}_0000.nii.gz")
    for case_id, values in (("b", (0,)), ("d", (2,)), ("e", (1, 2))):
        place = nib.load(folder / "imagesTr" / f"{case_id}_0000.nii.gz").affine
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label(values=values), place)
    store = preprocess(folder, None, preset(), tmp_path / "store")
    first = capsys.readouterr().err
    preprocess(folder, None, preset(), store)
    said = [line for line in (first + capsys.readouterr().err).splitlines() if line.startswith("warning: ")]
    empty, leak = "b has an empty label", "one scan is both labeled and unlabeled (a = f)"
    torn, copies = "one scan has different labels (c = d = e)", "one scan is stored twice (g = h)"
    assert said == 2 * [f"warning: {store}: {empty}; {leak}; {torn}; {copies}: sdm check {folder} says what to do"]


def kidneys(folder: Path, **values: tuple[int, int]) -> Path:
    """Scans whose labels have the first value left of the second, along the axis that points to the right."""
    for i, (case_id, pair) in enumerate(values.items()):
        write_nifti(folder / "imagesTr" / f"{case_id}.nii.gz", voxels((8, 5, 4)) * (i + 1))
        blocks = np.zeros((8, 5, 4), "uint8")
        blocks[1:3, 1:3], blocks[5:7, 1:3] = pair
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", blocks)
    return folder


@pytest.mark.parametrize("slice_axis", ["axial", "sagittal", "stored"])
def test_swapped_sides_are_said_and_kept(tmp_path, capsys, slice_axis):
    folder = kidneys(tmp_path / "raw", a=(2, 1), b=(1, 2), c=(1, 2), d=(2, 2))
    swapped = preset(classes={"right kidney": 1, "left kidney": 2}, slice_axis=slice_axis)
    store = preprocess(folder, None, swapped, tmp_path / "store")
    said = "left and right look swapped (kidney) in b, c: sdm check"
    assert said in capsys.readouterr().err
    (store / "manifest.json").write_text("{")
    preprocess(folder, None, swapped, store)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("slice_axis", ["axial", "sagittal", "stored"])
def test_swapped_sides_are_told_by_the_names_of_today(tmp_path, capsys, slice_axis):
    folder, store = kidneys(tmp_path / "raw", a=(1, 2), b=(1, 2)), tmp_path / "store"
    times = set()
    for classes, is_swapped in (
        ({"right kidney": 1, "left kidney": 2}, True),
        ({"left kidney": 1, "right kidney": 2}, False),
        ({"one": 1, "two": 2}, False),
        ({"right kidney": 1, "left kidney": 2}, True),
    ):
        preprocess(folder, None, preset(classes=classes, slice_axis=slice_axis), store)
        assert ("left and right look swapped (kidney) in a, b: sdm check" in capsys.readouterr().err) == is_swapped
        times.add(case_path(store, "a").stat().st_mtime_ns)
    assert len(times) == 1, "a name changes no voxel"


def test_a_label_that_is_empty_but_for_what_is_ignored_is_named_once(tmp_path, capsys):
    folder = kidneys(tmp_path / "raw", a=(1, 2), b=(0, 0), c=(255, 0))
    preprocess(folder, None, preset(ignore_value=255), tmp_path / "store")
    said = capsys.readouterr().err
    ignored = "nothing but 255, which is left out of losses and scores, is labeled in c"
    assert f"b has an empty label; {ignored}: sdm check" in said


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_centres_of_a_label(order, dtype):
    voxels = np.random.default_rng(0).integers(0, 4, (7, 6, 5)).astype(dtype, order=order)
    voxels[0, 0, 0] = -3 if dtype != "uint8" else 0
    voxels[6, 5, 4] = 70_000 if dtype == "float32" else 9
    matrix = affine((1, 0, 2), (-1, 1, -1), (0.7, 1.1, 2.5), rotation(20))
    places = {value: np.argwhere(voxels == value).mean(axis=0) for value in np.unique(voxels) if 0 < value <= 65_535}
    expected = {value: float(matrix[0] @ [*place, 1]) for value, place in places.items()}
    assert centres_x_mm(voxels, matrix) == pytest.approx(expected)
    assert centres_x_mm(np.zeros((3, 2, 4), dtype), matrix) == {}


def test_a_manifest_of_before_the_centres_is_read(tmp_path, capsys):
    folder, swapped = kidneys(tmp_path / "raw", a=(1, 2)), preset(classes={"right kidney": 1, "left kidney": 2})
    store = preprocess(folder, None, swapped, tmp_path / "store")
    tree = json.loads((store / "manifest.json").read_text())
    for entry in tree["cases"].values():
        assert entry.pop("centres_x_mm")
        entry["doubt"] = ""
    (store / "manifest.json").write_text(json.dumps(tree))
    assert {str(case.centres_x_mm) for case in open_store(store).cases.values()} == {"{}"}
    with h5py.File(case_path(store, "a"), "r+") as file:
        del file.attrs["centres_x_mm"]
    capsys.readouterr()
    preprocess(folder, None, swapped, store)
    assert "look swapped" not in capsys.readouterr().err


def test_pixels_that_no_scanner_makes_are_said(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    write_nifti(folder / "imagesTr" / "c_0000.nii.gz", voxels() * 7, affine(spacing_mm=(1000, 1000, 3000)))
    preprocess(folder, None, preset(), tmp_path / "store")
    assert "store: pixels of c are of a size that no scanner makes: sdm check" in capsys.readouterr().err


def test_one_stray_scan_makes_no_microscopy_odd(tmp_path, capsys):
    for i, (case_id, mm) in enumerate({"a": 0.004, "b": 0.004, "c": 0.005, "d": 1.0}.items()):
        write_nifti(tmp_path / "raw" / f"{case_id}.nii.gz", voxels() * (i + 1), affine(spacing_mm=(mm, mm, 0.03)))
    preprocess(tmp_path / "raw", None, preset(), tmp_path / "store")
    assert "no scanner makes" not in capsys.readouterr().err


def slices_of(tmp_path: Path, shape: tuple[int, int, int], pixel_mm: float, **data: object) -> tuple[int, ...]:
    """Size (H, W) of the slices that a scan of such pixels becomes."""
    case = Case("b", tmp_path / "b.nii.gz")
    geometry = Geometry(affine(spacing_mm=(pixel_mm, pixel_mm, pixel_mm)), shape)
    image, _ = make_slices(case, Volume(voxels(shape, "int32"), geometry), preset(**data).data)
    return image.shape[1:]


@pytest.mark.parametrize(
    ("pixel_mm", "wanted_mm"), [(0.004, 1.0), (0.001, 0.05), (30, 1.0), (300, 1.0), (25, 5.0), (1.0, 0.004)]
)
def test_pixels_that_cannot_become_those_of_the_preset_fail_the_case(tmp_path, pixel_mm, wanted_mm):
    said = (
        rf"b\.nii\.gz has pixels of {pixel_mm:g} x {pixel_mm:g} mm, and those of data\.grid\.spacing_mm are "
        rf"{wanted_mm:g} x {wanted_mm:g} mm: correct the voxel size in its header, or the preset\.$"
    )
    with pytest.raises(ImageReadError, match=said):
        slices_of(tmp_path, (120, 100, 3), pixel_mm, grid={"spacing_mm": [wanted_mm, wanted_mm]})


@pytest.mark.parametrize(
    ("shape", "pixel_mm", "wanted_mm", "changes", "size"),
    [
        ((35, 51, 3), 1.0, 3.0, {}, (12, 17)),  # hippocampus
        ((64, 3, 20), 2.0, 3.0, {"slice_axis": "coronal"}, (43, 13)),
        ((300, 260, 1), 1.5, 0.15, {"crop": "centre", "centre_fraction": 0.1}, (300, 260)),
        ((40, 40, 2), 0.004, 0.008, {}, (20, 20)),  # microscopy
        ((40, 40, 2), 0.009, 0.02, {}, (18, 18)),
        ((40, 40, 2), 0.0003, 0.006, {}, (2, 2)),
        ((40, 40, 2), 15.0, 5.0, {}, (120, 120)),
        ((4, 4, 2), 700.0, 600.0, {}, (5, 5)),  # as planned where all headers are broken
    ],
)
def test_pixels_that_there_are_become_those_of_the_preset(tmp_path, shape, pixel_mm, wanted_mm, changes, size):
    data = {"slice_axis": changes.pop("slice_axis", "axial")}
    grid = {"spacing_mm": [wanted_mm, wanted_mm], **changes}
    assert slices_of(tmp_path, shape, pixel_mm, grid=grid, **data) == size


def test_pixels_of_a_broken_header_fail_the_case_alone(tmp_path, capsys):
    for case_id, mm in (("a", 1.0), ("b", 300.0)):
        write_nifti(tmp_path / "raw" / f"{case_id}.nii.gz", voxels((12, 10, 3)), affine(spacing_mm=(mm, mm, 3)))
    with pytest.raises(SomeCasesFailed):
        preprocess(tmp_path / "raw", None, preset(grid={"spacing_mm": [1.0, 1.0]}), tmp_path / "store")
    assert "b.nii.gz has pixels of 300 x 300 mm" in capsys.readouterr().err
    assert list(open_store(tmp_path / "store").cases) == ["a"]


def test_ct_and_mr_that_dataset_json_calls_ct_are_not_lost_in_one_window(tmp_path, capsys):
    folder = make_folder(tmp_path / "raw")
    for case_id in "ac":
        path = folder / "imagesTr" / f"{case_id}_0000.nii.gz"
        scan = nib.load(path)
        write_nifti(path, np.asarray(scan.dataobj) - np.int16(1000), scan.affine)
    (folder / "dataset.json").write_text('{"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a", "2": "b"}}')
    store = open_store(preprocess(folder, None, None, tmp_path / "store"))
    warning = "warning: dataset.json calls the scans CT, but 2 of 4 scans read have voxels below -500"
    assert warning in capsys.readouterr().err
    for case_id in store.cases:
        image = store.image_volume(case_id)
        assert (image.min(), image.max()) == (0, 65535)


def test_a_store_of_a_name_that_no_disk_holds(tmp_path):
    with pytest.raises(StoreError, match=r"x{300} cannot be looked into \(File name too long\)"):
        preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / ("x" * 300))


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    other = r"cannot be written \(.*\): choose another output, and run again\.$"
    for store, message in (("file", "is no slice store"), ("file/store", other)):
        with pytest.raises(OutputError, match=message):
            preprocess(make_folder(tmp_path / "raw"), None, preset(), tmp_path / store)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_work_and_spoils_nothing(tmp_path, workers):
    """The system refuses files beyond a size, as a full disk does, while HDF5 files are written."""
    folder = make_folder(tmp_path / "raw", "a", "b")
    write_nifti(
        folder / "imagesTr" / "z_0000.nii.gz", np.random.default_rng(0).integers(0, 999, (99, 99, 20)).astype("int16")
    )
    code = (
        "import resource, sys; from pathlib import Path; from sdm_cli.runs.preprocess import preprocess\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    preprocess(Path(sys.argv[1]), None, None, Path(sys.argv[2]), workers=int(sys.argv[3]))\n"
    )
    (tmp_path / "run.py").write_text(code)
    arguments = [sys.executable, str(tmp_path / "run.py"), str(folder), str(tmp_path / "store"), str(workers)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert "z.h5 cannot be written (File too large): make room" in done.stderr
    assert not list((tmp_path / "store").rglob(".*"))
    assert not case_path(tmp_path / "store", "z").exists()
    with pytest.raises(StoreError, match="is unfinished"):
        SliceStore(tmp_path / "store")
    preprocess(folder, None, None, tmp_path / "store")
    assert list(open_store(tmp_path / "store").cases) == ["a", "b", "z"]


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def start_long_run(tmp_path: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A run of 40 scans with two workers, of which a few are done; and the ids of its children."""
    for i in range(40):
        scan = np.random.default_rng(i).integers(0, 999, (120, 120, 40)).astype("int16")
        write_nifti(tmp_path / "raw" / f"case{i:02}.nii", scan)
    (tmp_path / "run.py").write_text(
        "import sys; from pathlib import Path; from sdm_cli.runs.preprocess import preprocess\n"
        "if __name__ == '__main__': preprocess(Path(sys.argv[1]), None, None, Path(sys.argv[2]), workers=2)\n"
    )
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "raw"), str(tmp_path / "store")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "store" / "cases").glob("case*.h5"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    return process, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_run_is_continued(tmp_path):
    """kill -9 in the middle: no half file, no worker left behind, and no case is made twice."""
    process, children = start_long_run(tmp_path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 120
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, children)), "a worker waits for ever"
    store = tmp_path / "store"
    before = snapshot(store)
    with pytest.raises(StoreError, match="is unfinished"):
        SliceStore(store)

    preprocess(tmp_path / "raw", None, None, store)
    after = snapshot(store)
    assert len(open_store(store).cases) == 40
    whole = {name: kept for name, kept in before.items() if name.startswith("cases/case")}
    assert 3 <= len(whole) < 40
    assert whole.items() <= after.items()
    assert not list(store.rglob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_is_explained(tmp_path):
    """The system kills a process that takes too much memory."""
    process, children = start_long_run(tmp_path)
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "A worker was killed, most likely for want of memory: run again with fewer --workers than 2" in said


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="the real scans are not here")
def test_a_real_ct_and_mr_are_stored(tmp_path):
    for name in ("ct", "mr"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.nii.gz").symlink_to(DATA / "nifti" / f"{name}.nii.gz")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mr.nii.gz").symlink_to(DATA / "nifti" / "mr_labels.nii.gz")
    store = open_store(preprocess(tmp_path / "images", tmp_path / "labels", None, tmp_path / "store"))
    assert (store.cases["mr"].labeled, store.cases["ct"].labeled) == (True, False)
    assert (store.cases["ct"].n_slices, store.cases["ct"].height, store.cases["ct"].width) == (30, 122, 101)
    assert (store.data.normalize.percentiles, store.data.normalize.scale) == ((0.5, 99.5), "volume")
    values = np.unique(np.asarray(nib.load(DATA / "nifti" / "mr_labels.nii.gz").dataobj))
    assert len(np.unique(store.label_volume("mr"))) == len(values)
