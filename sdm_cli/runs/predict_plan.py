"""`sdm predict --dry-run`: which scan would become which mask, and the memory that it takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from sdm_cli.console import print_result, print_table, say
from sdm_cli.data.cases import Case, counted
from sdm_cli.data.grid import whole_grid
from sdm_cli.data.limits import by
from sdm_cli.data.readers import read_geometry
from sdm_cli.data.volume import Geometry, to_slices
from sdm_cli.errors import ImageReadError, SomeCasesFailed
from sdm_cli.runs.cohort import Cohort, Format, Part, with_existing
from sdm_cli.runs.memory import peak_of_process
from sdm_cli.runs.model import Model, Scan
from sdm_cli.runs.predict import open_cohort

_BYTES_PER_VOXEL = 12
"""Of the largest scan, where at once one is read (6: voxels of 32 bits at most and the slices made of them), one
segmented (3: slices and mask) and one written (3: mask and label values)."""


def show_plan(
    source: Path,
    output: Path,
    model: Path | Sequence[Path],
    device: str | None,
    skip_existing: bool,
    overwrite: bool,
    domain: str | None,
    form: Format,
    part: Part,
    tta: bool = False,
) -> None:
    """Print a line for each scan, and the memory of the machine that one process takes; arguments as for `predict`.

    Headers are read, and the network sees one empty slice of the largest size.

    Raises:
        SdmError: as `predict`.
        SomeCasesFailed: some scans cannot be read, as far as their headers tell.
    """
    cohort, segmenter = open_cohort(source, output, model, device, domain, form, part, tta)
    planned = with_existing(cohort, skip_existing, overwrite)
    kept = {case.case_id for case in planned.kept}
    table = Table("case", "input", "voxels", "mask", "what is done")
    geometries, failed = [], []
    for case in cohort.cases:
        try:
            geometry = _geometry(cohort, case, segmenter)
            geometries += [] if case.case_id in kept else [geometry]
            size, done = by(geometry.shape), _what_is_done(cohort, case, kept)
        except ImageReadError as error:
            failed.append(case.case_id)
            size, done = "", f"nothing: {error}"
        table.add_row(case.case_id, cohort.name_of(case), size, cohort.target(case).name, done)
    print_table(table)
    if geometries:
        print_result(f"{counted(len(geometries), 'scan')}, up to {_peak_gb(segmenter, geometries):.1f} GB of memory.")
    say("Nothing was written.")
    if failed:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(cohort.cases)} scans cannot be read ({', '.join(failed)}): repair them as the "
            "table says."
        )


def _geometry(cohort: Cohort, case: Case, model: Model) -> Geometry:
    return cohort.store.geometry(case.case_id) if cohort.store else read_geometry(case, model.preset.data)


def _what_is_done(cohort: Cohort, case: Case, kept: set[str]) -> str:
    if case.case_id in kept:
        return "kept"
    return "replaced" if cohort.target(case).exists() else "written"


def _peak_gb(model: Model, geometries: list[Geometry]) -> float:
    """Memory of the machine, measured with one slice in the network, and counted for the volumes."""
    largest = max(geometries, key=lambda geometry: int(np.prod(geometry.shape)))
    shape = np.broadcast_to(np.uint8(0), largest.shape)  # takes no memory
    _, height, width = to_slices(shape, largest.affine, model.preset.data.slice_axis).shape
    plane = np.zeros((1, height, width), np.uint16)
    model.segment(Scan(plane, whole_grid(plane.shape), largest))
    return (peak_of_process() + _BYTES_PER_VOXEL * shape.size) / 1e9
