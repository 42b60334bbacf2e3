"""`sdm evaluate`: score a model on the cases of a store, or masks that exist on disk.

Owns which cases are scored against what, and the provenance that stands beside the numbers.
What a number means is in `metrics`, how it is shown in `summary`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdm_cli.config import DataConfig, Preset
from sdm_cli.console import progress, warn
from sdm_cli.data.cases import Case, is_nifti, nifti_stem
from sdm_cli.data.readers import label_values, read_label
from sdm_cli.data.splits import Split, load_split
from sdm_cli.data.store import SliceStore, open_store
from sdm_cli.data.volume import Geometry, read_nifti
from sdm_cli.errors import ImageReadError, SplitError, StoreError
from sdm_cli.runs.metrics import PooledCounts, count_case, score_case
from sdm_cli.runs.run_folder import RunFolder, newest_run
from sdm_cli.runs.summary import ScoredCase, Unit, refuse_existing, summarize, write_summary

Role = Literal["test", "validation", "unlabeled"]

_MAX_CLASSES = 254


def evaluate_model(
    model: Path | None = None,
    store: Path | None = None,
    role: Role = "test",
    output: Path | None = None,
    unit: Unit = "mm",
    device: str | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Predict the cases of one role of the model's split and score them, whole volumes on their own grid.

    Args:
        model: run, model folder or .onnx file; none: the newest run under `runs`.
        store: none: the one the run was trained on, else `stores/<dataset>`.
        role: which list of the split to report.
        output: folder of `summary.json` and `per_case.csv`; none: `RUN/evaluation/<role>`.
        unit: of the distances.
        device: as `sdm evaluate -d`; none: the best there is.
        overwrite: replace results that exist.
        allow_missing: go on without listed cases that the store lacks or that have no label there.

    Returns:
        The summary, as written.

    Raises:
        SplitError: the role has no case to score, or some are missing.
        StoreError: the store cannot be read, or was made with other settings than the model's.
        CheckpointError: there is no model, or it cannot be read.
        OutputError: results exist or cannot be written.
    """
    # torch takes seconds to import, and scoring masks on disk does not need it.
    from sdm_cli.runs.predict import load_predictor, predict_slices

    path = model or newest_run()
    folder = output or _default_output(path, role)
    refuse_existing(folder, overwrite)
    predictor = load_predictor(path, device)
    preset = predictor.preset
    slices = open_store(store or _default_store(path, preset))
    _require_fitting(slices, preset.data)
    run = _run_of(path)
    split = _split_of(run, preset.data, slices)
    case_ids = _cases_of_role(slices, list(getattr(split, role)), role, allow_missing)
    pooled = PooledCounts(preset.data.n_classes)
    scored = []
    with progress(f"evaluating {len(case_ids)} {role} cases", len(case_ids)) as bar:
        for case_id in case_ids:
            case = slices.cases[case_id]
            prediction = predict_slices(predictor, slices.image_volume(case_id))
            reference = slices.label_volume(case_id)
            spacing_mm = case.spacing_mm if unit == "mm" else None
            pooled.add(count_case(prediction, reference, preset.data.n_classes))
            scores = score_case(prediction, reference, preset.data.n_classes, spacing_mm)
            scored.append(ScoredCase(case_id, scores, case.domain))
            bar.advance()
    summary = {
        "model": str(path),
        "store": str(slices.path),
        "protocol": _protocol(preset, role, _chosen_on(path, run, preset)),
        "split": {**_split_identity(preset.data.split, split, role), "cases": case_ids},
        **summarize(scored, preset.data.classes, pooled, unit),
    }
    write_summary(folder, summary)
    return summary


def evaluate_predictions(
    predictions: Path,
    labels: Path,
    preset: Preset | None = None,
    output: Path | None = None,
    unit: Unit = "mm",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score NIfTI masks against NIfTI labels of the same names.

    Args:
        predictions: folder of masks.
        labels: folder of labels; each one is scored, with or without a mask.
        preset: says which label value is which class, background or ignored; none: every value
            found is a class.
        output: folder of `summary.json` and `per_case.csv`; none: that of the masks, as nnU-Net.
        unit: of the distances.
        overwrite: replace results that exist.

    Returns:
        The summary, as written.

    Raises:
        ImageReadError: a folder or file cannot be read, a mask is not on the grid of its label, or
            a value is no class.
        OutputError: results exist or cannot be written.
    """
    folder = output or predictions
    refuse_existing(folder, overwrite)
    label_of, mask_of = _masks_by_name(labels), _masks_by_name(predictions)
    missing = [case_id for case_id in label_of if case_id not in mask_of]
    unscored = [case_id for case_id in mask_of if case_id not in label_of]
    if len(missing) == len(label_of):
        raise ImageReadError(
            f"{predictions} has no mask with the name of a label ({', '.join(mask_of)} against "
            f"{', '.join(label_of)}): name each mask like its label."
        )
    if missing:
        warn(f"{predictions}: no mask of {', '.join(missing)}; scored as empty")
    if unscored:
        warn(f"{labels}: no label of {', '.join(unscored)}; not scored")
    data = preset.data if preset else _classes_found([*label_of.values(), *mask_of.values()], labels)
    pooled = PooledCounts(data.n_classes)
    scored = []
    with progress(f"scoring {len(label_of)} cases", len(label_of)) as bar:
        for case_id, label_path in label_of.items():
            prediction, reference, geometry = _read_pair(mask_of.get(case_id), label_path, data)
            pooled.add(count_case(prediction, reference, data.n_classes))
            scores = score_case(prediction, reference, data.n_classes, geometry.spacing_mm if unit == "mm" else None)
            mask_name = str(mask_of[case_id]) if case_id in mask_of else None
            files = {"reference_file": str(label_path), "prediction_file": mask_name}
            scored.append(ScoredCase(case_id, scores, files=files))
            bar.advance()
    summary = {
        "predictions": str(predictions),
        "labels": str(labels),
        "missing_predictions": missing,
        "predictions_without_label": unscored,
        **summarize(scored, data.classes, pooled, unit),
    }
    write_summary(folder, summary)
    return summary


def _default_output(model: Path, role: Role) -> Path:
    """RUN/evaluation/<role> for a run; for one checkpoint of a run its name is added, for any other model beside it."""
    run = _run_of(model)
    if run is None:
        return model.with_name(f"{model.stem if model.is_file() else model.name}-evaluation") / role
    return run / "evaluation" / (role if run == model else f"{role}-{model.name}")


def _default_store(model: Path, preset: Preset) -> Path:
    run = _run_of(model)
    return Path("stores") / preset.data.dataset if run is None else RunFolder(run).read_config()[1]


def _run_of(model: Path) -> Path | None:
    """The run that a path is, or that it is a checkpoint of."""
    if (model / "config.yaml").is_file():
        return model
    run = model.absolute().parent.parent
    return run if model.absolute().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def _split_of(run: Path | None, data: DataConfig, store: SliceStore) -> Split:
    """The lists that the run was trained with, whatever the split file says today; without a run the preset's."""
    if run is not None:
        return RunFolder(run).read_split()
    if data.split is not None:
        return load_split(data.split)
    return Split(unlabeled=tuple(case_id for case_id, case in store.cases.items() if not case.labeled))


def _chosen_on(model: Path, run: Path | None, preset: Preset) -> str | None:
    """The cases that chose these weights; None for the last step, or where a model does not tell."""
    is_best = run is not None and (run == model or model.name == "best")
    return preset.train.select_on if is_best else None


def _require_fitting(store: SliceStore, data: DataConfig) -> None:
    """The slices must be made as the model expects them; other label values and frames do no harm."""
    for name in ("class_names", "normalize", "slice_axis"):
        expected, found = getattr(data, name), getattr(store.data, name)
        if expected != found:
            raise StoreError(
                f"{store.path} was made with other settings than the model's ({name} is {found} there, {expected} "
                "here): preprocess the scans with the preset of the model."
            )


def _cases_of_role(store: SliceStore, listed: list[str], role: Role, allow_missing: bool) -> list[str]:
    """Cases to score. Only the list of this role counts: a store of test cases alone can be evaluated."""
    if not listed:
        raise SplitError(
            f"{store.path}: the model was trained without {role} cases: give another list (--split unlabeled), or "
            "write masks with sdm predict and score them with --predictions and --labels."
        )
    present = [case_id for case_id in listed if case_id in store.cases]
    scorable = [case_id for case_id in present if store.cases[case_id].labeled]
    if not present:
        other = (
            "give the store that has them with --store" if role == "unlabeled" else "--split unlabeled scores others"
        )
        raise SplitError(f"{store.path} holds none of the {len(listed)} {role} cases: {other}.")
    if not scorable:
        raise SplitError(
            f"{store.path} has no label of the {role} cases, so they cannot be scored: write masks with sdm predict, "
            "and score them with --predictions and --labels once there are labels."
        )
    absent = [case_id for case_id in listed if case_id not in scorable]
    if absent and not allow_missing:
        raise SplitError(
            f"{store.path} lacks {len(absent)} of the {len(listed)} {role} cases, or their labels "
            f"({', '.join(absent)}): preprocess them, or go on without them with --allow-missing."
        )
    if absent:
        warn(
            f"{store.path}: going on without {len(absent)} {role} cases that are not there or have no label: "
            f"{', '.join(absent)}"
        )
    return scorable


def _protocol(preset: Preset, role: Role, chosen_on: str | None) -> dict[str, Any]:
    return {
        "name": preset.protocol,
        "preset": preset.name,
        "checkpoint_chosen_on": chosen_on,
        "reported_cases_chose_checkpoint": chosen_on == role,
        "grid": "the scans' own, whole volumes",
    }


def _split_identity(name: str | None, split: Split, role: Role) -> dict[str, Any]:
    """Name, and a hash of all four lists in their order, by which two results can be told to share a split."""
    lists = json.dumps(asdict(split), sort_keys=True)
    return {"name": name or "by label", "role": role, "hash": hashlib.sha256(lists.encode()).hexdigest()[:12]}


def _masks_by_name(folder: Path) -> dict[str, Path]:
    """Case id -> NIfTI file of a plain folder, sorted."""
    if not folder.is_dir():
        raise ImageReadError(f"{folder} is not a folder: give the folder that holds the .nii.gz files.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if is_nifti(path):
            if (case_id := nifti_stem(path)) in found:
                raise ImageReadError(f"{found[case_id]} and {path} are both case {case_id}: remove one.")
            found[case_id] = path
    if not found:
        raise ImageReadError(f"{folder} holds no .nii or .nii.gz file: give the folder of the masks.")
    return found


def _classes_found(files: Iterable[Path], labels: Path) -> DataConfig:
    values = sorted(value for value in label_values(Case(nifti_stem(path), path, path) for path in files) if value > 0)
    if not values or len(values) > _MAX_CLASSES:
        raise ImageReadError(
            f"{labels}: {len(values)} different values above 0 in labels and masks, where 1 to {_MAX_CLASSES} can be "
            "classes: check that these are label files."
        )
    return DataConfig(classes={f"class_{value}": value for value in values})


def _read_pair(
    mask: Path | None, label: Path, data: DataConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Geometry]:
    """Prediction (zeros without a file) and reference as class indices in file order, and their geometry."""
    geometry = read_nifti(label, data.frame).geometry
    reference = read_label(Case(nifti_stem(label), label, label), data, geometry)
    if mask is None:
        return np.zeros_like(reference), reference, geometry
    own = read_nifti(mask, data.frame).geometry
    if own.shape != geometry.shape:
        raise _other_grid(mask, label, f"shape {own.shape}, not {geometry.shape}")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*own.shape, 1]
    distance_mm = float(np.abs((own.affine - geometry.affine) @ corners.T).max())
    if distance_mm > 0.01 * min(geometry.spacing_mm):
        raise _other_grid(mask, label, f"its affine puts voxels up to {distance_mm:.3g} mm away")
    return read_label(Case(nifti_stem(mask), mask, mask), data, own), reference, geometry


def _other_grid(mask: Path, label: Path, why: str) -> ImageReadError:
    return ImageReadError(
        f"{mask} is not on the grid of {label} ({why}): predict from the scan that the label was drawn on, or resample "
        "the mask to it with nearest neighbours."
    )
