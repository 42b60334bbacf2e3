"""Studies by the command line: twins, seeds and ablations, what they leave, and how they go on after a stop."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from models import SDM
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.method.checkpoint import load_model
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs import loop as loop_module
from sdm_cli.runs import study as study_module
from sdm_cli.runs import workers as workers_module
from sdm_cli.runs.gain_section import gain_section
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.study import plan_study, run_study
from sdm_cli.runs.study_report import verdict
from sdm_cli.runs.train import train

TWIN = {"method": {"use_unlabeled": False}, "model": {"messenger_stages": []}}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """To draw them, and to start processes, takes longer than such a training."""
    with pytest.MonkeyPatch.context() as patch:
        for moment in ("at_validation", "at_stop", "at_end"):
            patch.setattr(f"sdm_cli.runs.pictures.Pictures.{moment}", lambda *arguments: None)
        patch.setattr(study_module, "all_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A store, and a preset whose unlabeled cases have labels but for one, as has its test case."""
    folder = tmp_path_factory.mktemp("study")
    store = make_store(folder, tiny_preset(), n_labeled=5, n_unlabeled=1)
    split = folder / "split.yaml"
    split.write_text("labeled: [l0, l1]\nunlabeled: [l2, l3, u0]\ntest: [l4]\n")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset(data={"split": str(split)}))))
    return folder, store


def preset_of(data, **changes):
    return tiny_preset(data={"split": str(data[0] / "split.yaml")}, **changes)


def sdm_train(data, run, *options):
    preset = data[0] / "tiny.yaml"
    words = ["train", "--preset", str(preset), "--store", str(data[1]), "-o", str(run), "-d", "cpu", *options]
    return CliRunner().invoke(app, words)


def weights(run, name="last"):
    return load_model(run / "checkpoints" / name)[0].state_dict()


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read(path):
    return json.loads(path.read_text())


def summary_of(run, role):
    return read(run / "evaluation" / f"study-{role}" / "summary.json")


@pytest.fixture(scope="module")
def gained(data, tmp_path_factory):
    """A finished run with its twin, and what was said."""
    run = tmp_path_factory.mktemp("gained") / "run"
    result = sdm_train(data, run, "--with-baseline")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert result.exit_code == 0, result.output
    return run, result


def test_a_run_and_its_twin_in_a_study_are_those_alone(data, gained, tmp_path):
    run, _ = gained
    assert same_weights(run, train(preset_of(data), data[1], tmp_path / "alone", "cpu"))
    assert same_weights(run / "baseline", train(preset_of(data, **TWIN), data[1], tmp_path / "twin", "cpu"))
    twin, preset = RunFolder(run / "baseline").read_config()[0], RunFolder(run).read_config()[0]
    assert not twin.method.use_unlabeled and twin.model.messenger_stages == ()
    assert (twin.train, twin.augment, twin.data, twin.method.class_weights) == (
        *(preset.train, preset.augment, preset.data, preset.method.class_weights),
    )


def test_the_gain_is_that_of_the_scores_of_both(gained):
    run, result = gained
    gain = read(run / "gain.json")
    assert list(gain["roles"]) == ["test", "unlabeled"]
    assert gain["bootstrap"]["resamples"] == 10_000 and gain["bootstrap"]["confidence"] == 0.95
    for role, cases in (("test", ["l4"]), ("unlabeled", ["l2", "l3"])):
        ours, theirs = summary_of(run, role), summary_of(run / "baseline", role)
        of_role = gain["roles"][role]
        assert of_role["split"]["cases"] == cases == ours["split"]["cases"] == theirs["split"]["cases"]
        assert of_role["protocol"]["name"] == "clean" and of_role["protocol"]["checkpoint_chosen_on"] == "labeled"
        for label, name in (("1", "ball"), ("2", "box")):
            entry = of_role["per_class"][name]
            assert entry["dice"] == pytest.approx(ours["mean"][label]["Dice"])
            assert entry["gain"] == pytest.approx(ours["mean"][label]["Dice"] - theirs["mean"][label]["Dice"])
        mean = ours["foreground_mean"]["Dice"] - theirs["foreground_mean"]["Dice"]
        assert of_role["mean"]["gain"] == pytest.approx(mean) and mean != 0
        assert [case["case_id"] for case in of_role["per_case"]] == cases
    with (run / "gain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["role"], row["seed"], row["case"], row["class"]) for row in rows[:3]] == [
        *(("test", "0", "l4", name) for name in ("ball", "box")),
        ("unlabeled", "0", "l2", "ball"),
    ]
    first = gain["roles"]["unlabeled"]["per_case"][0]["per_class"]["ball"]
    assert float(rows[2]["dice"]) - float(rows[2]["dice_labeled_only"]) == pytest.approx(float(rows[2]["gain"]))
    assert float(rows[2]["gain"]) == pytest.approx(first)
    out = " ".join(result.stdout.split())
    assert "Gain of the unlabeled scans, tiny: 2 unlabeled cases" in out and "labels were read for these scores" in out
    assert f"{100 * gain['roles']['unlabeled']['mean']['gain']:+.2f}" in out and "10000 resamples" in out


def test_the_gain_stands_in_the_report_of_the_run(gained):
    run, _ = gained
    page = (run / "report.html").read_text(encoding="utf-8")
    gain = read(run / "gain.json")["roles"]["unlabeled"]
    assert "What the unlabeled scans bought" in page and "Scores of the unlabeled cases" in page
    assert f"{100 * gain['mean']['gain']:+.2f} [" in page
    for case in gain["per_case"]:
        assert f'<th scope="row">{case["case_id"]}</th><td>{100 * case["per_class"]["ball"]:+.2f}</td>' in page
    assert "bought" not in (run / "baseline" / "report.html").read_text(encoding="utf-8")
    assert "percentile bootstrap over the cases" in page and "another one may change the sign" in page


@pytest.mark.parametrize(
    "damage", [{"roles": {}}, {"roles": {"test": 3}}, {"weights_sha256": ["of another run"]}, {"seeds": 7}, None]
)
def test_a_gain_of_other_weights_or_a_damaged_one_is_not_shown(gained, tmp_path, damage):
    run = shutil.copytree(gained[0], tmp_path / "run")
    assert gain_section(run) is not None
    gain = read(run / "gain.json")
    (run / "gain.json").write_text("{" if damage is None else json.dumps({**gain, **damage}))
    assert gain_section(run) is None
    gain["roles"]["unlabeled"]["mean"]["dice"] = 10**400
    (run / "gain.json").write_text(json.dumps(gain))
    assert gain_section(run) is None
    assert gain_section(shutil.copytree(gained[0] / "baseline", tmp_path / "run" / "mine")) is None


def test_a_finished_study_is_not_trained_or_scored_again(data, gained, tmp_path, monkeypatch):
    run = shutil.copytree(gained[0], tmp_path / "run")
    monkeypatch.setattr(loop_module, "semi_supervised_step", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(study_module, "evaluate_model", lambda *a, **k: pytest.fail("scored again"))
    (run / "gain.json").unlink()
    result = sdm_train(data, run, "--with-baseline", "--resume")
    assert result.exit_code == 0, result.output
    assert (run / "gain.json").read_bytes() == (gained[0] / "gain.json").read_bytes()


def test_a_study_is_scored_in_as_many_processes_as_there_are_cores(data, gained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(gained[0], run)
    scores = {path: read(path) for path in run.rglob("summary.json")}
    for path in scores:
        shutil.rmtree(path.parent)
    started = []
    pool = workers_module._executor
    monkeypatch.setattr(workers_module, "_executor", lambda workers: started.append(workers) or pool(workers))
    monkeypatch.setattr(study_module, "all_cores", lambda: 2)
    assert sdm_train(data, run, "--with-baseline", "--resume").exit_code == 0
    assert started == [2, 2]  # of both runs the two unlabeled cases with a label; one test case needs no process
    for path, before in scores.items():
        assert read(path)["metric_per_case"] == before["metric_per_case"]


def test_a_score_of_other_weights_is_not_believed(data, gained, tmp_path):
    run = shutil.copytree(gained[0], tmp_path / "run")
    path = run / "evaluation" / "study-test" / "summary.json"
    path.write_text(json.dumps({**read(path), "weights_sha256": "0"}))
    (run / "baseline/evaluation/study-test/summary.json").write_text("{")
    result = sdm_train(data, run, "--with-baseline", "--resume")
    assert result.exit_code == 0, result.output
    assert (run / "gain.json").read_bytes() == (gained[0] / "gain.json").read_bytes()
    for folder in (run, run / "baseline"):
        expected = summary_of(gained[0] / folder.relative_to(run), "test")
        assert summary_of(folder, "test") == {**expected, "model": str(folder)}
    assert len(re.findall(r"Scoring 1 test case\b", result.stderr)) == 2


def stop_at_step(monkeypatch, step):
    real, steps = loop_module.semi_supervised_step, []

    def signalled(*arguments, **options):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(loop_module, "semi_supervised_step", signalled)
    return steps


# In the run itself (4 steps), and in its twin.
@pytest.mark.parametrize(("step", "left"), [pytest.param(3, 5, marks=pytest.mark.slow), (7, 1)])
def test_a_stopped_study_goes_on_where_it_was(data, gained, tmp_path, monkeypatch, step, left):
    stop_at_step(monkeypatch, step)
    assert sdm_train(data, tmp_path / "run", "--with-baseline").exit_code == 130
    monkeypatch.undo()
    assert not (tmp_path / "run" / "gain.json").exists()
    steps = stop_at_step(monkeypatch, 0)
    assert sdm_train(data, tmp_path / "run", "--with-baseline", "--resume").exit_code == 0
    assert len(steps) == left
    for name in ("run", "run/baseline"):
        assert same_weights(tmp_path / name, gained[0].parent / name)
    assert (tmp_path / "run" / "gain.json").read_bytes() == (gained[0] / "gain.json").read_bytes()


def test_a_plain_run_gets_its_twin_later(data, gained, tmp_path):
    shutil.copytree(gained[0], tmp_path / "run", ignore=shutil.ignore_patterns("baseline", "gain.*", "study-*"))
    words = ["train", "-o", str(tmp_path / "run"), "--resume", "--with-baseline", "-d", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (tmp_path / "run" / "gain.json").read_bytes() == (gained[0] / "gain.json").read_bytes()


def test_seeds_on_the_recipe_of_a_store_go_on(data, tmp_path):
    store = shutil.copytree(data[1], tmp_path / "store")
    shutil.copy(data[0] / "tiny.yaml", store / "preset.yaml")
    command = ["train", "--store", str(store), "-d", "cpu", "-o", str(tmp_path / "run"), "--set", "train.steps=2"]
    for seeds in ("0,1", "0,1,2"):
        begun = [] if seeds == "0,1" else ["--resume"]
        result = CliRunner().invoke(app, [*command, "--seeds", seeds, *begun])
        assert result.exit_code == 0, result.output
    assert read(tmp_path / "run" / "seeds.json")["seeds"] == [0, 1, 2]


def test_seeds_with_their_twins(data, tmp_path):
    options = ["--set", "train.steps=2", "--set", "train.mixed_precision=bf16"]
    result = sdm_train(data, tmp_path / "run", "--seeds", "0,1", *options)
    assert result.exit_code == 0 and "HD95 mm, run" in result.stdout, result.output
    assert not (tmp_path / "run" / "gain.json").exists()
    result = sdm_train(data, tmp_path / "run", "--seeds", "0, 5", *options, "--with-baseline", "--resume")
    assert result.exit_code == 0, result.output
    runs = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 5)]
    assert [RunFolder(run).read_config()[0].train.seed for run in runs] == [0, 5]
    assert all(
        "(n - 1)" not in (page := (run / "report.html").read_text(encoding="utf-8")) and "2 seeds" in page
        for run in runs
    )
    assert not same_weights(*runs) and not same_weights(*(run / "baseline" for run in runs))
    assert RunFolder(runs[1] / "baseline").read_config()[0].train.seed == 5
    of_role = read(tmp_path / "run" / "seeds.json")["roles"]["unlabeled"]
    assert list(of_role["variants"]) == ["run", "labeled only"]
    for name, folders in (("run", runs), ("labeled only", [run / "baseline" for run in runs])):
        summaries = [summary_of(folder, "unlabeled") for folder in folders]
        dice = [summary["foreground_mean"]["Dice"] for summary in summaries]
        found = of_role["variants"][name]["mean"]["Dice"]
        assert found["per_seed"] == dice and (name != "run" or dice[0] != dice[1])
        assert (found["mean"], found["std"]) == pytest.approx((np.mean(dice), np.std(dice, ddof=1)))
        ball = of_role["variants"][name]["per_class"]["ball"]["Dice"]["per_seed"]
        assert ball == [summary["mean"]["1"]["Dice"] for summary in summaries]
    gain = read(tmp_path / "run" / "gain.json")["roles"]["unlabeled"]
    assert [entry["seed"] for entry in gain["per_seed"]] == [0, 5]
    means = [of_role["variants"][name]["mean"]["Dice"] for name in ("run", "labeled only")]
    differences = [ours - theirs for ours, theirs in zip(*(mean["per_seed"] for mean in means), strict=True)]
    assert [entry["mean"] for entry in gain["per_seed"]] == pytest.approx(differences)
    assert gain["mean"]["gain"] == pytest.approx(np.mean(differences))
    out = " ".join(result.stdout.split())
    assert f"{100 * means[0]['mean']:.2f} +- {100 * means[0]['std']:.2f}" in out


def test_an_ablation_is_one_table(data, tmp_path):
    result = sdm_train(data, tmp_path / "run", "--ablate", "--set", "train.steps=2")
    assert result.exit_code == 0, result.output
    switches = {}
    for folder in sorted(path.parent for path in (tmp_path / "run").glob("*/config.yaml")):
        preset = RunFolder(folder).read_config()[0]
        method, stages = preset.method, preset.model.messenger_stages
        switches[folder.name] = (method.use_unlabeled, method.l2u, stages, method.class_weights)
    assert {name: row for name, row in switches.items() if name != "labeled-only"} == {
        "l2u": (True, True, (), False),
        "u2l": (True, False, (4,), False),
        "both": (True, True, (4,), False),
        "both-class-weights": (True, True, (4,), True),
    }
    assert switches["labeled-only"][0] is False and switches["labeled-only"][2:] == ((), False)
    table = read(tmp_path / "run" / "ablation.json")["roles"]["unlabeled"]
    names = ["labeled only", "+L2U", "+U2L", "both", "both + class weights"]
    assert list(table["variants"]) == names and "gain" not in table["variants"]["labeled only"]
    text = (tmp_path / "run" / "ablation.md").read_text()
    folders = ("labeled-only", "l2u", "u2l", "both", "both-class-weights")
    for name, folder in zip(names, folders, strict=True):
        mean = summary_of(tmp_path / "run" / folder, "unlabeled")["foreground_mean"]
        hd95 = "-" if mean["HD95"] is None else f"{mean['HD95']:.2f}"
        assert f"\n| {name} | {100 * mean['Dice']:.2f} | {hd95} |" in text
        assert table["variants"][name]["mean"]["Dice"] == {
            **{"mean": pytest.approx(mean["Dice"]), "std": None},
            "per_seed": [mean["Dice"]],
        }
    both, alone = (table["variants"][name]["mean"]["Dice"]["mean"] for name in ("both", "labeled only"))
    assert table["variants"]["both"]["gain"]["mean"]["gain"] == pytest.approx(both - alone)
    with (tmp_path / "run" / "ablation.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == "unlabeled" and not row["class"]]
    assert [row["variant"] for row in rows] == names and rows[0]["gain"] == ""
    assert [float(row["dice"]) for row in rows] == [table["variants"][name]["mean"]["Dice"]["mean"] for name in names]
    assert "+L2U" in result.stdout and "pseudo-labels too" in " ".join(result.stdout.split())


def test_without_labels_to_score_the_runs_are_left_and_it_is_said(tmp_path):
    store = make_store(tmp_path, tiny_preset(), n_labeled=1, n_unlabeled=2)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset(train={"steps": 1}))))
    result = sdm_train((tmp_path, store), tmp_path / "run", "--with-baseline")
    assert result.exit_code == 0 and not result.stdout
    assert "no label of a test or an unlabeled case" in result.stderr and "gain" in result.stderr
    assert (tmp_path / "run/baseline/checkpoints/best").is_dir() and not (tmp_path / "run/gain.json").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--seeds", "0,1", "--seed", "3"], 2, "leave --seed and train.seed out"),
        (["--seeds", "0,1", "--set", "train.seed=3"], 2, "leave --seed and train.seed out"),
        (["--seeds", "0"], 2, "two or more different whole numbers"),
        (["--seeds", "0,0"], 2, "two or more different whole numbers"),
        (["--seeds", "0,-1"], 2, "two or more different whole numbers"),
        (["--seeds", ","], 2, "two or more different whole numbers"),
        (["--seeds", f"0,{2**63}"], 1, "train.seed"),
        (["--ablate", "--with-baseline"], 2, "leave --with-baseline out"),
        (["--ablate", "--set", "model.messenger_stages=[]"], 2, "--ablate sets model.messenger_stages by itself"),
        (["--ablate", "--dry-run"], 2, "are for one training alone"),
        (
            ["--with-baseline", "--set", "method.use_unlabeled=false", "--set", "model.messenger_stages=[]"],
            1,
            "no gain",
        ),
        (["--with-baseline", "--resume"], 1, "holds no run to go on with: start without --resume"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(data, tmp_path, options, code, words):
    result = sdm_train(data, tmp_path / "run", *options)
    assert result.exit_code == code and words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output and not (tmp_path / "run").exists()


def test_a_study_of_which_one_run_lost_its_config_trains_none(data, tmp_path, monkeypatch):
    for seed in (0, 1):
        train(preset_of(data, train={"seed": seed}), data[1], tmp_path / f"run/seed-{seed}", "cpu")
    (tmp_path / "run/seed-1/config.yaml").unlink()
    monkeypatch.setattr(study_module, "train", lambda *arguments: pytest.fail("it trained"))
    result = sdm_train(data, tmp_path / "run", "--seeds", "0,1", "--resume")
    assert result.exit_code == 1 and "seed-1 holds a run whose config.yaml is missing" in result.stderr


def test_a_study_does_not_mix_with_other_runs(data, gained):
    for options, words in (
        (["--with-baseline"], "add --resume to continue it"),
        (["--ablate"], "add --resume to continue it"),
        (["--ablate", "--resume"], "is a run by itself"),
        (["--seeds", "0,1", "--resume"], "is a run by itself"),
    ):
        before = sorted(gained[0].rglob("*"))
        result = sdm_train(data, gained[0], *options)
        assert result.exit_code == 1 and words in result.stderr, options
        assert sorted(gained[0].rglob("*")) == before


def test_the_newest_run_may_be_one_of_a_study_but_no_twin(gained, tmp_path):
    runs = tmp_path / "runs"
    run = shutil.copytree(gained[0], runs / "run")
    assert newest_run(runs) == run  # its twin was trained after it
    seed = shutil.copytree(gained[0], runs / "study" / "seed-1")
    variant = shutil.copytree(gained[0], runs / "ablation" / "seed-0" / "both")
    for age, folder in enumerate((variant, seed, run)):
        for path in (folder, folder / "baseline"):
            os.utime(path / "metrics.jsonl", (age, age))
    assert newest_run(runs) == run
    os.utime(seed / "metrics.jsonl", (5, 5))
    assert newest_run(runs) == seed
    os.utime(variant / "metrics.jsonl", (6, 6))
    assert newest_run(runs) == variant


def test_a_study_is_no_run(gained, tmp_path):
    shutil.copytree(gained[0], tmp_path / "study" / "seed-1")
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "study"), "--resume"])
    assert result.exit_code == 1 and "is a study of several runs: continue it by the command" in result.stderr


def test_the_verdict_follows_the_interval():
    for low, high, words in ((0.1, 0.2, "helped"), (-0.2, -0.1, "harm"), (-0.1, 0.1, "no gain"), (None, None, "few")):
        assert words in verdict({"low": low, "high": high, "n_cases": 6})
    assert verdict({"low": 0.1, "high": 0.2, "n_cases": 5}).startswith("5 cases: too few")
    assert verdict({"low": None, "high": None, "n_cases": 1}).startswith("1 case: too few")


@pytest.mark.parametrize(("stages", "expected"), [([], (4,)), ([2, 3], (2, 3))])
def test_an_ablation_has_u2l_where_the_preset_has_it_or_else_at_the_default_stage(
    tmp_path, monkeypatch, stages, expected
):
    store = make_store(tmp_path, tiny_preset(), n_labeled=1, n_unlabeled=2)  # nothing to score
    trained = []
    monkeypatch.setattr(study_module, "train", lambda preset, *arguments: trained.append(preset))
    run_study(plan_study(False, (), True), tiny_preset(model={"messenger_stages": stages}), store, tmp_path / "run")
    assert [preset.model.messenger_stages for preset in trained] == [(), (), expected, expected, expected]


@pytest.mark.slow
def test_two_processes_train_a_study_and_one_reports_it(data, tmp_path):
    words = f"train --preset {data[0]}/tiny.yaml --store {data[1]} -o {tmp_path}/run -d cpu --with-baseline".split()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", SDM]
    for options in (["--seeds", "0,1"], ["--seeds", "0,2", "--resume"]):
        result = subprocess.run([*launcher, *words, *options], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("Training 4 of 4") == 1 and result.stdout.count("Gain of the unlabeled scans") == 2
    assert read(tmp_path / "run" / "gain.json")["seeds"] == [0, 2]


def test_missing_cases_are_warned_of_once(data, tmp_path):
    store = data[1]
    split = tmp_path / "split.yaml"
    split.write_text("labeled: [l0, l1]\nunlabeled: [l2, gone]\n")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset_to_dict(tiny_preset(data={"split": str(split)}))))
    options = ("--with-baseline", "--allow-missing", "--set", "train.steps=1")
    result = sdm_train((tmp_path, store), tmp_path / "run", *options)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run/baseline/checkpoints/last").is_dir()
    assert result.stderr.count("does not hold: gone") == 1
