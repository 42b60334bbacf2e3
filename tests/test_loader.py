"""Loader processes: what they say when something fails, and how many there are."""

import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
from accelerate import Accelerator
from stores import make_store, tiny_preset

from sdm_cli.data.pairs import PairedSlices
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import SdmError, StoreError
from sdm_cli.runs.loader import load_pairs
from sdm_cli.runs.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("loader"), tiny_preset())


def batches(store, n_workers, n_pairs=2, crop=(32, 32), n_draws=6):
    preset = tiny_preset(train={"workers": n_workers, "pairs": n_pairs, "crop": list(crop)})
    pairs = PairedSlices(SliceStore(store), ["l0", "l1"], ["u0", "u1", "u2"], crop, preset.augment, 0)
    return list(load_pairs(pairs, range(n_draws), preset.train, Accelerator(cpu=True)))


def test_a_batch_names_its_draws(store):
    pairs = PairedSlices(SliceStore(store), ["l0", "l1"], ["u0", "u1", "u2"], (32, 32), tiny_preset().augment, 0)
    seen = [number for batch in batches(store, 1) for number in batch.number.tolist()]
    assert seen == list(range(6))
    # 6 labeled and 9 unlabeled slices: one pass holds each once
    assert sorted(pairs.slices_of(draw)[0] for draw in range(6)) == [(c, z) for c in ("l0", "l1") for z in range(3)]
    assert len({pairs.slices_of(draw)[1] for draw in range(9)}) == 9


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize("error", [IndexError("out of it"), MemoryError("no room"), StoreError("l1.h5 is damaged.")])
def test_any_error_names_the_slice_and_its_cause(store, monkeypatch, n_workers, error):
    real = SliceStore.read_label

    def fail(self, case_id, z):
        if (case_id, z) == ("l1", 2):
            raise error
        return real(self, case_id, z)

    monkeypatch.setattr(SliceStore, "read_label", fail)
    with pytest.raises(StoreError, match=r"^Slice 2 of case l1 .*cannot be read") as caught:
        batches(store, n_workers)
    assert str(error) in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_killed_loader_process_is_one_sentence(store, tmp_path, monkeypatch):
    parent, real = os.getpid(), SliceStore.read_image

    def die(self, case_id, z):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, case_id, z)

    monkeypatch.setattr(SliceStore, "read_image", die)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds between two looks at it
    preset = tiny_preset(train={"workers": 1})
    with pytest.raises(SdmError, match=r"A loader process was killed .*train\.workers=0.*--resume") as caught:
        train(preset, store, tmp_path / "run", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize(("free", "left"), [(None, 0), (0, 0), (2 * 3 * 4 * 32 * 32 * 5 - 1, 1), (2**30, 2)])
def test_too_little_shared_memory_means_fewer_processes_and_the_same_pairs(store, monkeypatch, capsys, free, left):
    monkeypatch.setattr("sdm_cli.runs.loader.all_cores", lambda: 2)
    asked = []
    real = shutil.disk_usage

    def usage(path):
        if str(path) != "/dev/shm":
            return real(path)
        if free is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return namedtuple("Usage", "free")(free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(
        "sdm_cli.runs.loader.DataLoader",
        lambda *a, num_workers, **k: asked.append(num_workers) or DataLoader(*a, num_workers=0, **k),
    )
    from torch.utils.data import DataLoader

    found = batches(store, 2, n_pairs=4, n_draws=8)
    assert asked == [left] and len(found) == 2
    assert (f"going on with {left}" in (said := capsys.readouterr().err)) == (left < 2)
    assert ("/dev/shm is full or missing" in said) == (not free)


def test_no_loader_process_needs_no_shared_memory(store, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(0))
    assert np.concatenate([batch.number for batch in batches(store, 0)]).tolist() == list(range(6))
    assert capsys.readouterr().err == ""
