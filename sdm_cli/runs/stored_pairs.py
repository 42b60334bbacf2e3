"""Cases of a store, predicted beside their labels: what `sdm evaluate` and `sdm export --store` score."""

from collections.abc import Iterable, Iterator

from sdm_cli.data.grid import whole_grid
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import ImageReadError, StoreError
from sdm_cli.runs.inference import predict_scan
from sdm_cli.runs.mask_pairs import Pair
from sdm_cli.runs.predictor import Array, Predictor
from sdm_cli.runs.scoring import Failed


def predicted_pairs(predictor: Predictor, store: SliceStore, case_ids: Iterable[str]) -> Iterator[Pair | Failed]:
    """Cases as `predicted_pair` makes them, one at a time; one that is damaged is a failure of its own."""
    for case_id in case_ids:
        try:
            pair = predicted_pair(predictor, store, case_id)
        except (ImageReadError, StoreError) as error:
            yield Failed(case_id, str(error))
        else:
            yield pair


def predicted_pair(predictor: Predictor, store: SliceStore, case_id: str) -> Pair:
    """The prediction of a case and its label, on the grid of the preset's protocol.

    Under protocol `paper` that is, as published, the slices that the network sees; else the scan's own, where the mask
    is that of `sdm predict`.

    Raises:
        StoreError: the case is damaged, or has no label.
        SdmError: a slice does not fit the memory of the device.
    """
    case = store.cases[case_id]
    if predictor.preset.protocol == "paper":
        image = store.image_volume(case_id)
        found = predict_scan([predictor], image, whole_grid(image.shape), case.spacing_mm)
        return Pair(case_id, found.mask, store.label_volume(case_id), case.spacing_mm, case.domain)
    mask = predicted_mask(predictor, store, case_id)
    return Pair(case_id, mask, store.reference_volume(case_id), store.scan_spacing_mm(case_id), case.domain)


def predicted_mask(predictor: Predictor, store: SliceStore, case_id: str) -> Array:
    """(Z, H, W) class indices of a case on the scan's own slices, those of the mask that `sdm predict` writes.

    Raises:
        StoreError: the case is damaged.
        SdmError: a slice does not fit the memory of the device.
    """
    grid, spacing_mm = store.grid(case_id), store.scan_spacing_mm(case_id)
    return predict_scan([predictor], store.image_volume(case_id), grid, spacing_mm).mask
