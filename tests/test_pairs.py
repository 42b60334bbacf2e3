import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import make_store, tiny_preset
from torch.utils.data import DataLoader

from sdm_cli.config import AugmentConfig
from sdm_cli.data.pairs import Pair, PairBatch, PairedSlices, _crop, augment_pairs
from sdm_cli.data.store import SliceStore

CONFIG = AugmentConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return SliceStore(make_store(tmp_path_factory.mktemp("pairs"), tiny_preset()))


def pairs_of(store, seed=0, crop=(32, 32)):
    return PairedSlices(store, ["l0", "l1"], ["u0", "u1", "u2"], crop, CONFIG, seed)


def same(first, second):
    return all(same(a, b) if isinstance(a, tuple) else torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_pair_depends_on_seed_and_draw_alone(store):
    forward, backward = pairs_of(store), pairs_of(store)
    first = [forward[draw] for draw in range(12)]
    second = [backward[draw] for draw in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], pairs_of(store, seed=1)[0])
    assert not same(first[0], first[1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_batches(store, workers):
    expected = list(DataLoader(pairs_of(store), batch_size=2, sampler=range(4, 10)))
    loader = DataLoader(pairs_of(store), batch_size=2, sampler=range(4, 10), num_workers=workers)
    assert all(same(a, b) for a, b in zip(expected, loader, strict=True))


def test_every_slice_once_per_pass_in_another_order(store):
    pairs = pairs_of(store)
    n = len(pairs.unlabeled)
    passes = [[pairs._pick("unlabeled", pairs.unlabeled, draw) for draw in range(p * n, (p + 1) * n)] for p in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(pairs.unlabeled)
    assert passes[0] != passes[1]
    labeled = [pairs._pick("labeled", pairs.labeled, draw) for draw in range(len(pairs.labeled))]
    assert sorted(labeled) == sorted(pairs.labeled)


def test_the_labels_of_unlabeled_cases_are_out_of_reach(store, monkeypatch):
    read = []
    monkeypatch.setattr(
        SliceStore, "read_label", lambda self, case_id, z: read.append(case_id) or np.zeros((40, 36), np.uint8)
    )
    pairs = pairs_of(store)
    for draw in range(20):
        pairs[draw]
    assert set(read) == {"l0", "l1"}
    assert not any(
        "unlabeled" in name and name.endswith(("label", "target")) for name in Pair._fields + PairBatch._fields
    )


def test_augmented_batch_has_the_stated_types_and_leaves_the_pairs_alone(store):
    (collated,) = DataLoader(pairs_of(store), batch_size=3, sampler=range(3))
    before = collated.labeled_target.clone()
    batch = augment_pairs(collated)
    assert batch.labeled_image.shape == batch.unlabeled_image.shape == (3, 1, 32, 32)
    assert batch.labeled_image.dtype == torch.float32 and batch.labeled_target.dtype == torch.int64
    assert torch.equal(collated.labeled_target, before)


def test_without_augmentation_intensities_are_the_stored_ones(store):
    config = AugmentConfig(transforms=0)
    pairs = PairedSlices(store, ["l0"], ["u0"], (40, 36), config, 0)
    (collated,) = DataLoader(pairs, batch_size=1, sampler=[5])
    batch = augment_pairs(collated)
    case_id, z = pairs._pick("labeled", pairs.labeled, 5)
    assert batch.labeled_image[0, 0].numpy() == pytest.approx(store.read_image(case_id, z) / 65535)
    assert np.array_equal(batch.labeled_target[0].numpy(), store.read_label(case_id, z))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_a_crop_is_a_window_or_the_whole_in_zeros(height, width, wanted_h, wanted_w, seed):
    array = np.arange(1, height * width + 1).reshape(height, width)
    crop, twin = _crop((wanted_h, wanted_w), np.random.default_rng(seed), array, array)
    assert crop.shape == (wanted_h, wanted_w) and np.array_equal(crop, twin)
    kept = crop[crop > 0]
    assert len(kept) == min(height, wanted_h) * min(width, wanted_w)
    assert len(np.unique(kept)) == len(kept)
    rows = np.flatnonzero(crop.any(1))
    columns = np.flatnonzero(crop.any(0))
    window = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = divmod(int(window[0, 0]) - 1, width)
    assert np.array_equal(window, array[top : top + window.shape[0], left : left + window.shape[1]])
