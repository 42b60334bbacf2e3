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
    with_baseline: Annotated[
        bool,
        typer.Option(
            "--with-baseline",
            help="Train the labeled-only twin too (RUN/baseline), and report what the unlabeled scans bought.",
        ),
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Train once with each seed (RUN/seed-N); report mean and deviation."),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate", help="Train labeled only, +L2U, +U2L, both, and both + class weights; make the table."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    allow_missing: Annotated[bool, AllowMissingOption] = False,
    pairs_per_process: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Short for --set train.pairs=N; auto: the most that fit into memory. [default: the preset's]",
        ),
    ] = None,
    tracker: Annotated[
        Literal["tensorboard", "wandb", "mlflow"] | None,
        typer.Option(
            "--tracker", help="Also tell the record to this tracker, which may send it elsewhere. [default: none]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the run with its estimated time and memory; write nothing.")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="RUN/broken/STEP",
            help="Repeat a step whose loss was not finite, and show where it breaks; goes with -d alone.",
        ),
    ] = None,
) -> None:
    """Train on pairs of labeled and unlabeled slices.

    A store made without a preset has its own recipe: --store alone is enough. To continue a run, -o RUN --resume is.
    """
    if ablate and with_baseline:
        raise typer.BadParameter("--ablate trains the labeled-only twin as well: leave --with-baseline out.")
    own = ("method.use_unlabeled", "method.l2u", "method.class_weights", "model.messenger_stages")
    if ablate and (given := [change for change in overrides or () if change.startswith(own)]):
        raise typer.BadParameter(f"--ablate sets {given[0].partition('=')[0]} by itself: leave it out.")
    if pairs_per_process is not None and any(change.startswith("train.pairs=") for change in overrides or ()):
        raise typer.BadParameter("--pairs-per-process sets train.pairs: leave --set train.pairs out.")
    if seeds is not None and (seed is not None or any("train.seed" in change for change in overrides or ())):
        raise typer.BadParameter("--seeds sets the seed of every training: leave --seed and train.seed out.")
    all_seeds = _seeds(seeds)
    share_cores()
    if replay is not None:
        others = (preset, store, output, overrides, seed is not None, resume, allow_missing, pairs_per_process, dry_run)
        if any((*others, tracker, seeds, with_baseline, ablate)):
            raise typer.BadParameter("--replay takes everything but -d from the step itself: leave the others out.")
        from sdm_cli.runs.broken_step import replay as repeat

        repeat(replay, device)
        return
    from sdm_cli.data.recipe import load_recipe
    from sdm_cli.preset_files import load_preset, with_overrides
    from sdm_cli.runs.run_folder import RunFolder

    changes = [*(overrides or ()), *([f"train.seed={seed}"] if seed is not None else ())]
    auto_pairs = pairs_per_process == "auto"
    if resume and (auto_pairs or dry_run):
        raise typer.BadParameter(
            "--resume keeps the size of the run: leave out --pairs-per-process auto and --dry-run."
        )
    if pairs_per_process is not None and not auto_pairs:
        if not pairs_per_process.isdecimal():
            raise typer.BadParameter(f"--pairs-per-process {pairs_per_process}: give a number, or auto.")
        changes.append(f"train.pairs={pairs_per_process}")
    if preset is not None:
        chosen = load_preset(preset, changes)
    elif resume and output is not None:
        chosen, own_store = RunFolder(output).read_config()
        chosen = with_overrides(chosen, changes)
        store = store or own_store
    elif store is not None:
        chosen = load_recipe(store, changes)
    else:
        raise typer.BadParameter("give --store STORE (made without a preset), --preset NAME|FILE, or -o RUN --resume.")
    if with_baseline or all_seeds or ablate:
        if auto_pairs or dry_run or tracker is not None:
            raise typer.BadParameter(
                "--with-baseline, --seeds and --ablate train several times; --dry-run, --tracker and "
                "--pairs-per-process auto are for one training alone."
            )
        from sdm_cli.runs.study import plan_study, run_study

        run_study(plan_study(with_baseline, all_seeds, ablate), chosen, store, output, device, resume, allow_missing)
        return
    from sdm_cli.runs.train import train as run

    run(chosen, store, output, device, resume, allow_missing, auto_pairs, dry_run, tracker)


def _seeds(text: str | None) -> tuple[int, ...]:
    """The numbers of `--seeds`; none without."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if len(words) < 2 or not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise typer.BadParameter(f"--seeds {text}: give two or more different whole numbers, for example 0,1,2.")
    return tuple(int(word) for word in words)


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
