"""`sdm predict`: scans in, masks on the scans' own grids out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdm_cli import console
from sdm_cli.data.cases import Case, counted, some
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.layouts.folders import takes_for_scans
from sdm_cli.data.readers import read_image
from sdm_cli.errors import OutputError, PresetError, SdmError, SomeCasesFailed
from sdm_cli.runs.model import Model, load_model


def predict(
    input_path: Path,
    output: Path,
    model: Path,
    device: str | None = None,
    skip_existing: bool = False,
    overwrite: bool = False,
    domain: str | None = None,
) -> list[Path]:
    """Write a mask for each scan, on the scan's own grid and with its header.

    Args:
        input_path: a scan, or a folder of scans in any layout that `sdm preprocess` reads; of nnU-Net's,
            `imagesTs` too.
        output: folder of the masks, `<case_id>.nii.gz`; made if missing.
        model: run folder, model folder or `.onnx` file.
        device: see `resolve_device`.
        skip_existing: keep masks that are there (whatever `overwrite` says).
        overwrite: replace masks that are there.
        domain: of all scans, where the preset normalises by domain and their folder does not tell.

    Returns:
        Paths of the masks written now.

    Raises:
        OutputError: masks are there and neither flag is set; `output` is where the scans are, or a later run would look
            for scans, or a file; it cannot be written.
        SomeCasesFailed: names the scans of a folder without a mask; all others are written.
        ImageReadError: the one scan cannot be read.
        PresetError: `domain` is given, and the model knows no domains.
    """
    segmenter = load_model(model, device)
    if domain is not None and not segmenter.preset.data.normalize_by_domain:
        raise PresetError(f"{model} scales the intensities of all domains alike: leave --domain out.")
    cases = find_cases(input_path, None, segmenter.preset.data.layout, for_prediction=True)
    cases = [replace(case, domain=domain or case.domain) for case in cases]
    targets = {case.case_id: output / f"{case.case_id}.nii.gz" for case in cases}
    _check_output(input_path, output, cases, list(targets.values()), skip_existing, overwrite)
    if skip_existing:
        cases = [case for case in cases if not targets[case.case_id].exists()]
        console.say(f"{len(targets) - len(cases)} of {len(targets)} masks exist and are kept.")
    if not cases:
        return []
    if segmenter.preset.data.grid.crop == "label":
        console.warn(
            "the model was trained on slices cropped by the label, which these scans lack; the box of the body "
            "is taken, and the masks may be far worse than the scores of the model"
        )
    written, failed, empty = [], [], []
    try:
        with console.progress("Predicting", len(cases)) as bar:
            for case in cases:
                try:
                    if _predict_case(segmenter, case, targets[case.case_id], overwrite):
                        empty.append(case.case_id)
                    written.append(targets[case.case_id])
                except SdmError as error:
                    if isinstance(error, OutputError) or input_path.is_file():
                        raise  # a full disk spoils every further case too
                    console.warn(f"{case.case_id}: {error}")
                    failed.append(case.case_id)
                bar.advance()
    except KeyboardInterrupt:
        finished = f"{len(written)} of {counted(len(cases), 'mask')}"
        console.say(f"Stopped with {finished} written: the same command with --skip-existing goes on with the others.")
        raise
    if empty:
        console.warn(
            f"{len(empty)} of {len(written)} masks are empty ({some(empty)}): check that these scans are of the kind "
            "that the model was trained on, and that it was trained long enough"
        )
    if failed:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(cases)} scans got no mask ({', '.join(failed)}): repair them as the warnings say "
            "and run again with --skip-existing."
        )
    return written


def _predict_case(model: Model, case: Case, target: Path, overwrite: bool) -> bool:
    """Write the mask of a scan; whether it is empty."""
    volume = read_image(case, model.preset.data)
    if volume.is_constant:
        console.warn(
            f"{case.image_path} is constant (all voxels {volume.voxels.flat[0]}), so its mask tells nothing: "
            "export it again"
        )
    found = model.segment(model.prepare(volume, case))
    found.save(target, overwrite)
    return not found.slices.any()


def _check_output(
    scans: Path, output: Path, cases: Sequence[Case], targets: Sequence[Path], skip_existing: bool, overwrite: bool
) -> None:
    if output.is_file() or output.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{output} names a file: give the folder to write the masks to.")
    if output.resolve() in {case.image_path.parent.resolve() for case in cases}:
        raise OutputError(f"{output} is where the scans are: give another folder for the masks.")
    if takes_for_scans(scans.resolve(), output.resolve()):
        raise OutputError(
            f"{output} lies in {scans}, where a later run would take the masks for scans: give a folder beside it."
        )
    existing = [target for target in targets if target.exists()]
    if existing and not skip_existing and not overwrite:
        raise OutputError(
            f"{existing[0]} exists ({len(existing)} of {len(targets)} masks do): keep them with --skip-existing "
            "or replace them with --overwrite."
        )
