"""Which cases of a store play which role for a model: by the lists it was trained with, for scores and for masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sdm_cli.config import Preset
from sdm_cli.console import warn
from sdm_cli.data.cases import some
from sdm_cli.data.splits import Split, expand_patients, load_split
from sdm_cli.data.store import SliceStore
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import SplitError
from sdm_cli.runs.run_folder import RunFolder

Role = Literal["test", "validation", "unlabeled"]


def run_of(model: Path) -> Path | None:
    """The run that a path is, or that it is a checkpoint of."""
    if (model / "config.yaml").is_file():
        return model
    run = model.absolute().parent.parent
    return run if model.absolute().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def split_of(run: Path | None, data: DataConfig, store: SliceStore) -> Split:
    """The lists that the run was trained with, whatever the split file says today; without a run the preset's."""
    if run is not None:
        return RunFolder(run).read_split()
    if data.split is not None:
        return load_split(data.split)
    return Split(unlabeled=tuple(case_id for case_id, case in store.cases.items() if not case.labeled))


def cases_to_predict(models: Sequence[Path], presets: Sequence[Preset], store: SliceStore, role: Role) -> list[str]:
    """The cases of a store that have a role, with a label or without; those that the store lacks are named.

    Args:
        models: runs, model folders or exported files.
        presets: of the models.
        store: of the cases.
        role: which list of the split.

    Raises:
        SplitError: there is no such case, or not in this store, or the models were trained with different lists.
    """
    lists = [
        getattr(expand_patients(split_of(run_of(path), preset.data, store), store.cases), role)
        for path, preset in zip(models, presets, strict=True)
    ]
    for path, listed in zip(models, lists, strict=True):
        if set(listed) != set(lists[0]):
            raise SplitError(
                f"{path} was trained with other {role} cases than {models[0]}: leave --split out, or give models of "
                "one split."
            )
    present = [case_id for case_id in lists[0] if case_id in store.cases]
    if not lists[0]:
        raise SplitError(f"{models[0]} was trained without {role} cases: leave --split out, or give another role.")
    if not present:
        raise SplitError(
            f"{store.path} holds none of the {len(lists[0])} {role} cases of {models[0]}: leave --split out, or give "
            "the store that has them."
        )
    if absent := [case_id for case_id in lists[0] if case_id not in store.cases]:
        warn(f"{store.path} lacks {len(absent)} of the {len(lists[0])} {role} cases ({some(absent)})")
    return present
