"""Domains of cases from a table, from `dataset.json`, and from subfolders."""

import json
from pathlib import Path

import pytest
from scans import label, voxels, write_nifti
from stores import tiny_preset

from sdm_cli.data.cases import Case
from sdm_cli.data.compare import closed_gaps
from sdm_cli.data.domains import assign_domains
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.store import SliceStore
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.runs.preprocess import preprocess

CASES = [Case("a", Path("a.nii.gz")), Case("b", Path("b.nii.gz"))]


def table(folder, text):
    (folder / "domains.csv").write_text(text, encoding="utf-8")
    return folder / "domains.csv"


@pytest.mark.parametrize(
    "text", ["case,domain,patient\na,ct,p1\nb,mr,p1\n", "\ufeffcase;domain;patient\na;ct;p1\nb;mr;p1\n"]
)
def test_a_table_gives_domain_and_patient(tmp_path, text):
    cases = assign_domains(CASES, table(tmp_path, text))
    assert [(case.domain, case.patient) for case in cases] == [("ct", "p1"), ("mr", "p1")]


def test_a_table_may_name_the_files(tmp_path):
    text = "case,domain\na.nii.gz,ct\nb.nii,mr\n"
    assert [case.domain for case in assign_domains(CASES, table(tmp_path, text))] == ["ct", "mr"]


def test_a_short_line_is_a_case_without_domain(tmp_path):
    assert [case.domain for case in assign_domains(CASES, table(tmp_path, "case,domain\na,ct\nb\n"))] == ["ct", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,site\na,ct\n", "first line must be case,domain"),
        ("case,domain\na,ct\n", "no line of b"),
        ("case,domain\na,ct\nb,mr\nc,mr\n", "names c, which the folder does not hold"),
        ("case,domain\na,ct\nb,mr\na,mr\n", "names case a twice"),
        ("case,domain\na,ct\nb,mr\na,ct\n", "names case a twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, message):
    with pytest.raises(ImageReadError, match=message):
        assign_domains(CASES, table(tmp_path, text))
    with pytest.raises(ImageReadError, match=r"cannot be read as CSV \(No such file or directory\)"):
        assign_domains(CASES, tmp_path / "none.csv")


def raw(folder: Path, **own) -> Path:
    """nnU-Net's layout, with own keys in its `dataset.json`."""
    write_nifti(folder / "imagesTr/a_0000.nii.gz", voxels())
    write_nifti(folder / "labelsTr/a.nii.gz", label())
    write_nifti(folder / "imagesUn/b_0000.nii.gz", voxels())
    write_nifti(folder / "imagesTs/c_0000.nii.gz", voxels())
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "box": 2}, "sdm": own}))
    return folder


@pytest.mark.parametrize("with_preset", [False, True])
def test_dataset_json_gives_domain_and_patient_and_a_table_has_the_last_word(tmp_path, with_preset):
    folder = raw(tmp_path / "raw", domains={"a": "ct", "c": "mr"}, patients={"a": "p", "b": "p"})
    chosen = tiny_preset() if with_preset else None
    cases = SliceStore(preprocess(folder, None, chosen, tmp_path / "store")).cases
    assert [(case.domain, case.patient) for case in cases.values()] == [("ct", "p"), (None, "p")]
    rows = table(tmp_path, "case,domain\na,us\nb,mr\n")
    cases = SliceStore(preprocess(folder, None, chosen, tmp_path / "other", domains=rows)).cases
    assert [(case.domain, case.patient) for case in cases.values()] == [("us", "p"), ("mr", "p")]


def test_dataset_json_gives_the_slice_axis_of_the_recipe(tmp_path):
    store = preprocess(raw(tmp_path / "raw", slice_axis="sagittal"), None, None, tmp_path / "store")
    assert SliceStore(store).data.slice_axis == "sagittal"
    assert "slice_axis: sagittal  # named by dataset.json" in (store / "preset.yaml").read_text()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"domain": {"a": "ct"}}, r"has the key domain under sdm: the keys there are domains, patients and slice_axis"),
        ({"domains": ["ct"]}, r"sdm\.domains is not case ids with a text each: write"),
        ({"patients": {"a": 7}}, r"sdm\.patients is not case ids with a text each: write"),
        ({"patients": {"a": "p", "zz": "p"}}, r"sdm\.patients names zz, .*: correct the ids"),
        ({"slice_axis": "oblique"}, r"sdm\.slice_axis is 'oblique': give axial, coronal, sagittal or stored"),
    ],
)
def test_own_keys_that_cannot_be_are_refused(tmp_path, own, message):
    folder = raw(tmp_path / "raw", **own)
    with pytest.raises(ImageReadError, match=rf"dataset\.json.*{message}"):
        preprocess(folder, None, None, tmp_path / "store")


def test_the_stamp_of_pseudo_labels_is_none_of_these_keys(tmp_path):
    folder = raw(tmp_path / "raw", pseudo_labels="predictions", model="small", domains={"a": "ct"})
    assert SliceStore(preprocess(folder, None, None, tmp_path / "store")).cases["a"].domain == "ct"


def test_subfolders_are_domains_also_beside_their_labels(tmp_path, monkeypatch):
    for site, name in (("siteA", "a"), ("siteB", "b")):
        write_nifti(tmp_path / site / f"{name}.nii.gz", voxels())
    write_nifti(tmp_path / "gt" / "a.nii.gz", label())
    monkeypatch.chdir(tmp_path)
    for folder, labels in ((tmp_path, tmp_path / "gt"), (Path(), Path("gt"))):
        cases = find_cases(folder, labels)
        assert [(case.case_id, case.domain, case.label_path is not None) for case in cases] == [
            ("a", "siteA", True),
            ("b", "siteB", False),
        ]


def sites(folder: Path, *files: str) -> Path:
    for file in files:
        write_nifti(folder / file, label() if "labels" in file else voxels())
    return folder


def test_equal_names_of_two_sites_get_the_site_in_front_and_labels_are_of_the_same_site(tmp_path):
    sites(tmp_path, "scans/A/a01.nii.gz", "scans/A/a02.nii.gz", "scans/B/a01.nii.gz")
    sites(tmp_path, "labels/A/a01.nii.gz", "labels/B/a01.nii.gz")
    cases = find_cases(tmp_path / "scans", tmp_path / "labels")
    assert [(case.case_id, case.domain) for case in cases] == [("A_a01", "A"), ("A_a02", "A"), ("B_a01", "B")]
    assert [case.label_path and case.label_path.parent.name for case in cases] == ["A", None, "B"]
    predicted = find_cases(tmp_path / "scans", for_prediction=True)
    assert [case.case_id for case in predicted] == [case.case_id for case in cases]
    store = preprocess(tmp_path / "scans", tmp_path / "labels", None, tmp_path / "store")
    assert sorted(SliceStore(store).cases) == ["A_a01", "A_a02", "B_a01"]


def test_a_label_of_no_site_is_told_where_to_go(tmp_path):
    sites(tmp_path, "scans/A/a01.nii.gz", "scans/B/a01.nii.gz", "labels/a01.nii.gz")
    with pytest.raises(ImageReadError, match="labels need the same subfolders"):
        find_cases(tmp_path / "scans", tmp_path / "labels")


def test_one_scan_twice_in_a_site_is_a_problem_of_its_case(tmp_path):
    sites(tmp_path, "A/a01.nii", "A/a01.nii.gz", "B/b01.nii.gz")
    first, other = find_cases(tmp_path)
    assert "are both case a01: rename or remove one" in first.problem and other.problem is None
    sites(tmp_path, "B/a01.nii.gz")
    problems = {case.case_id: case.problem for case in find_cases(tmp_path)}
    assert "are both case A_a01: rename or remove one" in problems.pop("A_a01")
    assert problems == {"B_a01": None, "B_b01": None}


def test_gaps_are_not_closed_into_what_is_ignored():
    data = DataConfig(classes={"a": 1, "b": 3, "c": 7}, ignore_value=2)
    assert closed_gaps([1, 3, 7], data) == {1: 1, 3: 3, 7: 4}
