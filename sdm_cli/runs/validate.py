"""Validation in training: Dice of whole volumes, and the authors' pooled figure beside it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from sdm_cli.config import Preset
from sdm_cli.data.grid import whole_grid
from sdm_cli.data.splits import Split, may_give_labels
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import PresetError
from sdm_cli.method.network import MessengerNetwork
from sdm_cli.runs.inference import predict_scan
from sdm_cli.runs.metrics import ClassCounts, PooledCounts, count_case, mean_defined
from sdm_cli.runs.processes import Processes
from sdm_cli.runs.torch_model import network_predictor


@dataclass(frozen=True)
class Validation:
    """Scores of one validation, 0 to 1.

    Attributes:
        dice: mean over the classes of the mean over the cases of per-volume Dice, background left out.
        per_class: the same by class name; None for a class that no case has.
        pooled_dice: the authors' figure, from pixels counted over all slices of all cases.
        pooled_iou: mean IoU of the foreground, pooled likewise.
        n_cases: volumes scored.
    """

    dice: float | None
    per_class: dict[str, float | None]
    pooled_dice: float | None
    pooled_iou: float | None
    n_cases: int

    def to_json(self) -> dict[str, Any]:
        """As a line of the record holds it."""
        return asdict(self)


def selection_cases(preset: Preset, store: SliceStore, split: Split) -> Sequence[str]:
    """The cases that choose `best`; raises PresetError when they cannot."""
    role = preset.train.select_on
    cases: Sequence[str] = getattr(split, role)
    bare = [case_id for case_id in cases if not store.cases[case_id].labeled]
    hidden = [case_id for case_id in cases if not may_give_labels(preset.data, store.cases[case_id].domain)]
    if hidden and preset.protocol == "clean":
        raise PresetError(
            f"train.select_on: {role}, but {hidden[0]} is of domain {store.cases[hidden[0]].domain}, whose labels "
            "protocol clean does not touch: set train.select_on: labeled."
        )
    if not cases or bare:
        why = f"has no label of {', '.join(bare)}" if bare else f"has no {role} case"
        raise PresetError(f"train.select_on: {role}, but {store.path} {why}: set train.select_on: labeled.")
    return cases


def validate(
    network: MessengerNetwork,
    preset: Preset,
    store: SliceStore,
    case_ids: Sequence[str],
    accelerator: Accelerator,
    processes: Processes,
    is_stopping: Callable[[], bool],
) -> Validation | None:
    """Predict and score whole volumes; each case once, the cases shared out over the processes.

    `is_stopping` is asked before each case, since a validation may take longer than a cluster waits after its signal.

    Returns:
        None if any process left cases out for it.
    """
    was_training = network.training
    network.eval()
    predictor = network_predictor(network, preset, accelerator.device)
    counts: list[tuple[ClassCounts, ...]] = []
    mine = case_ids[accelerator.process_index :: accelerator.num_processes]
    with processes.together():
        for case_id in mine:
            if is_stopping():
                break
            image = store.image_volume(case_id)
            spacing_mm = store.cases[case_id].spacing_mm
            found = predict_scan([predictor], image, whole_grid(image.shape), spacing_mm)
            counts.append(count_case(found.mask, store.label_volume(case_id), preset.data.n_classes))
    network.train(was_training)
    if processes.any(len(counts) < len(mine)):
        return None
    return _summary(gather_object(counts), preset)


def _summary(counts: Sequence[tuple[ClassCounts, ...]], preset: Preset) -> Validation:
    pooled = PooledCounts(preset.data.n_classes)
    for case in counts:
        pooled.add(case)
    per_class = {
        name: mean_defined(case[index].dice for case in counts) for index, name in enumerate(preset.data.class_names, 1)
    }
    return Validation(mean_defined(per_class.values()), per_class, pooled.mean_dice(), pooled.mean_iou(), len(counts))
