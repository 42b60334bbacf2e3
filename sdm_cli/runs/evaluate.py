"""`sdm evaluate`: score a model on the cases of a store, or masks that exist on disk.

Owns which cases are scored against what, and the provenance that stands beside the numbers.
What a number means is in `metrics`, how it is shown in `summary`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sdm_cli.config import Preset
from sdm_cli.console import warn
from sdm_cli.data.grid import whole_grid
from sdm_cli.data.layouts.folders import masks_by_id
from sdm_cli.data.splits import Split, expand_patients
from sdm_cli.data.store import SliceStore
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError, SdmError, SplitError, StoreError
from sdm_cli.runs.evaluation_report import write_evaluation_report
from sdm_cli.runs.mask_pairs import Pair, PairFiles, classes_found, domains_of, read_pair, require_masks, unmatched
from sdm_cli.runs.metrics import TOLERANCE, PooledCounts, Unit
from sdm_cli.runs.provenance import protocol_facts, split_identity
from sdm_cli.runs.roles import Role, run_of, split_of
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.scoring import Failed, Measure, Scored, score_all, score_files, score_pair
from sdm_cli.runs.shown_cases import case_on_disk, scans_by_id, stored_case
from sdm_cli.runs.summary import refuse_existing, summarize, write_summary

if TYPE_CHECKING:
    from sdm_cli.runs.predictor import Predictor


def evaluate_model(
    model: Path | None = None,
    store: Path | None = None,
    role: Role = "test",
    output: Path | None = None,
    unit: Unit = "mm",
    device: str | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    tolerance: float = TOLERANCE,
    workers: int = 1,
) -> dict[str, Any]:
    """Predict the cases of one role of the model's split and score them, whole volumes on their own grid.

    Args:
        model: run, model folder or .onnx file; none: the newest run under `runs`.
        store: none: the one the run was trained on, else `stores/<dataset>`.
        role: which list of the split to report.
        output: folder of `summary.json`, `per_case.csv` and `report.html`; none: `RUN/evaluation/<role>`.
        unit: of the distances and the tolerance.
        device: as `sdm evaluate -d`; none: the best there is.
        overwrite: replace results that exist.
        allow_missing: go on without listed cases that the store lacks or that have no label there.
        tolerance: of NSD.
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

    measure = _measure(unit, tolerance)
    path = (model or newest_run()).absolute()
    folder = output or _default_output(path, role)
    refuse_existing(folder, overwrite)
    predictor = load_predictor(path, device)
    preset = predictor.preset
    run = run_of(path)
    own_store = RunFolder(run).read_config()[1] if run else Path("stores") / preset.data.dataset
    slices = SliceStore(store or own_store)  # `open_store` would let a damaged case spoil the others
    _require_fitting(slices, preset.data)
    split = split_of(run, preset.data, slices)
    case_ids = _cases_of_role(slices, expand_patients(split, slices.cases), role, allow_missing)

    def predicted() -> Iterator[Pair | Failed]:
        for case_id in case_ids:
            try:
                pair = _predicted_pair(predictor, slices, case_id)
            except (ImageReadError, StoreError) as error:
                yield Failed(case_id, str(error))
            else:
                yield pair

    work = partial(score_pair, n_classes=preset.data.n_classes, measure=measure)
    scored, failed = score_all(case_ids, work, predicted(), workers)
    summary = {
        "model": str(model or path),
        "weights_sha256": predictor.weights_sha256 or None,
        "store": str(slices.path),
        "protocol": protocol_facts(preset, role, _chosen_on(path)),
        "split": {**split_identity(preset.data.split, split, role), "cases": case_ids},
        **_summary(scored, failed, preset.data, measure),
    }
    write_summary(folder, summary)
    case_of = partial(stored_case, slices, partial(_predicted_pair, predictor, slices), preset)
    write_evaluation_report(folder, summary, run, case_of)
    return summary


def evaluate_predictions(
    predictions: Path,
    labels: Path,
    preset: Preset | None = None,
    output: Path | None = None,
    unit: Unit = "mm",
    overwrite: bool = False,
    domains: Path | None = None,
    tolerance: float = TOLERANCE,
    workers: int = 1,
    resample: bool = False,
    scans: Path | None = None,
) -> dict[str, Any]:
    """Score NIfTI masks against NIfTI labels of the same names.

    Args:
        predictions: folder of masks.
        labels: folder of labels, or of subfolders with labels, each a domain, which have the ids that their scans
            have; each one is scored, with or without a mask.
        preset: says which label value is which class, background or ignored; none: every value
            found is a class.
        output: folder of `summary.json`, `per_case.csv` and `report.html`; none: that of the masks, as nnU-Net.
        unit: of the distances and the tolerance.
        overwrite: replace results that exist.
        domains: CSV of the columns `case,domain`; none: subfolders of `labels` are the domains.
        tolerance: of NSD.
        workers: processes that read and score.
        resample: take a mask on another grid to that of its label, instead of failing it.
        scans: folder of the scans of the labels, which the report shows beneath; none: it shows masks alone.

    Returns:
        The summary, as written.

    Raises:
        ImageReadError: a folder or the CSV cannot be read, a folder holds scans, or there are no classes or no masks
            of the labels.
        SomeCasesFailed: no mask could be scored; a summary of some lists under `failed` those that cannot be
            read, are not on the grid of their label or hold values that are no class.
        OutputError: results exist or cannot be written.
    """
    measure = _measure(unit, tolerance)
    mask_of = masks_by_id(predictions, "masks")
    label_of = masks_by_id(labels, "labels", prefixed=mask_of)
    require_masks(predictions, mask_of)
    require_masks(labels, label_of)
    missing, unscored = unmatched(predictions, labels, mask_of, label_of)
    domain_of = domains_of(labels, label_of, domains)
    folder = output or predictions
    refuse_existing(folder, overwrite)
    scan_of = scans_by_id(scans) if scans else {}
    data = preset.data if preset else classes_found([*label_of.values(), *mask_of.values()], labels, workers)

    files = [PairFiles(case_id, mask_of.get(case_id), label, domain_of[case_id]) for case_id, label in label_of.items()]
    work = partial(score_files, data=data, resample=resample, measure=measure)
    scored, failed = score_all(list(label_of), work, files, workers)
    summary = {
        "predictions": str(predictions),
        "labels": str(labels),
        "missing_predictions": missing,
        "predictions_without_label": unscored,
        **_summary(scored, failed, data, measure),
    }
    write_summary(folder, summary)
    files_of = {pair.case_id: pair for pair in files}
    case_of = partial(
        case_on_disk, label_of, lambda case_id: read_pair(files_of[case_id], data, resample), scan_of, data
    )
    write_evaluation_report(folder, summary, None, case_of)
    return summary


def _measure(unit: Unit, tolerance: float) -> Measure:
    if not 0 <= tolerance < math.inf:
        raise SdmError(f"--tolerance is {tolerance}: give the distance within which two surfaces agree, 0 or more.")
    return Measure(unit, tolerance)


def _predicted_pair(predictor: "Predictor", slices: SliceStore, case_id: str) -> Pair:
    """The prediction of a case of the store and its label, on the grid of the preset's protocol."""
    from sdm_cli.runs.inference import predict_scan

    case, image, grid = slices.cases[case_id], slices.image_volume(case_id), slices.grid(case_id)
    if predictor.preset.protocol == "paper":  # as published: on the slices that the network sees
        found = predict_scan([predictor], image, whole_grid(image.shape), case.spacing_mm)
        return Pair(case_id, found.mask, slices.label_volume(case_id), case.spacing_mm, case.domain)
    spacing_mm = slices.scan_spacing_mm(case_id)
    found = predict_scan([predictor], image, grid, spacing_mm)
    return Pair(case_id, found.mask, slices.reference_volume(case_id), spacing_mm, case.domain)


def _summary(scored: Sequence[Scored], failed: Mapping[str, str], data: DataConfig, measure: Measure) -> dict[str, Any]:
    """Summary of the scored cases, which lists the others; SomeCasesFailed when none could be scored."""
    pooled = PooledCounts(data.n_classes)
    for case in scored:
        pooled.add(case.counts)
    cases = [case.case for case in scored]
    return summarize(cases, data.classes, pooled, measure.unit, failed, measure.tolerance)


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


def _require_fitting(store: SliceStore, data: DataConfig) -> None:
    """The slices must be made as the model expects them; other label values and frames do no harm."""
    is_renamed = list(data.classes.values()) == list(store.data.classes.values())
    names = ("normalize", "normalize_by_domain", "slice_axis", "grid", *(() if is_renamed else ("class_names",)))
    for name in names:
        expected, found = getattr(data, name), getattr(store.data, name)
        if expected != found:
            raise StoreError(
                f"{store.path} was made with other settings than the model's ({name} is {found} there, {expected} "
                "here): preprocess the scans with the preset of the model."
            )


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
    lack = f"{len(absent)} of the {len(listed)} {role} cases, or their labels ({', '.join(absent)})"
    if absent and not allow_missing:
        raise SplitError(f"{store.path} lacks {lack}: preprocess them, or go on without them with --allow-missing.")
    if absent:
        warn(f"{store.path}: going on without {lack}")
    return scorable


def _labeled(store: SliceStore, case_ids: Sequence[str]) -> list[str]:
    return [case_id for case_id in case_ids if case_id in store.cases and store.cases[case_id].labeled]
