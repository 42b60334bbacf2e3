"""Three stages: they overlap, three items are alive at most, an error belongs to its item, a stop leaves nothing."""

import gc
import threading
import time
import weakref
from typing import ClassVar

import pytest

from sdm_cli.errors import ImageReadError, OutputError, SdmError
from sdm_cli.runs.pipeline import run_stages


class Thing:
    """Something with a weight, as a volume."""

    alive: ClassVar = weakref.WeakSet()
    most = 0

    def __init__(self, number):
        self.number = number
        Thing.alive.add(self)
        Thing.most = max(Thing.most, len(Thing.alive))


def run(items, read=Thing, work=lambda thing: Thing(thing.number), write=lambda thing: thing.number):
    outcomes = []
    run_stages(items, read, work, write, lambda item, outcome: outcomes.append((item, outcome)))
    return outcomes


@pytest.mark.parametrize("n", [0, 1, 2, 3, 20])
def test_every_item_has_its_outcome_in_order(n):
    assert run(range(n)) == [(item, item) for item in range(n)]


def test_the_stages_overlap():
    """Each stage of an item waits until its neighbours are in the other two."""
    together = threading.Barrier(3, timeout=20)

    def stage(first, last):
        def meet(thing):
            number = thing if isinstance(thing, int) else thing.number
            if first <= number <= last:
                together.wait()
            return Thing(number)

        return meet

    outcomes = []
    # While 1 is worked on, 2 is read and 0 is written; and so on.
    run_stages(range(6), stage(2, 5), stage(1, 4), stage(0, 3), lambda item, outcome: outcomes.append(item))
    assert outcomes == list(range(6))


def test_three_items_are_alive_at_most():
    gc.collect()
    Thing.most = 0

    def slow(thing):
        time.sleep(0.002)
        return thing.number

    def swapped(thing):
        number = thing.number
        del thing
        return Thing(number)

    run(range(20), work=swapped, write=slow)
    # One read, one that is worked on with what is made of it, one written.
    assert 3 <= Thing.most <= 4


@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_an_error_belongs_to_its_item(stage):
    def failing(item):
        number = item if isinstance(item, int) else item.number
        if number in (1, 2, 5):
            raise ImageReadError(f"{number} is broken")
        return Thing(number) if stage != "write" else number

    outcomes = run(range(6), **{stage: failing})
    assert [item for item, _ in outcomes] == list(range(6))
    assert {item: str(outcome) for item, outcome in outcomes if isinstance(outcome, SdmError)} == {
        number: f"{number} is broken" for number in (1, 2, 5)
    }


@pytest.mark.parametrize("stage", ["read", "work", "write"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_any_other_error_ends_all_after_what_is_being_written(stage, error):
    outcomes, read = [], []

    def failing(item):
        number = item if isinstance(item, int) else item.number
        if number == 3:
            raise error
        return number if stage == "write" else Thing(number)

    def reading(item):
        read.append(item)
        return failing(item) if stage == "read" else Thing(item)

    def writing(thing):
        time.sleep(0.02)
        return failing(thing) if stage == "write" else thing.number

    work = failing if stage == "work" else lambda thing: thing
    with pytest.raises(error):
        run_stages(range(20), reading, work, writing, lambda item, outcome: outcomes.append((item, outcome)))
    assert outcomes == [(0, 0), (1, 1), (2, 2)]
    assert len(read) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]


def test_whoever_is_told_may_end_all():
    def full(item, outcome):
        if isinstance(outcome, OutputError):
            raise outcome

    def write(thing):
        raise OutputError(f"{thing.number}: the disk is full")

    with pytest.raises(OutputError, match="0: the disk is full"):
        run_stages(range(9), Thing, lambda thing: thing, write, full)
