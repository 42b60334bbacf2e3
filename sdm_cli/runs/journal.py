"""`predictions.jsonl` beside the masks: what became of each case, one line as it ends.

Several processes write a file each, so that they never meet in one, whatever file system they share.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdm_cli.errors import OutputError, reason_of
from sdm_cli.files import json_text

_NAME = "predictions"


class Journal:
    """Appends to the file of one of the processes that share a folder of masks."""

    def __init__(self, folder: Path, index: int = 0, count: int = 1) -> None:
        """Without a trace on the disk.

        Args:
            folder: of the masks.
            index: of this process among all that write there, from 0.
            count: how many these are.
        """
        self._path = folder / (f"{_NAME}.jsonl" if count == 1 else f"{_NAME}-{index}-of-{count}.jsonl")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line with the time of day (UTC), after whole lines alone.

        Raises:
            OutputError: the file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json_text({"time": now, **record}, indent=None).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":  # a kill cut the last one
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written ({reason_of(error)}): choose another output.") from error


def written_masks(folder: Path) -> dict[str, list[str]]:
    """Masks that the journals of a folder say were written, by name, with the hashes of their models' weights.

    Lines that are no records do not count; of several about one mask the latest does.
    """
    latest: dict[str, tuple[str, list[str]]] = {}
    for path in folder.glob(f"{_NAME}*.jsonl"):
        with suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("status") == "written":
                        name, time, weights = (record.get(key) for key in ("mask", "time", "weights_sha256"))
                        told = (str(time), weights if isinstance(weights, list) else [])
                        latest[str(name)] = max(told, latest.get(str(name), told), key=lambda each: each[0])
    return {name: weights for name, (_, weights) in latest.items()}
