"""Export: a folder to share, an ONNX file that carries its preprocessing, and the authors' checkpoints."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
import yaml
from models import small_network, small_preset
from scans import write_nifti
from stores import make_store, scan, tiny_preset
from test_network import HERE, N_CLASSES, TINY
from torch._export.verifier import SpecViolationError
from typer.testing import CliRunner

from sdm_cli import __version__
from sdm_cli.cli import app
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.errors import CheckpointError, OutputError, SdmError, StoreError
from sdm_cli.method.card import metadata
from sdm_cli.method.checkpoint import load_model, load_resume, save_model, weights_sha256
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.preset_files import preset_from_dict, preset_to_dict
from sdm_cli.runs import export as runs_export
from sdm_cli.runs import onnx_export
from sdm_cli.runs.evaluate import evaluate_predictions
from sdm_cli.runs.export import export_model, import_authors_model, push_to_hub
from sdm_cli.runs.export_cost import cost_on_cases
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.metrics import count_case, mean_defined
from sdm_cli.runs.predict import predict
from sdm_cli.runs.predictor import SUFFIXES, load_predictor
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.request import Request
from sdm_cli.runs.torch_model import network_predictor

GOLDEN = HERE / "golden" / "model.npz"
REAL = HERE.parents[1] / "shared" / "data" / "nifti" / "mr.nii.gz"
PRESET = small_preset({"liver": 1, "spleen": 7, "aorta": 5}, slice_axis="coronal")


@pytest.fixture(scope="module")
def network():
    return small_network(PRESET)


@pytest.fixture(scope="module")
def run(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_model(folder / "checkpoints" / "best", network, PRESET, resume=({"x": torch.ones(1)}, {"step": 1}))
    return folder


def once(function):
    """The function, called at most once: later calls get what the first one returned."""
    results = []

    def called(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return called


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Slices of two scans as the model wants them, one of them labeled."""
    folder = tmp_path_factory.mktemp("store")
    for seed, name in enumerate(("a", "b")):
        image, label = scan(seed)
        write_nifti(folder / "images" / f"{name}.nii.gz", image)
        if name == "a":
            write_nifti(folder / "labels" / f"{name}.nii.gz", np.array([0, 1, 7], np.uint8)[label])
    return preprocess(folder / "images", folder / "labels", PRESET, folder / "store")


@pytest.fixture(scope="module")
def files(tmp_path_factory, run, store):
    """Every file that these tests read, by the command line; traced and converted once, since that takes seconds."""
    folder = tmp_path_factory.mktemp("files")
    files = {"torch": folder / "model.pt2", "float32": folder / "model.onnx"}
    files |= {precision: folder / f"{precision}.onnx" for precision in ("float16", "int8")}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((runs_export, "trace"), (onnx_export, "_converted")):
            patch.setattr(module, name, once(getattr(module, name)))
        for precision, path in files.items():
            options = [] if precision in files.keys() & {"torch", "float32"} else ["--precision", precision]
            options += ["--store", str(store)] if precision == "int8" else []
            result = CliRunner().invoke(app, ["export", str(run), "-o", str(path), *options])
            assert result.exit_code == 0, result.output
    return files


def write_preset(path, preset):
    path.write_text(json.dumps(preset_to_dict(preset)))  # JSON is YAML
    return path


# ---- folder ----


def test_folder_holds_the_model_without_the_state_of_training(run, tmp_path, network):
    assert export_model(run, tmp_path / "out" / "model", "folder") == tmp_path / "out" / "model"
    loaded, preset = load_model(tmp_path / "out" / "model")
    assert preset == PRESET
    assert torch.equal(loaded.backbone.norm1.weight, network.backbone.norm1.weight)
    with pytest.raises(CheckpointError, match="without resume state"):
        load_resume(tmp_path / "out" / "model")


@pytest.mark.parametrize("form", ["folder", "onnx"])
def test_existing_output_is_kept_unless_told(run, tmp_path, form):
    output = tmp_path / ("model.onnx" if form == "onnx" else "model")
    output.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        export_model(run, output, form)
    with pytest.raises(OutputError, match="--overwrite"):
        import_authors_model(tmp_path / "none.pth", PRESET, output)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("nested", [True, False])
def test_a_checkpoint_with_the_authors_names_gives_the_authors_numbers(tmp_path, monkeypatch, nested):
    """The golden weights and logits, through the whole of `sdm export --from-authors`."""
    with np.load(GOLDEN) as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files}
    state = {f"module.{name[3:]}": value for name, value in golden.items() if name.startswith("sd/")}
    torch.save({"model": state, "epoch": 3} if nested else state, tmp_path / "best.pth")
    monkeypatch.setitem(ENCODER_SIZES, "mit-b0", TINY)
    preset = preset_to_dict(small_preset({f"organ {k}": k for k in range(1, N_CLASSES)}, stages=(1, 2, 3, 4)))
    preset["model"]["head_width"] = 64
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset))
    words = ["export", "--from-authors", f"{tmp_path}/best.pth", "--preset", f"{tmp_path}/tiny.yaml"]
    result = CliRunner().invoke(app, [*words, "-o", f"{tmp_path}/model"])
    assert result.exit_code == 0, result.output
    network, _ = load_model(tmp_path / "model")
    with torch.no_grad():
        logits = network.double().predict((golden["in/eval3"][:1].float() / 255).double())
    torch.testing.assert_close(logits[..., ::2, ::2], golden["out64/eval1"], rtol=0, atol=1e-10)


def test_folder_is_replaced_when_told_but_never_by_itself(run, tmp_path):
    for _ in range(2):
        export_model(run, tmp_path / "model", "folder", overwrite=True)
    with pytest.raises(OutputError, match="model itself"):
        export_model(run, run / "checkpoints" / "best", "folder", overwrite=True)
    assert load_resume(run / "checkpoints" / "best")[1] == {"step": 1}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not a model"):
        export_model(run, tmp_path / "other", "folder", overwrite=True)


def test_missing_model_is_named(tmp_path):
    for form in ("folder", "onnx"):
        with pytest.raises(CheckpointError, match="no such run or model"):
            export_model(tmp_path / "nothing", tmp_path / "model.onnx", form)


# ---- files ----


@pytest.fixture(scope="module")
def onnx_file(files):
    return files["float32"]


def test_a_file_is_alone_with_its_comparison(files):
    folder = files["torch"].parent
    assert {path.name for path in folder.iterdir()} == {
        name for path in files.values() for name in (path.name, f"{path.name}.json")
    }


def test_metadata_is_all_that_prediction_needs(files, run):
    proto = onnx.load(files["float32"])
    onnx.checker.check_model(proto)
    extra = {"sdm.json": ""}
    torch.export.load(files["torch"], extra_files=extra)
    for facts in ({entry.key: entry.value for entry in proto.metadata_props}, json.loads(extra["sdm.json"])):
        assert facts["format"] == "sdm-model"
        assert facts["version"] == "1"
        assert facts["orientation"] == "RAS"
        assert facts["slice_axis"] == "coronal"
        assert json.loads(facts["pad_end"]) == {"zeros_to_height_width": [32, 32], "border_to_multiple": 32}
        assert json.loads(facts["label_values"]) == {"liver": 1, "spleen": 7, "aorta": 5}
        assert json.loads(facts["normalize"])["scale"] == "slice"
        assert facts["weights_sha256"] == weights_sha256(run / "checkpoints" / "best")
        assert preset_from_dict(json.loads(facts["preset"]), "metadata") == PRESET


@pytest.fixture(scope="module")
def predictors(files):
    """Of each file; to put a program together takes seconds."""
    return {form: load_predictor(path, "cpu") for form, path in files.items()}


@pytest.mark.parametrize(("form", "bound"), [("torch", 1e-6), ("float32", 1e-4), ("float16", 2e-2), ("int8", 1)])
def test_any_batch_and_size_gives_the_logits_of_the_network(predictors, network, form, bound):
    predictor = predictors[form]
    assert predictor.preset == PRESET
    for shape in ((1, 1, 32, 32), (1, 1, 160, 96), (2, 1, 96, 128), (7, 1, 32, 64)):
        images = torch.rand(shape)
        with torch.inference_mode():
            expected = network.predict(images).numpy()
        logits = np.asarray(predictor.forward(images.numpy()))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)


def test_side_file_tells_what_was_measured(files):
    reports = {form: json.loads(path.with_name(f"{path.name}.json").read_text()) for form, path in files.items()}
    for form, report in reports.items():
        assert report["precision"] == ("float32" if form == "torch" else form)
        assert {entry["size"][0] for entry in report["compared"]} >= {1, 2, 3}
        assert report["max_difference"] == max(entry["max_difference"] for entry in report["compared"])
    worst = {form: report["max_difference"] for form, report in reports.items()}
    assert worst["torch"] <= worst["float32"] < 1e-4 < worst["float16"] < worst["int8"]
    assert all(entry["equal_classes"] > 0.999 for entry in reports["float32"]["compared"])


def test_smaller_precision_is_smaller(files):
    size = {form: path.stat().st_size for form, path in files.items()}
    assert size["int8"] < size["float16"] < 0.6 * size["float32"]


def test_side_file_tells_the_cost_on_real_cases(files, network, store):
    cases = json.loads(files["int8"].with_name("int8.onnx.json").read_text())["cases"]
    assert cases["per_case"].keys() == {"a", "b"}
    assert cases["per_case"]["b"]["dice"] is None
    assert 0.5 < cases["mean"]["agreement"] < 1
    slices = open_store(store)
    mask = predict_slices(network_predictor(network, PRESET, torch.device("cpu")), slices.image_volume("a")).mask
    counts = count_case(mask, slices.label_volume("a"), 4)
    assert cases["mean"]["dice_of_network"] == pytest.approx(mean_defined(count.dice for count in counts[1:]))


def test_the_dice_of_a_cost_is_that_of_the_masks_of_predict(tmp_path):
    """On the scans' own grid, the largest part alone."""
    preset = tiny_preset(data={"grid": {"spacing_mm": [1.7, 1.3]}}, predict={"largest_part": ["ball"]})
    slices = SliceStore(make_store(tmp_path, preset, n_labeled=2, n_unlabeled=0))
    save_model(tmp_path / "model", small_network(preset), preset)
    network = load_predictor(tmp_path / "model", "cpu")
    cost = cost_on_cases(network, network, slices)
    predict(Request(tmp_path / "images", tmp_path / "masks", tmp_path / "model", "cpu"))
    scores = evaluate_predictions(tmp_path / "masks", tmp_path / "labels", preset)["metric_per_case"]
    for case in scores:
        dice = [entry["Dice"] for entry in case["metrics"].values()]
        assert cost["per_case"][case["case_id"]] == {
            "agreement": 1.0,
            "dice": pytest.approx(np.mean(dice)),
            "dice_of_network": pytest.approx(np.mean(dice)),
        }
    assert len(scores) == 2 and cost["mean"]["dice"] > 0


def test_cases_of_other_slices_are_refused_before_the_work(run, tmp_path):
    store = make_store(tmp_path, n_unlabeled=0)
    with pytest.raises(StoreError, match="slice_axis is axial, not coronal"):
        export_model(run, tmp_path / "out" / "model.onnx", "onnx", store=store)
    assert not (tmp_path / "out").exists()


def test_what_cannot_become_a_file_is_known_before_weights_are_read(run, tmp_path):
    model = shutil.copytree(run, tmp_path / "run")
    (model / "checkpoints" / "best" / "model.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="nowhere"):
        export_model(model, tmp_path / "out" / "model.onnx", "onnx", store=tmp_path / "nowhere")
    (tmp_path / "model.pt2.json").write_text("mine")
    with pytest.raises(OutputError, match=r"model\.pt2\.json exists"):
        export_model(model, tmp_path / "model.pt2", "torch")
    with pytest.raises(SdmError, match="'clinic' is no name of a model on the hub"):
        push_to_hub(tmp_path / "nowhere", "clinic")
    assert not (tmp_path / "out").exists() and not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("name", "near"), [("m.onx", "m.onnx"), ("m.ONNX", "m.onnx"), ("m.pt", "m.pt2"), ("m.pth", "m.pt2")]
)
def test_a_mistyped_suffix_is_no_folder(run, tmp_path, name, near):
    words = ["export", str(run), "-o", str(tmp_path / name)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and near in result.stderr and "--format folder" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(app, [*words, "--format", "folder"]).exit_code == 0
    assert CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "liver.v2")]).exit_code == 0
    assert (tmp_path / name).is_dir() and (tmp_path / "liver.v2").is_dir()


@pytest.mark.parametrize("form", ["float32", "torch"])
def test_info_tells_what_an_exported_file_is(files, run, tmp_path, form):
    def info(*words):
        return CliRunner().invoke(app, ["info", *map(str, words)])

    told, model = (json.loads(info(path, "--json").stdout) for path in (files[form], run / "checkpoints" / "best"))
    assert told == {**model, "model": str(files[form]), "chosen_on": None} and told["sdm_version"] == __version__
    assert "chosen on    not known" in info(files[form]).stdout
    damaged = tmp_path / files[form].name
    damaged.write_bytes(files[form].read_bytes()[:100])
    result = info(damaged)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and str(damaged) in result.stderr


def test_scores_of_a_file_name_the_weights_that_it_was_made_of(files, run, store, tmp_path):
    """An exported file knows its preset, whose split says who is scored."""
    split = tmp_path / "split.yaml"
    split.write_text("labeled: [b]\nunlabeled: [c]\ntest: [a]\n")
    proto = onnx.load(files["float32"])
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    preset = preset_to_dict(replace(PRESET, data=replace(PRESET.data, split=str(split))))
    onnx.helper.set_model_props(proto, {**facts, "preset": json.dumps(preset)})
    onnx.save(proto, tmp_path / "model.onnx")
    words = ["evaluate", str(tmp_path / "model.onnx"), "--store", str(store), "-d", "cpu", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "model-evaluation" / "test" / "summary.json").read_text())
    assert summary == json.loads(result.stdout) and summary["split"]["cases"] == ["a"]
    assert summary["weights_sha256"] == weights_sha256(run / "checkpoints" / "best")
    assert summary["protocol"]["checkpoint_chosen_on"] is None  # which a file does not tell


def test_files_hold_no_path_of_the_machine_that_made_them(files):
    here = str(HERE.parent).encode()
    for path in files.values():
        content = path.read_bytes()
        assert here not in content
        assert b"tracing.py" not in content


@pytest.mark.parametrize("form", ["float32", "torch"])
def test_prediction_in_a_fresh_process_is_that_of_the_folder(files, run, tmp_path, form):
    """ONNX without torch: importing it raises there."""
    image = np.random.default_rng(0).normal(size=(37, 9, 50))
    write_nifti(tmp_path / "scans" / "a.nii.gz", image, np.diag([-1, 2, 1, 1.0]))
    predict(Request(tmp_path / "scans", tmp_path / "folder", run, "cpu"))
    script = "import sys; sys.modules['torch'] = None; " if form == "float32" else ""
    words = ["predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "file"), "--model", str(files[form])]
    script += f"import sys; sys.argv = ['sdm', *{words}, '-d', 'cpu']; from sdm_cli.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    masks = [np.asanyarray(nib.load(tmp_path / kind / "a.nii.gz").dataobj) for kind in ("folder", "file")]
    assert len(np.unique(masks[0])) > 2
    assert (masks[0] != masks[1]).mean() < 1e-3  # ties alone


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/nifti")
@pytest.mark.parametrize("form", ["torch", "float32", "float16", "int8"])
def test_mask_of_a_real_scan_is_that_of_the_folder(files, run, tmp_path, form):
    predict(Request(REAL, tmp_path / "folder", run, "cpu"))
    predict(Request(REAL, tmp_path / "file", files[form], "cpu"))
    masks = [np.asanyarray(nib.load(tmp_path / kind / "mr.nii.gz").dataobj) for kind in ("folder", "file")]
    assert len(np.unique(masks[0])) > 2
    assert (masks[0] != masks[1]).mean() < {"torch": 1e-4, "float32": 1e-4, "float16": 0.01, "int8": 0.2}[form]


@pytest.mark.parametrize("form", ["torch", "float32", "float16", "int8"])
def test_a_slice_gets_its_classes_whatever_the_batch(files, form):
    slices = np.random.default_rng(0).integers(0, 65536, (6, 96, 80)).astype(np.uint16)
    slices //= np.array([1, 2, 4, 8, 16, 1], np.uint16)[:, None, None]
    predictor = load_predictor(files[form], "cpu")
    alone = predict_slices(predictor, slices, batch_size=1)
    for batch_size in (2, 6):
        found = predict_slices(predictor, slices, batch_size)
        np.testing.assert_array_equal(found.mask, alone.mask)
        assert found.confidence == alone.confidence


def test_integers_have_the_scale_of_each_slice_alone(files):
    """While onnxruntime takes one from all the images that it is given."""
    images = np.random.default_rng(0).random((3, 1, 32, 32), np.float32) * np.float32([[[[1]]], [[[0.1]]], [[[0.01]]]])
    forward = load_predictor(files["int8"], "cpu").forward
    np.testing.assert_array_equal(forward(images), np.concatenate([forward(image[None]) for image in images]))


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_file_that_computes_something_else_is_not_written(files, tmp_path, monkeypatch, form):
    """As if the exporter had lost weights: what it saves is the file of another network."""
    monkeypatch.setattr(runs_export, "trace", lambda network, output: None)
    source = files["float32" if form == "onnx" else form]
    monkeypatch.setattr(runs_export, "save_onnx", lambda program, facts, path, *rest: shutil.copy(source, path))
    monkeypatch.setattr(runs_export, "save_program", lambda program, facts, path: shutil.copy(source, path))
    save_model(tmp_path / "model", small_network(PRESET, seed=5), PRESET)
    with pytest.raises(CheckpointError, match=r"differ from PyTorch's by .* \(allowed 0.001\)"):
        export_model(tmp_path / "model", tmp_path / "out" / f"model{SUFFIXES[form]}", form)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("ruin", [np.nan, np.inf, -100.0])
def test_a_rounded_file_that_says_nothing_any_more_is_not_written(files, run, tmp_path, monkeypatch, ruin):
    """As if weights had left the range of float16."""
    ruined = replace(
        load_predictor(files["float32"], "cpu"),
        forward=lambda images: np.full((len(images), 4, *images.shape[2:]), ruin, np.float32),
    )
    monkeypatch.setattr(runs_export, "trace", lambda network, output: None)
    monkeypatch.setattr(runs_export, "save_onnx", lambda program, facts, path, *rest: path.touch())
    monkeypatch.setattr(runs_export, "open_onnx", lambda path, device: ruined)
    with pytest.raises(CheckpointError, match=r"differ from PyTorch's by"):
        export_model(run, tmp_path / "out" / "model.onnx", "onnx", precision="float16")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("failure", ["fixed size", "error"])
def test_a_network_that_cannot_be_converted_is_not_written(run, tmp_path, monkeypatch, failure):
    def export(*args, **kwargs):
        if failure == "error":
            raise torch.onnx.OnnxExporterError("no such operator\nand much more")
        value = SimpleNamespace(shape=(2, 1, 384, 512))
        return SimpleNamespace(model=SimpleNamespace(graph=SimpleNamespace(inputs=[value])))

    monkeypatch.setattr(runs_export, "trace", lambda network, output: None)
    monkeypatch.setattr("torch.onnx.export", export)
    with pytest.raises(CheckpointError, match="cannot trace the network") as caught:
        export_model(run, tmp_path / "out" / "model.onnx", "onnx")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_files_need_their_suffix_and_their_extra(run, tmp_path, monkeypatch):
    for form in ("onnx", "torch"):
        with pytest.raises(OutputError, match=rf"ends in \{SUFFIXES[form]}"):
            export_model(run, tmp_path / "model", form)
        with pytest.raises(OutputError, match="names a file"):
            export_model(run, tmp_path / f"model{SUFFIXES[form]}", "folder")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "onnx" else None)
    with pytest.raises(SdmError, match=r"ONNX needs onnxruntime, onnxscript: .*sdm-cli\[onnx\]"):
        export_model(run, tmp_path / "model.onnx", "onnx")
    with pytest.raises(SdmError, match=r"ONNX needs onnxruntime: .*sdm-cli\[onnx\]"):
        load_predictor(tmp_path / "model.onnx")


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "newer", "preset"])
def test_onnx_files_that_cannot_serve_are_refused(onnx_file, tmp_path, damage):
    path = tmp_path / "model.onnx"
    if damage == "truncated":
        path.write_bytes(onnx_file.read_bytes()[:20_000])
    elif damage == "text":
        path.write_text("no model")
    else:
        proto = onnx.load(onnx_file)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        changes = {"foreign": {"format": "other"}, "newer": {"version": "2"}, "preset": {"preset": '{"modle": 1}'}}
        onnx.helper.set_model_props(proto, metadata | changes[damage])
        onnx.save(proto, path)
    reason = {"foreign": "not a file of `sdm export`", "newer": "newer sdm", "preset": "unknown key modle"}
    with pytest.raises(CheckpointError, match=reason.get(damage, "cannot be read as ONNX")) as caught:
        load_predictor(path)
    assert "model.onnx" in str(caught.value)


# ---- a .pt2 file of a stranger ----


def rewritten(source, path, changes):
    """A copy of a .pt2 file; `changes` map the end of an entry's name to what makes its new content, or add entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            change = next((change for end, change in changes.items() if entry.filename.endswith(end)), None)
            new.writestr(entry.filename, old.read(entry) if change is None else change(old.read(entry)))
    return path


def json_change(change):
    def changed(content):
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return changed


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def first_weight_is_pickled(tree):
    next(iter(tree["config"].values()))["use_pickle"] = True


def a_node_calls(target):
    return lambda tree: tree["graph_module"]["graph"]["nodes"][0].update(target=target)


def expression(text):
    return lambda tree: tree["graph_module"]["graph"]["sym_int_values"].update(
        x={"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
    )


@pytest.mark.parametrize(
    ("entry", "change", "named"),
    [
        ("model_weights_config.json", first_weight_is_pickled, "a pickle"),
        ("models/model.json", a_node_calls("torch.os.system"), "torch.os.system"),
        ("models/model.json", a_node_calls("torch.ops.aten.from_file.default"), "from_file"),
        ("models/model.json", expression("__import__('os').system('true')"), "__import__"),
        # Towers of powers would be computed for ever, and so would a pattern that tries each digit in two ways.
        ("models/model.json", expression("Pow(Integer(3), Integer(400000000))"), "Pow"),
        ("models/model.json", expression("Pow(Pow(Integer(9), Integer(9)), Integer(9))"), "Pow"),
        ("models/model.json", expression("1" * 60 + "!"), "111"),
        ("models/model.json", expression("(" * 5000 + ")" * 5000), "((("),
        ("models/model.json", lambda tree: tree["graph_module"]["graph"]["nodes"][0].update({"a b": 1}), "a b"),
    ],
)
def test_what_could_run_code_is_refused(files, tmp_path, entry, change, named):
    path = rewritten(files["torch"], tmp_path / "model.pt2", {entry: json_change(change)})
    with pytest.raises(CheckpointError, match=re.escape(named)) as caught:
        load_predictor(path, "cpu")
    assert "model.pt2: refused" in str(caught.value)


def test_a_pickle_in_the_place_of_a_weight_is_not_opened(files, tmp_path):
    """While `torch.export.load` opens it."""
    buffer = io.BytesIO()
    torch.save(Bomb(tmp_path / "exploded"), buffer)
    changes = {
        "model_weights_config.json": json_change(first_weight_is_pickled),
        "/weight_0": lambda content: buffer.getvalue(),
    }
    path = rewritten(files["torch"], tmp_path / "model.pt2", changes)
    with pytest.raises(CheckpointError, match="refused"):
        load_predictor(path, "cpu")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(SpecViolationError):
        torch.export.load(path)
    assert (tmp_path / "exploded").exists()


def test_samples_and_conditions_of_a_file_are_left_unread(files, tmp_path):
    """They are of no use here: the pickle of samples is not opened, the conditions are not evaluated."""
    buffer = io.BytesIO()
    torch.save(Bomb(tmp_path / "exploded"), buffer)
    condition = f"open({str(tmp_path / 'exploded')!r}, 'w')"
    changes = {
        "sample_inputs/model.pt": lambda content: buffer.getvalue(),
        "models/model.json": json_change(lambda tree: tree.update(guards_code=[condition])),
    }
    predictor = load_predictor(rewritten(files["torch"], tmp_path / "model.pt2", changes), "cpu")
    assert predictor.forward(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 4, 32, 32)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("classes", [{"a": 1}, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}])
def test_a_program_of_other_classes_than_it_names_is_a_sentence(files, tmp_path, classes):
    def other_preset(facts):
        facts.update(metadata(small_preset(classes), "0" * 64))

    path = rewritten(files["torch"], tmp_path / "model.pt2", {"sdm.json": json_change(other_preset)})
    with pytest.raises(CheckpointError, match=r"model\.pt2: its graph is not that of the preset it names; export"):
        predict_slices(load_predictor(path, "cpu"), np.zeros((2, 32, 32), np.uint16))


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "newer", "compressed", "library", "missing"])
def test_programs_that_cannot_serve_are_refused(files, tmp_path, damage):
    path = tmp_path / "model.pt2"
    if damage == "truncated":
        path.write_bytes(files["torch"].read_bytes()[:20_000])
    elif damage == "text":
        path.write_text("no model")
    elif damage in ("foreign", "newer"):
        change = {"foreign": {"format": "other"}, "newer": {"version": "2"}}[damage]
        rewritten(files["torch"], path, {"sdm.json": json_change(lambda tree: tree.update(change))})
    elif damage != "missing":
        rewritten(files["torch"], path, {})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED) as file:
            name = "data/weights/weight_999" if damage == "compressed" else "data/aotinductor/model/x.so"
            file.writestr(f"model/{name}", b"0" * 9)
    reason = {"foreign": "not a file of `sdm export`", "newer": "newer sdm", "missing": "No such file"}
    reason |= {"truncated": "damaged, or no program", "text": "damaged, or no program", "library": r"x\.so"}
    with pytest.raises(CheckpointError, match=reason.get(damage, "refused")) as caught:
        load_predictor(path, "cpu")
    assert "model.pt2" in str(caught.value)


# ---- checkpoints of the authors ----


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoint_of_the_authors_predicts_the_same_numbers(tmp_path, network, prefix, key):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3, "best": np.float64(0.5)}, tmp_path / "best.pth")
    import_authors_model(tmp_path / "best.pth", PRESET, tmp_path / "model")
    loaded, preset = load_model(tmp_path / "model")
    assert preset == PRESET
    images = torch.rand(2, 1, 64, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.predict(images), network.predict(images))


def test_checkpoint_of_other_classes_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "best.pth")
    with pytest.raises(CheckpointError, match="4 classes with the background, while the preset small has 3"):
        import_authors_model(tmp_path / "best.pth", small_preset(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- command ----


def test_command_exports_a_folder_and_imports_a_checkpoint(run, tmp_path, network):
    runner = CliRunner()
    result = runner.invoke(app, ["export", str(run), "-o", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert runner.invoke(app, ["export", str(run), "-o", str(tmp_path / "f.onnx"), "--format", "folder"]).exit_code == 1
    assert str(tmp_path / "model") in result.stdout
    torch.save(network.state_dict(), tmp_path / "best.pth")
    preset = write_preset(tmp_path / "mine.yaml", PRESET)
    command = ["export", "--from-authors", str(tmp_path / "best.pth"), "--preset", str(preset), "-o"]
    result = runner.invoke(app, [*command, str(tmp_path / "imported")])
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "imported")[1] == PRESET
    result = runner.invoke(app, [*command, str(tmp_path / "imported")])
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr


@pytest.mark.parametrize(
    "words",
    [["m", "--precision", "int8"], ["m.pt2", "--precision", "float16"], ["m", "--store", "stores/liver"]],
)
def test_options_that_do_not_fit_the_form_are_refused(run, tmp_path, words):
    result = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / words[0]), *words[1:]])
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
