"""Model folders: what is written comes back, a kill or a full disk loses nothing, nothing read runs code."""

import json
import os
import pickle
import resource
from dataclasses import replace

import pytest
import torch
from models import small_network, small_preset
from torch import nn

from sdm_cli.config import PredictConfig
from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.method.checkpoint import (
    has_model,
    is_model_folder,
    load_model,
    load_resume,
    network_from_state,
    save_model,
    weights_sha256,
)
from sdm_cli.method.tensors import load_state

PRESET = small_preset()


class Killed(BaseException):
    """Stands for a kill: nothing in the program may catch it."""


class Payload:
    """A pickle that would run code when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def network():
    return small_network(PRESET)


@pytest.fixture
def model(tmp_path, network):
    folder = tmp_path / "runs" / "best"
    save_model(folder, network, PRESET)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_says_of_which_classes_it_keeps_the_largest_part(tmp_path):
    preset = replace(small_preset(), predict=PredictConfig(largest_part=("liver",), bridge_mm=3))
    save_model(tmp_path / "model", small_network(preset), preset)
    assert "largest part is kept of liver; a bridge of up to 3 mm" in (tmp_path / "model/README.md").read_text()
    preprocessor = json.loads((tmp_path / "model/preprocessor_config.json").read_text())
    assert (preprocessor["largest_part"], preprocessor["bridge_mm"]) == (["liver"], 3)
    assert load_model(tmp_path / "model")[1] == preset


def test_model_comes_back(model, network):
    loaded, preset = load_model(model)
    assert preset == PRESET
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    image = torch.rand(1, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(loaded.predict(image), network.predict(image))


def test_folder_says_what_a_stranger_must_know(model):
    assert {path.name for path in model.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads((model / "config.json").read_text())
    assert (config["format"], config["version"]) == ("sdm-model", 1)
    assert config["classes"] == ["liver", "spleen"]
    assert config["n_classes"] == 3
    assert config["weights_sha256"] == weights_sha256(model)
    preprocessor = json.loads((model / "preprocessor_config.json").read_text())
    assert preprocessor["orientation"] == "RAS"
    assert preprocessor["slice_axis"] == "axial"
    assert preprocessor["pad_end"] == {"zeros_to_height_width": [32, 32], "border_to_multiple": 32}
    assert preprocessor["label_values"] == {"liver": 1, "spleen": 7}
    card = (model / "README.md").read_text()
    assert "spleen | 7" in card
    assert "clean" in card
    assert "random weights" in card


def test_card_tells_the_licence_of_pretrained_weights(tmp_path, network):
    preset = small_preset()
    preset = replace(preset, model=replace(preset.model, pretrained="nvidia/mit-b0-never-there"))
    save_model(tmp_path / "m", network, preset)
    assert "non-commercial" in (tmp_path / "m" / "README.md").read_text()
    load_model(tmp_path / "m")  # and does not look for the weights


def test_files_have_the_usual_permissions(model):
    modes = {path.stat().st_mode for path in model.iterdir()}
    assert len(modes) == 1


def test_loading_draws_no_random_numbers(model):
    before = torch.get_rng_state()
    load_model(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_averaged_and_strided_states_are_saved(tmp_path, network):
    strided = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in network.state_dict().items()
    }
    save_model(tmp_path / "m", strided, PRESET)
    assert torch.equal(
        load_model(tmp_path / "m")[0].backbone.patch_embed1.proj.weight, network.backbone.patch_embed1.proj.weight
    )


def test_resume_state_travels_with_the_model(tmp_path, network):
    tensors = {"momentum.0": torch.arange(6.0).view(2, 3).t(), "weights": torch.ones(3, dtype=torch.float64)}
    save_model(tmp_path / "last", network, PRESET, resume=(tensors, {"step": 12, "best": None}))
    found, values = load_resume(tmp_path / "last")
    assert values == {"step": 12, "best": None}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    save_model(tmp_path / "last", network, PRESET)
    with pytest.raises(CheckpointError, match="without resume state"):
        load_resume(tmp_path / "last")


def test_replacing_leaves_one_folder(model, network):
    other = small_network(PRESET, seed=1)
    save_model(model, other, PRESET)
    assert torch.equal(load_model(model)[0].backbone.norm4.weight, other.backbone.norm4.weight)
    assert [path.name for path in model.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_while_replacing_leaves_a_whole_model(model, monkeypatch, moment):
    """Killed before the first rename, between the two, and before the old model is deleted."""
    old, new = load_model(model)[0], small_network(PRESET, seed=1)
    renames = []

    def rename(path, target):
        if len(renames) == moment:
            raise Killed
        renames.append(path)
        path.replace(target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", rename)
        if moment == 2:
            patch.setattr("sdm_cli.method.checkpoint.shutil.rmtree", lambda path, **_: renames and exit_on_old(path))
        with pytest.raises(Killed):
            save_model(model, new, PRESET)
    assert has_model(model)
    expected = new if moment == 2 else old
    assert torch.equal(load_model(model)[0].backbone.block1[0].attn.q.weight, expected.backbone.block1[0].attn.q.weight)
    save_model(model, new, PRESET)  # the next one clears up
    assert [path.name for path in model.parent.iterdir()] == ["best"]
    assert torch.equal(load_model(model)[0].backbone.block1[0].attn.q.weight, new.backbone.block1[0].attn.q.weight)


def exit_on_old(path):
    if path.exists() and path.name.endswith(".old"):
        raise Killed


def test_a_full_disk_keeps_the_old_model(model, network):
    before = weights_sha256(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save_model(model, small_network(PRESET, seed=1), PRESET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert weights_sha256(model) == before
    load_model(model)
    assert [path.name for path in model.parent.iterdir()] == ["best"]


def test_other_folders_are_not_replaced(tmp_path, network):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(OutputError, match="not a model"):
        save_model(other, network, PRESET)
    assert [path.name for path in other.iterdir()] == ["config.json"]
    assert not is_model_folder(other)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_model(tmp_path / "file", network, PRESET)
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tmp_path / "file" / "below", network, PRESET)


def test_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model here"):
        load_model(tmp_path / "nothing")
    (tmp_path / "file.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="--from-authors"):
        load_model(tmp_path / "file.pth")


def test_newer_version_is_refused(model):
    edit_config(model, version=2)
    with pytest.raises(CheckpointError, match="newer sdm"):
        load_model(model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "other"}, "not the configuration"),
        ({"version": None}, "version"),
        ({"preset": None}, "preset is missing"),
        ({"preset": {"modle": {}}}, "unknown key modle"),
        ({"classes": ["liver"]}, "classes differ"),
        ({"weights_sha256": "0"}, "copy the whole model folder again"),
    ],
)
def test_damaged_configuration_is_refused(model, changes, reason):
    edit_config(model, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_model(model)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_configuration_that_is_no_json_is_refused(model, text):
    (model / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="JSON"):
        load_model(model)


def test_truncated_weights_are_refused(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(model)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(model)


def test_model_of_other_classes_is_refused(model, network):
    other = small_preset({"liver": 1, "spleen": 7, "aorta": 8})
    with pytest.raises(CheckpointError, match=r"3 classes with the background.* 4;"):
        network_from_state(network.state_dict(), other, "file")
    edit_config(model, preset=json.loads(json.dumps({"data": {"classes": {"liver": 1}}, "train": {"steps": 1}})))
    with pytest.raises(CheckpointError, match="classes"):
        load_model(model)


def test_model_of_another_network_is_refused(network):
    state = network.state_dict()
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors \(first framework.u2l_module_0"):
        network_from_state(state, small_preset(stages=(1, 4)), "file")
    with pytest.raises(CheckpointError, match=r"has unexpected \d+ tensors \(first framework.u2l_module_3"):
        network_from_state(state, small_preset(stages=()), "file")
    wider = {**state, "framework.decoder.linear_c1.proj.bias": torch.zeros(33)}
    with pytest.raises(CheckpointError, match=r"has other shapes in 1 tensors \(first framework.decoder.linear_c1"):
        network_from_state(wider, PRESET, "file")


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pth", "checkpoint.bin"])
def test_a_pickle_posing_as_a_checkpoint_is_refused_and_not_run(model, tmp_path, name):
    marker = tmp_path / "it-ran"
    folder = model if name.endswith("safetensors") else tmp_path
    (folder / name).write_bytes(pickle.dumps({"model": Payload(marker)}))
    with pytest.raises(CheckpointError, match=name):
        load_model(model) if folder == model else load_state(folder / name)
    if folder == tmp_path:
        torch.save({"model": Payload(marker)}, folder / name)
        with pytest.raises(CheckpointError, match="refused"):
            load_state(folder / name)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken zip", pickle.dumps([1, 2])])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load_state(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_state(tmp_path / "none.pth")


@pytest.mark.parametrize("keys", [(), ("model",), ("state_dict",), ("ema",), ("state_dict", "model")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_of_the_authors_is_found_at_its_usual_places(tmp_path, keys, prefix):
    tree = {f"{prefix}{name}": tensor for name, tensor in nn.Linear(2, 3).state_dict().items()}
    for key in reversed(keys):
        tree = {"epoch": 3, "previous_best": torch.zeros(1).double().numpy()[0], key: tree}
    torch.save(tree, tmp_path / "a.pth")
    assert load_state(tmp_path / "a.pth").keys() == {"weight", "bias"}


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3, "model": {"step": 4}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_state(tmp_path / "a.pth")
