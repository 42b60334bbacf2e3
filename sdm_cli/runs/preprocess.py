"""From a folder of scans to a slice store, in parallel and restartable.

Owns the order of the work and what happens to failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from sdm_cli.config import DataConfig, Preset
from sdm_cli.console import progress, say, warn
from sdm_cli.data.assume import assume_data
from sdm_cli.data.cases import Case, source_signature
from sdm_cli.data.domains import assign_domains
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.manifest import Manifest, StoredCase, is_store, read_manifest, settings_differences, write_manifest
from sdm_cli.data.readers import read_image, read_label
from sdm_cli.data.slices import make_slices
from sdm_cli.data.splits import ROLES, load_split
from sdm_cli.data.store import case_path, finished_case, index_cases, write_case
from sdm_cli.data.volume import to_slices
from sdm_cli.errors import ImageReadError, OutputError, PresetError, SomeCasesFailed, StoreError
from sdm_cli.files import remove_leftovers, replacing
from sdm_cli.preset_files import data_config_to_dict
from sdm_cli.runs.workers import in_processes

_NOTE = """\
# Written by sdm preprocess, which was given no preset. It assumed:
{assumptions}
# If that is right: sdm train --preset {store}/preset.yaml --store {store}
# If not, correct a copy of this file and start anew: sdm preprocess --preset COPY --overwrite ...
"""

_LARGEST_CROP = 512  # published; K is an eighth of the crop (method.md section 3)
_CROP_STEP = 32

# The recipe of `laseg-5-cpu`: from random weights the published SGD needs far more steps.
_SMALL: dict[str, dict[str, object]] = {
    "model": {"encoder": "mit-b0", "head_width": 256},
    "method": {"labeled_only_fraction": 0.2},
    "train": {
        "pairs": 8,
        "steps": 2000,
        "optimizer": "adamw",
        "lr": 0.0005,
        "head_lr_factor": 1.0,
        "lr_warmup_steps": 100,
        "weight_decay": 0.01,
        "average": 0.99,
        "validate_every_steps": 250,
    },
}


@dataclass(frozen=True)
class CaseFailure:
    """Why a case is not in the store."""

    case_id: str
    reason: str


def preprocess(
    input_folder: Path,
    labels: Path | None = None,
    preset: Preset | None = None,
    store: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    domains: Path | None = None,
) -> Path:
    """Read, normalise and store every scan of a folder.

    Args:
        input_folder: scans, in one of the layouts of `sdm_cli.data.readers`.
        labels: folder of labels, if the layout has none of its own.
        preset: its data section says how to read; without one it is assumed, said, and written
            to `STORE/preset.yaml`.
        store: folder to write; default `stores/<dataset>`.
        workers: processes.
        overwrite: start an existing store anew.
        domains: CSV of the columns `case,domain` and perhaps `patient`.

    Returns:
        Folder of the store. Finished cases of an earlier run are kept, not made again.

    Raises:
        SomeCasesFailed: part of the cases could not be read; the others are stored.
        ImageReadError: there is nothing to read.
        PresetError: there are labels, but the preset has no classes.
        StoreError: the store there was made with other settings.
        OutputError: the store cannot be written.
    """
    cases = find_cases(input_folder, labels, preset.data.layout if preset else "auto")
    if domains is not None:
        cases = assign_domains(cases, domains)
    say(f"{len(cases)} scans in {input_folder}, {sum(case.label_path is not None for case in cases)} with a label.")
    data, assumptions = (preset.data, []) if preset else assume_data(input_folder, cases)
    _check_settings(data, cases)
    store = store or Path("stores") / data.dataset
    for assumption in assumptions:
        say(f"assumed: {assumption}.")
    _start_store(store, data, overwrite)
    waiting = _unfinished(store, cases, data)
    if len(waiting) < len(cases):
        say(f"{len(cases) - len(waiting)} cases are finished already.")
    failures = _make_cases(store, waiting, data, workers)
    stored = index_cases(store, data)
    failed = {failure.case_id: failure.reason for failure in failures if failure.case_id not in stored}
    write_manifest(store, Manifest(data, stored, complete=True, failed=failed))
    if not preset and stored and (overwrite or not (store / "preset.yaml").exists()):
        _write_preset(store, data, stored, assumptions)
    _report(store, cases, data, stored, failures)
    return store


def make_case(store: Path, case: Case, data: DataConfig) -> StoredCase | CaseFailure:
    """Read, check, normalise and store one case; runs in a worker.

    Raises:
        OutputError: the store cannot be written, which no other case would survive either.
    """
    try:
        try:
            source = source_signature(case)
        except OSError as error:
            return CaseFailure(case.case_id, _out_of_reach(error))
        volume = read_image(case, data)
        if volume.voxels.min() == volume.voxels.max():
            raise ImageReadError(
                f"{case.image_path} is constant (all voxels {volume.voxels.flat[0]}): export it again."
            )
        affine = volume.geometry.affine
        label = None
        if case.label_path is not None:
            label = to_slices(read_label(case, data, volume.geometry), affine, data.slice_axis)
        image, grid = make_slices(volume, data, case.domain, label)
        return write_case(store, case, image, label, volume.geometry, data, source, grid)
    except ImageReadError as error:
        return CaseFailure(case.case_id, str(error))
    except FileNotFoundError as error:
        return CaseFailure(case.case_id, _out_of_reach(error))
    except MemoryError:
        return CaseFailure(case.case_id, f"{case.image_path} does not fit into memory: use fewer --workers.")


def _out_of_reach(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist: check the path (or the link)."
    return f"{error.filename} cannot be reached ({error.strerror}): check its permissions and its disk."


def _check_settings(data: DataConfig, cases: Sequence[Case]) -> None:
    if not data.classes and any(case.label_path is not None for case in cases):
        raise PresetError(
            "data.classes is empty, but there are label files: name the classes with their label values, for example "
            "classes: {liver: 1}."
        )
    if data.spacing_mm is None and any(case.image_path.suffix == ".h5" for case in cases):
        warn("the HDF5 files store no voxel size; 1 mm is assumed (data.spacing_mm says otherwise)")


def _start_store(store: Path, data: DataConfig, overwrite: bool) -> None:
    """Make the folder, or continue or clear the store that is there."""
    if is_store(store):
        if overwrite:
            write_manifest(store, Manifest(data, {}, complete=False))
            for path in (store / "cases").glob("*.h5"):
                _delete(path)
        else:
            differences = settings_differences(read_manifest(store).data, data)
            if differences:
                raise StoreError(
                    f"{store} was made with other settings ({differences}): choose another store with -o, or start "
                    "this one anew with --overwrite."
                )
    elif store.exists() and (not store.is_dir() or any(store.iterdir())):
        raise OutputError(f"{store} exists and is no slice store: choose another folder with -o.")
    remove_leftovers(store)
    remove_leftovers(store / "cases")
    write_manifest(store, Manifest(data, index_cases(store, data), complete=False))


def _unfinished(store: Path, cases: Sequence[Case], data: DataConfig) -> list[Case]:
    """Cases to make; what is stored of them goes if it is from other files or settings."""
    waiting = []
    for case in cases:
        try:
            source = source_signature(case)
        except OSError:  # out of reach proves no change: what is stored stays, and making the case says why
            waiting.append(case)
            continue
        if finished_case(store, case, data, source) is None:
            _delete(case_path(store, case.case_id))
            waiting.append(case)
    return waiting


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be deleted ({error.strerror}): check its permissions.") from error


def _make_cases(store: Path, cases: Sequence[Case], data: DataConfig, workers: int) -> list[CaseFailure]:
    failures = []
    with progress("preprocess", len(cases)) as bar:
        work = partial(make_case, store, data=data)
        for result in in_processes(work, cases, workers, f"; finished cases of {store} are kept"):
            if isinstance(result, CaseFailure):
                failures.append(result)
            bar.advance()
    return failures


def _report(
    store: Path,
    cases: Sequence[Case],
    data: DataConfig,
    stored: dict[str, StoredCase],
    failures: Sequence[CaseFailure],
) -> None:
    others = sorted(stored.keys() - {case.case_id for case in cases})
    if others:
        warn(f"{store} also keeps {len(others)} cases that are not in this folder; --overwrite starts it anew")
    if data.split is not None:
        split = load_split(data.split)
        listed = [case_id for role in ROLES for case_id in getattr(split, role)]
        missing = [case_id for case_id in listed if case_id not in stored]
        if missing:
            warn(
                f"split {data.split} lists {len(missing)} cases that are not in the store; training goes on without "
                f"them only with --allow-missing: {', '.join(missing)}"
            )
    for failure in sorted(failures, key=lambda failure: failure.case_id):
        kept = " What the store has of it is kept." if failure.case_id in stored else ""
        say(f"failed: {failure.case_id}: {failure.reason}{kept}")
    if failures:
        raise SomeCasesFailed(
            f"{len(failures)} of {len(cases)} cases failed (listed above), {len(stored)} are in {store}: repair the "
            "files and run the same command again, which makes only what is missing."
        )


def _write_preset(store: Path, data: DataConfig, cases: dict[str, StoredCase], assumptions: Sequence[str]) -> None:
    """A first preset for the store: what was assumed of the data, a crop that fits its slices, a small network."""
    crop = [
        min(_LARGEST_CROP, -(-max(size) // _CROP_STEP) * _CROP_STEP)
        for size in zip(*((case.height, case.width) for case in cases.values()), strict=True)
    ]
    name = store.resolve().name
    settings = {**data_config_to_dict(data), "dataset": name}
    tree = {
        "name": name,
        "description": "A start for these scans, written by sdm preprocess.",
        "data": {key: value for key, value in settings.items() if value not in (None, [])},
        "model": _SMALL["model"],
        "method": {"patch": min(crop) // 8, **_SMALL["method"], "class_weights": len(data.classes) > 1},
        "train": {"crop": crop, **_SMALL["train"]},
    }
    note = _NOTE.format(store=store, assumptions="\n".join(f"# - {assumption}" for assumption in assumptions))
    with replacing(store / "preset.yaml") as temporary:
        temporary.write_text(note + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
