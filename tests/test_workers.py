"""Work in processes: how far it runs ahead, and how it ends."""

import os
import subprocess
import sys
import time

import pytest

from sdm_cli.runs.workers import all_cores, as_made, in_processes


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


@pytest.mark.parametrize("lack", ["no /dev/shm", "no semaphores"])
def test_where_processes_can_share_nothing_one_does_the_work(monkeypatch, capsys, lack):
    def refuse(*arguments, **options):
        raise FileNotFoundError(2, "No such file or directory")

    if lack == "no /dev/shm":
        monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    else:  # Python built for a system without them
        monkeypatch.setitem(sys.modules, "multiprocessing.synchronize", None)
    assert list(in_processes(abs, [-1, 2, -3], 2)) == [1, 2, 3]
    said = capsys.readouterr().err
    assert "Processes cannot share locks here" in said and "/dev/shm" in said and said.count("\n") == 1


_INTERRUPTED_AT_ITS_START = """
import os, signal, threading, time
from sdm_cli.runs.workers import in_processes

def interrupt():
    while not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children") or not children():
        time.sleep(0.001)
    time.sleep(0.05)
    os.killpg(0, signal.SIGINT)  # as a terminal does: to all processes of the command

def children():
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return file.read().split()

if __name__ == "__main__":
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        list(in_processes(time.sleep, [0.01] * 8, 2))
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_while_workers_start_leaves_no_traceback(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_INTERRUPTED_AT_ITS_START)
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert result.stdout == "interrupted\n"
    assert result.stderr == ""


def test_a_job_counts_the_cores_that_it_was_given(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert all_cores() == 3
