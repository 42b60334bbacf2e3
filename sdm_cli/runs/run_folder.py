"""The folder of one training run: what lies where, and its line-by-line record.

config.yaml      resolved preset, store, split and versions
metrics.jsonl    one JSON object a line: losses and class shares every few steps, each validation, each alarm
checkpoints/     `best`, `last` and the one before it, `previous`, each a model folder; `damaged-*`, once `last`
progress.png     curves of the record
report.html      the run in words and curves, with links to the reports of its evaluations
broken/          a step whose loss was not finite, as `sdm train --replay` reads it
panels/          `best.png`, `last.png`: the same few training pairs with label, pasted patch and prediction
evaluation/      one folder a split, written by `sdm evaluate`; `study-*` by a study
gain.json, .csv  what the unlabeled scans bought, of a study
baseline/        the labeled-only twin, a run of its own, written by `sdm train --with-baseline`

A study (`study`) is a folder with such runs one or two folders below.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.cases import counted
from sdm_cli.data.splits import Split, split_from_dict
from sdm_cli.documents import lies_in, parse_yaml, read_text
from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.files import flush, json_text, write_text
from sdm_cli.preset_files import flat, preset_from_dict, preset_to_dict
from sdm_cli.runs.provenance import program_versions
from sdm_cli.runs.record import RECORD_EVERY, read_record, score_of

RUNS = Path("runs")
"""Where runs go unless told otherwise."""
_CONFIG, _METRICS = "config.yaml", "metrics.jsonl"
_SECTIONS = {"preset": dict, "store": str, "split": dict}
STUDY_PREFIX = "study-"
"""Begins the name of an evaluation that a study made, in `evaluation/`; that of a person has the role alone."""
_OF_SCANS = ("scans", "slices.")  # of what the store holds, not of the preset
_WITHOUT_EFFECT = ("preset.description", "preset.source", "preset.published", "preset.train.workers")


class RunFolder:
    """Paths and record of a run; makes nothing by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / _CONFIG
        self.metrics = path / _METRICS
        self.best = path / "checkpoints" / "best"
        self.last = path / "checkpoints" / "last"
        self.previous = path / "checkpoints" / "previous"
        self.broken = path / "broken"
        self.picture = path / "progress.png"
        self.panels = path / "panels"

    def create(self, preset: Preset, store: Path, facts: Mapping[str, Any]) -> None:
        """Start the folder with its `config.yaml`.

        Args:
            preset: resolved.
            store: folder of the store.
            facts: what else decides the run and must be the same to resume it; `split` among it.

        Raises:
            OutputError: the folder exists and is not empty, or cannot be written.
        """
        self.require_free()
        about = {"store": str(store.absolute()), "versions": program_versions()}
        self._write_tree({"preset": preset_to_dict(preset), **about, **facts})

    def require_free(self, preset: Preset | None = None) -> None:
        """Raise OutputError if the folder holds anything; only with `preset` a run of it can be resumed."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not self.config.exists() and self.metrics.exists():
                raise OutputError(
                    f"{self.path} holds a run whose {_CONFIG} is missing: put a copy of it back, or choose another "
                    "folder by -o."
                )
            if not runs_below(self.path):
                raise OutputError(f"{self.path} exists and is no run: choose another folder by -o.")
            is_run = self.config.is_file()
            if is_run and preset is not None and (differing := self._differing({"preset": preset_to_dict(preset)})):
                raise OutputError(
                    f"{self.path} holds a run of other settings ({', '.join(differing)}): choose another folder by -o."
                )
            raise OutputError(f"{self.path} exists: add --resume to continue it, or choose another folder by -o.")

    def require_same(self, preset: Preset, facts: Mapping[str, Any]) -> None:
        """Raise CheckpointError if the run was started with other settings or other scans than these, naming them."""
        if differing := self._differing({"preset": preset_to_dict(preset), **facts}):
            # Without a split file what a store holds decides who plays which role.
            of_scans = _OF_SCANS if preset.data.split else (*_OF_SCANS, "split.")
            if all(key.startswith(of_scans) for key in differing):
                raise CheckpointError(
                    f"{self.path} was started with other scans than the store has now ({', '.join(differing)}): resume "
                    "with the store as it was, or start another run by -o."
                )
            raise CheckpointError(
                f"{self.path} was started with other settings ({', '.join(differing)}): resume with the same, or start "
                "another run by -o."
            )

    def _differing(self, wanted: Mapping[str, Any]) -> list[str]:
        """Which of these sections of `config.yaml` differ, by dotted keys, as far as that has an effect."""
        tree = self._read_tree()
        # Fields that are newer than the run have their defaults.
        tree["preset"] = preset_to_dict(preset_from_dict(tree["preset"], str(self.config)))
        then, now = flat({key: tree.get(key) for key in wanted}), flat(wanted)
        differing = [key for key in now.keys() | then.keys() if now.get(key) != then.get(key)]
        return sorted(key.removeprefix("preset.") for key in differing if not key.startswith(_WITHOUT_EFFECT))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from; a kill between two renames leaves the previous one alone."""
        return self.last.is_dir() or self.previous.is_dir()

    def set_aside_last(self) -> None:
        """Leave `last`, which cannot be read, beside the checkpoints that take its place; raises OutputError."""
        if self.last.is_dir():
            try:
                self.last.rename(self.last.with_name(f"damaged-{self.last.stat().st_mtime_ns}"))
            except OSError as error:
                raise OutputError(f"{self.last} cannot be renamed ({error.strerror}): check its permissions.") from None

    def require_nothing_to_lose(self) -> None:
        """Raise CheckpointError if the checkpoints are gone, though the record tells of more than one validation."""
        n_validations = sum("validation" in entry for entry in self.entries())
        if n_validations > 1:
            raise CheckpointError(
                f"{self.last} is missing, so the run cannot go on from there: put an intact copy back, or start "
                f"another run by -o; {self.best} is untouched."
            )

    def continue_on(self, store: Path, step: int, validated: int) -> None:
        """Note where the store is now, and drop what a run records again that goes on after `step`.

        Of validations, that of a step after `validated` will be made (again).
        """
        tree = self._read_tree()
        if tree["store"] != str(store.absolute()):
            self._write_tree({**tree, "store": str(store.absolute())})
        entries, damaged = read_record(self.metrics)
        losses = {entry["step"] for entry in entries if "loss" in entry}
        validations = {entry["step"] for entry in entries if "validation" in entry}
        if max(losses, default=0) < step - step % RECORD_EVERY or validated not in {0, *validations}:
            warn(
                f"{self.metrics} lacks lines from before step {step}, which the checkpoint is of: curves and report "
                "lack them too, and may call another step the best"
            )
        if self.metrics.exists():
            last = {True: validated, False: step}
            kept = [
                json_text(entry, indent=None) + "\n"
                for entry in entries
                if entry["step"] <= last["validation" in entry]
            ]
            if damaged:
                warn(f"{self.metrics}: {counted(damaged, 'damaged line')} left out")
            write_text(self.metrics, "".join(kept))

    def read_config(self) -> tuple[Preset, Path]:
        """Preset and store of the run; CheckpointError when the folder is no run."""
        tree = self._read_tree()
        return preset_from_dict(tree["preset"], str(self.config)), Path(tree["store"])

    def read_split(self) -> Split:
        """Case ids by role, as the run was trained; CheckpointError or SplitError when the folder is no run."""
        return split_from_dict(self._read_tree()["split"], str(self.config))

    def read_facts(self) -> dict[str, Any]:
        """What else `create` was given, and `versions`; CheckpointError when the folder is no run."""
        return {key: value for key, value in self._read_tree().items() if key not in ("preset", "store", "split")}

    def _read_tree(self) -> dict[str, Any]:
        if not self.path.exists():
            raise CheckpointError(f"{self.path} does not exist: start the run without --resume, or check the path.")
        runs = runs_below(self.path)
        if runs and self.path not in runs:
            raise CheckpointError(
                f"{self.path} is a study of several runs: continue it by the command that began it with --resume, or "
                f"name one of its runs ({runs[0]})."
            )
        try:
            tree = parse_yaml(read_text(self.config))
        except (OSError, ValueError):
            tree = None
        if not isinstance(tree, dict) or not all(isinstance(tree.get(key), kind) for key, kind in _SECTIONS.items()):
            raise CheckpointError(
                f"{self.path} is not the folder of a run: {_CONFIG} is missing or damaged. Check the path, or put an "
                "intact copy of it back."
            )
        self._require_own_files()
        return tree

    def _require_own_files(self) -> None:
        """A run may come from a stranger, and is written to: CheckpointError for a link that leads elsewhere."""
        links = (path for path in self.path.rglob("*") if path.is_symlink())
        if leads_out := next((path for path in links if not lies_in(path, self.path)), None):
            raise CheckpointError(f"{leads_out} is a link that leads out of the run: put a copy in its place.")

    def _write_tree(self, tree: Mapping[str, Any]) -> None:
        write_text(self.config, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))

    def entries(self) -> list[dict[str, Any]]:
        """Lines of the record; a half line of a kill, and what else is none of its lines, is left out."""
        return read_record(self.metrics).entries

    def best_validation(self, protocol: str) -> dict[str, Any] | None:
        """The line of the validation that chose `best`; none before the first."""
        best, highest = None, -1.0
        for entry in self.entries():
            if "validation" in entry:
                score = score_of(entry["validation"], protocol)
                if score is None or score >= highest:
                    best, highest = entry, highest if score is None else score
        return best

    def flush_record(self) -> None:
        """Wait until the record is on the disk, so that no checkpoint outlives its lines in a loss of power."""
        if self.metrics.exists():
            flush(self.metrics)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json_text(entry, indent=None) + "\n")


def runs_below(folder: Path) -> list[Path]:
    """The run that a folder is, or else the runs of the study that it is; not a twin, which lies within its run."""
    return [run for run in folders_of_runs(folder) if (run / _CONFIG).exists()]


def folders_of_runs(folder: Path) -> list[Path]:
    """The same with those that lost their `config.yaml` and have a record still: they are no runs any more."""
    patterns = (depth + name for depth in ("", "*/", "*/*/") for name in (_CONFIG, _METRICS))
    runs = sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})
    return [run for run in runs if not any(other in run.parents for other in runs)]


def newest_run(runs: Path = RUNS) -> Path:
    """The run with a checkpoint whose record changed last, one of a study like any other; says which one that is.

    A labeled-only twin beside its run is never meant.

    Raises:
        CheckpointError: there is no such run.
    """
    folders = [run for folder in runs.glob("*") for run in runs_below(folder)]
    folders = [folder for folder in folders if RunFolder(folder).best.is_dir() or RunFolder(folder).has_checkpoint]
    if not folders:
        raise CheckpointError(
            f"There is no run with a checkpoint in {runs.absolute()}: train one with `sdm train`, or name a run or a "
            "model."
        )

    def last_change(folder: Path) -> float:
        metrics = RunFolder(folder).metrics
        return (metrics if metrics.exists() else folder / _CONFIG).stat().st_mtime

    newest = max(folders, key=last_change)
    say(f"The newest run: {newest}")
    return newest
