"""From a folder of scans to a slice store, in parallel and restartable.

Owns the order of the work and what happens to failures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sdm_cli.config import Preset
from sdm_cli.console import progress, say, warn
from sdm_cli.data.case_file import case_path
from sdm_cli.data.cases import Case, counted, some, source_signature, stores_spacing, what_was_found
from sdm_cli.data.domains import assign_domains, name_cases
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.limits import beyond_memory
from sdm_cli.data.manifest import (
    DamagedManifest,
    Manifest,
    StoredCase,
    is_store,
    read_manifest,
    settings_differences,
    write_manifest,
)
from sdm_cli.data.measure import take_fingerprint
from sdm_cli.data.origin import FinishedCase, find_unfinished, refuse_other_data, without_folders
from sdm_cli.data.plan import machine_memory_bytes, plan_preset
from sdm_cli.data.readers import read_label, read_scan
from sdm_cli.data.recipe import (
    RECIPE,
    is_unfinished_recipe,
    load_recipe,
    new_since_recipe,
    replace_recipe,
    say_kept_recipe,
    write_recipe,
)
from sdm_cli.data.slices import make_slices
from sdm_cli.data.splits import ROLES, expand_patients, load_split
from sdm_cli.data.store import finished_cases, write_case
from sdm_cli.data.suspects import suspects
from sdm_cli.data.volume import assumes_spacing, to_slices
from sdm_cli.data_config import LABELS_TOUCHED, DataConfig
from sdm_cli.errors import ImageReadError, OutputError, PresetError, SomeCasesFailed, StoreError
from sdm_cli.files import remove_leftovers
from sdm_cli.runs.workers import in_processes


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
        input_folder: scans, in one of the layouts of `sdm_cli.data.layouts`.
        labels: folder of labels, if the layout has none of its own.
        preset: its data section says how to read; without one it is planned from a fingerprint of the folder, and
            the whole recipe is written to `STORE/preset.yaml`. A store that is there goes on with its own settings.
            A store with a recipe that starts anew with a preset has that preset for its recipe.
        store: folder to write; default `stores/<dataset>`, and without a preset `stores/<name of the folder>`, which
            is not gone on with from a folder elsewhere that has the same name.
        workers: processes.
        overwrite: start an existing store anew.
        domains: CSV of the columns `case,domain` and perhaps `patient`; what it says counts before `dataset.json`.

    Returns:
        Folder of the store. Finished cases of an earlier run are kept, not made again.

    Raises:
        SomeCasesFailed: part of the cases could not be read; the others are stored.
        ImageReadError: there is nothing to read, or nothing that a recipe can be planned from.
        PresetError: there are labels, but the preset has no classes.
        StoreError: the store there was made with other settings, or has cases of these names from another folder.
        OutputError: the store cannot be written.
    """
    cases = name_cases(find_cases(input_folder, labels, preset.data.layout if preset else "auto"), input_folder)
    if domains is not None:
        cases = assign_domains(cases, domains)
    say(what_was_found(input_folder, cases))
    is_chosen = store is not None or preset is not None
    store = store or Path("stores") / (preset.data.dataset if preset else _folder_of(input_folder).name)
    starts_anew = overwrite or not is_store(store)
    _require_free(store)
    kept_reason = partial(without_folders, folders=(_folder_of(input_folder), input_folder, labels))
    plan = None
    if preset is not None:
        data = preset.data
    elif not starts_anew:
        data = _settings_of(store)
    else:
        fingerprint = take_fingerprint(input_folder, cases, partial(in_processes, workers=workers))
        plan = plan_preset(fingerprint, store.resolve().name, machine_memory_bytes())
        data = plan.preset.data
    finished = {} if starts_anew else _find_finished(store, data)
    if not is_chosen:
        refuse_other_data(store, cases, finished, input_folder)
    if preset is None and not starts_anew:
        _check_recipe(store, data, cases)
    _check_settings(data, cases)
    if plan is not None:
        unusable = {case_id: kept_reason(problem) for case_id, problem in fingerprint.unusable.items()}
        write_recipe(store, replace(fingerprint, unusable=unusable), plan)
    elif preset is not None and starts_anew:
        replace_recipe(store, preset)
    elif preset is not None:
        say_kept_recipe(store, preset)
    if starts_anew:
        _clear(store, data)
    waiting, outdated = find_unfinished(store, cases, finished, input_folder)
    if len(waiting) < len(cases):
        say(f"Finished already: {counted(len(cases) - len(waiting), 'case')}.")
    kept = {case_id: case.stored for case_id, case in finished.items() if case_id not in outdated}
    stored, failures = _fill(store, data, kept, outdated, waiting, workers, kept_reason)
    if found := suspects(stored, data):
        warn(f"{store}: {'; '.join(found)}: sdm check {input_folder} says what to do")
    _report(store, cases, data, stored, failures)
    return store


def _fill(
    store: Path,
    data: DataConfig,
    kept: Mapping[str, StoredCase],
    outdated: Iterable[str],
    waiting: Sequence[Case],
    workers: int,
    kept_reason: Callable[[str], str],
) -> tuple[dict[str, StoredCase], list[CaseFailure]]:
    """Make the cases that wait, beside those that are kept; the manifest says so before and after."""
    write_manifest(store, Manifest(data, dict(kept), complete=False))
    for case_id in outdated:
        _delete(case_path(store, case_id))
    made: dict[str, StoredCase] = {}
    failures: list[CaseFailure] = []
    with progress("preprocess", len(waiting)) as bar:
        work = partial(make_case, store, data=data)
        for result in in_processes(work, waiting, workers, f"; finished cases of {store} are kept"):
            if isinstance(result, CaseFailure):
                failures.append(result)
            else:
                made[result.case_id] = result
            bar.advance()
    stored = dict(sorted({**kept, **made}.items()))
    failed = {failure.case_id: kept_reason(failure.reason) for failure in failures if failure.case_id not in stored}
    write_manifest(store, Manifest(data, stored, complete=True, failed=failed))
    return stored, failures


def _folder_of(path: Path) -> Path:
    return path.resolve().parent if path.is_file() else path.resolve()


def make_case(store: Path, case: Case, data: DataConfig) -> StoredCase | CaseFailure:
    """Read, check, normalise and store one case; runs in a worker.

    Raises:
        OutputError: the store cannot be written, which no other case would survive either.
    """
    if case.problem is not None:
        return CaseFailure(case.case_id, case.problem)
    volume = None
    try:
        try:
            source = source_signature(case)
        except OSError as error:
            return CaseFailure(case.case_id, _out_of_reach(error))
        volume = read_scan(case, data)
        if assumes_spacing(case.image_path, volume.geometry):
            warn(f"{case.image_path} stores a voxel size of 0: 1 mm is assumed; write the true one into its header")
        affine = volume.geometry.affine
        label = None
        if case.label_path is not None:
            label = to_slices(read_label(case, data, volume.geometry), affine, data.slice_axis)
        image, grid = make_slices(case, volume, data, label)
        intensities = float(volume.voxels.min()), float(volume.voxels.max())
        return write_case(store, case, image, label, volume.geometry, data, source, grid, intensities)
    except ImageReadError as error:
        return CaseFailure(case.case_id, str(error))
    except FileNotFoundError as error:
        return CaseFailure(case.case_id, _out_of_reach(error))
    except MemoryError:
        header = () if volume is None else (volume.geometry.shape, volume.geometry.spacing_mm)
        return CaseFailure(case.case_id, beyond_memory(case.image_path, *header))


def _out_of_reach(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist: check the path (or the link)."
    return f"{error.filename} cannot be reached ({error.strerror}): check its permissions and its disk."


def _settings_of(store: Path) -> DataConfig:
    """Settings of the store that is there, which goes on with them whatever the folder has become."""
    try:
        return read_manifest(store).data
    except DamagedManifest:
        return load_recipe(store).data


def _check_recipe(store: Path, data: DataConfig, cases: Sequence[Case]) -> None:
    """Whether a store can go on with the recipe that it was made with."""
    if not data.classes and any(case.label_path is not None for case in cases):
        raise StoreError(f"{store} was made when there was no label: start it anew with --overwrite.")
    recipe = store / RECIPE
    if recipe.is_file() and (differences := settings_differences(data, load_recipe(store).data)):
        raise StoreError(
            f"{recipe} was changed since the slices were made ({differences}): make them anew with --preset {recipe} "
            "--overwrite, or undo the change."
        )
    if new := new_since_recipe(store, cases):
        say(
            f"{store} goes on with its recipe, which was planned without {some(new)}: for a new plan choose another "
            "store with -o, or --overwrite, which replaces the recipe and what was corrected in it."
        )


def _check_settings(data: DataConfig, cases: Sequence[Case]) -> None:
    if not data.classes and any(case.label_path is not None for case in cases):
        raise PresetError(
            "data.classes is empty, but there are label files: name the classes with their label values, for example "
            "classes: {liver: 1}."
        )
    if data.grid.crop == "label":
        warn(f"data.grid.crop: label cuts slices to the box of the label: {LABELS_TOUCHED}")
        if bare := [case.case_id for case in cases if case.label_path is None]:
            warn(f"without a label to crop by, the box of the body is taken: {some(bare)}")
    if data.spacing_mm is None and not all(stores_spacing(case.image_path) for case in cases):
        warn("the HDF5 files store no voxel size; 1 mm is assumed (data.spacing_mm says otherwise)")


def _clear(store: Path, data: DataConfig) -> None:
    """Empty the store that is there, or the beginning of one."""
    if is_store(store):
        write_manifest(store, Manifest(data, {}, complete=False))
        for path in (store / "cases").glob("*.h5"):
            _delete(path)
    remove_leftovers(store)
    remove_leftovers(store / "cases")


def _find_finished(store: Path, data: DataConfig) -> dict[str, FinishedCase]:
    """What is finished in the store that is there."""
    remove_leftovers(store)
    remove_leftovers(store / "cases")
    try:
        differences = settings_differences(read_manifest(store).data, data)
    except DamagedManifest:
        finished = finished_cases(store, data)
        if len(finished) < len(list((store / "cases").glob("*.h5"))):
            raise StoreError(
                f"{store / 'manifest.json'} is damaged, and some cases are, too, or were made with other settings: "
                "choose another store with -o, or start this one anew with --overwrite."
            ) from None
        warn(f"{store / 'manifest.json'} is damaged and is made anew from the cases")
        return finished
    if differences:
        raise StoreError(
            f"{store} was made with other settings ({differences}): choose another store with -o, or start this one "
            "anew with --overwrite."
        )
    return finished_cases(store, data)


def _require_free(store: Path) -> None:
    """Raise OutputError if the folder holds anything but a store or the beginning of one."""
    if is_store(store) or not store.exists():
        return
    if not store.is_dir() or (any(store.iterdir()) and not is_unfinished_recipe(store)):
        raise OutputError(f"{store} exists and is no slice store: choose another folder with -o.")


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be deleted ({error.strerror}): check its permissions.") from error


def _report(
    store: Path,
    cases: Sequence[Case],
    data: DataConfig,
    stored: dict[str, StoredCase],
    failures: Sequence[CaseFailure],
) -> None:
    others = sorted(stored.keys() - {case.case_id for case in cases})
    if others:
        warn(f"{store} also keeps {some(others)}, not of this folder; --overwrite starts it anew")
    if data.split is not None:
        split = expand_patients(load_split(data.split), stored)
        missing = [case_id for role in ROLES for case_id in getattr(split, role) if case_id not in stored]
        if missing:
            warn(
                f"split {data.split} lists {counted(len(missing), 'case')} not in the store; training goes on without "
                f"them only with --allow-missing: {some(missing)}"
            )
    for failure in sorted(failures, key=lambda failure: failure.case_id):
        kept = " What the store has of it is kept." if failure.case_id in stored else ""
        say(f"failed: {failure.case_id}: {failure.reason}{kept}")
    if failures:
        raise SomeCasesFailed(
            f"{len(failures)} of {len(cases)} cases failed (listed above), {len(stored)} are in {store}: repair the "
            "files and run the same command again, which makes only what is missing."
        )
