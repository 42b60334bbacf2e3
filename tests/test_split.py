"""`sdm split`: drawn from a store, or imported; deterministic, whole patients, and nothing wrong is written."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.manifest import Manifest, StoredCase, write_manifest
from sdm_cli.data.split_files import format_split, import_ids, read_list
from sdm_cli.data.splits import ROLES, Split, load_split, resolve_split
from sdm_cli.data_config import DataConfig


def stored(case_id: str, labeled=True, domain=None, patient=None) -> StoredCase:
    return StoredCase(case_id, 3, 8, 8, (1.0, 1.0, 1.0), labeled, domain, patient)


def store_of(folder: Path, cases: list[StoredCase], data: DataConfig | None = None) -> Path:
    """A store as far as this verb reads it: the manifest."""
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest(data or DataConfig(), {case.case_id: case for case in cases}, complete=True))
    return folder


def plain_store(folder: Path, n_labeled=20, n_bare=3) -> Path:
    bare = [stored(f"u{i:02}", labeled=False) for i in range(n_bare)]
    return store_of(folder, [stored(f"c{i:02}") for i in range(n_labeled)] + bare)


def heart_store(folder: Path) -> Path:
    """ACDC's kind: two frames a patient, of which the second has no fixed name."""
    cases = [
        stored(f"patient{i:03}_frame{frame:02}", patient=f"patient{i:03}")
        for i in range(1, 11)
        for frame in (1, 10 + i)
    ]
    return store_of(folder, cases)


def run(*arguments: object, code=0):
    result = CliRunner().invoke(app, ["split", *map(str, arguments)])
    assert result.exit_code == code, result.stderr or result.exception
    return result


def source_of(file: Path) -> str:
    return yaml.safe_load(file.read_text())["source"]


def sizes(split: Split) -> list[int]:
    return [len(getattr(split, role)) for role in ROLES]


# --- drawn ---------------------------------------------------------------------------------------


def test_shares_and_numbers(tmp_path):
    store, file = plain_store(tmp_path / "store"), tmp_path / "mine.yaml"
    result = run("--store", store, "-o", file, "--labeled", 0.25, "--validation", 2, "--test", 0.2)
    assert result.stdout == f"{file}\n"
    assert "labeled 4, unlabeled 13, validation 2, test 4" in result.stderr
    split = load_split(str(file))
    # 20 have labels: 4 test, 2 validate, a quarter of the other 14 gives labels; 3 have none.
    assert sizes(split) == [4, 13, 2, 4]
    assert {"u00", "u01", "u02"} <= set(split.unlabeled)
    assert resolve_split(DataConfig(split=str(file)), {c.case_id: c for c in cases_of(store)}, False) == split


def cases_of(store: Path) -> list[StoredCase]:
    tree = json.loads((store / "manifest.json").read_text())["cases"]
    return [StoredCase(case_id, **entry) for case_id, entry in tree.items()]


def test_the_file_says_how_it_was_made(tmp_path):
    store, file = plain_store(tmp_path / "store"), tmp_path / "mine.yaml"
    run("--store", store, "-o", file, "--labeled", 0.25, "--test", 5, "--seed", 7)
    assert source_of(file) == f"sdm split of {store}: labeled 0.25, test 5, seed 7"


def test_one_seed_is_one_split(tmp_path):
    store = plain_store(tmp_path / "store")
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("--store", store, "-o", tmp_path / f"{name}.yaml", "--labeled", 5, "--seed", seed)
        texts[name] = (tmp_path / f"{name}.yaml").read_text()
    assert texts["a"] == texts["b"]
    assert load_split(str(tmp_path / "a.yaml")).labeled != load_split(str(tmp_path / "c.yaml")).labeled


def test_fewer_labels_are_among_the_more(tmp_path):
    store = plain_store(tmp_path / "store")
    for n in (3, 8):
        run("--store", store, "-o", tmp_path / f"{n}.yaml", "--labeled", n, "--test", 4)
    few, many = (load_split(str(tmp_path / f"{n}.yaml")) for n in (3, 8))
    assert set(few.labeled) < set(many.labeled)
    assert few.test == many.test


def test_all_labels_by_default(tmp_path):
    run("--store", plain_store(tmp_path / "store"), "-o", tmp_path / "mine.yaml")
    assert sizes(load_split(str(tmp_path / "mine.yaml"))) == [20, 3, 0, 0]


def test_patients_stay_whole_and_are_what_is_counted(tmp_path):
    store, file = heart_store(tmp_path / "store"), tmp_path / "mine.yaml"
    run("--store", store, "-o", file, "--labeled", 3, "--test", 2)
    split = load_split(str(file))
    assert sizes(split) == [6, 10, 0, 4]
    role_of = {case_id.split("_")[0]: role for role in ROLES for case_id in getattr(split, role)}
    for role in ROLES:
        assert {role_of[case_id.split("_")[0]] for case_id in getattr(split, role)} <= {role}
    assert "grouped by patient" in source_of(file)


def test_of_a_patient_who_gives_labels_a_scan_without_one_is_in_no_role(tmp_path):
    cases = [stored(f"{p}{n}", labeled=n == 1, patient=p) for p in "abc" for n in (1, 2)]
    store = store_of(tmp_path / "store", [*cases, stored("d1", labeled=False, patient="d")])
    result = run("--store", store, "-o", tmp_path / "mine.yaml", "--labeled", 2, "--seed", 1)
    split = load_split(str(tmp_path / "mine.yaml"))
    patients = {case_id[0] for case_id in split.labeled}
    assert split.labeled == tuple(f"{p}1" for p in sorted(patients)) and len(patients) == 2
    assert split.unlabeled == (*(f"{p}{n}" for p in "abc" if p not in patients for n in (1, 2)), "d1")
    assert "2 cases of the store in no role" in result.stderr


def test_each_domain_gives_its_share(tmp_path):
    cases = [stored(f"{domain}{i:02}", domain=domain) for domain, n in (("ge", 20), ("siemens", 10)) for i in range(n)]
    store = store_of(tmp_path / "store", cases)
    for seed in range(5):
        file = tmp_path / f"{seed}.yaml"
        run("--store", store, "-o", file, "--labeled", 6, "--seed", seed)
        assert sum(case_id.startswith("ge") for case_id in load_split(str(file)).labeled) == 4
        assert "stratified by domain" in source_of(file)
    shares = set()
    for seed in range(8):
        run("--store", store, "-o", file, "--labeled", 6, "--seed", seed, "--no-stratify", "--overwrite")
        shares.add(sum(case_id.startswith("ge") for case_id in load_split(str(file)).labeled))
    assert len(shares) > 1


def test_labels_of_the_source_alone(tmp_path):
    data = DataConfig(labeled_domains=("ct",), unlabeled_domains=("mr",))
    cases = [stored(f"{domain}{i}", domain=domain) for domain in ("ct", "mr") for i in range(8)]
    result = run(
        "--store", store_of(tmp_path / "store", cases, data), "-o", tmp_path / "mine.yaml", "--labeled", 5, "--test", 2
    )
    split = load_split(str(tmp_path / "mine.yaml"))
    assert sizes(split) == [5, 6, 0, 2]
    assert result.stderr == "labeled 5, unlabeled 6, validation 0, test 2; 3 cases of the store in no role\n"
    assert {case_id[:2] for case_id in split.labeled} == {"ct"}
    assert {case_id[:2] for case_id in split.unlabeled + split.test} == {"mr"}


def test_rules_mean_domains_whatever_their_case_and_one_that_is_not_there_is_warned_of(tmp_path):
    data = DataConfig(labeled_domains=("CT",), unlabeled_domains=("Mr",), unseen_domains=("US", "zz"))
    cases = [stored(f"{domain}{i}", domain=domain) for domain in ("ct", "mr", "us") for i in range(2)]
    result = run("--store", store_of(tmp_path / "store", cases, data), "-o", tmp_path / "mine.yaml")
    split = load_split(str(tmp_path / "mine.yaml"))
    assert (split.labeled, split.unlabeled, split.test) == (("ct0", "ct1"), ("mr0", "mr1"), ("us0", "us1"))
    assert "warning: data.unseen_domains names zz, but the cases of the store are of domain ct, mr" in result.stderr


def test_the_unseen_domain_is_the_test(tmp_path):
    data = DataConfig(unseen_domains=("a",))
    cases = [stored(f"{domain}{i}", domain=domain) for domain in "abc" for i in range(4)]
    store = store_of(tmp_path / "store", cases, data)
    run("--store", store, "-o", tmp_path / "mine.yaml", "--labeled", 0.25)
    split = load_split(str(tmp_path / "mine.yaml"))
    assert split.test == ("a0", "a1", "a2", "a3")
    assert {case_id[0] for case_id in split.labeled + split.unlabeled} == {"b", "c"}
    result = run("--store", store, "-o", tmp_path / "other.yaml", "--test", 1, code=1)
    assert "those of the unseen domain a: leave --test out" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--labeled", "21"),
            r"21 labeled patients \(or cases\) are wanted, but 20 with labels are left for it: lower --labeled",
        ),
        (("--test", "15", "--validation", "6"), "6 validation patients .* but 5 with labels"),
        (("--test", "1.0"), "the role labeled would be empty"),
        (("--labeled", "0"), "the role labeled would be empty: add --from labeled=FILE, or label files"),
        (("--labeled", "half"), "--labeled half: write a number"),
        (("--labeled", "1.5"), "--labeled 1.5: write a number"),
        (("--labeled", "nan"), "--labeled nan: write a number"),
        (("--test", "-1"), "--test -1: write a number"),
    ],
)
def test_a_draw_that_cannot_be(tmp_path, options, message):
    result = run("--store", plain_store(tmp_path / "store"), "-o", tmp_path / "mine.yaml", *options, code=1)
    assert_said(message, result)
    assert not (tmp_path / "mine.yaml").exists()


def assert_said(message: str, result) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_nothing_is_left_for_the_unlabeled(tmp_path):
    store = plain_store(tmp_path / "store", n_bare=0)
    result = run("--store", store, "-o", tmp_path / "mine.yaml", code=1)
    assert "the role unlabeled would be empty: give --labeled a smaller number" in result.stderr


def test_a_patient_with_scans_of_two_domains_has_a_role_that_both_may_have(tmp_path):
    data = DataConfig(labeled_domains=("ct",), unlabeled_domains=("mr",))
    cases = [stored(f"{domain}{i}", domain=domain, patient=f"p{domain}{i}") for domain in ("ct", "mr") for i in (1, 2)]
    both = [stored("ct9", domain="ct", patient="both"), stored("mr9", domain="mr", patient="both")]
    store, file = store_of(tmp_path / "store", [*cases, *both], data), tmp_path / "mine.yaml"
    assert "2 cases of the store in no role" in run("--store", store, "-o", file).stderr
    split = load_split(str(file))
    assert (split.labeled, split.unlabeled) == (("ct1", "ct2"), ("mr1", "mr2"))


@pytest.mark.parametrize("options", [(), ("--labeled", "1")])
def test_patients_who_all_have_scans_of_both_domains_are_told_as_that(tmp_path, options):
    data = DataConfig(labeled_domains=("ct",), unlabeled_domains=("mr",))
    cases = [stored(f"{domain}{i}", domain=domain, patient=f"p{i}") for domain in ("ct", "mr") for i in (1, 2)]
    result = run("--store", store_of(tmp_path / "store", cases, data), "-o", tmp_path / "mine.yaml", *options, code=1)
    assert_said("No patient with labels may be labeled: each has scans of several .* add patients of one", result)


@pytest.mark.parametrize(
    ("labeled", "options", "message"),
    [
        (
            "ab",
            ("--validation", "2"),
            "2 validation patients .* but none with labels are left for it: give scans labels",
        ),
        ("abx", ("--test", "1", "--validation", "1"), "1 validation patients .* but none with labels are left"),
        ("xy", (), "the role labeled would be empty"),
    ],
)
def test_labels_that_lack_are_told_as_that_where_there_are_rules(tmp_path, labeled, options, message):
    data = DataConfig(labeled_domains=("ct",), unlabeled_domains=("mr",))
    cases = [stored(name, domain="ct" if name in "ab" else "mr", labeled=name in labeled) for name in "abxyz"]
    result = run("--store", store_of(tmp_path / "store", cases, data), "-o", tmp_path / "mine.yaml", *options, code=1)
    assert_said(message, result)


def test_rules_on_domains_where_none_is_known(tmp_path):
    store = store_of(tmp_path / "store", [stored(name) for name in "abc"], DataConfig(labeled_domains=("ct",)))
    result = run("--store", store, "-o", tmp_path / "mine.yaml", "--labeled", "1", code=1)
    assert_said("the domain of a is not known, .* preprocess with --domains FILE.csv", result)


def test_only_the_unseen_scans_of_a_patient_are_tests(tmp_path):
    cases = [stored(f"{domain}{i}", domain=domain) for domain in "bc" for i in range(3)]
    both = [stored("a9", domain="a", patient="both"), stored("b9", domain="b", patient="both")]
    store = store_of(tmp_path / "store", [*cases, *both], DataConfig(unseen_domains=("a",)))
    run("--store", store, "-o", tmp_path / "mine.yaml", "--labeled", "2")
    split = load_split(str(tmp_path / "mine.yaml"))
    assert split.test == ("a9",) and "b9" not in split.labeled + split.unlabeled + split.validation


def test_a_file_in_two_roles_is_told_as_that(tmp_path):
    store, ids = plain_store(tmp_path / "store"), tmp_path / "ids.txt"
    ids.write_text("c00\n")
    both = ("--from", f"labeled={ids}", "--from", f"unlabeled={ids}")
    assert "is both labeled and unlabeled" in run("--store", store, "-o", tmp_path / "m.yaml", *both, code=1).stderr


def test_a_file_that_exists_is_kept(tmp_path):
    store, file = plain_store(tmp_path / "store"), tmp_path / "mine.yaml"
    file.write_text("precious")
    assert "mine.yaml exists" in run("--store", store, "-o", file, code=1).stderr
    assert file.read_text() == "precious"
    run("--store", store, "-o", file, "--overwrite")
    assert len(load_split(str(file)).labeled) == 20
    assert "ends in .yaml" in run("--store", store, "-o", tmp_path / "mine.txt", code=1).stderr


@pytest.mark.parametrize(
    "options", [(), ("--from", "labeled=a.txt", "--test", "2"), ("--store", "s", "--stratify=maybe")], ids=" ".join
)
def test_wrong_usage(options):
    assert "Traceback" not in run("-o", "mine.yaml", *options, code=2).stderr


# --- imported ------------------------------------------------------------------------------------


def lists(folder: Path, **texts: str) -> list[str]:
    """`--from ROLE=FILE` for each role and its text."""
    arguments = []
    for role, text in texts.items():
        (folder / f"{role}.list").write_text(text)
        arguments += ["--from", f"{role}={folder / f'{role}.list'}"]
    return arguments


def test_one_id_a_line(tmp_path):
    store, file = plain_store(tmp_path / "store"), tmp_path / "mine.yaml"
    options = lists(tmp_path, labeled="c01\n\nc00\n", unlabeled="c02\nu00\n", test="c03\r\n")
    result = run("--store", store, "-o", file, *options)
    assert load_split(str(file)) == Split(("c01", "c00"), ("c02", "u00"), (), ("c03",))
    assert "warning" not in result.stderr
    assert f"imported labeled={tmp_path}/labeled.list" in source_of(file)


def test_without_a_store_ids_are_taken_as_they_are(tmp_path):
    run("-o", tmp_path / "mine.yaml", *lists(tmp_path, labeled="0021\n", unlabeled="a\nit's 1\n"))
    assert load_split(str(tmp_path / "mine.yaml")) == Split(("0021",), ("a", "it's"))


def test_scans_without_a_label_are_the_unlabeled_ones_if_no_list_is(tmp_path):
    run("--store", plain_store(tmp_path / "store"), "-o", tmp_path / "mine.yaml", *lists(tmp_path, labeled="c00\nc01"))
    assert load_split(str(tmp_path / "mine.yaml")) == Split(("c00", "c01"), ("u00", "u01", "u02"))


@pytest.mark.parametrize("is_nnunet", [False, True])
def test_where_every_scan_has_a_label_the_error_says_how_some_become_unlabeled(tmp_path, is_nnunet):
    store, file = plain_store(tmp_path / "store", n_bare=0), tmp_path / "mine.yaml"
    options = ["--from", nnunet(tmp_path)] if is_nnunet else lists(tmp_path, labeled="c00\nc01\nc02\nc03")
    said = run("--store", store, "-o", file, *options, code=1).stderr
    assert "unlabeled would be empty: keep the labels of N of the listed cases alone with --labeled N" in said
    said = run("--store", store, "-o", file, *options, "--labeled", 4, code=1).stderr
    assert "unlabeled would be empty: give --labeled a smaller number" in said
    said = run("-o", file, *options, code=1).stderr
    assert "unlabeled would be empty: add --from unlabeled=FILE, or give the store of the cases with --store" in said
    run("--store", store, "-o", file, *options, "--labeled", 1)
    assert sizes(load_split(str(file)))[:2] == [1, 3]


def test_lists_of_slices_are_collapsed_to_cases_with_a_warning(tmp_path):
    slices = "".join(f"patient{i:03}_frame01_slice_{z}\n" for i in (1, 2) for z in range(1, 9))
    file = tmp_path / "mine.yaml"
    options = lists(tmp_path, labeled=slices, unlabeled="patient003_frame01\npatient003_frame02\n")
    result = run("-o", file, *options)
    assert load_split(str(file)).labeled == ("patient001_frame01", "patient002_frame01")
    (warning,) = (line for line in result.stderr.splitlines() if line.startswith("warning"))
    assert warning.endswith(
        "labeled.list: 16 of 16 labeled entries are slices or frames, collapsed to cases; 2 ids are left"
    )


def test_frames_that_others_renumber_become_the_patient(tmp_path):
    # Of patient 3 the store has frames 01 and 13; the list calls the second one 02.
    store, file = heart_store(tmp_path / "store"), tmp_path / "mine.yaml"
    options = lists(
        tmp_path,
        labeled="patient003_frame01\npatient003_frame02\n",
        unlabeled="patient001_frame01_slice_1\npatient001_frame01_slice_2\npatient002\n",
    )
    result = run("--store", store, "-o", file, *options)
    split = load_split(str(file))
    assert split == Split(("patient003",), ("patient001_frame01", "patient002"))
    assert "1 of 2 labeled entries are slices or frames, collapsed to cases; 1 id is left" in result.stderr
    cases = {case.case_id: case for case in cases_of(store)}
    assert resolve_split(DataConfig(split=str(file)), cases, False).labeled == (
        "patient003_frame01",
        "patient003_frame13",
    )


def test_lists_of_slice_pairs(tmp_path):
    pairs = "images/c00_slice_1.png labels/c00_slice_1.png\nimages/c00_slice_2.png\tlabels/c00_slice_2.png\n"
    by_folder = "data/my scans/c01/12.png,data/my scans/c01/12_gt.png\ndata/my scans/c02/3.png,x.png\n"
    run("-o", tmp_path / "mine.yaml", *lists(tmp_path, labeled=pairs, unlabeled=by_folder))
    assert load_split(str(tmp_path / "mine.yaml")) == Split(("c00",), ("c01", "c02"))


@pytest.mark.parametrize(
    ("entry", "case_id"),
    [
        ("c00", "c00"),
        ("imagesTr/c00_0000.nii.gz", "c00"),
        ("slices/c00_17.h5", "c00"),
        ("c00_slice17", "c00"),
        ("c00-slice-017.npz", "c00"),
        (r"D:\data\c00\slice_3.h5", "c00"),
        ("2018LA_Seg_Training Set/c00/mri_norm2.h5", "c00"),
        ("c00.nii", "c00"),
        ("a_0001", "a_0001"),
        ("p1", "p1"),
        ("p1_frame09", "p1"),
    ],
)
def test_how_an_entry_names_a_case(entry, case_id):
    cases = {"c00": stored("c00"), "a_0001": stored("a_0001"), "p1_frame01": stored("p1_frame01", patient="p1")}
    found = import_ids([entry], cases)
    assert (found.ids, found.unknown) == ((case_id,), ())


def test_lists_of_btcv_name_its_files_and_the_store_their_numbers():
    cases = {"0001": stored("0001"), "0002": stored("0002"), "img0003": stored("img0003")}
    found = import_ids(["img0001", "RawData/Training/img/img0002.nii.gz", "img0003"], cases)
    assert (found.ids, found.n_collapsed, found.unknown) == (("0001", "0002", "img0003"), 0, ())
    assert import_ids(["img0001_slice12", "label0001.nii.gz"], cases).ids == ("0001",)
    assert import_ids(["img0009"], cases).unknown == ("img0009",)


def test_a_frame_that_is_not_there_is_no_other_case():
    cases = {"A_sa_0": stored("A_sa_0"), "A_sa": stored("A_sa")}
    assert import_ids(["B_sa_0", "A1_sa_0"], cases).unknown == ("B_sa_0", "A1_sa_0")


def test_paths_may_hold_blanks(tmp_path):
    (tmp_path / "a.list").write_text("my set/a b.nii.gz my set/a b_gt.nii.gz\nc d\n\n")
    assert read_list(tmp_path / "a.list") == ["my set/a b.nii.gz", "c"]


def nnunet(folder: Path) -> Path:
    folds = [{"train": ["c00", "c01", "c02", "c03"], "val": ["c04"]}, {"train": ["c04", "c00"], "val": ["c01"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder / "splits_final.json"


def test_splits_of_nnunet(tmp_path):
    store, file = plain_store(tmp_path / "store"), tmp_path / "mine.yaml"
    run("--store", store, "-o", file, "--from", nnunet(tmp_path), "--fold", 1)
    assert load_split(str(file)) == Split(("c04", "c00"), ("u00", "u01", "u02"), ("c01",))
    assert "splits_final.json, fold 1" in source_of(file)


def test_few_labels_out_of_a_list(tmp_path):
    store, file = plain_store(tmp_path / "store", n_bare=0), tmp_path / "mine.yaml"
    run("--store", store, "-o", file, "--from", nnunet(tmp_path), "--labeled", 1, "--seed", 3)
    split = load_split(str(file))
    assert sizes(split) == [1, 3, 1, 0]
    assert {*split.labeled, *split.unlabeled} == {"c00", "c01", "c02", "c03"}
    assert "of the labeled, labeled 1, seed 3" in source_of(file)
    refused = run("-o", tmp_path / "b.yaml", "--from", nnunet(tmp_path), "--labeled", 1, code=1)
    assert "give the --store of its cases" in refused.stderr


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"labeled": "c00\nc77", "unlabeled": "c01"}, r"does not hold c77 \(labeled\)"),
        ({"labeled": "c00", "unlabeled": "c01\nc00"}, "case c00 is both labeled and unlabeled"),
        ({"labeled": "u00", "unlabeled": "c01"}, "calls u00 labeled, but there is no label"),
        ({"labeled": "", "unlabeled": "c01"}, "labeled.list lists no case"),
        ({"unlabeled": "c01"}, "the role labeled would be empty"),
        ({"labelled": "c01"}, "write it as ROLE=FILE, where ROLE is labeled, unlabeled, validation or test"),
    ],
)
def test_lists_that_cannot_be(tmp_path, texts, message):
    options = lists(tmp_path, **texts)
    result = run("--store", plain_store(tmp_path / "store"), "-o", tmp_path / "mine.yaml", *options, code=1)
    assert_said(message, result)
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("with_store", [True, False])
def test_a_patient_has_one_role(tmp_path, with_store):
    options = lists(tmp_path, labeled="patient001_frame01\n", unlabeled="patient001_frame11\npatient002_frame01\n")
    options += ["--store", str(heart_store(tmp_path / "store"))] if with_store else []
    result = run("-o", tmp_path / "mine.yaml", *options, code=1)
    assert "patient patient001 is both labeled and unlabeled (patient001_frame11)" in result.stderr


def test_imported_lists_keep_the_rules_on_domains(tmp_path):
    data = DataConfig(labeled_domains=("ct",))
    store = store_of(tmp_path / "store", [stored("a", domain="ct"), stored("b", domain="mr")], data)
    result = run("--store", store, "-o", tmp_path / "mine.yaml", *lists(tmp_path, labeled="b", unlabeled="a"), code=1)
    assert "labeled case b is of domain mr" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ('{"train": []}', "a list of folds"),
        ('[{"train": [1], "val": []}]', "a list of folds"),
        ("[]", "has 0 folds"),
        ('[{"train": [], "val": ["c00"]}]', "the role labeled would be empty"),
    ],
)
def test_json_that_is_not_of_nnunet(tmp_path, text, message):
    (tmp_path / "splits.json").write_text(text)
    store = plain_store(tmp_path / "store")
    assert_said(message, run("--store", store, "-o", tmp_path / "a.yaml", "--from", tmp_path / "splits.json", code=1))


def test_splits_of_nnunet_have_their_own_roles(tmp_path):
    result = run("-o", tmp_path / "mine.yaml", "--from", f"labeled={nnunet(tmp_path)}", code=1)
    assert_said("name the roles themselves: leave labeled= out", result)


def test_a_list_that_is_not_there(tmp_path):
    result = run("-o", tmp_path / "mine.yaml", "--from", f"labeled={tmp_path / 'none.list'}", code=1)
    assert_said(r"none\.list: cannot be read as a list of cases \(No such file or directory\)", result)


# --- written -------------------------------------------------------------------------------------


def test_any_id_is_read_back(tmp_path):
    names = (
        "0021",
        "1e5",
        "no",
        "it's",
        "a  b",
        "c, d",
        "#x",
        "ü",
        "[y]",
        "12:30:00",
        *(f"case{i}" for i in range(99)),
    )
    split = Split(labeled=names, unlabeled=("null",), test=("~",))
    text = format_split(split, "mine: 'all' # of it", "A comment. " * 30)
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert load_split(str(tmp_path / "a.yaml")) == split
    assert max(map(len, text.splitlines())) <= 112
