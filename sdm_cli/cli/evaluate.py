"""The command `sdm evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import (
    AllowMissingOption,
    DeviceOption,
    DomainsOption,
    OverwriteOption,
    WorkersOption,
    share_cores,
    shipped_presets,
)

_Model = typer.Argument(
    metavar="RUN|MODEL", help="A run, a model folder or an exported file. [default: the newest run]"
)
_Store = typer.Option("--store", metavar="STORE", help="Store to read. [default: that of the run]")
_Split = typer.Option("--split", help="The cases to score.")
_Predictions = typer.Option("--predictions", metavar="FOLDER", help="Score these masks instead of a model's.")
_Labels = typer.Option("--labels", metavar="FOLDER", help="Labels of the masks, of the same file names.")
_Preset = typer.Option(
    "--preset",
    metavar="NAME|FILE",
    help="Names the classes of the masks. [default: one class a label value]",
    autocompletion=shipped_presets,
)
_Compare = typer.Option(
    "--compare",
    metavar="RUN|FOLDER",
    help="Compare two evaluations that exist, case by case: that of RUN and this one.",
)
_Scans = typer.Option("--scans", metavar="FOLDER", help="Scans of the masks, to show beneath them in the report.")
_Output = typer.Option(
    "-o",
    "--output",
    metavar="FOLDER",
    help="Where results go. [default: RUN/evaluation/<split>; with the masks; of --compare against-<name of the "
    "second> in the folder of the first]",
)
_Unit = typer.Option("--unit", help="Unit of the distances.")
_Tolerance = typer.Option(
    "--tolerance", metavar="DISTANCE", help="Within it surfaces agree (NSD), in the unit of --unit. [default: 1]"
)
_Resample = typer.Option("--resample", help="Take masks on another grid to that of their label, nearest neighbour.")


@app.command()
def evaluate(
    model: Annotated[Path | None, _Model] = None,
    store: Annotated[Path | None, _Store] = None,
    split: Annotated[Literal["test", "validation", "unlabeled"], _Split] = "test",
    predictions: Annotated[Path | None, _Predictions] = None,
    labels: Annotated[Path | None, _Labels] = None,
    preset: Annotated[str | None, _Preset] = None,
    domains: Annotated[Path | None, DomainsOption] = None,
    compare: Annotated[Path | None, _Compare] = None,
    scans: Annotated[Path | None, _Scans] = None,
    output: Annotated[Path | None, _Output] = None,
    unit: Annotated[Literal["mm", "voxel"], _Unit] = "mm",
    tolerance: Annotated[float | None, _Tolerance] = None,
    resample: Annotated[bool, _Resample] = False,
    workers: Annotated[int | None, WorkersOption] = None,
    device: Annotated[str | None, DeviceOption] = None,
    allow_missing: Annotated[bool, AllowMissingOption] = False,
    overwrite: Annotated[bool, OverwriteOption] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all results as JSON.")] = False,
) -> None:
    """Score whole volumes, per case, class and domain; report.html shows the scores and the cases.

    Dice, Jaccard, HD95, ASD, NSD and volume difference.

    Scores a model on cases of a store, or masks that exist (--predictions with --labels); or compares two evaluations
    (--compare), each a run or a folder with summary.json.
    """
    of_masks = preset is not None or domains is not None or scans is not None or resample
    _require_one_source(model, store, predictions, labels, of_masks)
    if compare is not None:
        if model is None or store is not None or predictions is not None:
            raise typer.BadParameter("--compare goes with one run or folder with summary.json before it.")
        from sdm_cli.runs.comparison import compare_evaluations, show_comparison

        show_comparison(compare_evaluations(model, compare, split, output, overwrite), as_json)
        return
    share_cores()
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
    from sdm_cli.runs.metrics import Measure
    from sdm_cli.runs.score_table import show_summary
    from sdm_cli.runs.summary import require_all_scored
    from sdm_cli.runs.workers import all_cores

    measure = Measure(unit) if tolerance is None else Measure(unit, tolerance)
    processes = workers or all_cores()
    if predictions is None or labels is None:
        summary = evaluate_model(model, store, split, output, measure, device, overwrite, allow_missing, processes)
    else:
        chosen = load_preset(preset) if preset is not None else None
        summary = evaluate_predictions(
            predictions, labels, chosen, output, measure, overwrite, domains, processes, resample, scans
        )
    show_summary(summary, as_json)
    require_all_scored(summary)


def _require_one_source(
    model: Path | None, store: Path | None, predictions: Path | None, labels: Path | None, of_masks: bool
) -> None:
    """Raise BadParameter for options of a model and of masks together; `of_masks`: some that masks alone have."""
    if (predictions is None) != (labels is None):
        raise typer.BadParameter("--predictions and --labels belong together.")
    if predictions is None and of_masks:
        raise typer.BadParameter(
            "--preset, --domains, --scans and --resample are for --predictions: a model knows its preset and predicts "
            "on the grid of the scan, and its store knows the domains and scans."
        )
    if predictions is not None and (model is not None or store is not None):
        raise typer.BadParameter("give a model and its store, or --predictions and --labels.")
