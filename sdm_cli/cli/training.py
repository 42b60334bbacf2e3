"""Commands that train: train, demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import AllowMissingOption, DeviceOption, PresetOption, StoreOption, share_cores


@app.command()
def train(
    preset: Annotated[str | None, PresetOption] = None,
    store: Annotated[Path | None, StoreOption] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN", help="Run folder. [default: runs/<preset>]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one field of the preset; may be repeated."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Short for --set train.seed=N. [default: the preset's]")
    ] = None,
    device: Annotated[str | None, DeviceOption] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    allow_missing: Annotated[bool, AllowMissingOption] = False,
    tracker: Annotated[
        Literal["tensorboard", "wandb", "mlflow"] | None,
        typer.Option(
            "--tracker", help="Also tell the record to this tracker, which may send it elsewhere. [default: none]"
        ),
    ] = None,
) -> None:
    """Train on pairs of labeled and unlabeled slices.

    A store made without a preset has its own recipe: --store alone is enough. To continue a run, -o RUN --resume is.
    """
    share_cores()
    from sdm_cli.data.recipe import load_recipe
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.run_folder import RunFolder

    changes = [*(overrides or ()), *([f"train.seed={seed}"] if seed is not None else ())]
    if preset is not None:
        chosen = load_preset(preset, changes)
    elif resume and output is not None and not changes:
        chosen, own_store = RunFolder(output).read_config()
        store = store or own_store
    elif store is not None:
        chosen = load_recipe(store, changes)
    else:
        raise typer.BadParameter("give --store STORE (made without a preset), --preset NAME|FILE, or -o RUN --resume.")
    from sdm_cli.runs.train import train as run

    run(chosen, store, output, device, resume, allow_missing, tracker)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where everything goes.", show_default=True)
    ] = Path("sdm-demo"),
) -> None:
    """Make a small set of phantoms, then preprocess, train, evaluate and predict it (minutes on a CPU)."""
    share_cores()
    from sdm_cli.runs.demo import run_demo

    run_demo(output)
