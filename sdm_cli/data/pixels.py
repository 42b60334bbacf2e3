"""Pixels of scanners, and those of broken headers: wrong whatever the others have, or beside them or a preset."""

import dataclasses
from collections.abc import Sequence

from sdm_cli.data.cases import some
from sdm_cli.data.fingerprint import Fingerprint, ScanFacts

PIXEL_MM = (0.01, 20.0)
"""In plane, from micro-CT to scintigraphy with room to spare: a slip of a thousand (metres or micrometres taken for
millimetres) leaves these bounds from any pixel that hospitals have, 0.05 to 9 mm."""

_FAR = 10.0
"""Times: the pixels of a folder, or of a scan and its preset, lie nearer, those of broken headers further."""


def odd_pixels(sizes: Sequence[Sequence[float]]) -> list[int]:
    """Which scans of a folder have pixels that no scanner makes: the rule of all commands.

    A side above `PIXEL_MM` is wrong whatever the others have. One below is where fewer scans have such than have
    pixels of scanners: else they are of a microscope.

    Args:
        sizes: in-plane pixel size in mm of each scan.

    Returns:
        Indices of `sizes`, rising.
    """
    smallest, largest = PIXEL_MM
    large = [i for i, pixel_mm in enumerate(sizes) if max(pixel_mm) > largest]
    small = [i for i, pixel_mm in enumerate(sizes) if min(pixel_mm) < smallest and i not in large]
    is_minority = len(small) < len(sizes) - len(large) - len(small)
    return sorted([*large, *small]) if is_minority else large


def cannot_become(pixel_mm: Sequence[float], wanted_mm: Sequence[float]) -> bool:
    """Whether a scan of such pixels is not to be resampled to others: the header or the preset is wrong.

    A side of the scan lies above `PIXEL_MM` and the wanted one does not; or one of the two lies below, the other does
    not, and they are over 10 times apart: a microscope and its preset are not.

    Args:
        pixel_mm: (H, W) of the scan.
        wanted_mm: (H, W) to resample to.
    """
    smallest, largest = PIXEL_MM
    for mm, wanted in zip(pixel_mm, wanted_mm, strict=True):
        lower, higher = sorted((mm, wanted))
        if wanted <= largest < mm or (lower < smallest <= higher and higher / lower > _FAR):
            return True
    return False


def usual_pixels(fingerprint: Fingerprint) -> tuple[Fingerprint, list[str]]:
    """The fingerprint of the scans whose pixels can be true: none that are odd, near the median of these; a note.

    Where all are odd all count, and of halves that lie apart nobody knows which is wrong.
    """
    odd = set(odd_pixels([scan.spacing_mm[1:] for scan in fingerprint.scans]))
    plausible = [scan for i, scan in enumerate(fingerprint.scans) if i not in odd] or list(fingerprint.scans)
    median = dataclasses.replace(fingerprint, scans=tuple(plausible)).spacing_mm.median[1:]
    near = [scan for scan in plausible if _is_near(scan, median)]
    if len(near) <= len(plausible) / 2:
        near = plausible
    kept = {scan.case_id for scan in near}
    far = [scan for scan in fingerprint.scans if scan.case_id not in kept]
    if not far:
        return fingerprint, []
    named = some([f"{scan.case_id} ({scan.spacing_mm[1]:.4g} x {scan.spacing_mm[2]:.4g} mm)" for scan in far])
    return dataclasses.replace(fingerprint, scans=tuple(near)), [
        f"Pixel sizes that no scanner makes, or over {_FAR:g} times off the median, do not count for "
        f"spacing and crop: {named}; repair the headers if they are wrong."
    ]


def _is_near(scan: ScanFacts, usual_mm: Sequence[float]) -> bool:
    pairs = zip(scan.spacing_mm[1:], usual_mm, strict=True)
    return all(max(mm / usual, usual / mm) <= _FAR for mm, usual in pairs)
