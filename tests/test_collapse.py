"""The alarm when pseudo-labels collapse: its rule on shares, and what a run says and records."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import make_store, tiny_preset

from sdm_cli.runs import loop as loop_module
from sdm_cli.runs.collapse import RECORDS, CollapseWatch, describe_collapse
from sdm_cli.runs.shares import ClassShares
from sdm_cli.runs.train import train


def line(step, pseudo, labeled=(0.9, 0.08, 0.02)):
    names = ("background", "ball", "box")
    shares = None if pseudo is None else dict(zip(names, pseudo, strict=True))
    return {"step": step, "pseudo_share": shares, "labeled_share": dict(zip(names, labeled, strict=True))}


def alarms(lines):
    watch = CollapseWatch()
    found = [alarm for entry in lines if (alarm := watch.take(entry))]
    return found, watch.vanished


GOOD, NO_BOX, NOTHING = (0.9, 0.08, 0.02), (0.92, 0.08, 0.0), (1.0, 0.0, 0.0)


def test_a_name_that_a_disk_damaged_hides_its_class_and_stops_nothing():
    """For as long as the line is among those that the mean is of."""
    lines = [line(10 * i, GOOD) for i in range(1, 8)] + [line(10 * i, NO_BOX) for i in range(8, 20)]
    lines[3]["pseudo_share"]["bQll"] = lines[3]["pseudo_share"].pop("ball")
    (alarm,), vanished = alarms(lines)
    assert alarm["step"] == 120 and vanished == ("box",)


def test_a_class_is_named_once_with_its_step_when_its_mean_share_is_below_a_twentieth():
    lines = [line(10 * i, GOOD) for i in range(1, 8)] + [line(10 * i, NO_BOX) for i in range(8, 20)]
    (alarm,), vanished = alarms(lines)
    assert alarm["step"] == 120 and alarm["since"] == 80 and list(alarm["collapse"]) == ["box"]
    assert vanished == ("box",)
    said = describe_collapse(alarm)
    assert "step 120: the pseudo-labels have lost box" in said and "0 % of their pixels against 2 %" in said


def test_background_that_swallows_all_is_told_as_that():
    (alarm,), _ = alarms([line(i, NOTHING) for i in range(1, 9)])
    assert alarm["step"] == RECORDS and "hold only background" in describe_collapse(alarm)


def test_a_class_that_recovers_may_be_named_again_and_one_that_hovers_is_not():
    back = [line(i, GOOD) for i in range(20, 25)]
    lines = [line(i, NO_BOX) for i in range(10)] + back + [line(i, NO_BOX) for i in range(30, 40)]
    found, _ = alarms(lines)
    assert [alarm["step"] for alarm in found] == [4, 34]
    hovering = [line(i, (0.92, 0.08, 0.02 * (0.04 if i // 5 % 2 else 0.08))) for i in range(40)]
    assert len(alarms(hovering)[0]) == 1


def test_warm_up_other_lines_and_classes_without_labels_raise_no_alarm():
    warm_up = [line(i, None) for i in range(20)]
    validation = {"step": 20, "validation": {"dice": 0.0}}
    absent = [line(i, NO_BOX, (0.92, 0.08, 0.0)) for i in range(20, 40)]
    assert alarms([*warm_up, validation, *absent]) == ([], ())


@given(st.lists(st.tuples(st.floats(0.0, 0.2), st.floats(0.0, 0.2)), min_size=1, max_size=40), st.integers(0, 40))
def test_a_watch_fed_from_the_record_goes_on_as_the_one_that_never_stopped(shares, stop):
    lines = [line(i, (1 - a - b, a, b), (0.7, 0.1, 0.2)) for i, (a, b) in enumerate(shares)]
    whole, _ = alarms(lines)
    read_back = CollapseWatch()
    before = [alarm for entry in json.loads(json.dumps(lines[:stop])) if (alarm := read_back.take(entry))]
    after = [alarm for entry in lines[stop:] if (alarm := read_back.take(entry))]
    assert before + after == whole


def test_shares_leave_out_ignored_pixels_and_begin_anew():
    shares = ClassShares(3)
    shares.add_labeled(torch.tensor([[[0, 1], [255, 1]]]), lambda counts: counts)
    shares.add_labeled(torch.tensor([[[2, 255], [255, 255]]]), lambda counts: counts)
    assert shares.take() == ([0.25, 0.5, 0.25], None)
    shares.add_pseudo(torch.tensor([[[0, 0], [0, 2]]]), lambda counts: counts + torch.tensor([4, 0, 0]))
    assert shares.take() == (None, [7 / 8, 0, 1 / 8])


def test_a_run_whose_pseudo_labels_are_background_says_so_once_though_it_was_killed(tmp_path, monkeypatch, capsys):
    store = make_store(tmp_path)
    monkeypatch.setattr(
        loop_module, "pseudo_label", lambda network, image, _: torch.zeros_like(image[:, 0], dtype=torch.int64)
    )
    monkeypatch.setattr(loop_module, "RECORD_EVERY", 1)
    preset = tiny_preset(method={"labeled_only_fraction": 0.14}, train={"steps": 14, "validate_every_steps": 8})
    real = loop_module.TrainingLoop._record

    def record(self, *arguments):
        entry = real(self, *arguments)
        if self.state.done == 9:  # as a kill: no checkpoint of this step
            raise KeyboardInterrupt
        return entry

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module.TrainingLoop, "_record", record)
        train(preset, store, tmp_path / "run", "cpu")
    run = train(preset, store, tmp_path / "run", "cpu", resume=True)
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    (alarm,) = [entry for entry in lines if "collapse" in entry]
    assert alarm["step"] == 7 and set(alarm["collapse"]) == {"ball", "box"}  # 2 steps of warm-up, then 5 records
    said = capsys.readouterr().err
    assert said.count("warning: step 7: the pseudo-labels hold only background") == 1
    assert "pseudo-labels without ball, box" in said
