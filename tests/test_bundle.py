"""MONAI bundles: what MONAI says of one, and that it finds what `sdm predict` finds, without this program."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from models import small_network, small_preset
from scans import affine, write_nifti

from sdm_cli.config import PredictConfig, TrainConfig
from sdm_cli.errors import OutputError, PresetError
from sdm_cli.method.checkpoint import save_model
from sdm_cli.preset_files import preset_from_dict, preset_to_dict
from sdm_cli.runs.bundle import require_expressible
from sdm_cli.runs.export import export_model
from sdm_cli.runs.predict import predict
from sdm_cli.runs.request import Request

REAL = Path(__file__).parents[2] / "shared" / "data" / "nifti" / "mr.nii.gz"
CLASSES = {"liver": 1, "spleen": 300}
PRESET = replace(
    small_preset(CLASSES, slice_axis="coronal", normalize={"scale": "slice", "percentiles": (1, 99)}),
    train=TrainConfig(steps=1, crop=(64, 90)),
    predict=PredictConfig(smooth_mm=0.01),  # too little to change a mask
)
# The official schema is fetched from the net. These are the fields that its documentation names as mandatory.
TEXTS = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright")
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string", "minLength": 1} for name in TEXTS},
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {
                side: {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {
                        "type": "object",
                        "properties": {
                            "type": {"type": "string"},
                            "format": {"type": "string"},
                            "num_channels": {"type": "integer"},
                            "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
                            "dtype": {"type": "string"},
                            "value_range": {"type": "array", "items": {"type": "number"}},
                            "is_patch_data": {"type": "boolean"},
                            "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
                    },
                }
                for side in ("inputs", "outputs")
            },
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*TEXTS, "changelog", "network_data_format", "schema"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, small_network(PRESET), PRESET)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, model):
    return export_model(model, tmp_path_factory.mktemp("bundle") / "bundle", "monai-bundle")


def run(bundle, scans, masks):
    """The command of the bundle's README, in a process that cannot import this program."""
    script = "import sys, runpy; sys.modules['sdm_cli'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    options = ["--config_file", "configs/inference.json", "--dataset_dir", str(scans), "--output_dir", str(masks)]
    command = [sys.executable, "-W", "ignore", "-c", script, "run", *options]
    result = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def same_share(one, other):
    first, second = nib.load(one), nib.load(other)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    first, second = np.asanyarray(first.dataobj), np.asanyarray(second.dataobj)
    assert len(np.unique(first)) > 2
    return (first == second).mean()


def test_it_holds_what_a_bundle_holds(bundle):
    names = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    texts = {"configs/metadata.json", "configs/inference.json", "docs/README.md", "LICENSE"}
    assert names == {*texts, "models/model.pt2"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "also averages probabilities over neighbouring slices (0.01 mm); this bundle does not" in readme


def test_monai_verifies_its_metadata(bundle, tmp_path):
    """Against the fields that are mandatory; the schema of its address cannot be fetched in a test."""
    from monai.bundle import verify_metadata  # takes seconds, which only who runs these tests should pay

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    md5 = hashlib.md5(schema.read_bytes()).hexdigest()
    verify_metadata(str(bundle / "configs" / "metadata.json"), str(schema), hash_val=md5)
    broken = json.loads((bundle / "configs" / "metadata.json").read_text())
    del broken["authors"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="authors"):
        verify_metadata(str(tmp_path / "broken.json"), str(schema), hash_val=md5)


@pytest.mark.parametrize("n", [1, 3])
def test_monai_verifies_what_its_network_takes_and_gives(bundle, n):
    from monai.bundle import verify_net_in_out

    configs = {name: str(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference")}
    verify_net_in_out("network_def", configs["metadata"], configs["inference"], "cpu", n=n, bundle_root=str(bundle))


def test_its_masks_are_those_of_predict(bundle, model, tmp_path):
    """Of slices that are smaller than the crop of training one way and larger the other way."""
    voxels = np.random.default_rng(0).integers(-500, 1500, (40, 3, 133)).astype(np.int16)
    write_nifti(tmp_path / "scans" / "a.nii.gz", voxels, affine((2, 1, 0), (-1, 1, -1)))
    predict(Request(tmp_path / "scans", tmp_path / "sdm", model, "cpu"))
    run(bundle, tmp_path / "scans", tmp_path / "monai")
    assert same_share(tmp_path / "sdm" / "a.nii.gz", tmp_path / "monai" / "a.nii.gz") > 0.999  # ties alone


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/nifti")
def test_its_mask_of_a_real_scan_is_that_of_predict(bundle, model, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "mr.nii.gz").symlink_to(REAL)
    predict(Request(tmp_path / "scans", tmp_path / "sdm", model, "cpu"))
    run(bundle, tmp_path / "scans", tmp_path / "monai")
    assert same_share(tmp_path / "sdm" / "mr.nii.gz", tmp_path / "monai" / "mr.nii.gz") > 0.999


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"grid": {"spacing_mm": [1, 1]}}, "crops or resamples"),
        ({"frame": 0}, "takes a frame"),
        ({"normalize_by_domain": {"ct": {}}}, "scales by domain"),
    ],
)
def test_preprocessing_that_monai_lacks_is_refused(data, reason):
    tree = preset_to_dict(PRESET)
    tree["data"] |= data
    with pytest.raises(PresetError, match=reason):
        require_expressible(preset_from_dict(tree, "the test's preset"))


def test_another_folder_is_not_replaced_and_that_is_known_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr("sdm_cli.runs.export.trace", lambda *arguments: pytest.fail("the network was traced"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(OutputError, match="no bundle"):
        export_model(model, tmp_path / "thesis", "monai-bundle", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").is_file()
