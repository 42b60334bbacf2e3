"""Trackers: told what the record says, through Accelerate's own interface, and only when asked for."""

import json
import sys
from types import ModuleType

import pytest
import yaml
from accelerate import Accelerator, tracking
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.trackers import scalars, tracked


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


def install(monkeypatch, name, **modules):
    """Stand-ins for the package of a tracker, under its own names; Accelerate's classes are the real ones."""
    for path, contents in modules.items():
        module = ModuleType(path.replace("__", "."))
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType(name)])


class Refused(Exception):
    """As the packages raise it: of no kind of Python's own."""


@pytest.fixture
def wandb(monkeypatch):
    """Stands for Weights & Biases, with its own keywords as far as a run may use them; what it was told."""
    told = {"lines": [], "finished": 0}

    class Run:
        def log(self, data, step=None, commit=None):
            if step == told.get("fails_at"):
                raise Refused("The service is gone.")
            told["lines"].append((step, data))

        def finish(self, exit_code=None, quiet=None):
            told["finished"] += 1

    class Config:
        def update(self, d, allow_val_change=None):
            told["settings"] = d

    def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, group=None):
        told["where"] = (project, name, dir)
        if told.get("refuses"):
            raise Refused("No API key configured.\nUse `wandb login` to log in.")
        return Run()

    install(monkeypatch, "wandb", wandb={"init": init, "config": Config()}, wandb__errors={"Error": Refused})
    return told


@pytest.fixture
def mlflow(monkeypatch):
    """The same for MLflow."""
    told = {"lines": [], "finished": 0, "settings": {}}

    def search_experiments(view_type=1, max_results=None, filter_string=None, order_by=None):
        if told.get("refuses"):
            raise Refused("API request to http://localhost:9 failed: Connection refused")
        return []

    def create_experiment(name, artifact_location=None, tags=None):
        told["experiment"] = (name, artifact_location, tags)
        return "7"

    def start_run(
        run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None, description=None
    ):
        told["where"] = (run_id, experiment_id, run_name)

    def log_params(params, synchronous=None, run_id=None):
        assert len(params) <= 100
        told["settings"].update(params)

    def log_metrics(metrics, step=None, synchronous=None, run_id=None):
        told["lines"].append((step, metrics))

    def end_run(status="FINISHED"):
        told["finished"] += 1

    functions = (search_experiments, create_experiment, start_run, log_params, log_metrics, end_run)
    install(
        monkeypatch,
        "mlflow",
        mlflow={function.__name__: function for function in functions},
        mlflow__exceptions={"MlflowException": Refused},
        mlflow__utils={},
        mlflow__utils__validation={"MAX_PARAM_VAL_LENGTH": 6000, "MAX_PARAMS_TAGS_PER_BATCH": 100},
    )
    return told


def track(arguments, name, *words):
    return CliRunner().invoke(app, [*arguments, "-d", "cpu", "--set", "train.steps=1", "--tracker", name, *words])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_wandb_and_mlflow_are_told_what_they_ask_for(arguments, tmp_path, request, name):
    told = request.getfixturevalue(name)
    result = track(arguments, name)
    assert result.exit_code == 0, result.output
    assert told["where"] == {"wandb": ("sdm", "run", str(tmp_path / "run")), "mlflow": (None, "7", "run")}[name]
    if name == "mlflow":
        assert told["experiment"] == ("sdm", None, None)
    assert told["settings"]["train/steps"] == 1 and told["settings"]["data/split"] == "None"
    assert [step for step, _ in told["lines"]] == [1, 1] and "loss" in told["lines"][0][1] and told["finished"] == 1


@pytest.mark.parametrize(("name", "remedy"), [("wandb", "log in by `wandb login`"), ("mlflow", "start its server")])
def test_a_tracker_that_does_not_start_is_one_sentence_and_the_run_goes_on(arguments, tmp_path, request, name, remedy):
    told = request.getfixturevalue(name)
    told["refuses"] = True
    result = track(arguments, name)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert sentence.startswith(f"Error: --tracker {name} does not start (") and f"): {remedy}, or" in sentence
    assert told["lines"] == []
    told["refuses"] = False
    assert track(arguments, name, "--resume").exit_code == 0 and told["lines"]


def test_a_tracker_that_fails_in_mid_run_costs_the_run_nothing(arguments, tmp_path, wandb):
    wandb["fails_at"] = 2
    result = CliRunner().invoke(app, [*arguments, "-d", "cpu", "--tracker", "wandb", "--set", "train.steps=6"])
    assert result.exit_code == 0, result.output
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warning == (
        "warning: --tracker wandb failed (The service is gone) and is told nothing more; the run goes on, and its "
        "record is whole"
    )
    assert wandb["lines"] == [] and wandb["finished"] == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 2, 4, 4, 6, 6]


def test_a_fault_of_ours_is_not_taken_for_the_trackers(arguments, wandb, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda project: None)  # does not take what it is given
    assert isinstance(track(arguments, "wandb").exception, TypeError)


def test_files_are_told_by_name_and_classes_by_what_mlflow_takes(tmp_path, wandb):
    preset = tiny_preset(
        data={"split": "/home/jane.doe/patients/split.yaml", "classes": {"left ventricle (LV)": 1}},
        model={"pretrained": "/home/jane.doe/mit_b0.pth"},
    )
    with tracked(Accelerator(cpu=True), "wandb", RunFolder(tmp_path), preset):
        pass
    assert wandb["settings"]["data/split"] == "split.yaml" and wandb["settings"]["model/pretrained"] == "mit_b0.pth"
    assert "jane" not in str(wandb["settings"])
    assert wandb["settings"]["data/classes/left ventricle _LV_"] == 1


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
