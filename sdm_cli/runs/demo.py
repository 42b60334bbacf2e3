"""`sdm demo`: the whole way on phantoms, by the same functions as the other commands.

Phantom scans, store, training, masks of the unlabeled scans, scores against their true labels,
and pictures; all below one folder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdm_cli.console import say
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import read_image
from sdm_cli.data.volume import read_nifti, slice_spacing_mm, to_slices
from sdm_cli.errors import OutputError
from sdm_cli.files import write_csv
from sdm_cli.preset_files import load_preset
from sdm_cli.runs.evaluate import evaluate_predictions
from sdm_cli.runs.html_page import REPORT
from sdm_cli.runs.phantoms import LPS, OBLIQUE, make_phantoms, scanner_of
from sdm_cli.runs.progress_picture import course_of, draw_progress
from sdm_cli.runs.report import OverlayRow, draw_overlays
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.score_table import show_summary

_SHOWN = (LPS, "a06", OBLIQUE, "b06")
"""Cases in the picture: both scanners, and the two grids that are not the usual one."""


def run_demo(output: Path, overrides: Sequence[str] = ()) -> None:
    """Make phantoms, then preprocess, train, predict, evaluate and draw.

    Args:
        output: folder of everything: `data`, `store`, `run`, `masks`, `scanners.csv`, `evaluation`, `overlays.png`
            and `progress.png`.
        overrides: `section.key=value` changes of the preset, to make the demo shorter.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    # torch takes seconds to import; a folder that exists is refused before.
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists: remove it, or choose another folder with -o.")
    from sdm_cli.runs.predict import predict
    from sdm_cli.runs.preprocess import preprocess
    from sdm_cli.runs.request import Request
    from sdm_cli.runs.train import train

    preset = load_preset("demo", overrides)
    data, masks, scanners = output / "data", output / "masks", output / "scanners.csv"
    say("1/5 phantoms: 16 scans of two scanners, 3 of them labeled")
    make_phantoms(data)
    say(f"2/5 sdm preprocess -i {data} --preset demo -o {output / 'store'}")
    store = preprocess(data, preset=preset, store=output / "store")
    command = f"sdm train --preset demo --store {store} -o {output / 'run'}"
    say(f"3/5 {command}")
    try:
        run = train(preset, store, output / "run")
    except KeyboardInterrupt:
        say(f"The command to resume is {command} --resume; sdm demo itself begins anew, once {output} is removed.")
        raise
    say(f"4/5 sdm predict -i {data / 'imagesUn'} -o {masks} --model {run}")
    predict(Request(data / "imagesUn", masks, run))
    unlabeled = [case.case_id for case in find_cases(data / "imagesUn")]
    write_csv(scanners, ("case", "domain"), [(case_id, f"scanner {scanner_of(case_id)}") for case_id in unlabeled])
    say(
        f"5/5 sdm evaluate --predictions {masks} --labels {data / 'truth'} --scans {data / 'imagesUn'} --preset demo "
        f"--domains {scanners} -o {output / 'evaluation'}"
    )
    summary = evaluate_predictions(
        masks, data / "truth", preset, output / "evaluation", domains=scanners, scans=data / "imagesUn"
    )
    rows = [overlay_row(data / "imagesUn", masks, data / "truth", case_id) for case_id in _SHOWN]
    draw_overlays(output / "overlays.png", rows, preset.data.class_names, "Unlabeled phantoms")
    trained = "Training on 3 labeled and 13 unlabeled phantoms"
    draw_progress(output / "progress.png", RunFolder(run).metrics, trained, course_of(RunFolder(run)))
    show_summary(summary)
    say(f"Pictures: {output / 'overlays.png'} and {output / 'progress.png'}. Masks to open beside the scans: {masks}.")
    say(f"Pages for a browser: {output / 'evaluation' / REPORT} (scores and views) and {run / REPORT} (training).")


def overlay_row(images: Path, masks: Path, labels: Path, case_id: str) -> OverlayRow:
    """The slice of a case that shows most of all its organs, turned as the network sees it.

    Args:
        images: folder of scans `<case_id>.nii.gz`.
        masks: folder of predictions of the same names and values.
        labels: folder of labels of the same names; values are class indices here.
        case_id: name of the case.

    Raises:
        ImageReadError: a file cannot be read.
    """
    data = load_preset("demo").data
    (case,) = find_cases(images / f"{case_id}.nii.gz")
    scan = read_image(case, data)
    affine = scan.geometry.affine
    image, mask, label = (
        to_slices(voxels, affine, data.slice_axis)
        for voxels in (scan.voxels, *(read_nifti(folder / case.image_path.name).voxels for folder in (masks, labels)))
    )
    # (K - 1, Z): size of each class in each slice; the root of its share of the largest favours a bit of each
    sizes = np.stack([(label == value).sum(axis=(1, 2)) for value in data.classes.values()])
    z = int(np.sqrt(sizes / np.maximum(sizes.max(axis=1, keepdims=True), 1)).sum(axis=0).argmax())
    _, h_mm, w_mm = slice_spacing_mm(affine, data.slice_axis)
    classes = (mask[z].astype(np.uint8), label[z].astype(np.uint8))
    return OverlayRow(case_id, image[z], *classes, pixel_mm=(h_mm, w_mm))
