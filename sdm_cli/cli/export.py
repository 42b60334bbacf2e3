"""The command `sdm export`."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import OverwriteOption, PresetOption, share_cores
from sdm_cli.console import print_result

Form = Literal["folder", "onnx", "torch", "monai-bundle"]
_LIKENESS = 0.75  # of a suffix to a mistyped one: .onx and .pth, not .v2

_Model = typer.Argument(metavar="RUN|MODEL", help="A run or a model folder. [default: the newest run]")
_Output = typer.Option("-o", "--output", metavar="PATH", help="Model folder, or file ending in .onnx or .pt2.")
_Push = typer.Option("--push", metavar="ORG/NAME", help="Send the model folder to the Hugging Face hub, as private.")
_Format = typer.Option(
    "--format", help="safetensors and JSON; ONNX; a torch.export program; a bundle of MONAI. [default: by the name]"
)
_Precision = typer.Option("--precision", help="Of an ONNX file: weights of 16 bits, or matrix products of 8.")
_Store = typer.Option("--store", metavar="STORE", help="Measure a file on the cases of this store too.")
_FromAuthors = typer.Option(
    "--from-authors", metavar="FILE", help="Make a model folder of a .pth file of the authors' code; needs --preset."
)


@app.command()
def export(
    model: Annotated[Path | None, _Model] = None,
    output: Annotated[Path | None, _Output] = None,
    push: Annotated[str | None, _Push] = None,
    form: Annotated[Form | None, _Format] = None,
    precision: Annotated[Literal["float32", "float16", "int8"], _Precision] = "float32",
    store: Annotated[Path | None, _Store] = None,
    from_authors: Annotated[Path | None, _FromAuthors] = None,
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
    share_cores()
    from sdm_cli.runs.run_folder import newest_run

    if output is None or push is not None:
        if form not in (None, "folder") or from_authors is not None or store is not None or precision != "float32":
            raise typer.BadParameter("--push sends the folder of a trained model alone.")
        from sdm_cli.runs.export import push_to_hub

        print_result(push_to_hub(model or newest_run(), str(push)))
        return
    form = form or _form_by_name(output)
    if from_authors is not None and (model is not None or form != "folder"):
        raise typer.BadParameter("--from-authors makes a model folder of its file alone.")
    if precision != "float32" and form != "onnx":
        raise typer.BadParameter("--precision is for ONNX files.")
    if store is not None and form not in ("onnx", "torch"):
        raise typer.BadParameter("--store is for .onnx and .pt2 files.")
    from sdm_cli.preset_files import load_preset
    from sdm_cli.runs.export import export_model, import_authors_model

    if from_authors is None or preset is None:
        written = export_model(model or newest_run(), output, form, overwrite, precision, store)
    else:
        written = import_authors_model(from_authors, load_preset(preset), output, overwrite)
    print_result(str(written))


def _form_by_name(output: Path) -> Form:
    """The form whose suffix the name has; a folder, unless the suffix looks like one of these mistyped."""
    from sdm_cli.runs.predictor import SUFFIXES

    for form, suffix in SUFFIXES.items():
        if output.suffix == suffix:
            return form
    if near := get_close_matches(output.suffix.lower(), SUFFIXES.values(), 1, _LIKENESS):
        raise typer.BadParameter(
            f"{output}: a file ends in {' or '.join(SUFFIXES.values())}: write {output.with_suffix(near[0])}, or add "
            "--format folder for a folder of that name."
        )
    return "folder"
