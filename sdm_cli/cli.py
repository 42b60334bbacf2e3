"""The command line: one thin command a verb, over the function of the same name in `runs`.

Owns the words of the program (options, help) and the one boundary where an error becomes a
sentence and an exit code. Every command imports its function when it is called: `sdm --help`
must not wait for torch.
"""

import os
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sdm_cli import __version__
from sdm_cli.console import print_result, say
from sdm_cli.errors import ExitCode, SdmError


class _Program(TyperGroup):
    """The group of all commands; expected errors end here, as one sentence on stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output is gone (`| head`); typer ends quietly
        except (SdmError, OSError) as error:
            if ctx.params.get("verbose"):
                say("".join(traceback.format_exception(error)).rstrip())
            say(f"Error: {_sentence(error)}")
            raise typer.Exit(error.exit_code if isinstance(error, SdmError) else ExitCode.ERROR) from None


def _sentence(error: SdmError | OSError) -> str:
    """What went wrong, as one line; of an error of the system: which file, then why."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())


app = typer.Typer(
    cls=_Program,
    help="Segment medical scans from few labels and many scans (S&D Messenger).",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 data check failed, 4 some cases failed, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would take a quarter of the time
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(f"sdm {__version__}")
        raise typer.Exit()


def _shipped_presets(incomplete: str) -> list[str]:
    """Preset names for shell completion."""
    from sdm_cli.resources import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


PresetOption = typer.Option(
    "--preset",
    metavar="NAME|FILE",
    help="A shipped preset (`sdm presets`) or a YAML file.",
    autocompletion=_shipped_presets,
)
StoreOption = typer.Option("--store", metavar="STORE", help="Store to read. [default: stores/<dataset>]")
AllowMissingOption = typer.Option("--allow-missing", help="Go on without cases of the split that the store lacks.")
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


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="With an error, show where in the program it arose.")
    ] = False,
    version: Annotated[
        bool, typer.Option("-V", "--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """The options of the program itself; `_Program` reads `verbose`, `version` acts on its own."""


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

    chosen = load_preset(preset) if preset is not None else None
    report = run.check(folder, labels, chosen, domains, picture, repair, workers or os.cpu_count() or 1, overwrite)
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

    chosen = load_preset(preset) if preset is not None else None
    processes = workers or os.cpu_count() or 1
    print_result(str(run(input_folder, labels, chosen, output, processes, overwrite, domains)))


@app.command()
def split(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.yaml", help="Split file to write; a preset's data.split.")
    ],
    store: Annotated[
        Path | None, typer.Option("--store", metavar="STORE", help="Store of the cases. [default: ids are not checked]")
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

    Draws one from the cases of a store, all scans of a patient in one role, or imports the lists of others. Cases with
    labels that get no other role are unlabeled.
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
) -> None:
    """Train on pairs of labeled and unlabeled slices.

    A store made without a preset has its own recipe: --store alone is enough. To continue a run, -o RUN --resume is.
    """
    _share_cores()
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

    run(chosen, store, output, device, resume, allow_missing)


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
            autocompletion=_shipped_presets,
        ),
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
    """Score whole volumes: Dice, Jaccard, HD95 and ASD per case and class.

    Scores a model on cases of a store, or masks that exist (--predictions with --labels).
    """
    if (predictions is None) != (labels is None):
        raise typer.BadParameter("--predictions and --labels belong together.")
    if predictions is None and preset is not None:
        raise typer.BadParameter("a model knows its preset; --preset is for --predictions.")
    if predictions is not None and (model is not None or store is not None):
        raise typer.BadParameter("give a model and its store, or --predictions and --labels.")
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
    from sdm_cli.runs.summary import require_all_scored, show_summary

    if predictions is None or labels is None:
        summary = evaluate_model(model, store, split, output, unit, device, overwrite, allow_missing)
    else:
        chosen = load_preset(preset) if preset is not None else None
        summary = evaluate_predictions(predictions, labels, chosen, output, unit, overwrite)
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


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where everything goes.", show_default=True)
    ] = Path("sdm-demo"),
) -> None:
    """Make a small set of phantoms, then preprocess, train, evaluate and predict it (minutes on a CPU)."""
    _share_cores()
    from sdm_cli.runs.demo import run_demo

    run_demo(output)


def _share_cores() -> None:
    """Let threads of GNU OpenMP sleep after some microseconds of waiting, not after some milliseconds.

    Beside another busy program threads spin for one that has no core: steps of 0.36 s then took 1.1 to 3.3 s, with
    this 0.36 to 1.3 s; alone it changes nothing. The library reads the variable when torch loads it; a user's own
    stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> None:
    """Entry point of `sdm` and of `python -m sdm_cli`."""
    app(prog_name="sdm")
