"""Whether slices suit a model: made as those that it was trained on, and of the same classes.

Fewer settings count here than for making a store or training from one (`settings_differences` of `manifest`): values in
label files, frames and layouts change nothing for a network that is trained.
"""

import dataclasses
from pathlib import Path

from sdm_cli.data.store import SliceStore
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import StoreError
from sdm_cli.preset_files import data_config_to_dict, differing

_SLICES = ("slice_axis", "grid", "normalize", "normalize_by_domain")


def misfit(other: DataConfig, model: DataConfig) -> str:
    """Where slices or classes are not those of a model, as a phrase; empty when they are.

    Args:
        other: settings of the slices, or of another model.
        model: settings of the model.
    """
    trees = [data_config_to_dict(data) for data in (other, model)]
    slices = differing(*({name: tree[name] for name in _SLICES} for tree in trees))
    reasons = [f"{key} is {found}, not {expected}" for key, found, expected in slices]
    if other.class_names != model.class_names:  # in their order, which is that of the network's outputs
        reasons.append(f"classes are {_names(other)}, not {_names(model)}")
    return "; ".join(reasons)


def fitting_store(path: Path, model: DataConfig) -> SliceStore:
    """A finished store whose slices suit a model; its classes may have been renamed since.

    Args:
        path: folder of the store.
        model: settings of the model.

    Raises:
        StoreError: no store, unfinished, of another version, or made otherwise than the model's slices.
    """
    store = SliceStore(path)
    made_with = store.data
    known = dataclasses.replace(made_with, classes=model.classes) if _are_renamed(made_with, model) else made_with
    if reasons := misfit(known, model):
        raise StoreError(
            f"{path} was made with other settings than the model's ({reasons}): preprocess the scans with the preset "
            "of the model, or predict from the scans themselves."
        )
    return store


def _are_renamed(made_with: DataConfig, model: DataConfig) -> bool:
    """Whether the classes differ by names alone: the same values in the same order, and no name has moved."""
    pairs = zip(made_with.classes.items(), model.classes.items(), strict=False)
    return list(made_with.classes.values()) == list(model.classes.values()) and all(
        name == other or name not in model.classes for (name, _), (other, _) in pairs
    )


def _names(data: DataConfig) -> str:
    return ", ".join(data.class_names)
