"""Which slices and classes suit a model."""

import re
from dataclasses import replace

import pytest

from sdm_cli.data.fit import fitting_store, misfit
from sdm_cli.data.manifest import Manifest, StoredCase, write_manifest
from sdm_cli.data_config import DataConfig, GridConfig, NormalizeConfig
from sdm_cli.errors import StoreError

MODEL = DataConfig(classes={"liver": 1, "spleen": 7}, grid=GridConfig(spacing_mm=(1, 1)))
HARMLESS = [
    {"dataset": "other", "split": "synapse-20", "layout": "amos"},
    {"frame": 2, "background_values": (5,), "value_aliases": {9: 1}, "ignore_value": 255},
    {"classes": {"liver": 6, "spleen": 2}},  # class indices are stored, not values
]
HARMFUL = [
    ({"slice_axis": "coronal"}, "slice_axis is coronal, not axial"),
    ({"grid": GridConfig()}, "grid.spacing_mm is none, not [1.0, 1.0]"),
    ({"normalize": NormalizeConfig(percentiles=(1, 99))}, "normalize.percentiles is [1.0, 99.0], not "),
    (
        {"normalize_by_domain": {"a": NormalizeConfig(scale="volume")}},
        "normalize_by_domain.a.scale is volume, not none",
    ),
    ({"classes": {"spleen": 7, "liver": 1}}, "classes are spleen, liver, not liver, spleen"),
    ({"classes": {"spleen": 1, "liver": 7}}, "classes are spleen, liver, not liver, spleen"),
    ({"classes": {"liver": 1}}, "classes are liver, not liver, spleen"),
    ({"classes": {"liver": 1, "kidney": 8}}, "classes are liver, kidney, not liver, spleen"),
]


@pytest.fixture
def store_with(tmp_path):
    """An index of one case, made with some settings: nothing else of a store is looked at."""

    def made(data):
        case = StoredCase("a", 1, 32, 32, (1.0, 1.0, 1.0), labeled=False)
        (tmp_path / "store").mkdir()
        write_manifest(tmp_path / "store", Manifest(data, {"a": case}, complete=True))
        return tmp_path / "store"

    return made


@pytest.mark.parametrize("changes", HARMLESS)
def test_what_changes_nothing_for_a_network_fits(store_with, changes):
    other = replace(MODEL, **changes)
    assert misfit(other, MODEL) == ""
    assert fitting_store(store_with(other), MODEL).data == other


@pytest.mark.parametrize(("changes", "words"), HARMFUL)
def test_other_slices_and_classes_in_other_places_do_not(store_with, changes, words):
    other = replace(MODEL, **changes)
    assert words in misfit(other, MODEL)
    with pytest.raises(StoreError, match=rf"store was made with .*{re.escape(words)}.*: preprocess"):
        fitting_store(store_with(other), MODEL)


def test_a_renamed_class_of_a_store_fits_but_not_that_of_another_model(store_with):
    renamed = replace(MODEL, classes={"Leber": 1, "spleen": 7})
    assert fitting_store(store_with(renamed), MODEL).data == renamed
    assert misfit(renamed, MODEL) == "classes are Leber, spleen, not liver, spleen"
