"""What a run would be: `--dry-run`, `--pairs-per-process`, and how much memory there is."""

import errno
import os
import re
import signal
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.splits import resolve_split
from sdm_cli.data.store import open_store
from sdm_cli.errors import SdmError
from sdm_cli.preset_files import preset_from_dict, preset_to_dict
from sdm_cli.runs import dry_run as dry_run_module
from sdm_cli.runs.dry_run import fitting_pairs, print_dry_run
from sdm_cli.runs.memory import memory_bound
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.train import start_loop
from sdm_cli.runs.trial import Cost, _of_a_death, most_pairs, try_steps
from sdm_cli.runs.workload import plan_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("dry"), tiny_preset())


def sdm_train(tmp_path, store, *words):
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump(preset_to_dict(tiny_preset())))
    words = ["train", "--preset", preset, "--store", store, "-o", tmp_path / "run", "-d", "cpu", *words]
    return CliRunner().invoke(app, list(map(str, words)))


def test_dry_run_tells_and_writes_nothing(store, tmp_path):
    before = sorted(store.rglob("*"))
    result = sdm_train(tmp_path, store, "--dry-run", "--set", "train.steps=1")
    assert result.exit_code == 0, result.stderr
    # What is printed is a preset that reads back: everything else is a remark.
    assert preset_from_dict(yaml.safe_load(result.stdout), "stdout") == tiny_preset(train={"steps": 1})
    assert "# labeled: 2 cases, 6 slices\n# unlabeled: 3 cases, 9 slices\n# validation: 0 cases" in result.stdout
    assert "1 step of 2 pairs" in result.stdout and "1 validation of 2 cases" in result.stdout
    peak, seconds = re.search(r"([\d.]+) s a step.* ([\d.]+) GB", result.stdout).groups()[::-1]
    assert 0.1 < float(peak) < 5 and float(seconds) < 60
    assert not (tmp_path / "run").exists() and sorted(store.rglob("*")) == before


def test_a_dry_run_holds_no_network_beside_the_one_that_is_tried(store, tmp_path, monkeypatch):
    monkeypatch.setattr("sdm_cli.runs.train.build_network", lambda *a: pytest.fail("a second network"))
    monkeypatch.setattr(dry_run_module, "try_steps", lambda start, n, for_duration: Cost(10**9, 1.0, 0.5, 0.0))
    result = sdm_train(tmp_path, store, "--dry-run")
    assert result.exit_code == 0 and "1.0 GB of memory in each training process\n" in result.stdout, result.output


@pytest.mark.parametrize(
    ("fraction", "warm_up", "said"),
    [
        # 25 x 0.5 + 75 x 4 + 4 x 9
        (0.25, 0.5, "0:05:48 (25 steps of 0.50 s, then 4.00 s a step, 9.0 s a validation)"),
        (0.0, 0.0, "0:07:16 (4.00 s a step, 9.0 s a validation)"),
    ],
)
def test_a_dry_run_counts_the_warm_up_at_its_own_speed(store, monkeypatch, capsys, fraction, warm_up, said):
    method, train_ = {"labeled_only_fraction": fraction}, {"steps": 100, "validate_every_steps": 25}
    preset = tiny_preset(method=method, train=train_)
    slices = open_store(store)
    plan = plan_run(preset, slices, resolve_split(preset.data, slices.cases, False), 1)
    monkeypatch.setattr(dry_run_module, "try_steps", lambda start, n, for_duration: Cost(10**9, 4.0, warm_up, 1.5))
    print_dry_run(plan, torch.device("cpu"), 1, None)
    assert f"# estimated from some steps: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(("over", "told"), [("all", True), ("process", False)])
def test_a_dry_run_says_what_one_process_does_not_show(store, monkeypatch, capsys, over, told):
    preset = tiny_preset(model={"exchange_over": over})
    slices = open_store(store)
    plan = plan_run(preset, slices, resolve_split(preset.data, slices.cases, False), 2)
    monkeypatch.setattr(dry_run_module, "try_steps", lambda start, n, for_duration: Cost(10**9, 1.0, 0.5, 0.0))
    print_dry_run(plan, torch.device("cpu"), 2, None)
    assert ("and what it holds of the others (model.exchange_over: all)" in capsys.readouterr().out) == told


def test_auto_is_recorded_and_trained_with(store, tmp_path, monkeypatch):
    """Memory as it would be with 100 MB a pair: 5 pairs below the bound. The trials themselves are tested below."""
    monkeypatch.setattr(dry_run_module, "memory_bound", lambda device: 1_150_000_000)
    monkeypatch.setattr(
        dry_run_module, "try_steps", lambda start, n: Cost(600_000_000 + n * 100_000_000, 1.0, 0.5, 0.0)
    )
    result = sdm_train(tmp_path, store, "--pairs-per-process", "auto", "--set", "train.steps=1")
    assert result.exit_code == 0, result.stderr
    assert "train.pairs: 5, with 1.1 GB at most and 1.00 s a step (the preset had 2)" in result.stderr
    assert RunFolder(tmp_path / "run").read_config()[0].train.pairs == 5 and "1 step of 5 pairs" in result.stderr
    monkeypatch.setattr(dry_run_module, "memory_bound", lambda device: 900_000_000)  # would be 3 pairs now
    result = sdm_train(tmp_path, store, "--pairs-per-process", "auto", "--set", "train.steps=1", "--resume")
    assert result.exit_code == 0 and "Resuming" in result.stderr and "1 step of 5 pairs" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs-per-process", "many"], "give a number, or auto"),
        (["--pairs-per-process", "0"], "train.pairs: "),
        (["--dry-run", "--resume"], "--resume goes on with a run as it is"),
    ],
)
def test_what_does_not_go_together_is_refused(store, tmp_path, words, said):
    result = sdm_train(tmp_path, store, *words)
    assert result.exit_code != 0 and said in " ".join(result.stderr.replace("│", "").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("square", [0, 3], ids=["linear", "square"])
@pytest.mark.parametrize("bound", [149, 200, 550, 1049, 1100, 10_000])
@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_the_most_pairs_are_found_and_none_is_tried_that_does_not_fit(bound, most, square):
    tried = []

    def peak(n):
        return 100 + 50 * n + square * n * n if n > 1 else 145  # a size of its own for the first, as things are

    def measure(n):
        tried.append(n)
        return Cost(peak(n), 1.0, 0.5, 0.0)

    found, cost = most_pairs(measure, bound, most)
    assert found == max(n for n in range(1, most + 1) if peak(n) <= bound) and cost.peak_bytes == peak(found)
    assert len(tried) <= 12
    # The second is a guess, and where a pair takes more and more, so is the last one.
    assert all(peak(n) <= bound or n == 2 or (square and n == found + 1) for n in tried)


def test_memory_that_is_out_is_a_size_that_does_not_fit():
    """As on a GPU: more than 11 pairs raise there, whatever the bound."""
    assert most_pairs(lambda n: Cost(n, 1.0, 0.5, 0.0) if n <= 11 else None, 10_000, 100)[0] == 11
    with pytest.raises(SdmError, match="not even one pair fits into"):
        most_pairs(lambda n: None, 10_000, 100)


class Start:
    """A loop that cannot be made, for one reason or another; picklable."""

    def __init__(self, reason):
        self.reason = reason

    def __call__(self, pairs, folder):
        if self.reason == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/tmp/here")
        if self.reason == "left":
            os._exit(3)
        if isinstance(self.reason, int):
            os.kill(os.getpid(), self.reason)
        torch.empty(2**50)


@pytest.mark.parametrize("reason", [signal.SIGKILL, pytest.param("memory", marks=pytest.mark.slow)])
def test_a_trial_that_runs_out_of_memory_leaves_this_process_alone(reason):
    assert try_steps(Start(reason), 1) is None


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        pytest.param(signal.SIGTERM, r"ended \(Terminated\) before it had an answer: ", marks=pytest.mark.slow),
        ("disk", r"^The steps cannot be tried: No space left on device \(/tmp/here\)\.$"),
        pytest.param("left", "ended with exit code 3 before it had an answer", marks=pytest.mark.slow),
    ],
    ids=["signal", "disk", "exit"],
)
def test_a_trial_that_ends_otherwise_is_a_sentence_and_no_size_that_does_not_fit(reason, said, capfd):
    with pytest.raises(SdmError, match=said):
        try_steps(Start(reason), 1)
    assert capfd.readouterr().err == ""


def test_a_trial_that_is_gone_is_told_by_how_it_went():
    assert _of_a_death(-signal.SIGKILL) is None  # memory is out
    assert _of_a_death(-signal.SIGTERM).startswith(
        "The process that tries steps was ended (Terminated) before it had an answer: "
    )
    assert _of_a_death(3).startswith("The process that tries steps ended with exit code 3 before it had an answer: ")


def test_a_step_that_is_not_finite_has_the_advice_of_a_trial(store, tmp_path):
    result = sdm_train(tmp_path, store, "--dry-run", "--set", "train.lr=1e30", "--set", "train.steps=1")
    assert result.exit_code == 1 and result.stdout == ""
    assert "of a tried step (of random weights) is not finite: lower train.lr" in result.stderr
    assert "checkpoints" not in result.stderr and "--replay" not in result.stderr


def test_several_processes_that_exchange_are_not_tried_by_one(capsys):
    preset = tiny_preset(model={"exchange_over": "all"})
    several, told = SimpleNamespace(num_processes=2, is_main_process=True), SimpleNamespace(together=nullcontext)
    with pytest.raises(SdmError, match=r"with model\.exchange_over: all .* the 2 processes exchange: give a number"):
        fitting_pairs(None, preset, None, None, several, told)
    assert capsys.readouterr().err == ""  # refused before anything was tried


class Tell:
    """A loop whose last step, of so many, fails with the numbers of the steps before it; picklable."""

    def __init__(self, preset, store, count):
        self.start, self.count = partial(start_loop, preset, store, "cpu", False), count

    def __call__(self, pairs, folder):
        loop, numbers = self.start(pairs, folder), []
        step = loop.step

        def counted(batch):
            numbers.append(loop.state.done)
            if len(numbers) == self.count:
                raise SdmError(f"steps {numbers}")
            return step(batch)

        loop.step = counted
        return loop


@pytest.mark.slow
def test_a_trial_takes_the_first_step_with_all_losses_and_passes_on_what_fails(store):
    preset = tiny_preset(train={"steps": 100}, method={"patch": 8, "labeled_only_fraction": 0.5})
    with pytest.raises(SdmError, match=r"^steps \[50, 50, 50\]$"):
        try_steps(Tell(preset, store, 3), 1)
    assert try_steps(Tell(preset, store, 4), 1).warm_up_seconds == 0  # only the duration needs it
    with pytest.raises(SdmError, match=r"^steps \[50, 50, 50, 0, 0, 0\]$"):
        try_steps(Tell(preset, store, 6), 1, for_duration=True)


@pytest.mark.parametrize("changes", [{"labeled_only_fraction": 0.0}, {"use_unlabeled": False}])
def test_a_run_of_one_kind_of_steps_has_no_warm_up(store, changes):
    preset = tiny_preset(method={"patch": 8, **changes}, model={"messenger_stages": []})
    cost = try_steps(partial(start_loop, preset, store, "cpu", False), 1, for_duration=True)
    assert cost.warm_up_seconds == 0 < min(cost.step_seconds, cost.slice_seconds)


def test_the_bound_is_the_tightest_of_machine_and_container(tmp_path):
    cpu, proc, cgroups = torch.device("cpu"), tmp_path / "proc", tmp_path / "cgroup"
    with pytest.raises(SdmError, match="is not known on this system: give a number"):
        memory_bound(cpu, proc, cgroups)
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n")
    assert memory_bound(cpu, proc, cgroups) == 819_200
    (cgroups / "memory").mkdir(parents=True)
    (cgroups / "memory.max").write_text("max\n")
    (cgroups / "memory.current").write_text("300000\n")
    (cgroups / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert memory_bound(cpu, proc, cgroups) == 819_200
    (cgroups / "memory.max").write_text("500000\n")
    assert memory_bound(cpu, proc, cgroups) == 240_000  # four fifths of what is left, cached files counted as free
    (cgroups / "memory/memory.limit_in_bytes").write_text("200000\n")
    (cgroups / "memory/memory.usage_in_bytes").write_text("100000\n")
    (cgroups / "memory/memory.stat").write_text("total_inactive_file 0\n")
    assert memory_bound(cpu, proc, cgroups) == 80_000
