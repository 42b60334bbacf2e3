"""The largest part of a class: which one it is, what a bridge is, and that nothing else changes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import small_preset
from scipy import ndimage

from sdm_cli.config import PredictConfig
from sdm_cli.data.grid import whole_grid
from sdm_cli.errors import PresetError
from sdm_cli.preset_files import load_preset
from sdm_cli.runs.inference import predict_scan
from sdm_cli.runs.parts import keep_largest_part
from sdm_cli.runs.predictor import Predictor

CUBE_MM = (1.0, 1.0, 1.0)


def two_blocks(bridge: int = 0) -> np.ndarray:
    """A block of 10 x 10 x 10 and one of 6 x 6 x 6 of class 1, with a bridge so many voxels thick; class 2 beside."""
    mask = np.zeros((14, 14, 30), np.uint8)
    mask[2:12, 2:12, 1:11] = 1
    mask[4:10, 4:10, 20:26] = 1
    mask[4 : 4 + bridge, 4 : 4 + bridge, 11:20] = 1
    mask[0, :, :] = 2
    return mask


def kept(mask: np.ndarray, bridge_mm: float = 0, spacing_mm=CUBE_MM) -> np.ndarray:
    result = mask.copy()
    keep_largest_part(result, 1, spacing_mm, bridge_mm)
    return result


def test_the_largest_part_stays_whole_and_other_classes_stay():
    mask = two_blocks()
    result = kept(mask)
    assert (result[:, :, :11] == mask[:, :, :11]).all() and (result == 2).sum() == (mask == 2).sum()
    assert not (result[:, :, 11:] == 1).any()


@pytest.mark.parametrize(("bridge", "bridge_mm", "is_cut"), [(2, 0, False), (2, 3, True), (6, 3, False)])
def test_a_bridge_counts_by_its_thickness(bridge, bridge_mm, is_cut):
    mask = two_blocks(bridge)
    result = kept(mask, bridge_mm)
    assert (result[:, :, 20:26] == 1).any() != is_cut
    assert (result[:, :, 1:11] == mask[:, :, 1:11]).all(), "corners of the part that is kept are kept"


def test_thickness_is_in_mm():
    mask = two_blocks(bridge=4)
    assert (kept(mask, 3, (3.0, 3.0, 3.0))[:, :, 20:26] == 1).any()  # 12 mm thick
    assert not (kept(mask, 3, (0.5, 0.5, 0.5))[:, :, 20:26] == 1).any()


def test_a_class_that_is_thin_everywhere_or_absent_is_no_error():
    mask = np.zeros((5, 8, 8), np.uint8)
    assert not kept(mask, 4).any()
    mask[2, 2, 1:6] = 1
    mask[4, 7, 7] = 1
    assert (kept(mask, 4)[2, 2, 1:6] == 1).all()


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 8)] * 3), elements=st.integers(0, 2)),
    st.floats(0, 5),
    st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_voxels_are_only_taken_away_and_never_all(mask, bridge_mm, spacing_mm):
    result = kept(mask, bridge_mm, spacing_mm)
    changed = result != mask
    assert not result[changed].any() and not changed[mask != 1].any()
    assert (result == 1).any() == (mask == 1).any()


@settings(deadline=None, max_examples=100)
@given(
    mask=arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 3), elements=st.integers(0, 1)),
    bridge_mm=st.floats(0, 5),
    spacing_mm=st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_distances_are_those_of_scipy_to_the_last_bit(mask, bridge_mm, spacing_mm):
    region = np.pad(mask == 1, 1)
    core = ndimage.distance_transform_edt(region, spacing_mm) > bridge_mm / 2
    parts, _ = ndimage.label(core if core.any() else region, np.ones((3, 3, 3)))
    expected = mask.copy()
    if mask.any():
        largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        near = ndimage.distance_transform_edt(~largest, spacing_mm) <= bridge_mm
        expected[~near[1:-1, 1:-1, 1:-1]] = 0
    assert (kept(mask, bridge_mm, spacing_mm) == expected).all()


def test_a_large_structure_takes_a_third_of_the_memory_of_its_distances():
    mask = np.zeros((64, 128, 128), np.uint8)
    mask[:, :, :60] = mask[:, :, 68:] = mask[30:34, 60:64] = 1
    tracemalloc.start()
    keep_largest_part(mask, 1, CUBE_MM, 6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / mask.size < 20  # 60 with the distances of all voxels at once


def test_the_preset_of_a_model_decides():
    def forward(images):
        """The class whose index is written into the intensity."""
        index = (images[:, 0] * 65535).round().astype(int)
        return 10 * np.eye(3, dtype=np.float32)[index].transpose(0, 3, 1, 2)

    mask = two_blocks()
    plain = small_preset()
    results = []
    for preset in (plain, replace(plain, predict=PredictConfig(largest_part=("liver",)))):
        predictor = Predictor(preset, "cpu", forward)
        results.append(predict_scan([predictor], mask.astype(np.uint16), whole_grid(mask.shape), CUBE_MM).mask)
    assert (results[0] == mask).all() and (results[1] == kept(mask)).all()


def test_only_classes_of_the_preset_have_parts():
    with pytest.raises(PresetError, match=r"predict\.largest_part: hart is no class"):
        load_preset("laseg-5-cpu", ["predict.largest_part=[hart]"])
