"""Commands that use a model: info, predict; and presets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import DeviceOption
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
def predict(
    input_path: Annotated[
        Path,
        typer.Option(
            "-i",
            "--input",
            metavar="FILE|FOLDER|STORE|-",
            help="A scan, a folder of scans, a store, or - for paths on stdin, one a line. Formats: NIfTI, NRRD, "
            "MetaImage, DICOM (a folder a series).",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the masks.")],
    model: Annotated[
        list[Path],
        typer.Option(
            "--model",
            metavar="RUN|MODEL",
            help="A run, a model folder, an exported file, or ORG/NAME[@REV] of the hub; of several, the mean of their "
            "probabilities.",
        ),
    ],
    device: Annotated[str | None, DeviceOption] = None,
    form: Annotated[
        Literal["nifti", "input"],
        typer.Option("--format", help="Of the masks: NIfTI, or NRRD and MetaImage where the scan is that."),
    ] = "nifti",
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave masks that exist, and go on with the others.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace masks that an earlier run wrote there.")
    ] = False,
    num_parts: Annotated[int, typer.Option(metavar="N", min=1, help="Share the cases out to so many commands.")] = 1,
    part_id: Annotated[int, typer.Option(metavar="K", min=0, help="Which share to take: 0 to N - 1.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and the memory it takes; write nothing.")
    ] = False,
    domain: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Domain of the scans, where the preset scales intensities by domain."),
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Average over mirrored slices, where the preset allows it.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write entropy/<case>.nii.gz too: 0 is certain, 1 knows nothing.")
    ] = False,
    save_probabilities: Annotated[
        bool,
        typer.Option("--save-probabilities", help="Write probabilities/<case>.npy too: (classes, x, y, z) float16."),
    ] = False,
    pseudo: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Collect scans and masks there as labels to correct, in nnU-Net's form."),
    ] = None,
    rank: Annotated[
        bool, typer.Option("--rank", help="List the cases whose labels would help most, and write ranking.csv.")
    ] = False,
) -> None:
    """Write a mask for every scan, on the scan's own grid, and predictions.jsonl with what became of each."""
    if rank and num_parts > 1:
        raise typer.BadParameter("--rank compares all cases: leave --num-parts out.")
    if skip_existing and (rank or uncertainty or save_probabilities or pseudo is not None):
        raise typer.BadParameter(
            "--skip-existing goes on with masks alone: what else was asked for would lack the cases that are kept."
        )
    if skip_existing and overwrite:
        raise typer.BadParameter("choose one of --skip-existing and --overwrite.")
    if part_id >= num_parts:
        raise typer.BadParameter(f"--part-id {part_id} is none of the {num_parts} parts: they count from 0.")
    from sdm_cli.runs.cohort import Part
    from sdm_cli.runs.extras import Wanted
    from sdm_cli.runs.predict import predict as run
    from sdm_cli.runs.predict_plan import show_plan

    part = Part(part_id, num_parts)
    if dry_run:
        show_plan(input_path, output, model, device, skip_existing, overwrite, domain, form, part, tta)
        return
    wanted = Wanted(uncertainty, save_probabilities, pseudo, rank)
    masks = run(input_path, output, model, device, skip_existing, overwrite, domain, form, part, tta, wanted)
    for mask in masks if not rank else ():  # the ranking is the result
        print_result(str(mask))


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
