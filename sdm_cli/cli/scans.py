"""Commands from a folder of scans to a store and its split: check, preprocess, split."""

from pathlib import Path
from typing import Annotated

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import DomainsOption, LabelsOption, OverwriteOption, PresetOption, WorkersOption
from sdm_cli.console import print_result


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of scans, or one scan.")],
    labels: Annotated[Path | None, LabelsOption] = None,
    preset: Annotated[str | None, PresetOption] = None,
    domains: Annotated[Path | None, DomainsOption] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PNG|FOLDER",
            help="Where the picture goes. [default: check.png; from within the scans the folder above them]",
        ),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write repaired copies here, in nnU-Net's layout (domains: OUT/domains.csv); the originals stay.",
        ),
    ] = None,
    workers: Annotated[int | None, WorkersOption] = None,
    overwrite: Annotated[bool, OverwriteOption] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Tell what is wrong with a folder of scans before training, and repair copies of it.

    Reads each scan once: shapes, spacings, intensities, labels, duplicates, left and right. Exit code 3 when a
    finding blocks training.
    """
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs import check as run
    from sdm_cli.runs.check_table import show_check
    from sdm_cli.runs.workers import all_cores

    chosen = load_preset(preset) if preset is not None else None
    report = run.check(folder, labels, chosen, domains, picture, repair, workers or all_cores(), overwrite)
    show_check(report, as_json)
    run.require_healthy(report)


@app.command()
def preprocess(
    input_folder: Annotated[
        Path, typer.Option("-i", "--input", metavar="FOLDER", help="Folder of scans, or one scan.")
    ],
    labels: Annotated[Path | None, LabelsOption] = None,
    preset: Annotated[str | None, PresetOption] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="STORE",
            help="Store to write. [default: stores/<dataset of the preset>; without a preset stores/<name of FOLDER>]",
        ),
    ] = None,
    workers: Annotated[int | None, WorkersOption] = None,
    overwrite: Annotated[bool, OverwriteOption] = False,
    domains: Annotated[Path | None, DomainsOption] = None,
) -> None:
    """Turn a folder of scans into a store of normalised slices.

    Reads plain folders of NIfTI files, nnU-Net folders and the downloads of the benchmarks. A scan without a label is
    unlabeled. Subfolders of a plain folder are domains; where two have a scan of one name, all cases are called
    SUBFOLDER_NAME. Without a preset, a recipe is planned from the scans and written to STORE/preset.yaml.
    Started again after a stop, it goes on where it was.
    """
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.preprocess import preprocess as run
    from sdm_cli.runs.workers import all_cores

    chosen = load_preset(preset) if preset is not None else None
    processes = workers or all_cores()
    print_result(str(run(input_folder, labels, chosen, output, processes, overwrite, domains)))


@app.command()
def split(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.yaml", help="Split file to write; a preset's data.split.")
    ],
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="STORE", help="Store of the cases. [default: ids are as the lists spell them, unchecked]"
        ),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="ROLE=FILE",
            help="Import a list of cases, slices or slice pairs, one a line; ROLE is labeled, unlabeled, validation or "
            "test. Or a splits_final.json of nnU-Net, without ROLE. May be repeated. [default: draw from the store]",
        ),
    ] = None,
    labeled: Annotated[
        str | None,
        typer.Option(
            metavar="0.1|5",
            help="Labeled patients (or cases): a share of those with labels that are left for training, or a number. "
            "[default: all]",
        ),
    ] = None,
    validation: Annotated[
        str, typer.Option(metavar="0.1|5", help="Validation patients: a share of those with labels, or a number.")
    ] = "0",
    test: Annotated[
        str, typer.Option(metavar="0.2|5", help="Test patients: a share of those with labels, or a number.")
    ] = "0",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the draw.", show_default=True)] = 0,
    stratify: Annotated[
        bool, typer.Option("--stratify/--no-stratify", help="Draw from each domain by its size.", show_default=True)
    ] = True,
    fold: Annotated[int, typer.Option(metavar="N", min=0, help="Of nnU-Net's splits.", show_default=True)] = 0,
    overwrite: Annotated[bool, OverwriteOption] = False,
) -> None:
    """Write a split file: which cases give labels, which do not, which validate, which test.

    Draws one from the cases of a store, all scans of a patient in one role: those that get no other are unlabeled. Or
    imports the lists of others: if none names unlabeled cases, these are the scans without a label that no list names,
    and with --labeled those of the labeled that are not drawn.
    """
    if lists is None and store is None:
        raise typer.BadParameter("give a store with --store, or lists with --from.")
    if lists is not None and (validation, test) != ("0", "0"):
        raise typer.BadParameter("--validation and --test are drawn from a store; with --from, import them too.")
    from sdm_cli.data.split_draw import Draw, read_amount
    from sdm_cli.runs.split import Lists
    from sdm_cli.runs.split import split as run

    draw = Draw(
        read_amount(labeled, "--labeled") if labeled is not None else None,
        read_amount(validation, "--validation"),
        read_amount(test, "--test"),
        seed,
        stratify,
    )
    print_result(str(run(output, store, draw, Lists(lists, fold) if lists is not None else None, overwrite)))
