"""The whole way on the community's LASeg release, by the commands a person types."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from sdm_cli.cli import app

LASEG = Path(__file__).parents[2] / "shared" / "data" / "laseg"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not LASEG.is_dir(), reason=f"the LASeg release is not in {LASEG}"),
]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_preprocess_train_evaluate_predict_export(tmp_path, monkeypatch, published_encoder):
    monkeypatch.chdir(tmp_path)
    assert "CZPMV6KWZ4I7IJJP9FOK" in run("preprocess", "-i", LASEG, "--preset", "laseg-5-cpu").stderr
    few = ["--set", "train.steps=2", "--set", "train.pairs=2", "--set", "train.validate_every_steps=2"]
    refused = run("train", "--preset", "laseg-5-cpu", "-d", "cpu", *few, code=1)
    assert "CZPMV6KWZ4I7IJJP9FOK" in refused.stderr and "--allow-missing" in refused.stderr
    run("train", "--preset", "laseg-5-cpu", "-d", "cpu", *few, "--allow-missing")
    run("evaluate", "--split", "unlabeled", "--allow-missing", "--unit", "voxel", "-d", "cpu")
    summary = json.loads(Path("runs/laseg-5-cpu/evaluation/unlabeled/summary.json").read_text())
    assert len(summary["metric_per_case"]) == 36 and summary["mean"]["1"]["n_defined"]["Dice"] == 36
    case = sorted(LASEG.rglob("mri_norm2.h5"))[0]
    run("predict", "-i", case, "-o", "masks", "--model", "runs/laseg-5-cpu", "-d", "cpu")
    mask = nib.load(Path("masks") / f"{case.parent.name}.nii.gz")
    assert mask.header.get_zooms() == pytest.approx((0.625, 0.625, 0.625))
    run("export", "runs/laseg-5-cpu", "-o", "model", "--format", "folder")
    run("predict", "-i", case, "-o", "again", "--model", "model", "-d", "cpu")
    again = nib.load(Path("again") / f"{case.parent.name}.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(again.dataobj))
