"""The folder of one training run: what lies where, and its line-by-line record.

config.yaml      resolved preset, store and split
metrics.jsonl    one JSON object a line: losses every few steps, and each validation
checkpoints/     `best` and `last`, each a model folder
progress.png     curves of the record
evaluation/      one folder a split, written by `sdm evaluate`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdm_cli.config import Preset
from sdm_cli.errors import CheckpointError, OutputError
from sdm_cli.files import replacing
from sdm_cli.preset_files import preset_from_dict, preset_to_dict

RUNS = Path("runs")
"""Where runs go unless told otherwise."""
_CONFIG = "config.yaml"


class RunFolder:
    """Paths and record of a run; makes nothing by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / _CONFIG
        self.metrics = path / "metrics.jsonl"
        self.best = path / "checkpoints" / "best"
        self.last = path / "checkpoints" / "last"
        self.picture = path / "progress.png"

    def create(self, preset: Preset, store: Path, split: Mapping[str, Any]) -> None:
        """Start the folder with its `config.yaml`.

        Raises:
            OutputError: the folder exists and is not empty, or cannot be written.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"{self.path} exists: add --resume to continue that run, or choose another folder by -o.")
        tree = {"preset": preset_to_dict(preset), "store": str(store.absolute()), "split": dict(split)}
        with replacing(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def read_config(self) -> tuple[Preset, Path]:
        """Preset and store of the run.

        Raises:
            CheckpointError: the folder is no run, or its `config.yaml` is damaged.
        """
        try:
            tree = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return preset_from_dict(tree["preset"], str(self.config)), Path(tree["store"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            raise CheckpointError(f"{self.path} is not the folder of a run: {_CONFIG} is missing or damaged.") from None

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop record lines beyond a step: those that a resumed run writes again (and a half line of a kill)."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def newest_run(runs: Path = RUNS) -> Path:
    """The run folder whose record changed last.

    Raises:
        CheckpointError: there is no run.
    """
    folders = [folder for folder in runs.glob("*") if (folder / _CONFIG).is_file()]
    if not folders:
        raise CheckpointError(
            f"There is no run in {runs.absolute()}: train one with `sdm train`, or name a run or a model."
        )

    def last_change(folder: Path) -> float:
        metrics = RunFolder(folder).metrics
        return (metrics if metrics.exists() else folder / _CONFIG).stat().st_mtime

    return max(folders, key=last_change)
