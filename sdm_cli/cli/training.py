"""Commands that train: train, demo."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import AllowMissingOption, DeviceOption, PresetOption, StoreOption, share_cores

if TYPE_CHECKING:
    from sdm_cli.config import Preset


@app.command()
def train(
    context: typer.Context,
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
    share_cores()
    if replay is not None:
        if given := ", ".join(_options_given(context, but=("replay", "device"))):
            raise typer.BadParameter(f"--replay takes everything but -d from the step itself: leave out {given}.")
        from sdm_cli.runs.broken_step import replay as repeat

        repeat(replay, device)
        return
    sets = overrides or []
    if ablate and with_baseline:
        raise typer.BadParameter("--ablate trains the labeled-only twin as well: leave --with-baseline out.")
    _refuse_fields_set_twice(sets, ablate, pairs_per_process is not None, seeds is not None, seed is not None)
    is_study, auto_pairs = with_baseline or ablate or seeds is not None, pairs_per_process == "auto"
    all_seeds = _seeds(seeds)
    if resume and dry_run:
        raise typer.BadParameter("--resume goes on with a run as it is: leave out --dry-run.")
    if is_study and (auto_pairs or dry_run or tracker is not None):
        raise typer.BadParameter(
            "--with-baseline, --seeds and --ablate train several times; --dry-run, --tracker and "
            "--pairs-per-process auto are for one training alone."
        )
    changes = [*sets, *([f"train.seed={seed}"] if seed is not None else ()), *_pairs(pairs_per_process)]
    chosen, store = _recipe_of(preset, store, output if resume else None, changes)
    if is_study:
        from sdm_cli.runs.study import plan_study, run_study

        run_study(plan_study(with_baseline, all_seeds, ablate), chosen, store, output, device, resume, allow_missing)
        return
    from sdm_cli.runs.train import train as run

    run(chosen, store, output, device, resume, allow_missing, auto_pairs, dry_run, tracker)


def _options_given(context: typer.Context, but: Sequence[str]) -> list[str]:
    """Options of the command line as the help names them first (`-o`), but those of some parameters."""
    sources = {
        param.opts[0]: context.get_parameter_source(param.name or "")
        for param in context.command.params
        if param.name not in but
    }
    return [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _refuse_fields_set_twice(sets: Sequence[str], ablate: bool, pairs: bool, seeds: bool, seed: bool) -> None:
    """Options that set a field by themselves leave no `--set` of it."""
    own = ("method.use_unlabeled", "method.l2u", "method.class_weights", "model.messenger_stages")
    if ablate and (given := [change for change in sets if change.startswith(own)]):
        raise typer.BadParameter(f"--ablate sets {given[0].partition('=')[0]} by itself: leave it out.")
    if pairs and any(change.startswith("train.pairs=") for change in sets):
        raise typer.BadParameter("--pairs-per-process sets train.pairs: leave --set train.pairs out.")
    if seeds and (seed or any("train.seed" in change for change in sets)):
        raise typer.BadParameter("--seeds sets the seed of every training: leave --seed and train.seed out.")


def _recipe_of(
    preset: str | None, store: Path | None, resumed: Path | None, changes: Sequence[str]
) -> "tuple[Preset, Path | None]":
    """What to train and on which store: the preset that is named, or else that of a run to resume, or of the store."""
    from sdm_cli.data.recipe import load_recipe
    from sdm_cli.preset_files import load_preset, read_overrides, with_changes
    from sdm_cli.runs.run_folder import RunFolder

    if preset is not None:
        return load_preset(preset, changes), store
    # A study of seeds that began from the recipe of its store has none of its own.
    if resumed is not None and (store is None or RunFolder(resumed).config.is_file()):
        begun, own_store = RunFolder(resumed).read_config()
        return with_changes(begun, read_overrides(changes), f"{begun.name} with --set"), store or own_store
    if store is not None:
        return load_recipe(store, changes), store
    raise typer.BadParameter("give --store STORE (made without a preset), --preset NAME|FILE, or -o RUN --resume.")


def _pairs(text: str | None) -> list[str]:
    """The `--set` that `--pairs-per-process` is short for; none without, and for auto, which is found by trying."""
    if text is None or text == "auto":
        return []
    if not text.isdecimal():
        raise typer.BadParameter(f"--pairs-per-process {text}: give a number, or auto.")
    return [f"train.pairs={text}"]


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
