"""`sdm predict --dry-run`: which scan would become which mask, and the memory that it takes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table

from sdm_cli.console import print_result, print_table, say
from sdm_cli.data.cases import Case, counted
from sdm_cli.data.grid import SliceGrid, plan_grid
from sdm_cli.data.limits import by
from sdm_cli.data.readers import read_geometry
from sdm_cli.data.volume import Geometry, slice_spacing_mm, to_slices
from sdm_cli.errors import ImageReadError, SomeCasesFailed
from sdm_cli.runs.cohort import Cohort
from sdm_cli.runs.inference import n_neighbours
from sdm_cli.runs.memory import peak_of_process
from sdm_cli.runs.model import Model, Scan
from sdm_cli.runs.predict import Work, open_work
from sdm_cli.runs.request import Request, Wanted

_BYTES_PER_VOXEL = 12
"""Of the largest scan, where at once one is read (6: voxels of 32 bits at most and the slices made of them), one
segmented (3: slices and mask) and one written (3: mask and label values)."""
_BYTES_OF_A_MAP = 8
"""Where one of float32 is filled and another one is written."""
_BYTES_OF_A_PROBABILITY = 2
"""Of a class, in a mapped file."""
_BYTES_OF_A_PSEUDO_LABEL = 4
"""The scan is read once more."""
_BYTES_OF_A_RANK = 8
"""Which voxels are asked, and the entropy of all of them at most."""


def show_plan(request: Request) -> None:
    """Print a line for each scan, and the memory of the machine that one process takes.

    Headers are read, and the network sees empty slices of the largest size.

    Raises:
        SdmError: as `predict`.
        SomeCasesFailed: some scans cannot be read, as far as their headers tell.
    """
    work = open_work(request)
    cohort, kept = work.cohort, {case.case_id for case in work.cohort.kept}
    cases = sorted((*cohort.cases, *cohort.kept), key=lambda case: case.case_id)
    table = Table("case", "input", "voxels", "mask", "what is done")
    geometries, failed = [], []
    for case in cases:
        try:
            geometry = _geometry(cohort, case, work.model)
            geometries += [] if case.case_id in kept else [geometry]
            size, done = by(geometry.shape), _what_is_done(cohort, case, kept)
        except ImageReadError as error:
            failed.append(case.case_id)
            size, done = "", f"nothing: {error}"
        table.add_row(case.case_id, cohort.name_of(case), size, cohort.target(case).name, done)
    print_table(table)
    if geometries:
        print_result(
            f"{counted(len(geometries), 'scan')}, up to {_peak_gb(work, request.wanted, geometries):.1f} GB of memory."
        )
    say("Nothing was written.")
    if failed:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(cases)} scans cannot be read ({', '.join(failed)}): repair them as the table says."
        )


def _geometry(cohort: Cohort, case: Case, model: Model) -> Geometry:
    return cohort.store.geometry(case.case_id) if cohort.store else read_geometry(case, model.preset.data)


def _what_is_done(cohort: Cohort, case: Case, kept: set[str]) -> str:
    if case.case_id in kept:
        return "kept"
    return "replaced" if cohort.target(case).exists() else "written"


def _peak_gb(work: Work, wanted: Wanted, geometries: Sequence[Geometry]) -> float:
    """Memory of the machine, measured with a few slices in the network, and counted for the volumes.

    What a crop leaves out is not known from headers, and counted in.
    """
    largest = max(geometries, key=lambda geometry: int(np.prod(geometry.shape)))
    data, rules = work.model.preset.data, work.model.preset.predict
    voxels = np.broadcast_to(np.uint8(0), largest.shape)  # takes no memory
    slices = to_slices(voxels, largest.affine, data.slice_axis)
    spacing_mm = slice_spacing_mm(largest.affine, data.slice_axis)
    grid = plan_grid(replace(data.grid, crop="none"), slices, spacing_mm, None)
    # At most, a batch is made while another one and the slices that are averaged with it are held.
    n = 2 * (work.model.batch_size(*grid.size[1:]) + n_neighbours(rules, grid, spacing_mm))
    n = min(n, grid.size[0])
    depth = max(1, round(n * grid.scan[0] / grid.size[0]))
    few = SliceGrid((depth, *grid.scan[1:]), ((0, depth), *grid.box[1:]), (n, *grid.size[1:]))
    work.model.segment(Scan(np.zeros(few.size, np.uint16), few, largest))
    return (peak_of_process() + _bytes_per_voxel(wanted, data.n_classes) * voxels.size) / 1e9


def _bytes_per_voxel(wanted: Wanted, n_classes: int) -> int:
    """Pages of a mapped file count, though the system takes them back when it needs them."""
    probabilities = n_classes * _BYTES_OF_A_PROBABILITY * wanted.probabilities
    maps = _BYTES_OF_A_MAP * (wanted.entropy + wanted.confidence)
    return (
        _BYTES_PER_VOXEL
        + probabilities
        + maps
        + _BYTES_OF_A_PSEUDO_LABEL * bool(wanted.pseudo)
        + _BYTES_OF_A_RANK * wanted.rank
    )
