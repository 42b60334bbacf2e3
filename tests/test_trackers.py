"""Trackers: told what the record says, through Accelerate's own interface, and only when asked for."""

import json

import pytest
import yaml
from accelerate import tracking
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.trackers import scalars


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("trackers"))


@pytest.fixture
def arguments(store, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset())))
    return ["train", "--preset", str(tmp_path / "tiny.yaml"), "--store", str(store), "-o", str(tmp_path / "run")]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(arguments, tmp_path, monkeypatch, name):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    result = CliRunner().invoke(app, [*arguments, "--tracker", name])
    assert result.exit_code == 1
    assert result.stderr == f"Error: --tracker {name}: the package {name} is not installed: pip install {name}.\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fake(monkeypatch):
    """Stands for TensorBoard in Accelerate; what it was told."""
    told = {"lines": [], "finished": 0}

    class Fake(tracking.GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True
        tracker = None

        def __init__(self, run_name, logging_dir):
            super().__init__()
            told["folder"] = f"{logging_dir}/{run_name}"

        def start(self):
            pass

        def store_init_configuration(self, values):
            told["settings"] = values

        def log(self, values, step=None):
            told["lines"].append((step, values))

        def finish(self):
            told["finished"] += 1

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    return told


def test_a_tracker_is_told_the_settings_and_what_the_record_says(arguments, tmp_path, fake):
    result = CliRunner().invoke(app, [*arguments, "-d", "cpu", "--tracker", "tensorboard"])
    assert result.exit_code == 0, result.output
    run = tmp_path / "run"
    assert fake["folder"] == str(run / "tensorboard") and fake["finished"] == 1
    assert fake["settings"]["train/pairs"] == 2 and fake["settings"]["train/crop"] == "[32, 32]"
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in fake["lines"]] == [line["step"] for line in lines]
    for line, (_, values) in zip(lines, fake["lines"], strict=True):
        if "validation" in line:
            assert values["validation/per_class/ball"] == line["validation"]["per_class"]["ball"]
        else:
            assert values["class_weights/box"] == line["class_weights"]["box"] and values["loss"] == line["loss"]
            assert ("pseudo_share/box" in values) == (line["pseudo_share"] is not None)


def test_without_the_option_no_tracker_is_told(arguments, fake):
    assert CliRunner().invoke(app, [*arguments, "-d", "cpu"]).exit_code == 0
    assert fake == {"lines": [], "finished": 0}


def test_a_tracker_is_finished_when_the_run_is_interrupted(arguments, fake, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sdm_cli.runs.loop.validate", stop)
    assert CliRunner().invoke(app, [*arguments, "-d", "cpu", "--tracker", "tensorboard"]).exit_code == 130
    assert fake["finished"] == 1


def test_names_hold_what_every_tracker_takes():
    line = {"step": 3, "loss": 0.5, "loss_unlabeled": None, "pseudo_share": {"left ventricle (LV)+": 0.25}}
    assert scalars(line) == {"loss": 0.5, "pseudo_share/left ventricle _LV__": 0.25}
