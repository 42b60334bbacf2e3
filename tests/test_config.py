"""Presets: every shipped one parses, every mistake is named, nothing is said twice."""

from pathlib import Path

import pytest
import yaml

from sdm_cli import resources
from sdm_cli.config import Preset
from sdm_cli.data.splits import load_split
from sdm_cli.errors import PresetError
from sdm_cli.preset_files import (
    data_config_from_dict,
    data_config_to_dict,
    load_preset,
    preset_from_dict,
    preset_to_dict,
)

ROOT = Path(__file__).parent.parent
PRESET_FILES = sorted((ROOT / "presets").rglob("*.yaml"), key=lambda path: path.stem)
SPLIT_FILES = sorted((ROOT / "splits").rglob("*.yaml"), key=lambda path: path.stem)
# Preset -> scenario, and the published scores that datasets.md of the specification lists.
BENCHMARKS = {
    "synapse-20": ("SSMIS", {"dice": 68.38, "asd_voxels": 2.21}),
    "synapse-40": ("SSMIS", {"dice": 71.53, "asd_voxels": 2.16}),
    "amos-2": ("SSMIS", {}),
    "amos-5": ("SSMIS", {}),
    "amos-10": ("SSMIS", {}),
    "laseg-5": ("SSMIS", {"dice": 90.21, "jaccard": 82.65, "hd95_voxels": 4.74, "asd_voxels": 1.63}),
    "laseg-10": ("SSMIS", {"dice": 91.46, "jaccard": 83.55, "hd95_voxels": 5.02, "asd_voxels": 1.33}),
    "acdc-3": ("SSMIS", {}),
    "acdc-7": ("SSMIS", {}),
    "mmwhs-ct2mr": ("UMDA", {"dice": 77.0, "asd_voxels": 3.4}),
    "mmwhs-mr2ct": ("UMDA", {"dice": 91.4, "asd_voxels": 1.4}),
    "mnms-to-a-2": ("Semi-MDG", {"dice": 86.50}),
    "mnms-to-b-2": ("Semi-MDG", {"dice": 87.58}),
    "mnms-to-c-2": ("Semi-MDG", {"dice": 88.30}),
    "mnms-to-d-2": ("Semi-MDG", {"dice": 89.76}),
    "mnms-to-a-5": ("Semi-MDG", {"dice": 87.04}),
    "mnms-to-b-5": ("Semi-MDG", {"dice": 87.32}),
    "mnms-to-c-5": ("Semi-MDG", {"dice": 89.67}),
    "mnms-to-d-5": ("Semi-MDG", {"dice": 89.85}),
}
MINIMAL = {"train": {"steps": 100}}


def write_preset(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems_of(tree: dict) -> str:
    with pytest.raises(PresetError) as caught:
        preset_from_dict(tree, "mine.yaml")
    return str(caught.value)


def test_there_are_shipped_presets_and_splits_and_all_are_packaged():
    assert len(PRESET_FILES) >= 23
    assert len(PRESET_FILES) + len(SPLIT_FILES) >= 25
    assert set(BENCHMARKS) | {"laseg-5-cpu", "demo"} <= {path.stem for path in PRESET_FILES}
    assert [path.stem for path in PRESET_FILES] == resources.preset_names()
    assert SPLIT_FILES
    assert [path.stem for path in SPLIT_FILES] == resources.split_names()


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: path.stem)
def test_shipped_preset_parses_and_says_what_it_is(path):
    preset = load_preset(path.stem)
    assert preset.name == path.stem
    assert preset.description
    assert preset.source
    assert preset.data.classes
    assert preset.data.dataset != "own"
    assert all(0 < score <= 100 for score in preset.published.values())
    if preset.data.split is not None:
        assert preset.data.split in resources.split_names()


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: path.stem)
def test_shipped_preset_says_only_what_differs(path):
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "base" not in tree:
        return
    base = preset_to_dict(load_preset(tree["base"]))
    repeated = [
        f"{section}.{key}"
        for section in ("data", "model", "method", "augment", "train")
        for key, value in tree.get(section, {}).items()
        if base[section][key] == value
    ]
    assert repeated == []


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: path.stem)
def test_resolved_preset_reads_back(path):
    preset = load_preset(path.stem)
    text = yaml.safe_dump(preset_to_dict(preset))
    assert preset_from_dict(yaml.safe_load(text), "resolved") == preset


@pytest.mark.parametrize("path", SPLIT_FILES, ids=lambda path: path.stem)
def test_case_ids_of_shipped_splits_stay_text(path):
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for role in ("labeled", "unlabeled", "test"):
        assert tree[role]
        assert all(isinstance(case_id, str) for case_id in tree[role])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_is_trained_as_published(name):
    preset = load_preset(name)
    assert (preset.scenario, preset.published) == BENCHMARKS[name]
    assert preset.protocol == ("clean" if name.startswith("acdc") else "paper")
    assert (preset.model.encoder, preset.model.pretrained) == ("mit-b5", "nvidia/mit-b5")
    assert preset.train.epochs == 300
    # K is 64 at a crop of 512.
    assert preset.method.patch == 64 * min(preset.train.crop) // 512
    assert preset.train.crop[0] % 32 == 0
    assert preset.data.layout == {"synapse": "folders"}.get(preset.data.dataset, preset.data.dataset)
    assert preset.data.split == name
    assert list(preset.model.messenger_stages) == ([1, 2, 3, 4] if name == "synapse-40" else [4])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_both_protocols_of_a_benchmark_can_be_had(name):
    """MMWHS has a preset for each, since they need another store; the others have two `--set`."""
    if name.startswith("mmwhs"):
        clean = load_preset(f"{name}-clean")
        assert clean.data.grid.crop == "body"
        assert clean.data.dataset != load_preset(name).data.dataset
    else:
        selection = "validation" if load_split(name).validation else "labeled"
        clean = load_preset(name, ["protocol=clean", f"train.select_on={selection}"])
        assert clean.data == load_preset(name, ["protocol=paper", "train.select_on=test"]).data
    assert (clean.protocol, clean.train.select_on == "test") == ("clean", False)


def test_intensities_by_modality():
    amos, hearts, clean = (load_preset(name).data for name in ("amos-2", "mmwhs-ct2mr", "mmwhs-mr2ct-clean"))
    assert (amos.normalize.window_hu, amos.normalize.scale) == ((-75, 275), "slice")
    assert (amos.normalize_by_domain["mr"].window_hu, amos.normalize_by_domain["mr"].percentiles) == (None, (0.5, 99.5))
    for data in (hearts, clean):
        assert (data.normalize.window_hu, data.normalize_by_domain["ct"].window_hu) == (None, (0, 32767))
        assert (data.background_values, data.value_aliases) == ((550, 600, 850), {421: 420})
        assert list(data.classes.values()) == [205, 420, 500, 820]
        assert data.grid.size == (144, 144, 144)
    assert (hearts.grid.crop, clean.grid.crop) == ("label", "body")


def test_left_atrium_of_either_download():
    data = load_preset("laseg-10").data
    assert (data.classes, data.value_aliases, data.spacing_mm) == ({"left atrium": 1}, {255: 1}, (0.625, 0.625, 0.625))


def test_grid_of_mnms_and_the_order_of_its_ventricles():
    mnms, acdc = load_preset("mnms-to-d-5").data, load_preset("acdc-7").data
    assert (mnms.grid.crop, mnms.grid.short_side, round(mnms.grid.centre_fraction * 384)) == ("centre", 288, 256)
    assert mnms.normalize.percentiles == (0.5, 99.5)
    assert (mnms.slice_axis, acdc.slice_axis) == ("stored", "stored")
    assert list(mnms.classes.items()) == [("left ventricle", 1), ("myocardium", 2), ("right ventricle", 3)]
    assert list(acdc.classes.items()) == [("right ventricle", 1), ("myocardium", 2), ("left ventricle", 3)]


def test_child_may_leave_rules_by_domain_out(tmp_path):
    child = write_preset(
        tmp_path / "mine.yaml", "base: amos-5\ndata: {dataset: amos-window, normalize_by_domain: {}}\n"
    )
    assert load_preset(child).data.normalize_by_domain == {}


def test_published_recipe_of_the_paper():
    preset = load_preset("laseg-5")
    train = preset.train
    assert (preset.model.encoder, preset.model.pretrained) == ("mit-b5", "nvidia/mit-b5")
    assert (train.optimizer, train.lr, train.head_lr_factor, train.epochs) == ("sgd", 1e-3, 5.0, 300)
    assert preset.protocol == "paper"
    assert preset.published == {"dice": 90.21, "jaccard": 82.65, "hd95_voxels": 4.74, "asd_voxels": 1.63}
    # K is 64 at a crop of 512.
    assert preset.method.patch == 64 * min(train.crop) // 512


def test_laptop_size_of_the_same_training():
    preset = load_preset("laseg-5-cpu")
    train = preset.train
    assert preset.data == load_preset("laseg-5").data
    assert (preset.model.encoder, preset.model.pretrained, preset.model.head_width) == ("mit-b0", "none", 256)
    assert (train.crop, preset.method.patch, train.pairs) == ((128, 128), 16, 4)
    assert (train.steps, train.epochs, preset.method.labeled_only_fraction) == (4000, None, 0.33)
    assert (preset.model.messenger_stages, preset.method.l2u, preset.augment.curve) == ((), True, 0.3)
    assert (preset.method.unlabeled_weight, preset.method.consistency_weight) == (0.3, 0.3)
    assert (train.optimizer, train.lr, train.lr_warmup_steps, train.weight_decay) == ("muon", 2e-3, 100, 0.01)
    assert (train.head_lr_factor, train.average, preset.protocol) == (1.0, 0.99, "clean")
    assert preset.published == {}


def test_child_replaces_classes_and_merges_sections(tmp_path):
    child = write_preset(
        tmp_path / "mine.yaml", "base: synapse-20\ndata: {classes: {liver: 6}}\ntrain: {epochs: 2, select_on: test}\n"
    )
    preset = load_preset(child)
    assert preset.name == "mine"
    assert preset.data.classes == {"liver": 6}
    assert preset.data.normalize.window_hu == (-75, 275)
    assert (preset.train.epochs, preset.train.crop) == (2, (512, 512))


def test_base_may_be_a_file_beside_the_child(tmp_path):
    write_preset(tmp_path / "base.yaml", "train: {steps: 7}\n")
    child = write_preset(tmp_path / "child.yaml", "base: base.yaml\ntrain: {pairs: 2}\n")
    assert (load_preset(child).train.steps, load_preset(child).train.pairs) == (7, 2)


@pytest.mark.parametrize("spelling", ["a.yaml", "../presets/a.yaml", "b.yaml"])
def test_base_that_leads_back_to_itself(tmp_path, spelling):
    folder = tmp_path / "presets"
    folder.mkdir()
    write_preset(folder / "b.yaml", "base: ../presets/a.yaml\n")
    first = write_preset(folder / "a.yaml", f"base: {spelling}\n")
    with pytest.raises(PresetError, match="leads back to itself"):
        load_preset(first)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(PresetError, match=r"no preset 'laseg5' \(did you mean 'laseg-5'\?\)"):
        load_preset("laseg5")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("train.pair", "pairs"), ("modle.encoder", "model"), ("data.normalize.windw_hu", "window_hu")],
)
def test_mistyped_key_is_named_with_the_nearest(key, nearest):
    with pytest.raises(
        PresetError, match=rf"^preset laseg-5-cpu with --set: unknown key {key.split('.')[0]}.*did you mean '{nearest}'"
    ):
        load_preset("laseg-5-cpu", [f"{key}=1"])


def test_a_key_that_is_like_no_other_is_to_be_left_out():
    with pytest.raises(PresetError, match=r"unknown key predict\.windows \(leave it out\)\."):
        load_preset("laseg-5-cpu", ["predict.windows=true"])


def test_all_problems_of_a_file_are_shown_together():
    message = problems_of({"train": {"steps": 5, "lrr": 1, "pairs": "many"}, "modle": {}, "model": {"encoder": "vit"}})
    for part in ("mine.yaml", "train.lrr", "train.pairs", "modle", "model.encoder", "'vit'"):
        assert part in message


def test_all_contradictions_are_shown_together():
    tree = {"method": {"use_unlabeled": False, "patch": 64}, "train": {"crop": [32, 32], "select_on": "test"}}
    message = problems_of(tree)
    for part in (
        "exactly one of train.epochs and train.steps",
        "messenger_stages",
        "protocol: paper",
        "method.patch 64",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ({"train": {"epochs": 1, "steps": 1}}, "exactly one"),
        ({**MINIMAL, "data": {"normalize": {"scale": "window"}}}, "needs window_hu"),
        ({**MINIMAL, "data": {"normalize": {"window_hu": [1, 2], "percentiles": [1, 2]}}}, "not both"),
        ({**MINIMAL, "data": {"normalize": {"window_hu": [5, 1]}}}, "must rise"),
        ({**MINIMAL, "data": {"normalize": {"percentiles": [1, 101]}}}, "between 0 and 100"),
        ({**MINIMAL, "data": {"classes": {"a": 1, "b": 1}}}, "share one label value"),
        ({**MINIMAL, "data": {"classes": {"a": 0}}}, "greater than 0"),
        ({**MINIMAL, "data": {"classes": {"a": 7}, "ignore_value": 7}}, "also a class"),
        (
            {**MINIMAL, "data": {"labeled_domains": ["ct"], "unseen_domains": ["CT"]}},
            "CT is also one of labeled_domains",
        ),
        ({**MINIMAL, "data": {"normalize_by_domain": {"ct": {}, "CT": {}}}}, "normalize_by_domain: CT is there twice"),
        ({**MINIMAL, "model": {"messenger_stages": [5]}}, "messenger_stages"),
        ({"train": {"steps": 1, "lr": float("nan")}}, "train.lr"),
        ({"train": None}, "train: a section"),
        ({"train": {"steps": 1}, 3: 4}, "Keys should be strings"),
    ],
)
def test_contradictory_fields(tree, part):
    assert part in problems_of(tree)


@pytest.mark.parametrize(
    ("section", "key", "value", "part"),
    [
        ("train", "crop", [512, 31], "train.crop.1: should be greater than or equal to 32 (got 31)"),
        ("train", "crop", [0, 512], "train.crop.0: should be greater than or equal to 32 (got 0)"),
        ("train", "seed", 2**63, "train.seed: should be less than 9223372036854775808"),
        ("train", "seed", -1, "train.seed: should be greater than or equal to 0"),
        ("model", "messenger_dropout", 1, "model.messenger_dropout: should be less than 1"),
        ("model", "head_dropout", 1.0, "model.head_dropout: should be less than 1"),
        ("model", "drop_path", 1.0, "model.drop_path: should be less than 1"),
        ("augment", "zoom", [1.2, 0.8], "augment.zoom must be positive and rise, not [1.2, 0.8]"),
        ("augment", "zoom", [0.5, 0.9], "augment.zoom must enclose 1"),
        ("augment", "contrast", [1.1, 1.5], "augment.contrast must enclose 1"),
        ("augment", "gamma", [-0.5, 2], "augment.gamma must be positive and rise"),
        ("augment", "gamma", [1.5, 2], "augment.gamma must enclose 1"),
        ("augment", "brightness", [0, 2], "augment.brightness must be positive and rise"),
        ("augment", "blur_sigma", [0, 1.3], "augment.blur_sigma must be positive and rise"),
        ("augment", "blur_sigma", [1.3, 0.7], "augment.blur_sigma must be positive and rise"),
        ("data", "background_values", [3, 7], "background_values: 7 is also a class"),
        ("data", "ignore_value", 0, "data.ignore_value: should be greater than 0 (got 0)"),
        ("data", "ignore_value", -1, "data.ignore_value: should be greater than 0 (got -1)"),
    ],
)
def test_value_out_of_bounds(section, key, value, part):
    tree = {"data": {"classes": {"a": 7}}, **MINIMAL}
    message = problems_of({**tree, section: {**tree.get(section, {}), key: value}})
    assert message.startswith(f"mine.yaml: {part}")
    assert ";" not in message.replace("also a class;", "")


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"steps": 1, "crop": [32, 32], "seed": 2**63 - 1}, "method": {"patch": 4}},
        {**MINIMAL, "model": {"messenger_dropout": 0, "head_dropout": 0.99, "drop_path": 0}},
        {**MINIMAL, "augment": {"zoom": [1, 1], "contrast": [0.1, 1], "blur_sigma": [1, 1], "brightness": [2, 3]}},
        {**MINIMAL, "method": {"unlabeled_weight": 0, "consistency_weight": 0}},
    ],
)
def test_value_at_its_bound(tree):
    assert preset_from_dict(tree, "mine.yaml")


def test_loss_without_any_weight():
    weights = dict.fromkeys(("labeled_weight", "unlabeled_weight", "consistency_weight"), 0)
    assert "method.consistency_weight are all 0: raise one" in problems_of({**MINIMAL, "method": weights})


@pytest.mark.parametrize("name", ["a/b", "../a", "/a", "a\\b", "..", ""])
def test_name_that_is_no_file_name(name):
    assert "name must be a plain file name without a slash" in problems_of({**MINIMAL, "name": name})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "text\n"])
def test_file_that_is_no_preset(tmp_path, text):
    path = write_preset(tmp_path / "broken.yaml", text)
    with pytest.raises(PresetError, match=r"broken\.yaml"):
        load_preset(path)


def test_missing_preset_file(tmp_path):
    with pytest.raises(PresetError, match=r"absent\.yaml: cannot be read as a preset \(No such file or directory\)"):
        load_preset(str(tmp_path / "absent.yaml"))


def test_set_reads_values_as_yaml():
    preset = load_preset(
        "laseg-5",
        [
            "train.lr=1e-2",
            "model.messenger_stages=[]",
            "train.mixed_precision=no",
            "train.epochs=null",
            "train.steps=9",
        ],
    )
    assert (preset.train.lr, preset.model.messenger_stages, preset.train.mixed_precision) == (0.01, (), "no")
    assert (preset.train.epochs, preset.train.steps) == (None, 9)


@pytest.mark.parametrize("override", ["train.steps", "=5", "train.crop.height=5", "train.steps=[", "name.x=1"])
def test_set_that_cannot_be_applied(override):
    with pytest.raises(PresetError, match=r"--set"):
        load_preset("laseg-5-cpu", [override])


def test_data_config_travels_alone():
    data = load_preset("synapse-20").data
    assert data_config_from_dict(data_config_to_dict(data), "manifest.json") == data


def test_class_order_is_that_of_the_preset():
    preset: Preset = load_preset("synapse-20")
    assert preset.data.n_classes == 14
    assert preset.data.class_names[:3] == ("spleen", "right kidney", "left kidney")
    assert list(preset.data.classes.values()) == list(range(1, 14))


@pytest.mark.parametrize(
    "change", ["train.seed=true", "train.lr=true", "train.steps=2.5", "train.crop=[true, 64]", "method.l2u=7"]
)
def test_values_of_another_type_are_refused(change):
    key = change.partition("=")[0]
    with pytest.raises(PresetError, match=rf"{key}.*: .*\(got "):
        load_preset("laseg-5-cpu", [change])


@pytest.mark.parametrize("name", resources.preset_names())
def test_a_store_of_each_preset_can_be_read_again(name):
    data = load_preset(name).data
    assert data_config_from_dict(data_config_to_dict(data), name) == data
