"""Commands that show: what a run or model is, and the presets."""

from pathlib import Path
from typing import Annotated

import typer

from sdm_cli.cli.app import app
from sdm_cli.errors import CheckpointError


@app.command()
def info(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|MODEL", help="A run, a model folder or an exported file. [default: the newest run]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as JSON.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the page of the run, RUN/report.html, anew; also while it trains.")
    ] = False,
) -> None:
    """Tell how far a run has come, its best score, its protocol, data and versions; or what a model is."""
    from sdm_cli.console import say
    from sdm_cli.runs.info import describe, show_info
    from sdm_cli.runs.run_folder import RunFolder, newest_run

    path = path or newest_run()
    found = describe(path)
    if report and "run" not in found:
        raise CheckpointError(f"{path} is no single run, of which --report writes the page: name one.")
    show_info(found, as_json)
    if unread := [run for run in found.get("runs", ()) if "error" in run]:
        raise CheckpointError(f"{len(unread)} of {len(found['runs'])} runs cannot be read: {unread[0]['error']}")
    if report:
        from sdm_cli.runs.run_report import write_run_report

        say(f"The run as a page: {write_run_report(RunFolder(path))}")


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME|FILE", help="Show this one, with every field.")] = None,
) -> None:
    """List the shipped presets with their published scores, or show one resolved."""
    from sdm_cli.runs.presets import list_presets, show_preset

    if name is None:
        list_presets()
    else:
        show_preset(name)
