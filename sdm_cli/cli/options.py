"""Options that several commands share."""

import os

import typer


def shipped_presets(incomplete: str) -> list[str]:
    """Preset names for shell completion."""
    from sdm_cli.resources import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


PresetOption = typer.Option(
    "--preset",
    metavar="NAME|FILE",
    help="A shipped preset (`sdm presets`) or a YAML file.",
    autocompletion=shipped_presets,
)
StoreOption = typer.Option("--store", metavar="STORE", help="Store to read. [default: stores/<dataset>]")
AllowMissingOption = typer.Option(
    "--allow-missing", help="Go on without what the split or the preset names and the store lacks."
)
DeviceOption = typer.Option(
    "-d", "--device", metavar="DEVICE", help="cpu, cuda (or gpu), cuda:1, mps. [default: the best there is]"
)
LabelsOption = typer.Option(
    "--labels",
    metavar="FOLDER",
    help="Folder of labels, matched by name. [default: the layout's own, as labelsTr]",
)
DomainsOption = typer.Option(
    "--domains", metavar="CSV", help="Scanner, vendor or modality of each case: lines of case,domain[,patient]."
)
WorkersOption = typer.Option("--workers", metavar="N", min=1, help="Processes. [default: one a core]")
OverwriteOption = typer.Option("--overwrite", help="Replace what the output holds.")


def share_cores() -> None:
    """Let threads of GNU OpenMP sleep after some microseconds of waiting, not after some milliseconds.

    Beside another busy program threads spin for one that has no core: steps of 0.36 s then took 1.1 to 3.3 s, with
    this 0.36 to 1.3 s; alone it changes nothing. The library reads the variable when torch loads it; a user's own
    stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
