"""Export: a folder to share, an ONNX file that carries its preprocessing, and the authors' checkpoints."""

import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from models import small_network, small_preset
from test_network import HERE, N_CLASSES, TINY
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.errors import CheckpointError, OutputError, SdmError
from sdm_cli.method.checkpoint import load_model, load_resume, save_model, weights_sha256
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.preset_files import preset_from_dict, preset_to_dict
from sdm_cli.runs import export as runs_export
from sdm_cli.runs.export import export_model, import_authors_model
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.predict import predict
from sdm_cli.runs.predictor import load_predictor

GOLDEN = HERE / "golden" / "model.npz"
PRESET = small_preset({"liver": 1, "spleen": 7, "aorta": 5}, slice_axis="coronal")


@pytest.fixture(scope="module")
def network():
    return small_network(PRESET)


@pytest.fixture(scope="module")
def run(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_model(folder / "checkpoints" / "best", network, PRESET, resume=({"x": torch.ones(1)}, {"step": 1}))
    return folder


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, run):
    """The one export of these tests: tracing takes seconds."""
    return export_model(run, tmp_path_factory.mktemp("onnx") / "model.onnx", "onnx")


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


# ---- ONNX ----


def test_onnx_is_one_file_with_all_that_prediction_needs(onnx_file, run):
    assert sorted(path.name for path in onnx_file.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["format"] == "sdm-model"
    assert metadata["version"] == "1"
    assert metadata["orientation"] == "RAS"
    assert metadata["slice_axis"] == "coronal"
    assert metadata["pad_multiple"] == "32"
    assert json.loads(metadata["label_values"]) == {"liver": 1, "spleen": 7, "aorta": 5}
    assert json.loads(metadata["normalize"])["scale"] == "slice"
    assert metadata["weights_sha256"] == weights_sha256(run / "checkpoints" / "best")
    assert preset_from_dict(json.loads(metadata["preset"]), "metadata") == PRESET


def test_onnx_takes_any_batch_and_size(onnx_file, network):
    session = onnxruntime.InferenceSession(str(onnx_file))
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    assert [entry.name for entry in session.get_outputs()] == ["logits"]
    for shape in ((1, 1, 32, 32), (1, 1, 160, 96), (2, 1, 96, 128), (7, 1, 32, 64)):
        images = torch.rand(shape)
        with torch.inference_mode():
            expected = network.predict(images).numpy()
        (logits,) = session.run(None, {"image": images.numpy()})
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_side_file_tells_what_was_measured(onnx_file):
    report = json.loads(onnx_file.with_name("model.onnx.json").read_text())
    assert len(report["compared"]) > 3
    assert {entry["size"][0] for entry in report["compared"]} >= {1, 2, 3}
    assert report["max_difference"] == max(entry["max_difference"] for entry in report["compared"]) < 1e-4
    assert all(entry["equal_classes"] > 0.999 for entry in report["compared"])


def test_prediction_by_onnx_is_that_of_torch(onnx_file, run, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(rng.normal(size=(37, 9, 50)), np.diag([-1, 2, 1, 1.0])), tmp_path / "scans" / "a.nii.gz")
    predict(tmp_path / "scans", tmp_path / "torch", run, "cpu")
    predict(tmp_path / "scans", tmp_path / "onnx", onnx_file, "cpu")
    masks = [np.asanyarray(nib.load(tmp_path / kind / "a.nii.gz").dataobj) for kind in ("torch", "onnx")]
    assert len(np.unique(masks[0])) > 2
    assert (masks[0] != masks[1]).mean() < 1e-3  # ties alone
    slices = rng.integers(0, 65536, (7, 40, 33)).astype(np.uint16)
    predictor = load_predictor(onnx_file)
    alone = predict_slices(predictor, slices, batch_size=1).mask
    for batch_size in (2, 3, 7):
        np.testing.assert_array_equal(predict_slices(predictor, slices, batch_size).mask, alone)


def test_a_file_that_computes_something_else_is_not_written(onnx_file, tmp_path, monkeypatch):
    """As if the exporter had lost weights: what it saves is the file of another network."""
    other = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), save=lambda path, external_data: shutil.copy(onnx_file, path)
    )
    monkeypatch.setattr(runs_export, "_traced", lambda network, output: other)
    save_model(tmp_path / "model", small_network(PRESET, seed=5), PRESET)
    with pytest.raises(CheckpointError, match=r"differ from PyTorch's by .* \(allowed 0.001\)"):
        export_model(tmp_path / "model", tmp_path / "out" / "model.onnx", "onnx")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("failure", ["fixed size", "error"])
def test_a_network_that_cannot_be_traced_is_not_written(run, tmp_path, monkeypatch, failure):
    def export(*args, **kwargs):
        if failure == "error":
            raise torch.onnx.OnnxExporterError("no such operator\nand much more")
        value = SimpleNamespace(shape=(2, 1, 384, 512))
        return SimpleNamespace(model=SimpleNamespace(graph=SimpleNamespace(inputs=[value])))

    monkeypatch.setattr("torch.onnx.export", export)
    with pytest.raises(CheckpointError, match="cannot trace the network") as caught:
        export_model(run, tmp_path / "out" / "model.onnx", "onnx")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_onnx_needs_its_suffix_and_its_extra(run, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"ends in \.onnx"):
        export_model(run, tmp_path / "model", "onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SdmError, match=r"ONNX needs onnxscript: .*sdm-cli\[onnx\]"):
        export_model(run, tmp_path / "model.onnx", "onnx")
    with pytest.raises(SdmError, match=r"sdm-cli\[onnx\]"):
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
    reason = {"foreign": "not an ONNX file of", "newer": "newer sdm", "preset": "unknown key modle"}
    with pytest.raises(CheckpointError, match=reason.get(damage, "cannot be read as ONNX")) as caught:
        load_predictor(path)
    assert "model.onnx" in str(caught.value)


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
    assert runner.invoke(app, ["export", str(run), "-o", str(tmp_path / "m.onnx")]).exit_code == 0
    assert (tmp_path / "m.onnx").is_file()  # told by the name
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
