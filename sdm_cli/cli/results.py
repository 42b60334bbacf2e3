"""Commands that use a model: info, evaluate, export; and presets."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import (
    AllowMissingOption,
    DeviceOption,
    DomainsOption,
    OverwriteOption,
    PresetOption,
    WorkersOption,
    shipped_presets,
)
from sdm_cli.console import print_result


@app.command()
def info(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="RUN|MODEL", help="A run or a model folder. [default: the newest run]"),
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
    show_info(describe(path), as_json)
    if report:
        from sdm_cli.runs.run_report import write_run_report

        say(f"The run as a page: {write_run_report(RunFolder(path))}")


@app.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|MODEL", help="A run, a model folder or an exported file. [default: the newest run]"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", metavar="STORE", help="Store to read. [default: that of the run]")
    ] = None,
    split: Annotated[
        Literal["test", "validation", "unlabeled"], typer.Option("--split", help="The cases to score.")
    ] = "test",
    predictions: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Score these masks instead of a model's.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Labels of the masks, of the same file names.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME|FILE",
            help="Names the classes of the masks. [default: one class a label value]",
            autocompletion=shipped_presets,
        ),
    ] = None,
    domains: Annotated[Path | None, DomainsOption] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|FOLDER", help="Compare two evaluations that exist, case by case: that of RUN and this one."
        ),
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Scans of the masks, to show beneath them in the report.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Where results go. [default: RUN/evaluation/<split>; with the masks]",
        ),
    ] = None,
    unit: Annotated[Literal["mm", "voxel"], typer.Option("--unit", help="Unit of the distances.")] = "mm",
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="DISTANCE", help="Within it surfaces agree (NSD), in the unit of --unit. [default: 1]"),
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Take masks on another grid to that of their label, nearest neighbour.")
    ] = False,
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
    if (predictions is None) != (labels is None):
        raise typer.BadParameter("--predictions and --labels belong together.")
    if predictions is None and (preset is not None or domains is not None or scans is not None or resample):
        raise typer.BadParameter(
            "--preset, --domains, --scans and --resample are for --predictions: a model knows its preset and predicts "
            "on the grid of the scan, and its store knows the domains and scans."
        )
    if predictions is not None and (model is not None or store is not None):
        raise typer.BadParameter("give a model and its store, or --predictions and --labels.")
    if compare is not None:
        if model is None or store is not None or predictions is not None:
            raise typer.BadParameter("--compare goes with one run or folder with summary.json before it.")
        from sdm_cli.runs.comparison import compare as compare_evaluations
        from sdm_cli.runs.comparison import show_comparison

        show_comparison(compare_evaluations(model, compare, split, output, overwrite), as_json)
        return
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
    from sdm_cli.runs.metrics import TOLERANCE
    from sdm_cli.runs.score_table import show_summary
    from sdm_cli.runs.summary import require_all_scored

    distance = TOLERANCE if tolerance is None else tolerance
    processes = workers or os.cpu_count() or 1
    if predictions is None or labels is None:
        summary = evaluate_model(
            model, store, split, output, unit, device, overwrite, allow_missing, distance, processes
        )
    else:
        chosen = load_preset(preset) if preset is not None else None
        summary = evaluate_predictions(
            predictions, labels, chosen, output, unit, overwrite, domains, distance, processes, resample, scans
        )
    show_summary(summary, as_json)
    require_all_scored(summary)


@app.command()
def export(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="RUN|MODEL", help="A run or a model folder. [default: the newest run]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PATH", help="Model folder, or file ending in .onnx or .pt2."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Send the model folder to the Hugging Face hub, as private."),
    ] = None,
    form: Annotated[
        Literal["folder", "onnx", "torch", "monai-bundle"] | None,
        typer.Option(
            "--format",
            help="safetensors and JSON; ONNX; a torch.export program; a bundle of MONAI. [default: by the name]",
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option("--precision", help="Of an ONNX file: weights of 16 bits, or matrix products of 8."),
    ] = "float32",
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="STORE", help="Measure a file on the cases of this store too."),
    ] = None,
    from_authors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make a model folder of a .pth file of the authors' code; needs --preset."),
    ] = None,
    preset: Annotated[str | None, PresetOption] = None,
    overwrite: Annotated[bool, OverwriteOption] = False,
) -> None:
    """Write a model to share: a folder, or one file that carries its preprocessing, compared with the network.

    With --push a folder goes to the hub instead of to the disk.
    """
    if (from_authors is None) != (preset is None):
        raise typer.BadParameter("--from-authors and --preset belong together.")
    if (output is None) == (push is None):
        raise typer.BadParameter("give either --output or --push.")
    if output is None or push is not None:
        if form not in (None, "folder") or from_authors is not None or store is not None or precision != "float32":
            raise typer.BadParameter("--push sends the folder of a trained model alone.")
        from sdm_cli.runs.export import push_to_hub
        from sdm_cli.runs.run_folder import newest_run

        print_result(push_to_hub(model or newest_run(), str(push)))
        return
    form = form or ("onnx" if output.suffix == ".onnx" else "torch" if output.suffix == ".pt2" else "folder")
    if from_authors is not None and (model is not None or form != "folder"):
        raise typer.BadParameter("--from-authors makes a model folder of its file alone.")
    if precision != "float32" and form != "onnx":
        raise typer.BadParameter("--precision is for ONNX files.")
    if store is not None and form not in ("onnx", "torch"):
        raise typer.BadParameter("--store is for .onnx and .pt2 files.")
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.export import export_model, import_authors_model
    from sdm_cli.runs.run_folder import newest_run

    if from_authors is None or preset is None:
        written = export_model(model or newest_run(), output, form, overwrite, precision, store)
    else:
        written = import_authors_model(from_authors, load_preset(preset), output, overwrite)
    print_result(str(written))


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
