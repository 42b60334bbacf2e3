"""What an exported file costs on real cases: its masks beside those of the network it was made of."""

from typing import Any

from sdm_cli import console
from sdm_cli.data.cases import counted
from sdm_cli.data.store import SliceStore
from sdm_cli.runs.metrics import count_case, mean_defined
from sdm_cli.runs.predictor import Array, Predictor
from sdm_cli.runs.stored_pairs import predicted_mask


def cost_on_cases(network: Predictor, exported: Predictor, slices: SliceStore) -> dict[str, Any]:
    """Predict every case with both, as `sdm predict` does: whole masks on the scan's own grid.

    Args:
        network: in float32.
        exported: the file.
        slices: as the network wants them; labels are compared where there are any.

    Returns:
        For each case (and their mean, `mean`) the mean Dice of the foreground classes: `agreement` between the two
        masks, `dice` and `dice_of_network` with the label. Absent: a class in neither mask has no part in it; None
        where no class has, and for a case without a label.

    Raises:
        StoreError: a case is damaged.
    """
    n_classes = network.preset.data.n_classes
    measured: dict[str, dict[str, float | None]] = {}
    with console.progress(f"Measuring on {counted(len(slices.cases), 'case')}", len(slices.cases)) as bar:
        for case_id, case in slices.cases.items():
            expected, found = (predicted_mask(predictor, slices, case_id) for predictor in (network, exported))
            measured[case_id] = {"agreement": _dice(found, expected, n_classes), "dice": None, "dice_of_network": None}
            if case.labeled:
                label = slices.reference_volume(case_id)
                measured[case_id]["dice"] = _dice(found, label, n_classes)
                measured[case_id]["dice_of_network"] = _dice(expected, label, n_classes)
            bar.advance()
    names = ("agreement", "dice", "dice_of_network")
    mean = {name: mean_defined(scores[name] for scores in measured.values()) for name in names}
    return {"store": slices.digest(slices.cases), "mean": mean, "per_case": measured}


def _dice(mask: Array, reference: Array, n_classes: int) -> float | None:
    counts = count_case(mask, reference, n_classes)
    return mean_defined(counted_class.dice for counted_class in counts[1:])
