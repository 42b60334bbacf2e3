"""What an exported file costs on real cases: its masks beside those of the network it was made of."""

from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli import console
from sdm_cli.data.cases import counted
from sdm_cli.data.manifest import settings_differences
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import StoreError
from sdm_cli.runs.inference import predict_slices
from sdm_cli.runs.metrics import count_case, mean_defined
from sdm_cli.runs.predictor import Array, Predictor


def cost_on_cases(network: Predictor, exported: Predictor, store: Path) -> dict[str, Any]:
    """Predict the slices of every case with both.

    Args:
        network: in float32.
        exported: the file.
        store: of slices as the network wants them; labels are compared where there are any.

    Returns:
        For each case (and their mean, `mean`) the mean Dice of the foreground classes: `agreement` between the two
        masks, `dice` and `dice_of_network` with the label. Absent: a class in neither mask has no part in it; None
        where no class has, and for a case without a label.

    Raises:
        StoreError: no store, or its slices were made with other settings.
    """
    slices = SliceStore(store)
    if differences := settings_differences(slices.data, network.preset.data):
        raise StoreError(
            f"{store} was made with other settings than the model's ({differences}): give a store that was "
            "preprocessed with the preset of the model."
        )
    n_classes = network.preset.data.n_classes
    measured: dict[str, dict[str, float | None]] = {}
    with console.progress(f"Measuring on {counted(len(slices.cases), 'case')}", len(slices.cases)) as bar:
        for case_id, case in slices.cases.items():
            image = slices.image_volume(case_id)
            expected, found = predict_slices(network, image).mask, predict_slices(exported, image).mask
            measured[case_id] = {"agreement": _dice(found, expected, n_classes), "dice": None, "dice_of_network": None}
            if case.labeled:
                label = slices.label_volume(case_id)
                measured[case_id]["dice"] = _dice(found, label, n_classes)
                measured[case_id]["dice_of_network"] = _dice(expected, label, n_classes)
            bar.advance()
    names = ("agreement", "dice", "dice_of_network")
    mean = {name: mean_defined(scores[name] for scores in measured.values()) for name in names}
    return {"store": slices.digest(slices.cases), "mean": mean, "per_case": measured}


def _dice(mask: Array, reference: Array, n_classes: int) -> float | None:
    counts = count_case(mask.astype(np.uint8), reference.astype(np.uint8), n_classes)
    return mean_defined(counted_class.dice for counted_class in counts[1:])
