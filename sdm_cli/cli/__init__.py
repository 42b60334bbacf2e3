"""The command line: one thin command a verb, over the function of the same name in `runs`.

Owns the words of the program (options, help) and the one boundary where an error becomes a
sentence and an exit code. Every command imports its function when it is called: `sdm --help`
must not wait for torch.
"""

import sys

from sdm_cli.cli import evaluate, export, prediction, results, scans, training
from sdm_cli.cli.app import app

__all__ = ["app", "evaluate", "export", "main", "prediction", "results", "scans", "training"]


def main() -> None:
    """Entry point of `sdm` and of `python -m sdm_cli`."""
    code: str | int | None = 0
    try:
        app(prog_name="sdm")
    except SystemExit as end:
        code = end.code
    # Not in a `finally`: an error under way holds the frames of the run, and these hold its groups.
    if "sdm_cli.runs.processes" in sys.modules:  # which needs torch, and most commands do not
        from sdm_cli.runs.processes import leave

        leave()
    sys.exit(code)
