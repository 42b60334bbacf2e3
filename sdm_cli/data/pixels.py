"""Pixels of scanners, and those of broken headers: wrong whatever the other scans have, or beside them."""

import dataclasses
from collections.abc import Iterable, Sequence

from sdm_cli.data.cases import some
from sdm_cli.data.fingerprint import Fingerprint, ScanFacts

PIXEL_MM = (0.01, 20.0)
"""In plane, from micro-CT to scintigraphy with room to spare: a slip of a thousand (metres or micrometres taken for
millimetres) leaves these bounds from any pixel that hospitals have, 0.05 to 9 mm."""

_FAR_FROM_MEDIAN = 10.0  # times: pixels of scanners lie nearer, those of broken headers further


def is_plausible(pixel_mm: Iterable[float]) -> bool:
    """Whether a scanner makes pixels of these sides."""
    smallest, largest = PIXEL_MM
    return all(smallest <= mm <= largest for mm in pixel_mm)


def usual_pixels(fingerprint: Fingerprint) -> tuple[Fingerprint, list[str]]:
    """The fingerprint of the scans whose pixels can be true: such as scanners make, near the median of these; a note.

    Where no scan has such pixels all count, and of halves that lie apart nobody knows which is wrong.
    """
    plausible = [scan for scan in fingerprint.scans if is_plausible(scan.spacing_mm[1:])] or fingerprint.scans
    median = dataclasses.replace(fingerprint, scans=tuple(plausible)).spacing_mm.median[1:]
    near = [scan for scan in plausible if _is_near(scan, median)]
    if len(near) <= len(plausible) / 2:
        near = list(plausible)
    kept = {scan.case_id for scan in near}
    far = [scan for scan in fingerprint.scans if scan.case_id not in kept]
    if not far:
        return fingerprint, []
    named = some([f"{scan.case_id} ({scan.spacing_mm[1]:.4g} x {scan.spacing_mm[2]:.4g} mm)" for scan in far])
    return dataclasses.replace(fingerprint, scans=tuple(near)), [
        f"Pixel sizes that no scanner makes, or over {_FAR_FROM_MEDIAN:g} times off the median, do not count for "
        f"spacing and crop: {named}; repair the headers if they are wrong."
    ]


def _is_near(scan: ScanFacts, usual_mm: Sequence[float]) -> bool:
    pairs = zip(scan.spacing_mm[1:], usual_mm, strict=True)
    return all(max(mm / usual, usual / mm) <= _FAR_FROM_MEDIAN for mm, usual in pairs)
