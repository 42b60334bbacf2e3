"""`sdm info`: what it says of a run that is done, one that stopped, and a model."""

import json
import platform
import shutil
import time

import pytest
import yaml
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli import __version__
from sdm_cli.cli import app
from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.method.checkpoint import weights_sha256
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs.provenance import split_identity
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.train import train
from sdm_cli.runs.validate import Validation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("info"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Three validations, of which the second is the best."""
    scores = iter([0.5, 0.75, 0.25])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop_module,
            "validate",
            lambda *arguments: Validation(score := next(scores), {"ball": score, "box": None}, 0.1, 0.1, 2),
        )
        return train(tiny_preset(train={"steps": 6}), store, tmp_path_factory.mktemp("runs") / "done", "cpu")


def info(*arguments):
    result = CliRunner().invoke(app, ["info", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(text):
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_a_finished_run_tells_its_scores_protocol_data_and_versions(run, store):
    told = json.loads(info(run, "--json"))
    assert told["finished"] and (told["step"], told["steps"]) == (6, 6)
    assert told["best"] == {"step": 4, "score": 0.75}
    assert told["last_validation"]["step"] == 6 and told["last_validation"]["per_class"] == {"ball": 0.25, "box": None}
    assert told["checkpoints"] == {"best": 4, "last": 6, "previous": 4}
    assert (told["preset"], told["protocol"], told["selected_on"]) == ("tiny", "clean", "labeled")
    assert told["store"] == str(store) and told["dataset"] == "tiny" and told["classes"] == ["ball", "box"]
    assert told["split"]["hash"] == split_identity(None, RunFolder(run).read_split(), "test")["hash"]
    assert told["split"]["listed"] == {"labeled": 2, "unlabeled": 3, "validation": 0, "test": 0}
    assert told["slices"] == {"labeled": 6, "unlabeled": 9} and told["alarms"] == []
    assert told["scans"] == yaml.safe_load((run / "config.yaml").read_text())["scans"]
    assert told["versions"]["sdm"] == __version__ and told["versions"]["python"] == platform.python_version()
    said = lines(info(run))
    assert said["state"] == "finished, 6 of 6 steps"
    assert said["best"] == "Dice 75.00 % at step 4, on the labeled cases"
    assert said["last"] == "Dice 25.00 % at step 6: ball 25.00 %, box undefined"
    assert said["checkpoints"] == "best (step 4), last (step 6), previous (step 4)"


def test_a_run_that_stopped_tells_where_and_how_to_go_on(store, tmp_path, monkeypatch):
    real = loop_module.TrainingLoop._record

    def record(self, *arguments):
        entry = real(self, *arguments)
        if self.state.done == 5:  # as a kill
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(loop_module.TrainingLoop, "_record", record)
    monkeypatch.setattr(loop_module, "RECORD_EVERY", 1)
    preset = tiny_preset(train={"steps": None, "epochs": 2})  # 9 slices, 2 a step
    with pytest.raises(KeyboardInterrupt):
        train(preset, store, tmp_path / "run", "cpu")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "collapse": {"box": {}}}\n{"st')
    state = lines(info(tmp_path / "run"))
    assert state["state"].startswith("not finished, 5 of 9 steps, last record ")
    assert state["state"].endswith("--resume` continues it from step 4") and state["alarms"] == "step 5: box"
    told = json.loads(info(tmp_path / "run", "--json"))
    assert not told["finished"] and 0 <= told["seconds_since_record"] < time.monotonic()
    (tmp_path / "run" / "checkpoints" / "last" / "resume.json").write_text("{")
    assert "last (damaged)" in lines(info(tmp_path / "run"))["checkpoints"]


def test_a_run_goes_on_with_other_versions_than_it_began_with(store, tmp_path):
    run = train(tiny_preset(), store, tmp_path / "run", "cpu")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**tree, "versions": {"sdm": "0.0.1"}}))
    train(tiny_preset(), store, run, "cpu", resume=True)
    assert lines(info(run))["versions"] == "sdm 0.0.1"
    del tree["versions"], tree["scans"]  # as of a run before they were recorded
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    said = lines(info(run))
    assert said["versions"] == "not recorded" and said["scans"] == "digest not recorded; slices: 6 labeled, 9 unlabeled"


def test_a_model_tells_what_it_is(run):
    model = run / "checkpoints" / "best"
    told = json.loads(info(model, "--json"))
    assert told["model"] == str(model) and told["chosen_on"] == "labeled" and told["sdm_version"] == __version__
    assert told["weights_sha256"] == weights_sha256(model) and told["classes"] == ["ball", "box"]
    assert lines(info(model))["data"] == "tiny: ball, box"


def test_what_is_neither_is_one_sentence(tmp_path):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "config.yaml").mkdir(parents=True)
    for path in (tmp_path / "empty", tmp_path / "file.txt", tmp_path / "odd"):
        result = CliRunner().invoke(app, ["info", str(path)])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and str(path) in result.stderr
        assert "study" not in result.stderr


def test_a_store_is_none_either(store):
    result = CliRunner().invoke(app, ["info", str(store)])
    assert result.exit_code == 1 and f"{store} is a store, not a model" in result.stderr


def test_a_study_is_its_runs_and_a_broken_run_says_what_to_look_at(store, tmp_path):
    for name in ("seed-0", "seed-1"):
        train(tiny_preset(), store, tmp_path / "study" / name, "cpu")
    text = info(tmp_path / "study").splitlines()
    assert len(text) == 2 and all("finished, 4 of 4 steps; best" in line for line in text)
    assert [run["finished"] for run in json.loads(info(tmp_path / "study", "--json"))["runs"]] == [True, True]
    run = tmp_path / "study" / "seed-1"
    (run / "broken" / "step-3").mkdir(parents=True)
    damaged = ('{"step": "x"}', "[1]", '{"step": 2, "validation": null}')
    damaged += ('{"step": 2, "validation": {"dice": "hi", "pooled_iou": 0.5, "per_class": {}}}',)
    damaged += ('{"step": 2, "validation": {"dice": 0.5, "pooled_iou": 0.5, "per_class": 3}}',)
    (run / "metrics.jsonl").write_text("\n".join(('{"step": 2}', *damaged, "")))
    (run / "checkpoints" / "last").rename(tmp_path / "elsewhere")
    state = lines(info(run))
    assert "sdm train --replay" in state["state"] and "best (not in the record)" in state["checkpoints"]


def test_a_run_that_lost_its_config_is_not_its_twin(run, tmp_path):
    """Nor a study of it: without `config.yaml` there is a model and no run."""
    lost = tmp_path / "runs" / "lost"
    shutil.copytree(run, lost)
    shutil.copytree(run, lost / "baseline")
    (lost / "config.yaml").unlink()
    assert json.loads(info(lost, "--json"))["model"] == str(lost)
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        newest_run(tmp_path / "runs")
    with pytest.raises(OutputError, match=r"lost holds a run whose config\.yaml is missing: put a copy of it back"):
        RunFolder(lost).require_free()
    with pytest.raises(CheckpointError, match=r"lost is not the folder of a run: config\.yaml is missing"):
        RunFolder(lost).read_config()


def test_what_is_no_single_run_has_no_page(run, tmp_path):
    shutil.copytree(run, tmp_path / "seed-0")
    result = CliRunner().invoke(app, ["info", str(tmp_path), "--report"])
    assert result.exit_code == 1 and not result.stdout and "--report" in result.stderr


def test_damaged_lines_are_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(
            'nonsense\n{"step": 2, "validation": {"dice": 0.9, "pooled_iou": 0.5, "per_class": {"\\u001b": 0.5}}}\n'
            '{"step": 2, "validation": {"dice": 9, "pooled_iou": 0.5, "per_class": {}}}\n'
        )
    assert lines(info(tmp_path / "run"))["record"] == "3 damaged lines of metrics.jsonl left out"
    assert "record" not in lines(info(run))


@pytest.mark.parametrize("lost", [True, False])
def test_a_run_of_a_study_that_cannot_be_read_hides_no_other(run, tmp_path, lost):
    shutil.copytree(run, tmp_path / "seed-0")
    (tmp_path / "seed-1").mkdir()
    if lost:
        (tmp_path / "seed-1" / "metrics.jsonl").touch()
    else:
        (tmp_path / "seed-1" / "config.yaml").write_text("nonsense")
    for options in ((), ("--json",)):
        result = CliRunner().invoke(app, ["info", str(tmp_path), *options])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert "1 of 2 runs cannot be read" in result.stderr and "seed-1" in result.stderr
        told = result.stdout.splitlines() if not options else [str(one) for one in json.loads(result.stdout)["runs"]]
        assert len(told) == 2 and "error" not in told[0] and "config.yaml" in told[1]
