"""A .onnx file of a stranger, or memory that ends while one runs: a sentence, never a word of onnxruntime's own."""

import sys
from pathlib import Path

import numpy as np
import pytest
from models import small_preset
from onnx_files import write_onnx
from scans import write_nifti
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.errors import CheckpointError, SdmError
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.onnx_model import open_onnx
from sdm_cli.runs.predictor import load_predictor

onnx = pytest.importorskip("onnx")
SLICES = np.full((2, 40, 50), 30000, np.uint16)


def test_a_graph_of_the_right_form_predicts(tmp_path):
    predictor = load_predictor(write_onnx(tmp_path / "a.onnx"), "cpu")
    assert predict_slices(predictor, SLICES).mask.shape == SLICES.shape


@pytest.mark.parametrize(
    "form",
    [
        {"inputs": ("image", "mask")},
        {"inputs": ("image", "image_2", "seed")},
        {"outputs": ("logits", "features")},
        {"outputs": ("scores",)},
    ],
)
def test_a_graph_of_other_inputs_and_outputs_is_refused(tmp_path, form):
    path = write_onnx(tmp_path / "a.onnx", **form)
    with pytest.raises(CheckpointError, match=r"a\.onnx: its graph is not that of the preset it names; export"):
        open_onnx(path, "cpu")


def test_a_graph_of_other_classes_is_refused(tmp_path):
    other = open_onnx(write_onnx(tmp_path / "b.onnx", small_preset({"liver": 1})), "cpu").preset
    path = write_onnx(tmp_path / "a.onnx")
    proto = onnx.load(path)
    onnx.helper.set_model_props(
        proto, {entry.key: entry.value for entry in onnx.load(tmp_path / "b.onnx").metadata_props}
    )
    onnx.save(proto, path)
    assert other.data.n_classes == 2
    with pytest.raises(CheckpointError, match="its graph is not that of the preset it names"):
        open_onnx(path, "cpu")


def test_a_graph_that_takes_one_size_alone_is_one_sentence(tmp_path, capfd):
    write_nifti(tmp_path / "scans" / "a.nii.gz", np.arange(40 * 50 * 2, dtype=np.int16).reshape(40, 50, 2))
    path = write_onnx(tmp_path / "a.onnx", size=(96, 96))
    words = ["predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "masks"), "--model", str(path), "-d", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 4 and "1 of 1 scans got no mask (a)" in result.stderr
    assert "a.onnx: cannot be run (" in result.stderr and "export the model again" in result.stderr
    assert not list((tmp_path / "masks").glob("*.nii.gz"))
    assert capfd.readouterr().err == ""  # onnxruntime writes past Python


def test_a_graph_whose_logits_are_of_another_size_is_refused(tmp_path):
    path = write_onnx(tmp_path / "a.onnx")
    proto = onnx.load(path)
    proto.graph.node[0].attribute.extend([onnx.helper.make_attribute("strides", [2, 2])])
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="its graph is not that of the preset it names"):
        predict_slices(open_onnx(path, "cpu"), SLICES)


@pytest.mark.parametrize("device", ["banana", "mps", "cpu:1", "cuda:x", "cuda", "gpu:1"])
def test_a_device_that_onnxruntime_has_not_is_a_sentence(tmp_path, monkeypatch, device):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    said = "cannot use" if device in ("cuda", "gpu:1") else "does not run on"
    with pytest.raises(SdmError, match=f"{said} '?{device}'?: give cpu"):
        open_onnx(write_onnx(tmp_path / "a.onnx"), device)


@pytest.mark.parametrize("threads", ["", "4,2", "many"])
def test_a_number_of_threads_that_is_none_is_left_to_onnxruntime(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    predict_slices(open_onnx(write_onnx(tmp_path / "a.onnx"), "cpu"), SLICES)


def test_a_file_that_memory_cannot_take_is_a_sentence(tmp_path, monkeypatch):
    def session(*_, **__):
        raise MemoryError

    path = write_onnx(tmp_path / "a.onnx")
    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    with pytest.raises(CheckpointError, match=r"a\.onnx: too large for the memory of this machine"):
        open_onnx(path, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_ends_in_onnxruntime_is_memory_that_ends(tmp_path, capfd):
    resource = pytest.importorskip("resource")
    predictor = open_onnx(write_onnx(tmp_path / "a.onnx"), "cpu")
    images = np.zeros((1, 1, 4096, 4096), np.float32)
    before = resource.getrlimit(resource.RLIMIT_AS)
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + 100 * 2**20, before[1]))
    try:
        with pytest.raises(MemoryError):
            predictor.forward(images)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert capfd.readouterr().err == ""
