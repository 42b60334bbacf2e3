"""`sdm predict`: its words, and which of them do not go together."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdm_cli.cli.app import app
from sdm_cli.cli.options import DeviceOption, share_cores
from sdm_cli.console import print_result

_Input = Annotated[
    Path,
    typer.Option(
        "-i",
        "--input",
        metavar="FILE|FOLDER|STORE|-",
        help="A scan, a folder of scans, a store, or - for paths on stdin, one a line. Formats: NIfTI, NRRD, "
        "MetaImage, DICOM (a folder a series).",
    ),
]
_Split = Annotated[
    Literal["test", "validation", "unlabeled"] | None,
    typer.Option("--split", help="Of a store the cases of this role alone. [default: all]"),
]
_Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the masks.")]
_Model = Annotated[
    list[Path],
    typer.Option(
        "--model",
        metavar="RUN|MODEL",
        help="A run, a model folder, an exported file, or ORG/NAME[@REV] of the hub; of several, the mean of their "
        "probabilities.",
    ),
]
_Format = Annotated[
    Literal["nifti", "input"],
    typer.Option("--format", help="Of the masks: NIfTI, or NRRD and MetaImage where the scan is that."),
]
_SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave masks that exist, and go on with the others.")
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace masks that an earlier run wrote there.")]
_NumParts = Annotated[int, typer.Option(metavar="N", min=1, help="Share the cases out to so many commands.")]
_PartId = Annotated[int, typer.Option(metavar="K", min=0, help="Which share to take: 0 to N - 1.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, and the memory it takes; write nothing.")
]
_Domain = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Domain of the scans, where the preset scales intensities by domain."),
]
_Tta = Annotated[bool, typer.Option("--tta/--no-tta", help="Average over mirrored slices, where the preset allows it.")]
_Uncertainty = Annotated[
    bool, typer.Option("--uncertainty", help="Write entropy/<case>.nii.gz too: 0 is certain, 1 knows nothing.")
]
_SaveProbabilities = Annotated[
    bool, typer.Option("--save-probabilities", help="Write probabilities/<case>.npy too: (classes, x, y, z) float16.")
]
_Pseudo = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Collect scans and masks there as labels to correct, in nnU-Net's form."),
]
_Rank = Annotated[
    bool, typer.Option("--rank", help="List the cases whose labels would help most, and write ranking.csv.")
]


@app.command()
def predict(
    input_path: _Input,
    output: _Output,
    model: _Model,
    split: _Split = None,
    device: Annotated[str | None, DeviceOption] = None,
    form: _Format = "nifti",
    skip_existing: _SkipExisting = False,
    overwrite: _Overwrite = False,
    num_parts: _NumParts = 1,
    part_id: _PartId = 0,
    dry_run: _DryRun = False,
    domain: _Domain = None,
    tta: _Tta = False,
    uncertainty: _Uncertainty = False,
    save_probabilities: _SaveProbabilities = False,
    pseudo: _Pseudo = None,
    rank: _Rank = False,
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
    share_cores()
    from sdm_cli.runs.predict import predict as run
    from sdm_cli.runs.predict_plan import show_plan
    from sdm_cli.runs.request import Part, Request, Wanted

    request = Request(
        source=input_path,
        output=output,
        model=model,
        device=device,
        existing="keep" if skip_existing else "replace" if overwrite else "refuse",
        domain=domain,
        form=form,
        part=Part(part_id, num_parts),
        role=split,
        tta=tta,
        wanted=Wanted(uncertainty, save_probabilities, pseudo, rank),
    )
    if dry_run:
        show_plan(request)
        return
    masks = run(request)
    for mask in masks if not rank else ():  # the ranking is the result
        print_result(str(mask))
