"""The official layouts, each from its download to masks: preprocess, train, evaluate, predict.

The folders are made here, with the names, dtypes and orientations of the real ones and with their traps.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from official import (
    MMWHS_VALUES,
    MNMS_HEADER,
    ODD,
    mask_of,
    mnms_row,
    write_acdc,
    write_challenge_laseg,
    write_mmwhs,
    write_mnms,
    write_nrrd,
    write_pair,
    write_xls,
)
from scans import affine, rotation, voxels, write_laseg, write_nifti
from stores import tiny_preset

from sdm_cli.config import Preset
from sdm_cli.data.cases import Case
from sdm_cli.data.classes import find_classes
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import label_values, read_image, read_label
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError, PresetError, SomeCasesFailed, StoreError
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.preset_files import data_config_from_dict, data_config_to_dict, load_preset
from sdm_cli.runs.evaluate import evaluate_model
from sdm_cli.runs.predict import predict
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.request import Request
from sdm_cli.runs.score_table import show_summary
from sdm_cli.runs.train import train

SMALL = (
    "model.encoder=mit-b0",
    "model.head_width=16",
    "model.pretrained=none",
    "method.patch=8",
    "method.labeled_only_fraction=0.5",
    "train.crop=[32, 32]",
    "train.pairs=2",
    "train.workers=0",
    "train.epochs=null",
    "train.steps=2",
)


def shipped(name: str, tmp_path: Path, split: dict[str, list[str]], *changes: str) -> Preset:
    """A shipped preset, its data section as it is but for the split; two steps of the smallest network."""
    file = tmp_path / "split.yaml"
    file.write_text(yaml.safe_dump(split))
    return load_preset(name, [*SMALL, f"data.split={file}", *changes])


def train_and_score(tmp_path: Path, preset: Preset, scans: Path) -> tuple[dict, list[str]]:
    """Summary of the test cases, and ids of the masks; `tmp_path / "masks"` holds them."""
    run = train(preset, tmp_path / "store", tmp_path / "run", "cpu")
    summary = evaluate_model(run, tmp_path / "store", "test", device="cpu")
    masks = predict(Request(scans, tmp_path / "masks", run, "cpu"))
    return summary, [mask.name.removesuffix(".nii.gz") for mask in masks]


def failures(tmp_path: Path, scans: Path, preset: Preset) -> dict[str, str]:
    """Preprocess a folder of which some scans must fail; why they did."""
    with pytest.raises(SomeCasesFailed):
        preprocess(scans, None, preset, tmp_path / "store")
    return SliceStore(tmp_path / "store").failed


def found(folder: Path, layout="auto", **options) -> dict[str, Case]:
    return {case.case_id: case for case in find_cases(folder, layout=layout, **options)}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# ACDC

ACDC = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}


def test_acdc_from_the_download_to_masks(tmp_path):
    """Traps: systole before diastole, frames renamed as SSL4MIS does, a patient without labels."""
    database = tmp_path / "database"
    write_acdc(database / "training", 1)
    write_acdc(database / "training", 90, ed=11, es=4)
    write_acdc(database / "training", 3, with_label=False)
    write_acdc(database / "training", 4, es=2)
    (database / "training" / "patient004" / "Info.cfg").write_text("ED: 1\nES: 9\n")
    write_acdc(database / "testing", 101, es=14)
    split = {"labeled": ["patient001", "patient090"], "unlabeled": ["patient003", "patient004"], "test": ["patient101"]}
    preset = shipped("acdc-3", tmp_path, split, "train.select_on=labeled")
    store = open_store(preprocess(database, None, preset, tmp_path / "store"))
    frames = {1: (1, 12), 3: (1, 12), 4: (1, 2), 90: (4, 11), 101: (1, 14)}
    assert list(store.cases) == [f"patient{n:03d}_frame{f:02d}" for n, both in frames.items() for f in both]
    assert store.cases["patient090_frame04"].patient == "patient090"
    assert not store.cases["patient003_frame12"].labeled
    assert set(np.unique(store.label_volume("patient101_frame14"))) == {0, 1, 2, 3}
    summary, masks = train_and_score(tmp_path, preset, database / "testing")
    assert summary["split"]["cases"] == masks == ["patient101_frame01", "patient101_frame14"]
    assert np.allclose(mask_of(tmp_path / "masks", masks[0]).affine, affine(flips=(-1, -1, 1)))


def test_acdc_frame_that_the_download_lost(tmp_path):
    patient = write_acdc(tmp_path / "training", 1)
    write_acdc(tmp_path / "training", 2)
    (patient / "patient001_frame12.nii.gz").unlink()
    (tmp_path / "training" / "patient002" / "Info.cfg").unlink()
    (tmp_path / "training" / "patient002" / "patient002_frame01.nii.gz").unlink()
    cases = found(tmp_path)
    assert list(cases) == [f"patient{n:03d}_frame{f}" for n in (1, 2) for f in ("01", "12")]
    with pytest.raises(ImageReadError, match=r"no patient001_frame12\.nii\.gz, which Info\.cfg asks for: download"):
        read_image(cases["patient001_frame12"], DataConfig())
    with pytest.raises(ImageReadError, match=r"no patient002_frame01\.nii\.gz, which patient002_frame01_gt asks for"):
        read_image(cases["patient002_frame01"], DataConfig())
    failed = failures(tmp_path, tmp_path, tiny_preset(data={"layout": "acdc", "classes": ACDC}))
    assert list(failed) == ["patient001_frame12", "patient002_frame01"]
    assert "which Info.cfg asks for" in failed["patient001_frame12"]


def test_acdc_info_that_names_no_frames(tmp_path):
    """Its patient fails by name; the others are stored."""
    patient = write_acdc(tmp_path / "training", 1)
    write_acdc(tmp_path / "training", 2)
    (patient / "Info.cfg").write_text("ED: one\nES: 12\n")
    preset = tiny_preset(data={"layout": "acdc", "classes": ACDC})
    failed = failures(tmp_path, tmp_path / "training", preset)
    assert list(failed) == ["patient001_frame01", "patient001_frame12"]
    assert (
        "patient001/Info.cfg has no lines like ED: 1 and ES: 12: download it again, or delete it"
        in failed["patient001_frame01"]
    )
    assert len(SliceStore(tmp_path / "store").cases) == 2


def test_acdc_patient_in_two_folders(tmp_path):
    write_acdc(tmp_path / "training", 1)
    write_acdc(tmp_path / "testing", 1)
    problems = [case.problem for case in find_cases(tmp_path)]
    assert len(problems) == 2 and problems[0].endswith("are both case patient001_frame01: rename or remove one.")


def test_acdc_from_one_patient_or_its_parents(tmp_path, monkeypatch):
    patient = write_acdc(tmp_path / "database" / "training", 7)
    expected = ["patient007_frame01", "patient007_frame12"]
    monkeypatch.chdir(patient)
    for folder in (tmp_path, tmp_path / "database", patient.parent, patient, Path()):
        assert list(found(folder)) == list(found(folder, "acdc")) == expected


# M&Ms

HEART = {"left ventricle": 1, "myocardium": 2, "right ventricle": 3}


def write_table(folder: Path, *rows: str, name="211230_M&Ms_Dataset_information_diagnosis_opendataset.csv") -> Path:
    path = folder / name
    path.write_text("\n".join((MNMS_HEADER, *rows)) + "\n")
    return path


def test_mnms_from_the_download_to_masks(tmp_path):
    """Traps: diastole is not frame 0 and comes after systole; frames as pandas writes them, 3.0."""
    folder = tmp_path / "OpenDataset"
    write_mnms(folder / "Training" / "Labeled", "A0S9V9", (0, 3))
    write_mnms(folder / "Training" / "Labeled", "B1G9J3", (1, 4))
    write_mnms(folder / "Training" / "Unlabeled", "C4K8M1", with_label=False)
    write_mnms(folder / "Testing", "D1J5P6", (2, 4))
    write_table(
        folder,
        mnms_row("A0S9V9", "A", 0, 3),
        mnms_row("B1G9J3", "B", "4.0", "1.0"),
        mnms_row("C4K8M1", "C", 0, 2),
        mnms_row("D1J5P6", "D", 4, 2),
    )
    split = {
        "labeled": ["A0S9V9_sa_0", "A0S9V9_sa_3", "B1G9J3_sa_1", "B1G9J3_sa_4"],
        "unlabeled": ["C4K8M1_sa_0", "C4K8M1_sa_2"],
        "test": ["D1J5P6_sa_2", "D1J5P6_sa_4"],
    }
    preset = shipped("mnms-to-d-2", tmp_path, split)
    store = open_store(preprocess(folder, None, preset, tmp_path / "store"))
    assert list(store.cases) == sorted(case_id for role in split.values() for case_id in role)
    assert [case.domain for case in store.cases.values()] == [*"aabbccdd"]
    assert store.cases["D1J5P6_sa_4"].patient == "D1J5P6"
    assert not np.array_equal(store.image_volume("B1G9J3_sa_1"), store.image_volume("B1G9J3_sa_4"))
    summary, masks = train_and_score(tmp_path, preset, folder / "Testing")
    assert summary["split"]["cases"] == masks == split["test"]
    mask = mask_of(tmp_path / "masks", "D1J5P6_sa_4")
    assert (mask.shape, mask.get_data_dtype()) == ((40, 36, 4), np.uint8)
    assert np.allclose(mask.affine, affine())


def test_mnms_rows_that_cannot_be_right(tmp_path):
    """Counted from 1, empty, one frame twice, beyond the film, no row: each fails by name, the rest is stored."""
    for code in ("A0S9V9", "B1G9J3", "C1G5Q0", "C2L5P7", "D1J5P6", "E3L8U8"):
        write_mnms(tmp_path / "Labeled", code)
    write_table(
        tmp_path,
        mnms_row("A0S9V9", "A", 0, 3),
        mnms_row("B1G9J3", "B", 1, 4),
        mnms_row("C1G5Q0", "C", "nan", ""),
        mnms_row("C2L5P7", "C", 3, 3),
        mnms_row("D1J5P6", "D", 0, 30),
    )
    failed = failures(tmp_path, tmp_path / "Labeled", tiny_preset(data={"layout": "mnms", "classes": HEART}))
    assert list(SliceStore(tmp_path / "store").cases) == ["A0S9V9_sa_0", "A0S9V9_sa_3", "D1J5P6_sa_0"]
    expected = {
        "B1G9J3_sa_1": "B1G9J3_sa_gt.nii.gz has no label in frame 1, only in 0, 3: correct the table",
        "B1G9J3_sa_4": "has no label in frame 4, only in 0, 3",
        "C1G5Q0_sa": "opendataset.csv gives C1G5Q0 ED nan and ES empty, not two different frames counted from 0: corr",
        "C2L5P7_sa": "gives C2L5P7 ED 3 and ES 3, not two different frames",
        "D1J5P6_sa_30": "has frames 0 to 4, but frame 30 is asked for",
        "E3L8U8_sa": "opendataset.csv has no row of E3L8U8: add it",
    }
    assert failed.keys() == expected.keys()
    assert all(text in failed[case_id] for case_id, text in expected.items())


def test_mnms_without_its_table(tmp_path):
    write_mnms(tmp_path / "Labeled", "A0S9V9")
    (tmp_path / "Labeled" / "other.csv").write_text("case,domain\nA0S9V9,a\n")
    with pytest.raises(ImageReadError, match=r"no table with the columns External code, Vendor, ED and ES: put mnms"):
        find_cases(tmp_path / "Labeled")
    assert list(found(tmp_path / "Labeled", "folders")) == ["A0S9V9_sa", "A0S9V9_sa_gt"]


def test_mnms_subject_twice(tmp_path):
    write_mnms(tmp_path / "Labeled", "A0S9V9")
    table = write_table(tmp_path, mnms_row("A0S9V9", "A", 0, 3), mnms_row("A0S9V9", "B", 0, 3))
    with pytest.raises(ImageReadError, match=r"\.csv names subject A0S9V9 twice: keep one row"):
        find_cases(tmp_path)
    table.unlink()
    write_table(tmp_path, mnms_row("A0S9V9", "A", 0, 3))
    write_mnms(tmp_path / "Testing", "A0S9V9")
    problems = [case.problem for case in find_cases(tmp_path)]
    assert len(problems) == 2 and problems[0].endswith("are both case A0S9V9_sa_0: rename or remove one.")


def test_mnms_sorted_by_vendor(tmp_path):
    write_mnms(tmp_path / "Labeled" / "vendorA" / "centre1", "A0S9V9")
    write_table(tmp_path, mnms_row("A0S9V9", "A", 0, 3))
    for folder in (tmp_path, tmp_path / "Labeled", tmp_path / "Labeled" / "vendorA"):
        assert list(found(folder)) == ["A0S9V9_sa_0", "A0S9V9_sa_3"]


def test_mnms_classes_are_found_without_a_preset(tmp_path):
    write_mnms(tmp_path, "A0S9V9")
    write_table(tmp_path, mnms_row("A0S9V9", "A", 0, 3))
    assert list(find_classes({}, label_values(find_cases(tmp_path))).values.values()) == [1, 2, 3]


def test_mnms_table_as_excel_saves_it(tmp_path):
    """Semicolons and a byte-order mark; the old .xls; the new one is asked for as csv."""
    write_mnms(tmp_path / "Labeled", "A0S9V9")
    expected = {"A0S9V9_sa_1": "b", "A0S9V9_sa_4": "b"}
    table = tmp_path / "mnms_dataset_info.csv"
    table.write_text("External code;VendorName;Vendor;ED;ES;Height\nA0S9V9;Philips;B;4;1;1,70\n", encoding="utf-8-sig")
    assert {case_id: case.domain for case_id, case in found(tmp_path).items()} == expected
    table.rename(tmp_path / "mnms_dataset_info.xlsx")
    with pytest.raises(
        ImageReadError, match=r"mnms_dataset_info\.xlsx is an Excel file .*: save it as \.csv beside it"
    ):
        find_cases(tmp_path)
    rows = [["External code", "VendorName", "Vendor", "ED", "ES"], ["A0S9V9", "Philips", "B", 4.0, 1.0]]
    write_xls(tmp_path / "mnms_dataset_info.xls", rows)
    assert {case_id: case.domain for case_id, case in found(tmp_path).items()} == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x09\x00\x04\x00\x02\x00\x10\x00\x04\x00\x10",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        b"PK\x03\x04",
    ],
)
def test_mnms_table_that_is_broken(tmp_path, content):
    write_mnms(tmp_path, "A0S9V9")
    (tmp_path / "mnms_dataset_info.xls").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"info\.xls cannot be read as \.xls .*: save the table as \.csv"):
        find_cases(tmp_path)


def test_mnms_xls_without_xlrd(tmp_path, monkeypatch):
    write_mnms(tmp_path, "A0S9V9")
    (tmp_path / "mnms_dataset_info.xls").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "xlrd", None)
    with pytest.raises(ImageReadError, match=r"pip install 'sdm-cli\[xls\]', or save the table as \.csv"):
        find_cases(tmp_path)


# MMWHS

MMWHS = dict(zip(("myocardium", "left atrium", "left ventricle", "aorta"), MMWHS_VALUES, strict=True))


def test_mmwhs_from_the_download_to_masks(tmp_path):
    """Traps: 421 for 420 in an MR label, background values, axes in another order, test scans without labels."""
    folder = tmp_path / "MM-WHS"
    for n in (1001, 1002):
        write_mmwhs(folder / "ct_train", f"ct_train_{n}")
    for n in (1001, 1002):
        write_mmwhs(folder / "mr_train", f"mr_train_{n}", {420: 421} if n == 1002 else None)
    write_pair(folder / "ct_test" / "ct_test_2001_image.nii.gz", None, 5, MMWHS_VALUES, matrix=ODD)
    split = {"labeled": ["ct_train_1001", "ct_train_1002"], "unlabeled": ["mr_train_1001"], "test": ["mr_train_1002"]}
    preset = shipped("mmwhs-ct2mr-clean", tmp_path, split, "data.grid.size=[6, 32, 32]")
    store = open_store(preprocess(folder, None, preset, tmp_path / "store"))
    assert {case_id: case.domain for case_id, case in store.cases.items()} == {
        "ct_test_2001": "ct",
        "ct_train_1001": "ct",
        "ct_train_1002": "ct",
        "mr_train_1001": "mr",
        "mr_train_1002": "mr",
    }
    assert [case.patient for case in store.cases.values()] == list(store.cases)
    volumes = [np.bincount(store.reference_volume(f"mr_train_{n}").ravel(), minlength=5)[2] for n in (1001, 1002)]
    assert volumes[0] == volumes[1] > 0
    assert store.label_volume("ct_train_1001").max() == 4
    summary, masks = train_and_score(tmp_path, preset, folder / "ct_test")
    assert summary["split"]["cases"] == ["mr_train_1002"]
    assert masks == ["ct_test_2001"]
    mask = mask_of(tmp_path / "masks", "ct_test_2001")
    assert set(np.unique(mask.dataobj)) <= {0, *MMWHS_VALUES}
    assert np.allclose(mask.affine, ODD)


def test_the_published_mmwhs_preset_crops_by_labels_and_says_so(tmp_path, capsys):
    """The shipped data section, at a small size: store, training, scores; and prediction, which has no label."""
    for n in (1001, 1002):
        write_mmwhs(tmp_path / "raw", f"ct_train_{n}")
        write_mmwhs(tmp_path / "raw", f"mr_train_{n}")
    split = {"labeled": ["ct_train_1001", "ct_train_1002"], "unlabeled": ["mr_train_1001"], "test": ["mr_train_1002"]}
    size = "data.grid.size=[6, 32, 32]"
    preset = shipped("mmwhs-ct2mr", tmp_path, split, size)
    store = preprocess(tmp_path / "raw", None, preset, tmp_path / "store")
    assert "labels of test cases touched preprocessing" in capsys.readouterr().err
    case = open_store(store).grid("mr_train_1002")
    assert case.size == (6, 32, 32) and case.box_size != case.scan  # cropped, then resized
    run = train(preset, store, tmp_path / "run", "cpu")
    assert "labels of test cases touched preprocessing" in capsys.readouterr().err
    card = (run / "checkpoints" / "last" / "README.md").read_text()
    assert "Protocol: `paper`; checkpoint of the last step; labels of test cases touched preprocessing." in card
    summary = evaluate_model(run, store, device="cpu")
    assert summary["protocol"]["preprocessing"] == "labels of test cases touched preprocessing"
    show_summary(summary)
    assert "labels of test cases touched preprocessing" in " ".join(capsys.readouterr().out.split())
    scan = tmp_path / "raw" / "mr_train_1001_image.nii.gz"
    with pytest.raises(
        ImageReadError,
        match=r"mr_train_1001_image.nii.gz is of domain us, .* of ct and mr are scaled differently.*--domain",
    ):
        predict(Request(scan, tmp_path / "masks", run, "cpu", domain="us"))
    predict(Request(scan, tmp_path / "masks", run, "cpu", domain="MR"))
    assert "the box of the body is taken" in capsys.readouterr().err
    other = shipped("mmwhs-ct2mr-clean", tmp_path, split, size)
    with pytest.raises(StoreError, match=r"grid\.crop is label, not body"):
        save_model(tmp_path / "clean", load_model(run / "checkpoints" / "last")[0], other)
        evaluate_model(tmp_path / "clean", store, device="cpu")


def test_mmwhs_in_one_folder(tmp_path):
    write_mmwhs(tmp_path, "ct_train_1001")
    write_mmwhs(tmp_path, "mr_train_1001")
    touch(tmp_path / "mr_train_1002_label.nii.gz")
    cases = found(tmp_path)
    assert {case_id: case.domain for case_id, case in cases.items()} == {
        "ct_train_1001": "ct",
        "mr_train_1001": "mr",
        "mr_train_1002": "mr",
    }
    with pytest.raises(ImageReadError, match=r"mr_train_1002_image\.nii\.gz does not exist"):
        read_image(cases["mr_train_1002"], DataConfig())


def test_files_with_and_without_gz_stop_their_case_alone(tmp_path):
    write_mmwhs(tmp_path / "mmwhs", "ct_train_1001")
    write_mmwhs(tmp_path / "mmwhs", "ct_train_1002")
    touch(tmp_path / "mmwhs" / "ct_train_1001_image.nii")
    patient = write_acdc(tmp_path / "acdc", 1)
    touch(patient / "patient001_frame01_gt.nii")
    write_mnms(tmp_path / "mnms", "A0S9V9")
    write_table(tmp_path / "mnms", mnms_row("A0S9V9", "A", 0, 3))
    write_mnms(tmp_path / "mnms", "A1S9V9")
    write_table(tmp_path / "mnms", mnms_row("A0S9V9", "A", 0, 3), mnms_row("A1S9V9", "A", 0, 3))
    touch(tmp_path / "mnms" / "A0S9V9" / "A0S9V9_sa_gt.nii", tmp_path / "mnms" / "A1S9V9" / "A1S9V9_sa.nii")
    problems = {}
    for folder in ("mmwhs", "acdc", "mnms"):
        problems |= {case_id: case.problem or "" for case_id, case in found(tmp_path / folder).items()}
    assert {case_id: problem.partition(" and ")[2] for case_id, problem in problems.items()} == {
        "ct_train_1001": "ct_train_1001_image.nii are the same file twice: remove one.",
        "ct_train_1002": "",
        "patient001_frame01": "patient001_frame01_gt.nii are the same file twice: remove one.",
        "patient001_frame12": "",
        "A0S9V9_sa_0": "A0S9V9_sa_gt.nii are the same file twice: remove one.",
        "A0S9V9_sa_3": "A0S9V9_sa_gt.nii are the same file twice: remove one.",
        "A1S9V9_sa_0": "A1S9V9_sa.nii are the same file twice: remove one.",
        "A1S9V9_sa_3": "A1S9V9_sa.nii are the same file twice: remove one.",
    }


def test_a_stray_value_without_a_meaning_is_named(tmp_path):
    write_mmwhs(tmp_path, "mr_train_1001", {420: 421})
    (case,) = find_cases(tmp_path)
    geometry = read_image(case, DataConfig()).geometry
    with pytest.raises(ImageReadError, match=r"label values 421 that are no class .* or data\.value_aliases"):
        read_label(case, DataConfig(classes=MMWHS, background_values=(550, 600, 850)), geometry)
    data = DataConfig(classes=MMWHS, background_values=(550, 600, 850), ignore_value=7, value_aliases={421: 7})
    assert 255 in read_label(case, data, geometry)


def test_aliases_travel_with_a_store():
    data = DataConfig(classes=MMWHS, value_aliases={421: 420})
    assert data_config_from_dict(data_config_to_dict(data), "manifest.json") == data


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({420: 205}, "value_aliases: 420 has a meaning of its own"),
        ({421: 422}, "421 stands for 422, which is no class"),
    ],
)
def test_aliases_that_contradict_the_classes(aliases, message):
    with pytest.raises(PresetError, match=message):
        tiny_preset(data={"classes": MMWHS, "value_aliases": aliases})


# AMOS


def write_amos(folder: Path, part: str, number: int, matrix: np.ndarray, with_label: bool = True) -> None:
    name = f"amos_{number:04d}.nii.gz"
    label = folder / f"labels{part}" / name if with_label else None
    write_pair(folder / f"images{part}" / name, label, number, (1, 2, 10, 15), ("float32", "uint8"), matrix)


def test_amos_from_the_download_to_masks(tmp_path):
    """Traps: each scan oriented in its own way, one of them oblique; 0500 is the first MR; imagesTs is no training."""
    folder = tmp_path / "amos22"
    write_amos(folder, "Tr", 1, affine(flips=(-1, -1, 1)))
    write_amos(folder, "Tr", 499, affine(axes=(0, 2, 1)))
    write_amos(folder, "Tr", 500, ODD, with_label=False)
    write_amos(folder, "Va", 507, affine(tilt=rotation(10)))
    write_amos(folder, "Ts", 600, ODD, with_label=False)
    split = {"labeled": ["amos_0001", "amos_0499"], "unlabeled": ["amos_0500"], "test": ["amos_0507"]}
    preset = shipped("amos-5", tmp_path, split)
    store = open_store(preprocess(tmp_path, None, preset, tmp_path / "store"))
    assert {case_id: case.domain for case_id, case in store.cases.items()} == {
        "amos_0001": "ct",
        "amos_0499": "ct",
        "amos_0500": "mr",
        "amos_0507": "mr",
    }
    summary, masks = train_and_score(tmp_path, preset, folder / "imagesTs")
    assert summary["split"]["cases"] == ["amos_0507"]
    assert masks == ["amos_0600"]
    one = predict(Request(folder / "imagesTr" / "amos_0001.nii.gz", tmp_path / "one", tmp_path / "run", "cpu"))
    assert np.allclose(mask_of(tmp_path / "one", "amos_0001").affine, affine(flips=(-1, -1, 1))) and len(one) == 1
    assert list(found(folder, "amos", for_prediction=True)) == [*store.cases, "amos_0600"]


def test_a_folder_with_other_names_is_not_amos(tmp_path):
    touch(tmp_path / "imagesTr" / "amos_0001.nii.gz", tmp_path / "imagesTr" / "liver_12.nii.gz")
    with pytest.raises(ImageReadError, match=r"holds liver_12, not named like AMOS"):
        find_cases(tmp_path, layout="amos")
    domains = {case_id: case.domain for case_id, case in found(tmp_path, "amos", for_prediction=True).items()}
    assert domains == {"amos_0001": "ct", "liver_12": None}


# Synapse


def write_btcv(images: Path, labels: Path | None, number: int, values=(1, 2, 4, 6)) -> None:
    label = labels / f"label{number:04d}.nii.gz" if labels else None
    matrix = affine(flips=(-1, 1, 1))
    write_pair(images / f"img{number:04d}.nii.gz", label, number, values, ("int16", "uint8"), matrix)


def test_synapse_from_the_download_to_masks(tmp_path):
    """Traps: a case lacks the gallbladder; the scans of `Testing` are no training; ids keep their zeros."""
    raw = tmp_path / "Abdomen" / "RawData"
    for number in (1, 2, 3, 40):
        write_btcv(
            raw / "Training" / "img", raw / "Training" / "label", number, (1, 2, 6) if number == 40 else (1, 2, 4, 6)
        )
    write_btcv(raw / "Testing" / "img", None, 61)
    split = {"labeled": ["0001", "0040"], "unlabeled": ["0002"], "test": ["0003"]}
    preset = shipped("synapse-20", tmp_path, split)
    store = open_store(preprocess(tmp_path / "Abdomen", None, preset, tmp_path / "store"))
    assert list(store.cases) == ["0001", "0002", "0003", "0040"]
    assert set(np.unique(store.label_volume("0040"))) == {0, 1, 2, 6}
    summary, masks = train_and_score(tmp_path, preset, raw / "Testing")
    assert summary["split"]["cases"] == ["0003"]
    assert masks == ["0061"]


def test_synapse_in_the_folders_of_msd(tmp_path):
    write_btcv(tmp_path / "imagesTr", tmp_path / "labelsTr", 1)
    write_btcv(tmp_path / "imagesTr", tmp_path / "labelsTr", 21)
    assert list(found(tmp_path)) == ["0001", "0021"]
    plain = tmp_path / "plain"
    touch(*(plain / folder / "0001.nii.gz" for folder in ("imagesTr", "labelsTr")))
    assert list(found(plain)) == ["0001"]


def test_a_folder_of_several_data_sets_is_refused(tmp_path):
    touch(*(tmp_path / task / "imagesTr" / "a.nii.gz" for task in ("Task01", "Task02")))
    with pytest.raises(ImageReadError, match=r"holds several data sets \(.*Task01, .*Task02\): give one"):
        find_cases(tmp_path)
    assert list(found(tmp_path / "Task01")) == ["a"]


def test_scans_that_only_predict_reads_are_named(tmp_path):
    touch(tmp_path / "a.nrrd")
    with pytest.raises(ImageReadError, match=r"a\.nrrd and the like are read by sdm predict alone: convert"):
        find_cases(tmp_path)
    assert list(found(tmp_path, for_prediction=True)) == ["a"]


def test_the_test_scans_of_btcv_alone_are_no_training(tmp_path):
    touch(tmp_path / "Testing" / "img" / "img0061.nii.gz")
    with pytest.raises(ImageReadError, match="holds no scans"):
        find_cases(tmp_path)
    assert list(found(tmp_path, for_prediction=True)) == ["0061"]


# LASeg


def test_laseg_nrrd_from_the_download_to_masks(tmp_path):
    """Traps: the label is 255, the axes run against LPS, and a test scan has no label."""
    ids = ["06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX", "ZQY7L65CGT52A3OYVW7J"]
    for case_id in ids[:3]:
        write_challenge_laseg(tmp_path / "LASC18" / "Training Set", case_id)
    write_challenge_laseg(tmp_path / "LASC18" / "Testing Set", ids[3], with_label=False)
    split = {"labeled": ids[:1], "unlabeled": ids[1:2], "test": ids[2:3]}
    preset = shipped("laseg-5", tmp_path, split)
    store = open_store(preprocess(tmp_path / "LASC18", None, preset, tmp_path / "store"))
    assert {case_id: case.labeled for case_id, case in store.cases.items()} == dict(
        zip(ids, (True, True, True, False), strict=True)
    )
    assert store.cases[ids[0]].spacing_mm == pytest.approx((0.625, 0.625, 0.625))
    assert set(np.unique(store.label_volume(ids[0]))) == {0, 1}
    summary, masks = train_and_score(tmp_path, preset, tmp_path / "LASC18" / "Testing Set")
    assert summary["split"]["cases"] == ids[2:3]
    assert masks == ids[3:]
    expected = np.diag([0.625, 0.625, 0.625, 1])
    expected[:3, 3] = (-20, 30, 5)
    assert np.allclose(mask_of(tmp_path / "masks", masks[0]).affine, expected)


def test_laseg_h5_from_the_download_to_masks(tmp_path):
    """Trap: the nrrd that the h5 was made from lies beside it, with other labels."""
    ids = ["06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX"]
    folder = tmp_path / "2018LA_Seg_Training Set"
    for case_id in ids:
        write_laseg(folder, case_id, (40, 36, 4))
    write_challenge_laseg(tmp_path / "made", ids[0])
    for name in ("lgemri.nrrd", "laendo.nrrd"):
        (tmp_path / "made" / ids[0] / name).rename(folder / ids[0] / name)
    split = {"labeled": ids[:1], "unlabeled": ids[1:2], "test": ids[2:]}
    preset = shipped("laseg-10", tmp_path, split)
    store = open_store(preprocess(folder, None, preset, tmp_path / "store"))
    assert list(store.cases) == ids
    summary, masks = train_and_score(tmp_path, preset, folder / ids[2])
    assert summary["split"]["cases"] == masks == ids[2:]


def test_nrrd_keeps_where_its_voxels_lie(tmp_path):
    array = voxels()
    volume = read_image(Case("a", write_nrrd(tmp_path / "a.nrrd", array, (0.5, 0.7, 3.0))), DataConfig())
    assert np.array_equal(volume.voxels, array)
    assert volume.geometry.spacing_mm == pytest.approx((0.5, 0.7, 3.0))
    assert np.allclose(volume.geometry.affine @ [2, 1, 1, 1], [-20 + 1, 30 + 0.7, 5 + 3, 1])


def test_nrrd_that_cannot_be_read(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", np.random.default_rng(0).random((6, 5, 4)))
    whole = path.read_bytes()
    for content, message in (
        (whole[:-100], r"a\.nrrd cannot be read as NRRD \(.*\): download or export it again"),
        (b"NRRD0004\nnonsense", r"a\.nrrd cannot be read as NRRD"),
        (b"", r"a\.nrrd cannot be read as NRRD"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageReadError, match=message):
            read_image(Case("a", path), DataConfig())
    with pytest.raises(ImageReadError, match=r"b\.nrrd does not exist"):
        read_image(Case("b", tmp_path / "b.nrrd"), DataConfig())
    path.write_bytes(b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 2 2\nencoding: raw\n\n\x01\x02\x03\x04")
    with pytest.raises(ImageReadError, match=r"a\.nrrd is no 3D grey image \(2 x 2, 1 values"):
        read_image(Case("a", path), DataConfig())


# What `auto` takes a folder for


@pytest.mark.parametrize(
    "names",
    [
        ["patient001_frame01.nii.gz", "patient001_frame12.nii.gz"],
        ["siteA/patient001_frame01.nii.gz"],
        ["patient001/patient001_flair.nii.gz"],
        ["heart/heart_sa.nii.gz"],
        ["A0S9V9/sa.nii.gz"],
        ["ct_1001_image.nii.gz", "mr_train_image.nii.gz"],
        ["siteA/lgemri.nii.gz"],
        ["imagesTr/amos_0001.nii.gz"],
        ["imagesTr/ct_train_1001_0000.nii.gz"],
        ["a.nii.gz", "downloads/training/patient001/patient001_frame01.nii.gz"],
        ["imagesTr/a.nii.gz", "old/ct_train/ct_train_1001_image.nii.gz"],
    ],
)
def test_auto_takes_no_plain_folder_for_a_benchmark(tmp_path, names):
    touch(*(tmp_path / name for name in names))
    assert find_cases(tmp_path) == find_cases(tmp_path, layout="folders")


def test_auto_takes_no_benchmark_for_a_plain_folder(tmp_path):
    write_acdc(tmp_path / "acdc", 1)
    write_mnms(tmp_path / "mnms", "A0S9V9")
    write_table(tmp_path / "mnms", mnms_row("A0S9V9", "A", 0, 3))
    write_mmwhs(tmp_path / "mmwhs" / "ct_train", "ct_train_1001")
    write_challenge_laseg(tmp_path / "laseg", "06SR5RBREL16DQ6M8LWS")
    layouts = ("acdc", "mnms", "mmwhs", "laseg")
    for layout in layouts:
        assert find_cases(tmp_path / layout) == find_cases(tmp_path / layout, layout=layout)
        with pytest.raises(ImageReadError, match=f"holds no scans: give the download of {layout}"):
            find_cases(tmp_path / layouts[layouts.index(layout) - 1], layout=layout)
    with pytest.raises(
        ImageReadError, match="holds scans of acdc and mnms and mmwhs and laseg: give the folder of one"
    ):
        find_cases(tmp_path)


def test_macos_leftovers_are_no_scans(tmp_path):
    write_acdc(tmp_path / "training", 1)
    touch(tmp_path / "__MACOSX" / "training" / "patient001" / "._patient001_frame01.nii.gz")
    touch(tmp_path / "training" / "patient001" / "._patient001_frame01.nii.gz")
    assert list(found(tmp_path)) == ["patient001_frame01", "patient001_frame12"]


def test_the_model_of_a_benchmark_meets_another_folder(tmp_path):
    write_nifti(tmp_path / "scans" / "a.nii.gz", voxels())
    assert list(found(tmp_path / "scans", "acdc", for_prediction=True)) == ["a"]
    write_mmwhs(tmp_path / "mmwhs", "ct_train_1001")
    assert list(found(tmp_path / "mmwhs", "acdc", for_prediction=True)) == ["ct_train_1001"]
