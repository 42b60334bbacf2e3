"""The scans of one prediction: found, shared out, and what each one's mask is called.

Reads names, and the index of a store; no voxel.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdm_cli.config import Preset
from sdm_cli.data.case_file import case_path
from sdm_cli.data.cases import Case, same_case
from sdm_cli.data.fit import fitting_store
from sdm_cli.data.itk import is_itk, suffix_of_mask
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.layouts.folders import takes_for_scans
from sdm_cli.data.manifest import is_store
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import ImageReadError, OutputError, SplitError
from sdm_cli.runs.journal import written_masks
from sdm_cli.runs.request import Existing, Format, Part, Request
from sdm_cli.runs.roles import Role, cases_to_predict

STDIN = Path("-")


@dataclass(frozen=True)
class Cohort:
    """The scans of one prediction.

    Attributes:
        source: where they come from, as the user gave it.
        output: folder of the masks.
        form: of the masks: NIfTI, or that of the scan where it is NRRD or MetaImage.
        cases: those to predict, sorted by id.
        kept: those whose mask is there and stays.
        store: that holds the slices of the cases; none where they are files.
    """

    source: Path
    output: Path
    form: Format
    cases: tuple[Case, ...]
    kept: tuple[Case, ...] = ()
    store: SliceStore | None = None

    def target(self, case: Case) -> Path:
        """Where the mask of a case belongs."""
        as_scan = self.form == "input" and is_itk(case.image_path)
        return self.output / f"{case.case_id}{suffix_of_mask(case.image_path) if as_scan else '.nii.gz'}"

    def is_labeled(self, case: Case) -> bool:
        """Whether the store has a label of the case, or the folder of the scans in its layout's own place for them."""
        return case.label_path is not None if self.store is None else self.store.cases[case.case_id].labeled

    def name_of(self, case: Case) -> str:
        """The scan of a case, from the folder that was given."""
        path = case.image_path
        return str(path.relative_to(self.source)) if self.source in path.parents else path.name


def find_cohort(request: Request, preset: Preset) -> Cohort:
    """All scans of a file, a folder, a store, or of a list on stdin.

    Args:
        request: its source may be `-`: paths of scans or folders on stdin, one a line, without empty lines and those
            that begin with `#`.
        preset: of the model.

    Raises:
        ImageReadError: nothing there.
        StoreError: a store is unfinished, or was made with settings that are not the model's.
    """
    source, store = request.source, None
    if source == STDIN:
        cases = _listed(sys.stdin, preset)
    elif is_store(source):
        store = fitting_store(source, preset.data)
        cases = [Case(name, case_path(source, name), None, stored.domain) for name, stored in store.cases.items()]
    else:
        cases = find_cases(source, None, preset.data.layout, for_prediction=True)
    cases = [replace(case, domain=request.domain or case.domain) for case in cases]
    return Cohort(source, request.output, request.form, tuple(cases), (), store)


def in_role(cohort: Cohort, models: Sequence[Path], presets: Sequence[Preset], role: Role) -> Cohort:
    """The cases of a store that have this role for the models; raises SplitError where there are none, or no store."""
    if cohort.store is None:
        raise SplitError("--split names cases of a store: give the store with -i, or leave --split out.")
    wanted = set(cases_to_predict(models, presets, cohort.store, role))
    return replace(cohort, cases=tuple(case for case in cohort.cases if case.case_id in wanted))


def part_of(cohort: Cohort, part: Part) -> Cohort:
    """Every so many-th case, beginning with the one of that index."""
    return replace(cohort, cases=cohort.cases[part.index :: part.count])


def with_existing(cohort: Cohort, rule: Existing) -> Cohort:
    """What is left to do where masks exist.

    Args:
        cohort: with all its cases to do.
        rule: for masks that are there; nothing is replaced that is no mask of an earlier run.

    Raises:
        OutputError: masks are there and neither kept nor replaced; a file is not known to be a mask of this program.
    """
    existing = [case for case in cohort.cases if cohort.target(case).exists()]
    if not existing:
        return cohort
    if rule == "keep":
        there = {case.case_id for case in existing}
        others = tuple(case for case in cohort.cases if case.case_id not in there)
        return replace(cohort, cases=others, kept=tuple(existing))
    first = cohort.target(existing[0])
    if rule == "refuse":
        raise OutputError(
            f"{first} exists ({len(existing)} of {len(cohort.cases)} masks do): keep them with --skip-existing or "
            "replace them with --overwrite."
        )
    own = written_masks(cohort.output)
    if foreign := [path for case in existing if (path := cohort.target(case)).name not in own]:
        raise OutputError(
            f"{foreign[0]} is not replaced, since no predictions.jsonl beside it says that sdm predict wrote it: move "
            "it away, or choose another folder with -o."
        )
    return cohort


def check_output(cohort: Cohort) -> None:
    """Raises OutputError where the masks would be a file, in one, in a store, or where scans are or would be sought."""
    source, output = cohort.source, cohort.output
    if store := next((place for place in (output, *output.absolute().parents) if is_store(place)), None):
        raise OutputError(f"{output} is in the store {store}: give a folder beside it for the masks.")
    if output.is_file() or output.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{output} names a file: give the folder to write the masks to.")
    if file := next((place for place in output.parents if place.is_file()), None):
        raise OutputError(f"{output} cannot be made, since {file} is a file: give another folder for the masks.")
    places = {place.resolve() for case in cohort.cases for place in (case.image_path, case.image_path.parent)}
    if output.resolve() in places:
        raise OutputError(f"{output} is where the scans are: give another folder for the masks.")
    if source != STDIN and takes_for_scans(source.resolve(), output.resolve()):
        raise OutputError(
            f"{output} lies in {source}, where a later run would take the masks for scans: give a folder beside it."
        )


def _listed(lines: Iterable[str], preset: Preset) -> list[Case]:
    """Cases of the paths of a list; a path that is not there is a case with that problem."""
    paths = [Path(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not paths:
        raise ImageReadError("stdin has no path of a scan: give one a line.")
    case_of: dict[str, Case] = {}
    for case in (case for path in dict.fromkeys(paths) for case in _found(path, preset)):
        first = case_of.setdefault(case.case_id, case)
        if first is not case:
            raise ImageReadError(same_case(case.case_id, first.image_path, case.image_path))
    return [case_of[case_id] for case_id in sorted(case_of)]


def _found(path: Path, preset: Preset) -> Sequence[Case]:
    try:
        return find_cases(path, None, preset.data.layout, for_prediction=True)
    except ImageReadError as error:
        return [Case(path.name, path, problem=str(error))]
