"""Commands that use a model: info, evaluate, predict, export; and presets."""

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
        typer.Argument(metavar="RUN|MODEL", help="A run, a model folder or an .onnx file. [default: the newest run]"),
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
    device: Annotated[str | None, DeviceOption] = None,
    allow_missing: Annotated[bool, AllowMissingOption] = False,
    overwrite: Annotated[bool, OverwriteOption] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all results as JSON.")] = False,
) -> None:
    """Score whole volumes: Dice, Jaccard, HD95 and ASD per case and class; report.html shows them and the cases.

    Scores a model on cases of a store, or masks that exist (--predictions with --labels).
    """
    if (predictions is None) != (labels is None):
        raise typer.BadParameter("--predictions and --labels belong together.")
    if predictions is None and (preset is not None or domains is not None or scans is not None):
        raise typer.BadParameter(
            "a model knows its preset, and its store the domains and scans; these are for --predictions."
        )
    if predictions is not None and (model is not None or store is not None):
        raise typer.BadParameter("give a model and its store, or --predictions and --labels.")
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
    from sdm_cli.runs.summary import require_all_scored, show_summary

    if predictions is None or labels is None:
        summary = evaluate_model(model, store, split, output, unit, device, overwrite, allow_missing)
    else:
        chosen = load_preset(preset) if preset is not None else None
        summary = evaluate_predictions(predictions, labels, chosen, output, unit, overwrite, domains, scans)
    show_summary(summary, as_json)
    require_all_scored(summary)


@app.command()
def predict(
    input_path: Annotated[
        Path, typer.Option("-i", "--input", metavar="FILE|FOLDER", help="A scan, or a folder of scans.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the masks.")],
    model: Annotated[
        Path, typer.Option("--model", metavar="RUN|MODEL", help="A run, a model folder or an .onnx file.")
    ],
    device: Annotated[str | None, DeviceOption] = None,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave masks that exist.")] = False,
    overwrite: Annotated[bool, OverwriteOption] = False,
    domain: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Domain of the scans, where the preset scales intensities by domain."),
    ] = None,
) -> None:
    """Write a mask for every scan, on the scan's own grid."""
    if skip_existing and overwrite:
        raise typer.BadParameter("choose one of --skip-existing and --overwrite.")
    from sdm_cli.runs.predict import predict as run

    for mask in run(input_path, output, model, device, skip_existing, overwrite, domain):
        print_result(str(mask))


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="Model folder, or file ending in .onnx.")
    ],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="RUN|MODEL", help="A run or a model folder. [default: the newest run]"),
    ] = None,
    form: Annotated[
        Literal["folder", "onnx"] | None,
        typer.Option("--format", help="safetensors and JSON, or ONNX with its metadata. [default: by the name]"),
    ] = None,
    from_authors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make a model folder of a .pth file of the authors' code; needs --preset."),
    ] = None,
    preset: Annotated[str | None, PresetOption] = None,
    overwrite: Annotated[bool, OverwriteOption] = False,
) -> None:
    """Write a model to share: a folder, or one ONNX file compared with PyTorch."""
    if (from_authors is None) != (preset is None):
        raise typer.BadParameter("--from-authors and --preset belong together.")
    form = form or ("onnx" if output.suffix == ".onnx" else "folder")
    if from_authors is not None and (model is not None or form != "folder"):
        raise typer.BadParameter("--from-authors makes a model folder of its file alone.")
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.export import export_model, import_authors_model
    from sdm_cli.runs.run_folder import newest_run

    if from_authors is None or preset is None:
        written = export_model(model or newest_run(), output, form, overwrite)
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
