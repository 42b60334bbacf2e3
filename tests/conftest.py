import os
import signal

# One thread a process: the networks of the tests are small, and two processes whose threads wait for each other on
# two cores take ten times as long. Set before torch is imported, and inherited by the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from accelerate.state import AcceleratorState
from models import PUBLISHED, use_least_encoder

from sdm_cli import console
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.runs import evaluate, workers
from sdm_cli.runs.pictures import Pictures

use_least_encoder()
# A shell has the jobs in its background ignore Ctrl-C, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_worker():
    """Each process imports all anew, which takes a second: a test that is about several says how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "all_cores", lambda: 1)
        yield


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Accelerate keeps its precision and device for the life of a process; every test starts without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def nothing_is_said_yet():
    """Every test is a command of its own."""
    console.warn_once.cache_clear()


@pytest.fixture
def published_encoder(monkeypatch):
    """For a test of what is promised of `mit-b0` itself."""
    monkeypatch.setitem(ENCODER_SIZES, "mit-b0", PUBLISHED)


@pytest.fixture
def pictures():
    """For a test of a run that draws its pictures."""


@pytest.fixture(autouse=True)
def without_pictures(request):
    """The many short runs and evaluations of the tests have no time for pictures and pages that nobody looks at."""
    with pytest.MonkeyPatch.context() as patch:
        if "pictures" not in request.fixturenames:
            for moment in ("at_validation", "at_stop", "at_end"):
                patch.setattr(Pictures, moment, lambda *arguments: None)
            patch.setattr(evaluate, "write_evaluation_report", lambda *arguments: None)
        yield
