"""Trackers that a run also tells its record to, through Accelerate: TensorBoard, Weights & Biases, MLflow.

Off unless asked for. TensorBoard's files lie in the run; where W&B and MLflow send or store theirs is set up with them.
"""

import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, LoggerType, filter_trackers, get_available_trackers

from sdm_cli.config import Preset
from sdm_cli.console import warn
from sdm_cli.errors import SdmError, reason_of
from sdm_cli.preset_files import preset_to_dict
from sdm_cli.runs.run_folder import RunFolder

Tracker = Literal["tensorboard", "wandb", "mlflow"]

_PROJECT = "sdm"
_FILES = ("data/split", "model/pretrained")
"""Fields of a preset that may be paths."""
_ERRORS = {
    "tensorboard": "builtins:OSError",
    "wandb": "wandb.errors:Error",
    "mlflow": "mlflow.exceptions:MlflowException",
}
"""What the packages raise beside errors of the system; imported where one is raised."""
_REMEDIES = {
    "tensorboard": "make room or choose another folder",
    "wandb": "log in by `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "start its server, or set MLFLOW_TRACKING_URI to one that runs",
}


def require_tracker(name: Tracker) -> None:
    """Raise SdmError if the package of a tracker is not installed."""
    if LoggerType(name) not in get_available_trackers():
        raise SdmError(f"--tracker {name}: the package {name} is not installed: pip install {name}.")


@contextmanager
def tracked(accelerator: Accelerator, name: Tracker | None, run: RunFolder, preset: Preset) -> Iterator[None]:
    """While the block runs, what is told by `tell` goes to this tracker; to none: nowhere.

    Args:
        accelerator: of the run.
        name: of the tracker.
        run: gives the run its name there; TensorBoard's files go to its folder `tensorboard`.
        preset: resolved; its fields are told as settings, of files their names alone.

    Raises:
        SdmError: the tracker does not start.
    """
    if name is None:
        yield
        return
    accelerator.project_configuration.set_directories(str(run.path))
    accelerator.log_with = filter_trackers([name], accelerator.logging_dir)
    of_run = {"wandb": {"name": run.path.name, "dir": str(run.path)}, "mlflow": {"run_name": run.path.name}}
    project = "tensorboard" if name == "tensorboard" else _PROJECT  # that is the name of the folder
    try:
        accelerator.init_trackers(project, _settings(preset), of_run)
    except _errors_of(name) as error:
        raise SdmError(
            f"--tracker {name} does not start ({reason_of(error).rstrip('.')}): {_REMEDIES[name]}, or leave --tracker "
            f"out; {run.path} is begun, so add --resume."
        ) from error
    try:
        yield
    finally:
        _each(accelerator, lambda tracker: tracker.finish())


def tell(accelerator: Accelerator, line: Mapping[str, Any]) -> None:
    """Tell the trackers the numbers of a line of the record, in the process that records.

    One that fails is a warning, and is told nothing more: the record in the run folder lacks nothing.
    """
    numbers, step = scalars(line), line["step"]
    _each(accelerator, lambda tracker: tracker.log(numbers, step=step))


def _each(accelerator: Accelerator, use: Callable[[GeneralTracker], None]) -> None:
    """Use every tracker, and leave those that fail."""
    for tracker in [*accelerator.trackers]:
        try:
            use(tracker)
        except _errors_of(tracker.name) as error:
            accelerator.trackers.remove(tracker)
            warn(
                f"--tracker {tracker.name} failed ({reason_of(error).rstrip('.')}) and is told nothing more; the run "
                "goes on, and its record is whole."
            )


def _errors_of(name: str) -> tuple[type[Exception], ...]:
    return OSError, pkgutil.resolve_name(_ERRORS[name])


def _settings(preset: Preset) -> dict[str, bool | int | float | str]:
    """The fields of a preset by path; a file is told by its name, since folders may be named after people."""
    settings = _flat(preset_to_dict(preset))
    for key in _FILES:
        if settings[key] is not None:
            settings[key] = Path(settings[key]).name
    return {
        _plain(key): value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in settings.items()
    }


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the record by name, those inside by path: `pseudo_share/liver`."""
    numbers = {_plain(name): value for name, value in _flat(line).items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name != "step"}


def _plain(name: str) -> str:
    """The name without the characters that MLflow refuses."""
    return re.sub(r"[^\w. /-]", "_", name)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by path."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
