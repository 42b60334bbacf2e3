"""A file of unknown origin is a result or one sentence: no other exception, no hang, no memory beyond the bound."""

import signal
import sys
from pathlib import Path
from random import Random

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdm_cli.data import limits
from sdm_cli.errors import SdmError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
FREE_BYTES = 2**29
SECONDS = 60
NAMES = (
    *("nifti", "nifti gzip", "nifti 4D", "nifti-2", "nrrd", "hdf5", "store", "manifest", "fingerprint", "preset"),
    *("whole preset", "split", "nnU-Net splits", "list", "dataset.json", "domains", "M&Ms csv", "M&Ms xls", "run"),
    *("record", "model config", "resume values", "resume tensors", "safetensors", "onnx", "new pth", "old pth"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return fuzz.readers(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def bounded(monkeypatch):
    """A machine with 512 MiB left, on which a process that takes four times as much, or a minute, fails."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(limits, "free_memory_bytes", lambda: FREE_BYTES)
    before = resource.getrlimit(resource.RLIMIT_AS)
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + 4 * FREE_BYTES, before[1]))

    def hang(number, frame):
        raise AssertionError(f"no answer within {SECONDS} seconds")

    handler = signal.signal(signal.SIGALRM, hang)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


def hold_the_law(reader: fuzz.Reader, seed: int) -> None:
    content = reader.file.read_bytes()
    try:
        reader.file.write_bytes(fuzz.changed(content, reader.kind, Random(seed)))
        signal.alarm(SECONDS)
        reader.read(reader.file.parent)
    except SdmError as error:
        assert str(error).strip() and len(str(error)) < 20_000
    finally:
        signal.alarm(0)
        reader.file.write_bytes(content)


def test_every_reader_is_named(readers):
    assert set(NAMES) == readers.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_a_result_or_a_sentence(readers, bounded, name):
    @settings(derandomize=True, deadline=None, max_examples=15, database=None)
    @given(st.integers(0, 2**32 - 1))
    def law(seed):
        hold_the_law(readers[name], seed)

    law()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_a_result_or_a_sentence_however_often_it_is_tried(readers, bounded, name):
    for seed in range(1500):
        hold_the_law(readers[name], seed)
