"""The slice store: what is written is read back, by any process, or a clear refusal."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from scans import SPACING_MM, affine, rotation

from sdm_cli import files
from sdm_cli.data import case_file
from sdm_cli.data.case_file import case_path, open_file
from sdm_cli.data.cases import Case
from sdm_cli.data.manifest import Manifest, settings_differences, write_manifest
from sdm_cli.data.store import SliceStore, finished_cases, index_cases, open_store, write_case
from sdm_cli.data.volume import Geometry
from sdm_cli.data_config import DataConfig, NormalizeConfig
from sdm_cli.errors import OutputError, StoreError

CLASSES = DataConfig(dataset="phantom", classes={"liver": 1, "spleen": 2})
SOURCE: list[list[str | int]] = [["a.nii.gz", 100, 5]]


def image_of(case_id: str) -> np.ndarray:
    return np.random.default_rng(len(case_id)).integers(0, 65536, (4, 6, 5)).astype(np.uint16)


def label_of(case_id: str) -> np.ndarray:
    return np.random.default_rng(len(case_id)).choice([0, 1, 2, 255], (4, 6, 5)).astype(np.uint8)


def make_store(path: Path, labeled: tuple[str, ...] = ("a", "bb"), unlabeled: tuple[str, ...] = ("u.1",)) -> Path:
    for case_id in (*labeled, *unlabeled):
        label = label_of(case_id) if case_id in labeled else None
        case = Case(case_id, Path("a.nii.gz"), domain="CT" if case_id == "a" else None)
        write_case(path, case, image_of(case_id), label, Geometry(affine(), (6, 5, 4)), CLASSES, SOURCE)
    write_manifest(path, Manifest(CLASSES, index_cases(path, CLASSES), complete=True))
    return path


def test_what_is_written_is_read(tmp_path):
    store = open_store(make_store(tmp_path))
    assert store.data == CLASSES
    assert list(store.cases) == ["a", "bb", "u.1"]
    assert [case.labeled for case in store.cases.values()] == [True, True, False]
    assert [case.domain for case in store.cases.values()] == ["CT", None, None]
    case = store.cases["a"]
    assert (case.n_slices, case.height, case.width) == (4, 6, 5)
    assert case.spacing_mm == pytest.approx((SPACING_MM[2], SPACING_MM[0], SPACING_MM[1]))
    for case_id in store.cases:
        assert np.array_equal(store.image_volume(case_id), image_of(case_id))
        assert np.array_equal(store.read_image(case_id, 2), image_of(case_id)[2])
        assert store.read_image(case_id, 2).dtype == np.uint16
    assert np.array_equal(store.label_volume("bb"), label_of("bb"))
    assert np.array_equal(store.read_label("bb", 3), label_of("bb")[3])
    assert store.read_label("bb", 3).dtype == np.uint8


def test_an_unlabeled_case_has_no_label_to_read(tmp_path):
    with pytest.raises(StoreError, match=r"case u\.1 has no label"):
        open_store(make_store(tmp_path)).read_label("u.1", 0)


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(StoreError, match="has no case zz"):
        open_store(make_store(tmp_path)).read_image("zz", 0)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header, None])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_the_geometry_comes_back_with_its_header(tmp_path, kind, endianness):
    matrix = affine((2, 0, 1), (-1, 1, -1), tilt=rotation(11.3))
    header = None
    if kind:
        header = kind(endianness=endianness)
        header.set_qform(matrix, code=1)
        header.set_sform(matrix, code=4)
        header["descrip"] = b"a scanner"
    case = Case("a", Path("a"))
    write_case(tmp_path, case, image_of("a"), None, Geometry(matrix, (5, 4, 6), header), CLASSES, SOURCE)
    write_manifest(tmp_path, Manifest(CLASSES, index_cases(tmp_path, CLASSES), complete=True))
    geometry = open_store(tmp_path).geometry("a")
    assert np.array_equal(geometry.affine, matrix)
    assert geometry.shape == (5, 4, 6)
    assert type(geometry.header) is (kind or type(None))
    if header:
        assert geometry.header.binaryblock == header.binaryblock


def test_one_chunk_is_one_slice(tmp_path):
    with h5py.File(case_path(make_store(tmp_path), "a")) as file:
        assert file["image"].chunks == file["label"].chunks == (1, 6, 5)
        assert file["image"].compression is None


@pytest.mark.parametrize("label", [None, label_of("a")])
def test_digests_are_of_the_voxels(tmp_path, label):
    """Stores that were made before tell their voxels by the same ones."""
    image = image_of("a")
    case = Case("a", Path("a"))
    geometry = Geometry(affine(), (6, 5, 4))
    stored = write_case(tmp_path, case, image, label, geometry, CLASSES, SOURCE, intensities=(0.0, 9.5))
    voxels = image.tobytes() + (b"" if label is None else label.tobytes())
    assert stored.digest == hashlib.sha256(voxels).hexdigest()[:16]
    assert stored.image_digest == f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]} of (0.0, 9.5)"


def _first_pixel(store: SliceStore, case_id: str) -> int:
    return int(store.read_image(case_id, 0)[0, 0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_other_processes_read_it_too(tmp_path, method):
    store = open_store(make_store(tmp_path))
    expected = [_first_pixel(store, case_id) for case_id in store.cases]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_first_pixel, [(store, case_id) for case_id in store.cases]) == expected
    assert [_first_pixel(store, case_id) for case_id in store.cases] == expected


def test_a_pickled_store_carries_no_open_file(tmp_path):
    store = open_store(make_store(tmp_path))
    store.read_image("a", 0)
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.read_image("a", 1), store.read_image("a", 1))
    assert again.cases == store.cases


def test_more_cases_than_files_may_be_open(tmp_path):
    names = tuple(f"case{i:02}" for i in range(20))
    store = open_store(make_store(tmp_path, labeled=names))
    for _ in range(2):
        assert all(np.array_equal(store.read_image(name, 1), image_of(name)[1]) for name in names)


# Stores that cannot be used


def test_a_folder_that_is_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(StoreError, match="is no slice store: make one with sdm preprocess"):
            open_store(path)


def edit_manifest(path: Path, **changes: object) -> None:
    tree = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**tree, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"written by a newer sdm \(store version 3, this program reads 2\): update sdm"),
        ({"version": 1}, r"written by an older sdm .*: make it anew with sdm preprocess --overwrite"),
        ({"version": "x"}, "is damaged"),
        ({"format": "other"}, "is not the manifest of a slice store"),
        ({"complete": False}, "is unfinished: run sdm preprocess again"),
        ({"cases": {}}, "has no cases"),
        ({"cases": []}, "is damaged"),
        ({"cases": {"a": {"n_slices": 4}}}, "is damaged"),
        ({"data": {"clases": {}}}, "is damaged .*unknown key"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, changes, message):
    edit_manifest(make_store(tmp_path), **changes)
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path)


def test_a_half_manifest(tmp_path):
    make_store(tmp_path)
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text()[:50])
    with pytest.raises(StoreError, match=r"manifest\.json is damaged|cannot be read"):
        open_store(tmp_path)


def test_a_truncated_case_file(tmp_path):
    path = case_path(make_store(tmp_path), "bb")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        StoreError, match=r"bb\.h5 is damaged \(.*truncated.*\): delete it and run sdm preprocess again"
    ):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"bb\.h5 is damaged"):
        SliceStore(tmp_path).read_image("bb", 0)


def test_a_case_file_that_breaks_off_while_it_is_read(tmp_path):
    """Its size is right, but its middle is gone, as after a bad copy."""
    path = case_path(make_store(tmp_path), "bb")
    content = path.read_bytes()
    path.write_bytes(content[:1500] + bytes(len(content) - 1500))
    with pytest.raises(StoreError, match=r"bb\.h5 is damaged"):
        SliceStore(tmp_path).label_volume("bb")


def test_a_case_file_that_cannot_be_opened_is_closed_again(tmp_path, monkeypatch):
    opened = []
    with h5py.File(case_path(make_store(tmp_path), "bb"), "r+") as file:
        del file["label"]
        file["label"] = h5py.SoftLink("/nowhere")
    monkeypatch.setattr(case_file, "open_file", lambda path: opened.append(open_file(path)) or opened[-1])
    with pytest.raises(StoreError, match=r"bb\.h5 is damaged"):
        SliceStore(tmp_path).read_image("bb", 0)
    assert len(opened) == 1 and not opened[0]  # a closed file of h5py is false


def test_a_missing_case_file(tmp_path):
    case_path(make_store(tmp_path), "bb").unlink()
    with pytest.raises(StoreError, match=r"bb\.h5 is missing: run sdm preprocess again"):
        open_store(tmp_path)


# Finished cases


def is_finished(store, case, data, source) -> bool:
    found = finished_cases(store, data).get(case.case_id)
    return found is not None and found.source == json.dumps(source) and found.has_names_of(case)


def test_a_finished_case_is_recognised(tmp_path):
    make_store(tmp_path)
    case = Case("a", Path("a.nii.gz"), domain="CT")
    assert finished_cases(tmp_path, CLASSES)["a"].stored == open_store(tmp_path).cases["a"]
    assert is_finished(tmp_path, case, CLASSES, SOURCE)
    renamed = DataConfig(dataset="other", classes=CLASSES.classes, split="laseg-5")
    assert is_finished(tmp_path, case, renamed, SOURCE), "name and split change no voxel"


@pytest.mark.parametrize(
    ("case", "data", "source"),
    [
        (Case("a", Path("a"), domain="CT"), CLASSES, [["a.nii.gz", 100, 6]]),
        (Case("a", Path("a"), domain="CT"), DataConfig(classes={"spleen": 2, "liver": 1}), SOURCE),
        (
            Case("a", Path("a"), domain="CT"),
            DataConfig(classes=CLASSES.classes, normalize=NormalizeConfig(scale="volume")),
            SOURCE,
        ),
        (Case("a", Path("a"), domain="MR"), CLASSES, SOURCE),
        (Case("new", Path("a")), CLASSES, SOURCE),
    ],
)
def test_another_case_is_not_finished(tmp_path, case, data, source):
    make_store(tmp_path)
    assert not is_finished(tmp_path, case, data, source)


def test_a_truncated_case_is_not_finished(tmp_path):
    path = case_path(make_store(tmp_path), "a")
    path.write_bytes(path.read_bytes()[:200])
    assert not is_finished(tmp_path, Case("a", Path("a"), domain="CT"), CLASSES, SOURCE)
    assert list(index_cases(tmp_path, CLASSES)) == ["bb", "u.1"]


def test_differences_are_named():
    other = DataConfig(dataset="x", split="y", classes={"spleen": 2, "liver": 1}, slice_axis="coronal")
    phrase = settings_differences(CLASSES, other)
    assert "slice_axis is axial there, coronal here" in phrase
    assert "classes" in phrase
    assert "split" not in phrase
    assert settings_differences(CLASSES, CLASSES) == ""


# Full disks


def test_a_full_disk_leaves_the_old_case(tmp_path, monkeypatch):
    make_store(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"a\.h5 cannot be written \(No space left on device\)"):
        write_case(tmp_path, Case("a", Path("a")), image_of("x"), None, Geometry(affine(), (6, 5, 4)), CLASSES, SOURCE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "check the permissions or choose another output"),
        (errno.EROFS, "check the permissions or choose another output"),
        (errno.ENOSPC, "make room there or choose another output"),
        (errno.ENAMETOOLONG, "choose another output"),
        (errno.EEXIST, "choose another output"),
    ],
)
def test_the_remedy_is_that_of_the_trouble(number, remedy, tmp_path):
    with (
        pytest.raises(OutputError, match=rf"a cannot be written \(.*\): {remedy}, and run again\.$"),
        files.replacing(tmp_path / "a"),
    ):
        raise OSError(number, os.strerror(number))


def test_leftovers_of_a_kill_are_removed(tmp_path):
    with files.replacing(tmp_path / "kept") as temporary:
        temporary.write_text("whole")
        killed = temporary.with_name(temporary.name + "-killed")
        killed.write_text("half")
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
