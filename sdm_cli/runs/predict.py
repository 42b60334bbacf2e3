"""`sdm predict`: scans in, masks on the scans' own grids out; one is read and one written while the network works."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from sdm_cli import __version__, console
from sdm_cli.data.cases import Case, counted, some
from sdm_cli.data.limits import beyond_memory
from sdm_cli.data.readers import read_image
from sdm_cli.data.volume import has_no_form
from sdm_cli.errors import ImageReadError, OutputError, PeerFailed, PresetError, SdmError, SomeCasesFailed
from sdm_cli.runs.cohort import STDIN, Cohort, check_output, find_cohort, in_role, part_of, with_existing
from sdm_cli.runs.extras import RANKING, Extras, extras_of
from sdm_cli.runs.journal import Journal, written_masks
from sdm_cli.runs.model import Model, Prediction, Scan, load_model
from sdm_cli.runs.pipeline import run_stages
from sdm_cli.runs.ranking import Doubt, ranked, show_ranking, write_ranking
from sdm_cli.runs.request import Part, Request
from sdm_cli.runs.stop import sigterm_as_interrupt

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass
class Tally:
    """What became of the cases of one process, by id; of those that were written also their masks.

    Those that are ranked have their doubts; `n_labeled` of the others have a label, which a ranking need not ask for.
    """

    written: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    n_labeled: int = 0
    n_kept: int = 0


class Written(NamedTuple):
    """A case whose files are there: whether its mask is empty, and how doubtful it is, if cases are ranked."""

    is_empty: bool
    doubt: Doubt | None


class Work(NamedTuple):
    """A request, ready to be done: the cases, the model, and what is made of each case besides its mask."""

    cohort: Cohort
    model: Model
    extras: Extras


def predict(request: Request) -> list[Path]:
    """Write a mask for each scan, on the scan's own grid, and a line about each into `predictions.jsonl`.

    Processes that Accelerate started share the cases.

    Returns:
        Paths of the masks written now; of several processes, in the first one.

    Raises:
        OutputError: masks are there and shall neither be kept nor replaced; what would be replaced is no mask of an
            earlier run; `output` is where the scans are, or a later run would look for scans, or a file; it cannot be
            written.
        SomeCasesFailed: names the scans of a folder without a mask; all others are written.
        ImageReadError: the one scan cannot be read.
        SplitError: a role is given, and the input is no store, or holds no such case.
        PresetError: a domain is given, and the model knows none; mirrored slices, and its preset allows no direction.
    """

    def predict_share(process: Part, share: Callable[[Cohort], Cohort]) -> Tally:
        journal = Journal(
            request.output, request.part.index * process.count + process.index, request.part.count * process.count
        )
        return _predict_cases(open_work(request, share), journal, request)

    with sigterm_as_interrupt():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            tally = _in_all_processes(predict_share, request)
        else:
            tally = predict_share(Part(), lambda cohort: cohort)
    if request.wanted.rank:
        _rank(tally, request.output)
    return _summarised(tally, request)


def open_work(request: Request, share: Callable[[Cohort], Cohort] = lambda cohort: cohort) -> Work:
    """The cases of the request that `share` takes, and what they need; raises as `predict`."""
    model = load_model(request.model, request.device, request.tta)
    if request.domain is not None and not model.preset.data.normalize_by_domain:
        raise PresetError(
            f"The model of {model.preset.name} scales the intensities of all domains alike: leave --domain out."
        )
    cohort = find_cohort(request, model.preset)
    if request.role is not None:
        cohort = in_role(cohort, request.models, model.presets, request.role)
    check_output(cohort)
    if model.preset.data.grid.crop == "label" and cohort.store is None:
        console.warn(
            "the model was trained on slices cropped by the label, which these scans lack; the box of the body "
            "is taken, and the masks may be far worse than the scores of the model"
        )
    mine = part_of(cohort, request.part)
    if not mine.cases:
        console.warn(f"there are {counted(len(cohort.cases), 'case')}, so part {request.part.index} has none")
    cohort = with_existing(share(mine), request.existing)
    return Work(cohort, model, extras_of(request, cohort, model))


def _predict_cases(work: Work, journal: Journal, request: Request) -> Tally:
    cohort, extras = work.cohort, work.extras
    tally = Tally(n_kept=len(cohort.kept))
    stages = _Stages(*work, journal, request.existing == "replace")
    _tell_of_kept(stages)
    with console.progress("Predicting", len(cohort.cases)) as bar:

        def done(case: Case, outcome: Written | SdmError) -> None:
            bar.advance()
            if not isinstance(outcome, SdmError):
                tally.written.append(cohort.target(case))
                tally.empty += [case.case_id] if outcome.is_empty else []
                if outcome.doubt and cohort.is_labeled(case):
                    tally.n_labeled += 1
                elif outcome.doubt:
                    tally.doubts.append(outcome.doubt)
                return
            if isinstance(outcome, OutputError):
                raise outcome  # a full disk spoils every further case too
            journal.append(stages.record(case, status="failed", reason=" ".join(str(outcome).split())))
            if cohort.source.is_file():
                raise outcome
            tally.failed.append(case.case_id)
            console.warn_from_any(f"{case.case_id}: {outcome}")

        try:
            run_stages(cohort.cases, stages.read, stages.segment, stages.write, done)
        except KeyboardInterrupt:
            finished = f"{len(tally.written)} of {counted(len(cohort.cases), 'mask')}"
            console.say(f"Stopped with {finished} written: {request.wanted.how_to_go_on}.")
            raise
        finally:
            if extras.pseudo_labels is not None and tally.written:
                extras.pseudo_labels.finish()
    return tally


def _tell_of_kept(stages: "_Stages") -> None:
    """A line for each mask that is kept, with the weights that made it, and a warning of those of another model."""
    cohort = stages.cohort
    weights_of = written_masks(cohort.output) if cohort.kept else {}
    others = []
    for case in cohort.kept:
        mask = cohort.target(case).name
        weights = weights_of.get(mask)
        stages.journal.append({**stages.record(case, status="kept", mask=mask), "weights_sha256": weights})
        others += [case.case_id] if weights != stages.model.weights_sha256 else []
    if others:
        console.warn(
            f"{len(others)} of the {len(cohort.kept)} masks that are kept are not known to be of this model "
            f"({some(others)}): predict them again with --overwrite, or give another folder"
        )


@dataclass(frozen=True)
class _Stages:
    """The way of a case: read in one thread, segmented in the main one, written in another one."""

    cohort: Cohort
    model: Model
    extras: Extras
    journal: Journal
    overwrite: bool

    def read(self, case: Case) -> tuple[Case, Scan, float]:
        scan, seconds = _timed(self._scan, case, case)
        return case, scan, seconds

    def segment(self, piece: tuple[Case, Scan, float]) -> tuple[Case, Prediction, dict[str, float]]:
        case, scan, reading = piece
        found, network = _timed(self._found, (scan, case), case)
        return case, found, {"read": reading, "network": network}

    def write(self, piece: tuple[Case, Prediction, dict[str, float]]) -> "Written":
        """The files of a case. Tells the journal here, so that each mask that is there has its line."""
        case, found, seconds = piece
        target = self.cohort.target(case)
        doubt, seconds["write"] = _timed(self._save, (found, case), case)
        volumes_ml = found.volumes_ml
        self.journal.append(
            self.record(
                case,
                status="written",
                mask=target.name,
                seconds={stage: round(value, 3) for stage, value in seconds.items()},
                volumes_ml={name: round(value, 3) for name, value in volumes_ml.items()},
                confidence=found.confidence,
                **(
                    {"entropy": round(doubt.entropy, 6), "inconsistency": round(doubt.inconsistency, 6)}
                    if doubt
                    else {}
                ),
            )
        )
        return Written(not volumes_ml, doubt)

    def record(self, case: Case, **facts: Any) -> dict[str, Any]:
        about = {"case_id": case.case_id, "input": self.cohort.name_of(case)}
        return {**about, **facts, "weights_sha256": self.model.weights_sha256, "sdm_version": __version__}

    def _scan(self, case: Case) -> Scan:
        store = self.cohort.store
        if store is not None:
            name = case.case_id
            return Scan(store.image_volume(name), store.grid(name), store.geometry(name))
        volume = read_image(case, self.model.preset.data)
        if volume.is_constant:
            console.warn_from_any(
                f"{case.image_path} is constant (all voxels {volume.voxels.flat[0]}), so its mask tells nothing: "
                "export it again"
            )
        if has_no_form(volume.geometry):
            console.warn_from_any(
                f"{case.image_path} says neither how it lies nor, for certain, how large its voxels are (sform and "
                "qform are unset), so left and right and the volumes in ml are a guess: repair its header"
            )
        return self.model.prepare(volume, case)

    def _found(self, piece: tuple[Scan, Case]) -> Prediction:
        scan, case = piece
        return self.extras.segment(self.model, scan, case.case_id)

    def _save(self, piece: tuple[Prediction, Case]) -> Doubt | None:
        """The mask last: what has a mask is whole."""
        found, case = piece
        target = self.cohort.target(case)
        doubt = self.extras.write(found, case, self.overwrite)
        found.save(target, self.overwrite)
        return doubt


def _timed(work: Callable[[Argument], Result], argument: Argument, case: Case) -> tuple[Result, float]:
    """What `work` gives, and its seconds; memory that is out is the failure of the case."""
    start = perf_counter()
    try:
        result = work(argument)
    except MemoryError:
        raise ImageReadError(beyond_memory(case.image_path)) from None
    return result, perf_counter() - start


def _in_all_processes(work: Callable[[Part, Callable[[Cohort], Cohort]], Tally], request: Request) -> Tally:
    """Each process takes its share of the cases; the first one gets the tally of all."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from sdm_cli.runs.processes import Processes
    from sdm_cli.runs.torch_model import resolve_device

    if request.source == STDIN:
        raise ImageReadError("Several processes cannot share a list on stdin: give a folder, or use --num-parts.")
    state = PartialState(cpu=resolve_device(request.device).type == "cpu")

    def share(cohort: Cohort) -> Cohort:
        with state.split_between_processes(list(cohort.cases)) as cases:
            return replace(cohort, cases=tuple(cases))

    processes = Processes(state)
    with processes.noticing_losses(request.wanted.option_to_go_on):
        with processes.together():
            tally = work(Part(state.process_index, state.num_processes), share)
        tallies: list[Tally] = gather_object([tally])
    total = Tally()
    for one in tallies:
        total.written += one.written
        total.empty += one.empty
        total.failed += one.failed
        total.doubts += one.doubts
        total.n_labeled += one.n_labeled
        total.n_kept += one.n_kept
    if total.failed and not state.is_main_process:
        raise PeerFailed(exit_code=SomeCasesFailed.exit_code)
    return total if state.is_main_process else Tally()


def _rank(tally: Tally, output: Path) -> None:
    if tally.n_labeled:
        console.say(f"{counted(tally.n_labeled, 'case')} with a label left out of the ranking.")
    if tally.doubts:
        order = ranked(tally.doubts)
        write_ranking(output / RANKING, order)
        show_ranking(order)


def _summarised(tally: Tally, request: Request) -> list[Path]:
    n_cases = len(tally.written) + len(tally.failed)
    if tally.n_kept:
        console.say(f"{tally.n_kept} of {tally.n_kept + n_cases} masks exist and are kept.")
    if tally.empty:
        console.warn(
            f"{len(tally.empty)} of {len(tally.written)} masks are empty ({some(tally.empty)}): check that these scans "
            "are of the kind that the model was trained on, and that it was trained long enough"
        )
    if tally.failed:
        raise SomeCasesFailed(
            f"{len(tally.failed)} of {n_cases} scans got no mask ({', '.join(tally.failed)}): repair them as the "
            f"warnings say; {request.wanted.how_to_go_on}."
        )
    return tally.written
