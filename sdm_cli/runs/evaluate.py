"""`sdm evaluate`: score a model on the cases of a store, or masks that exist on disk.

Owns which cases are scored against what, and the provenance that stands beside the numbers.
What a number means is in `metrics`, how it is shown in `score_table`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.cases import some
from sdm_cli.data.fit import fitting_store
from sdm_cli.data.splits import Split, expand_patients
from sdm_cli.data.store import SliceStore
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import OutputError, SplitError
from sdm_cli.runs.case_views import ShownCase
from sdm_cli.runs.evaluation_report import write_evaluation_report
from sdm_cli.runs.html_page import REPORT
from sdm_cli.runs.mask_pairs import classes_found, match_masks
from sdm_cli.runs.metrics import Measure
from sdm_cli.runs.provenance import protocol_facts, split_identity
from sdm_cli.runs.roles import Role, run_of, split_of
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.scoring import score_all, score_files, score_pair
from sdm_cli.runs.shown_cases import case_on_disk, scans_by_id, stored_case
from sdm_cli.runs.stored_pairs import predicted_pair, predicted_pairs
from sdm_cli.runs.summary import SUMMARY, refuse_existing, summarize, write_summary


def evaluate_model(
    model: Path | None = None,
    store: Path | None = None,
    role: Role = "test",
    output: Path | None = None,
    measure: Measure = Measure(),  # noqa: B008  # frozen
    device: str | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Predict the cases of one role of the model's split and score them, whole volumes on their own grid.

    Args:
        model: run, model folder or exported file; none: the newest run under `runs`.
        store: none: the one the run was trained on, else `stores/<dataset>`.
        role: which list of the split to report.
        output: folder of `summary.json`, `per_case.csv` and `report.html`; none: `RUN/evaluation/<role>`.
        measure: of the distances.
        device: as `sdm evaluate -d`; none: the best there is.
        overwrite: replace results that exist.
        allow_missing: go on without listed cases that the store lacks or that have no label there.
        workers: processes that score while this one predicts.

    Returns:
        The summary, as written.

    Raises:
        SplitError: the role has no case to score, or some are missing.
        StoreError: the store cannot be read, or was made with other settings than the model's.
        CheckpointError: there is no model, or it cannot be read.
        OutputError: results exist or cannot be written.
        SomeCasesFailed: no case could be scored; a summary of some lists the others under `failed`.
    """
    # torch takes seconds to import, and scoring masks on disk does not need it.
    from sdm_cli.runs.predictor import load_predictor

    path = (model or newest_run()).absolute()
    folder, run = output or _default_output(path, role), run_of(path)
    refuse_existing(folder, overwrite)
    predictor = load_predictor(path, device)
    preset = predictor.preset
    slices, split = _open(run, preset.data, store)
    case_ids = _cases_of_role(slices, expand_patients(split, slices.cases), role, allow_missing)
    work = partial(score_pair, n_classes=preset.data.n_classes, measure=measure)
    scored, failed = score_all(case_ids, work, predicted_pairs(predictor, slices, case_ids), workers)
    summary = {
        "model": str(model or path),
        "weights_sha256": predictor.weights_sha256 or None,
        "store": str(slices.path),
        "protocol": protocol_facts(preset, role, _chosen_on(path)),
        "split": {**split_identity(preset.data.split, split, role), "cases": case_ids},
        **summarize(scored, failed, preset.data.classes, measure),
    }
    _write(folder, summary, run, partial(stored_case, slices, partial(predicted_pair, predictor, slices), preset))
    return summary


def evaluate_predictions(
    predictions: Path,
    labels: Path,
    preset: Preset | None = None,
    output: Path | None = None,
    measure: Measure = Measure(),  # noqa: B008  # frozen
    overwrite: bool = False,
    domains: Path | None = None,
    workers: int = 1,
    resample: bool = False,
    scans: Path | None = None,
) -> dict[str, Any]:
    """Score masks against labels of the same names, whatever their suffixes: NIfTI, NRRD or MetaImage.

    Args:
        predictions: folder of masks.
        labels: folder of labels, or of subfolders with labels, each a domain, which have the ids that their scans
            have; each one is scored, with or without a mask.
        preset: says which label value is which class, background or ignored; none: every value
            found is a class.
        output: folder of `summary.json`, `per_case.csv` and `report.html`; none: that of the masks, as nnU-Net.
        measure: of the distances.
        overwrite: replace results that exist.
        domains: CSV of the columns `case,domain`; none: subfolders of `labels` are the domains.
        workers: processes that read and score.
        resample: take a mask on another grid to that of its label, instead of failing it.
        scans: folder of the scans of the labels, which the report shows beneath; none: it shows masks alone.

    Returns:
        The summary, as written.

    Raises:
        ImageReadError: as `match_masks`; there are no classes.
        SomeCasesFailed: no mask could be scored; a summary of some lists under `failed` those that cannot be
            read, are not on the grid of their label or hold values that are no class.
        OutputError: results exist or cannot be written.
    """
    folder = output or predictions
    refuse_existing(folder, overwrite)
    if output is not None:
        _refuse_inputs(output, {"labels": labels, "scans": scans})
    matched = match_masks(predictions, labels, domains)
    scan_of = scans_by_id(scans) if scans else {}
    lone = [pair.case_id for pair in matched.pairs if pair.case_id not in scan_of]
    if scans and lone:
        warn(f"{scans}: no scan of {some(lone)}; the report shows their masks alone")
    data = preset.data if preset else classes_found(matched.pairs, labels, workers)
    work = partial(score_files, data=data, resample=resample, measure=measure)
    scored, failed = score_all([pair.case_id for pair in matched.pairs], work, matched.pairs, workers)
    summary = {
        "predictions": str(predictions),
        "labels": str(labels),
        "missing_predictions": matched.missing,
        "predictions_without_label": matched.unscored,
        **summarize(scored, failed, data.classes, measure),
    }
    files_of = {pair.case_id: pair for pair in matched.pairs}
    _write(folder, summary, None, partial(case_on_disk, files_of, scan_of, data, resample))
    return summary


def _refuse_inputs(output: Path, given: Mapping[str, Path | None]) -> None:
    """Raise OutputError where results would lie among the files of a folder that is only read."""
    for kind, folder in given.items():
        if folder is not None and output.resolve() == folder.resolve():
            raise OutputError(f"{output} is the folder of the {kind}: choose another one for the results with -o.")


def _write(folder: Path, summary: Mapping[str, Any], run: Path | None, case_of: Callable[[str], ShownCase]) -> None:
    """Write all results; scores that may have taken hours are kept where the page finds no room."""
    try:
        write_summary(folder, summary)
        write_evaluation_report(folder, summary, run, case_of)
    except OutputError as error:
        if not (folder / SUMMARY).is_file():
            raise
        raise OutputError(f"{error} The scores are in {folder / SUMMARY}; replace them with --overwrite.") from error
    say(f"Scores: {folder / SUMMARY}, with the cases in one page: {folder / REPORT}")


def _open(run: Path | None, data: DataConfig, store: Path | None) -> tuple[SliceStore, Split]:
    """The store to score on, which must suit the model, and who plays which role in it."""
    own_store = RunFolder(run).read_config()[1] if run else Path("stores") / data.dataset
    slices = fitting_store(store or own_store, data)
    return slices, split_of(run, data, slices)


def _default_output(model: Path, role: Role) -> Path:
    """RUN/evaluation/<role> for a run; for one checkpoint of a run its name is added, for any other model beside it."""
    run = run_of(model)
    if run is None:
        return model.with_name(f"{model.stem if model.is_file() else model.name}-evaluation") / role
    return run / "evaluation" / (role if run == model else f"{role}-{model.name}")


def _chosen_on(model: Path) -> str | None:
    """What chose these weights; None where a model does not tell."""
    from sdm_cli.method.checkpoint import chosen_on
    from sdm_cli.runs.torch_model import find_model

    return None if model.is_file() else chosen_on(find_model(model))


def _cases_of_role(store: SliceStore, split: Split, role: Role, allow_missing: bool) -> list[str]:
    """Cases to score. Only the list of this role counts: a store of test cases alone can be evaluated."""
    listed = list(getattr(split, role))
    others = [f"--split {other}" for other in get_args(Role) if _labeled(store, getattr(split, other))]
    if not listed:
        remedies = [*others, "write masks with sdm predict and score them with --predictions and --labels"]
        raise SplitError(f"{store.path}: the model was trained without {role} cases: {', or '.join(remedies)}.")
    present = [case_id for case_id in listed if case_id in store.cases]
    scorable = _labeled(store, present)
    if not present:
        remedies = ["give the store that has them with --store", *others]
        raise SplitError(f"{store.path} holds none of the {len(listed)} {role} cases: {', or '.join(remedies)}.")
    if not scorable:
        raise SplitError(
            f"{store.path} has no label of the {role} cases, so they cannot be scored: write masks with sdm predict, "
            "and score them with --predictions and --labels once there are labels."
        )
    absent = [case_id for case_id in listed if case_id not in scorable]
    lack = f"{len(absent)} of the {len(listed)} {role} cases, or their labels ({some(absent)})"
    if absent and not allow_missing:
        raise SplitError(f"{store.path} lacks {lack}: preprocess them, or go on without them with --allow-missing.")
    if absent:
        warn(f"{store.path}: going on without {lack}")
    return scorable


def _labeled(store: SliceStore, case_ids: Sequence[str]) -> list[str]:
    return [case_id for case_id in case_ids if case_id in store.cases and store.cases[case_id].labeled]
