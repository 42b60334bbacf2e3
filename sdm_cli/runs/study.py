"""A study: one preset trained in several variants and with several seeds, scored on the same cases, compared.

Behind `sdm train --with-baseline`, `--seeds` and `--ablate`. Each training is a run folder like any other, and equals,
bit for bit, the same run alone. What is finished is not trained again, what is scored not scored again, so `--resume`
goes on wherever it was stopped. Which fields a variant changes is below; what is written of it all in `study_report`.
"""

import gc
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdm_cli.config import ModelConfig, Preset
from sdm_cli.console import say, warn
from sdm_cli.data.cases import counted
from sdm_cli.data.splits import resolve_split
from sdm_cli.data.store import SliceStore
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import CheckpointError, OutputError, PresetError, SdmError, SomeCasesFailed
from sdm_cli.method.checkpoint import weights_sha256
from sdm_cli.preset_files import with_changes
from sdm_cli.runs.evaluate import evaluate_model
from sdm_cli.runs.hardware import make_accelerator
from sdm_cli.runs.roles import Role
from sdm_cli.runs.run_folder import RUNS, STUDY_PREFIX, RunFolder, runs_below
from sdm_cli.runs.run_report import write_run_report
from sdm_cli.runs.study_report import Scores, write_ablation, write_gain, write_seeds
from sdm_cli.runs.torch_model import find_model
from sdm_cli.runs.train import train
from sdm_cli.runs.workers import all_cores


@dataclass(frozen=True)
class Variant:
    """A preset with some fields changed.

    Attributes:
        name: in tables and files.
        folder: of its run, below that of the study (and of the seed); empty: that folder itself.
        changes: `section.key` -> value.
    """

    name: str
    folder: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_LABELED_ONLY = {"method.use_unlabeled": False, "model.messenger_stages": []}

RUN = Variant("run", "")
BASELINE = Variant("labeled only", "baseline", _LABELED_ONLY)

_NO_U2L: dict[str, Any] = {"model.messenger_stages": []}
_UNWEIGHTED = {"method.class_weights": False}
ABLATION = (
    Variant("labeled only", "labeled-only", {**_LABELED_ONLY, **_UNWEIGHTED}),
    Variant("+L2U", "l2u", {"method.l2u": True, **_NO_U2L, **_UNWEIGHTED}),
    # Nothing is pasted: the consistency loss is 0, that of the pseudo-labels remains.
    Variant("+U2L", "u2l", {"method.l2u": False, **_UNWEIGHTED}),
    Variant("both", "both", {"method.l2u": True, **_UNWEIGHTED}),
    Variant("both + class weights", "both-class-weights", {"method.l2u": True, "method.class_weights": True}),
)
"""U2L is where the preset has it, or else at the default stage."""


@dataclass(frozen=True)
class Study:
    """What is trained: each variant with each seed.

    Attributes:
        variants: in the order of training.
        seeds: empty: that of the preset alone.
        reference: the variant that gains are measured against.
    """

    variants: tuple[Variant, ...] = (RUN,)
    seeds: tuple[int, ...] = ()
    reference: Variant | None = None

    @property
    def is_ablation(self) -> bool:
        """Whether it compares the parts of the method."""
        return self.variants == ABLATION


@dataclass(frozen=True)
class _Trial:
    variant: Variant
    folder: Path
    preset: Preset

    @property
    def title(self) -> str:
        return f"{self.variant.name}, seed {self.preset.train.seed}, {self.folder}"


def plan_study(with_baseline: bool, seeds: Sequence[int], ablate: bool) -> Study:
    """The study of the options of `sdm train`."""
    if ablate:
        return Study(ABLATION, tuple(seeds), ABLATION[0])
    return Study((RUN, BASELINE), tuple(seeds), BASELINE) if with_baseline else Study(seeds=tuple(seeds))


def run_study(
    study: Study,
    preset: Preset,
    store: Path | None = None,
    output: Path | None = None,
    device: str | None = None,
    resume: bool = False,
    allow_missing: bool = False,
) -> Path:
    """Train all of a study, score it on the labels of its test and of its unlabeled cases, and report.

    Args:
        study: what to train.
        preset: resolved; a variant and a seed change it.
        store: as `train`.
        output: folder of the study; none: `runs/<preset>`.
        device: as `train`.
        resume: continue what was begun, and begin the rest.
        allow_missing: go on without the cases of the split that the store lacks.

    Returns:
        The folder of the study.

    Raises:
        SdmError: as `train`; the preset leaves nothing to compare; the folder holds another run.
        SomeCasesFailed: cases could not be scored; the report is of the others.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, with a checkpoint of the run under way.
    """
    folder = output or RUNS / preset.name
    trials = _trials(study, preset, folder)
    # Before the first training, since other processes must find what this one does.
    is_begun = _find_begun(folder, trials, resume)
    slices = SliceStore(store or Path("stores") / preset.data.dataset)
    split = resolve_split(preset.data, slices.cases, allow_missing)
    roles: tuple[Role, ...] = ("test", "unlabeled")
    cases = {role: [case_id for case_id in getattr(split, role) if slices.cases[case_id].labeled] for role in roles}
    is_main = make_accelerator(preset.train, device).is_main_process
    if is_main and not any(cases.values()):
        warn(
            f"{slices.path} has no label of a test or an unlabeled case, so neither scores nor a gain can be measured: "
            "the runs are trained and left; sdm split keeps labeled cases for a test."
        )
    for number, (trial, begun) in enumerate(zip(trials, is_begun, strict=True), 1):
        gc.collect()  # networks are in reference cycles; two at once may not fit a GPU
        if is_main:
            say(f"Training {number} of {len(trials)}: {trial.title}")
        train(trial.preset, slices.path, trial.folder, device, begun, allow_missing)
    # All are trained first: other processes need not wait for the scores, for which one is enough.
    if is_main:
        scored = {role: case_ids for role, case_ids in cases.items() if case_ids}
        if not scored:
            say("Nothing was compared, for want of labels of test and unlabeled cases.")
        scores = {role: _score(trials, slices.path, role, case_ids, device) for role, case_ids in scored.items()}
        _report(study, trials, folder, scores)
    return folder


def _trials(study: Study, preset: Preset, folder: Path) -> list[_Trial]:
    """All trainings, their presets checked; PresetError when two of them would be the same."""
    if study.reference is not None and not preset.method.use_unlabeled:
        raise PresetError(
            f"{preset.name} has method.use_unlabeled: false, so there is no gain of the unlabeled scans to measure: "
            "set it to true."
        )
    if study.is_ablation and not preset.model.messenger_stages:
        say(f"{preset.name} has no U2L (model.messenger_stages: []): the rows with U2L have it at the default stage.")
        preset = with_changes(preset, {"model.messenger_stages": list(ModelConfig().messenger_stages)}, preset.name)
    trials = []
    for seed in study.seeds or (preset.train.seed,):
        below = folder / f"seed-{seed}" if study.seeds else folder
        for variant in study.variants:
            changed = with_changes(preset, {**variant.changes, "train.seed": seed}, f"{preset.name}, {variant.name}")
            trials.append(_Trial(variant, below / variant.folder, changed))
    return trials


def _find_begun(folder: Path, trials: Sequence[_Trial], resume: bool) -> list[bool]:
    """Which trainings have a run folder already; OutputError or CheckpointError when they must not, or none has."""
    if not resume:
        RunFolder(folder).require_free()
    folders = [trial.folder for trial in trials]
    if runs_below(folder) == [folder] and folder not in folders:
        raise OutputError(f"{folder} is a run by itself, and a study would mix with it: choose another folder by -o.")
    is_begun = [RunFolder(trial.folder).config.is_file() for trial in trials]
    if resume:
        for below, begun in zip(folders, is_begun, strict=True):
            if not begun:
                RunFolder(below).require_free()
        if not any(is_begun):
            raise CheckpointError(f"{folder} holds no run to go on with: start without --resume, or check the path.")
    return is_begun


def _score(trials: Sequence[_Trial], store: Path, role: Role, case_ids: Sequence[str], device: str | None) -> Scores:
    """Summaries of all runs on the same cases, by variant, one a seed."""
    scores: Scores = {}
    for trial in trials:
        folder = trial.folder / "evaluation" / f"{STUDY_PREFIX}{role}"  # that of `sdm evaluate` is a person's
        summary = _earlier_summary(trial.folder, folder, case_ids)
        if summary is None:
            say(f"Scoring {counted(len(case_ids), f'{role} case')}: {trial.folder}")
            summary = evaluate_model(
                trial.folder,
                store,
                role,
                folder,
                device=device,
                overwrite=True,
                allow_missing=True,
                workers=all_cores(),
            )
        scores.setdefault(trial.variant.name, []).append(summary)
    return scores


def _rewrite_page(run: Path) -> None:
    """Once there is a gain, the page of the run shows it; a page that cannot be written is a warning."""
    try:
        write_run_report(RunFolder(run))
    except SdmError as error:
        warn(str(error))


def _earlier_summary(run: Path, folder: Path, case_ids: Sequence[str]) -> dict[str, Any] | None:
    """What was written before a stop, if it is of these weights and of these cases, and lacks none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        summary: dict[str, Any] = parse_json(read_text(folder / "summary.json"))
        then = (summary["failed"], summary["split"]["cases"], summary["weights_sha256"])
        if then == ([], list(case_ids), weights_sha256(find_model(run))):
            return summary
    return None


def _report(study: Study, trials: Sequence[_Trial], folder: Path, scores: Mapping[Role, Scores]) -> None:
    """Files and tables of all that was scored; SomeCasesFailed, once they are written, if it lacks cases."""
    if not scores:
        return
    seeds = study.seeds or (trials[0].preset.train.seed,)
    reference = study.reference.name if study.reference else None
    if study.is_ablation:
        write_ablation(folder, scores, seeds, ABLATION[0].name)
    else:
        if study.seeds:
            write_seeds(folder, scores, seeds)
        if reference:
            write_gain(folder, scores, seeds, RUN.name, reference)
            for trial in trials:
                if trial.variant is RUN:
                    _rewrite_page(trial.folder)
    summaries = [summary for of_role in scores.values() for of_seed in of_role.values() for summary in of_seed]
    if failed := sorted({failure["case_id"] for summary in summaries for failure in summary["failed"]}):
        raise SomeCasesFailed(
            f"{counted(len(failed), 'case')} could not be scored ({', '.join(failed)}), {folder} reports the others: "
            "repair them as the warnings say and run the same command with --resume."
        )
