"""What a person sees while training runs, on a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from sdm_cli.runs import live
from sdm_cli.runs.live import TrainingView
from sdm_cli.runs.workload import Workload

ENTRY = {
    "step": 30,
    "epoch": 0.5,
    "loss": 0.75,
    "loss_labeled": 0.5,
    "loss_unlabeled": None,
    "lr": 0.001,
    "pairs_per_second": 4.0,
}


def shown(monkeypatch, *, terminal, vanished=()):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    monkeypatch.setattr(live, "stderr_console", lambda: console)
    with TrainingView("tiny on store", Workload(2, 10.0, 100, 50), True) as view:
        view.show_step({**ENTRY, "step": 20}, ("box",))
        view.show_step(ENTRY, vanished)
        view.show_validation(30, 0.625, True)
    return console.file.getvalue()


def test_a_terminal_shows_a_table_that_is_kept_up_to_date(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    for words in ("tiny on store", "30 of 100", "0.7500 labeled 0.5000", "1.00e-03", "0:00:35", "Dice 62.50 %"):
        assert words in text
    assert "unlabeled" not in text


@pytest.mark.parametrize(("dice", "words"), [(0.0, "Dice 0.00 %"), (None, "Dice undefined")])
def test_what_is_kept_for_want_of_a_better_one_is_not_praised(capsys, dice, words):
    with TrainingView("tiny on store", Workload(2, 10.0, 100, 50), True) as view:
        view.show_validation(30, dice, True)
    assert capsys.readouterr().err == f"validation: {words} at step 30\n"


def test_classes_that_vanished_from_pseudo_labels_are_shown_until_they_are_back(monkeypatch, capsys):
    assert "without ball" in shown(monkeypatch, terminal=True, vanished=("ball",))
    shown(monkeypatch, terminal=False)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.endswith("pseudo-labels without box") and "pseudo-labels" not in second


def test_a_log_gets_plain_lines(monkeypatch, capsys):
    assert shown(monkeypatch, terminal=False) == ""
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines == [
        "step 30 of 100, epoch 0.50, loss 0.7500 labeled 0.5000, learning rate 1.00e-03, pairs per second 4.0, "
        "time left 0:00:35",
        "validation: Dice 62.50 % at step 30, the best so far",
    ]
