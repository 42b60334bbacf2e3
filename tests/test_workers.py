"""Work in processes: how far it runs ahead."""

import time

import pytest

from sdm_cli.runs.workers import as_made


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_items_are_made_than_one_above_the_workers(workers):
    """Volumes wait in memory, so a fast network must not run ahead of the scores."""
    made, done, most = 0, 0, 0

    def items():
        nonlocal made, most
        for _ in range(6):
            made += 1
            most = max(most, made - done)
            yield 0.05

    for _ in as_made(time.sleep, items(), workers):
        done += 1
    assert made == done == 6 and most <= workers + 1
