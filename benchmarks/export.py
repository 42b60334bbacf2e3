"""What the exported forms of a model cost and give, beside its folder.

    python benchmarks/export.py RUN --store STORE --scan SCAN.nii.gz

Writes the forms of the best model of a run and prints a table. Of each form: its size; user seconds of `sdm predict` of
one scan in a process of its own, and wall seconds of a forward pass of one batch in this one (medians of `--rounds`,
the forms in turns); CPU seconds of a case of the store, agreement of its mask with that of the folder, and Dice of its
label: means over the unlabeled cases of the run that have one, the least agreement, and the largest loss of Dice, in
points. The last lines are those of the side files.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sdm_cli.data.fit import fitting_store
from sdm_cli.data.store import SliceStore
from sdm_cli.runs.export import export_model
from sdm_cli.runs.metrics import count_case, mean_defined
from sdm_cli.runs.predictor import Array, Predictor, load_predictor
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.stored_pairs import predicted_mask

FORMS = {
    "model": ("folder", "float32"),
    "model.onnx": ("onnx", "float32"),
    "float16.onnx": ("onnx", "float16"),
    "int8.onnx": ("onnx", "int8"),
    "model.pt2": ("torch", "float32"),
}
HEADINGS = ("", "MB", "command (s)", "pass (s)", "case (s)", "agreement", "its least", "Dice %", "largest loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, help="so many, spread over all")
    parser.add_argument("--size", type=int, nargs=3, default=(4, 192, 160), metavar=("B", "H", "W"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in FORMS}
        for name, (form, precision) in FORMS.items():
            export_model(options.run, files[name], form, precision=precision)
        predictors = {name: load_predictor(path, "cpu") for name, path in files.items()}
        store = fitting_store(options.store, predictors["model"].preset.data)
        seconds = seconds_of_commands_and_passes(files, predictors, options.scan, options.rounds, tuple(options.size))
        masks = masks_of_cases(predictors, store, chosen_cases(options.run, store, options.cases))
        print("| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|", sep="\n")
        for name, path in files.items():
            cells = (f"{size_mb(path):.1f}", *seconds[name], *masks[name])
            print("| " + " | ".join((name, *cells)) + " |")
        for name, path in files.items():
            if path.is_file():
                report = json.loads(path.with_name(f"{name}.json").read_text())
                largest = max(entry["max_logit"] for entry in report["compared"])
                print(f"{name}: logits differ by {report['max_difference']:.2g} at most; the largest is {largest:.2g}")


def chosen_cases(run: Path, store: SliceStore, count: int | None) -> list[str]:
    cases = [name for name in RunFolder(run).read_split().unlabeled if name in store.cases]
    cases = [name for name in cases if store.cases[name].labeled]
    return [cases[i] for i in np.linspace(0, len(cases) - 1, count or len(cases)).round().astype(int)]


def seconds_of_commands_and_passes(
    files: dict[str, Path], predictors: dict[str, Predictor], scan: Path, rounds: int, size: tuple[int, int, int]
) -> dict[str, tuple[str, str]]:
    batch, height, width = size
    images = np.random.default_rng(0).random((batch, 1, height, width), np.float32)
    for predictor in predictors.values():
        predictor.forward(images)
    commands: dict[str, list[float]] = {name: [] for name in files}
    passes: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor.forward(images)
            passes[name].append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as masks:
                words = ["predict", "-i", str(scan), "-o", masks, "--model", str(files[name]), "-d", "cpu"]
                before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
                subprocess.run([sys.executable, "-m", "sdm_cli", *words], check=True, capture_output=True)
                commands[name].append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return {
        name: (f"{statistics.median(commands[name]):.2f}", f"{statistics.median(passes[name]):.3f}") for name in files
    }


def masks_of_cases(
    predictors: dict[str, Predictor], store: SliceStore, case_ids: list[str]
) -> dict[str, tuple[str, ...]]:
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    agreement: dict[str, list[float]] = {name: [] for name in predictors}
    dice: dict[str, list[float]] = {name: [] for name in predictors}
    for number, case_id in enumerate(case_ids, 1):
        label = store.reference_volume(case_id)
        masks = {}
        for name, predictor in predictors.items():
            start = time.process_time()
            masks[name] = predicted_mask(predictor, store, case_id)
            seconds[name].append(time.process_time() - start)
            agreement[name].append(mean_dice(masks[name], masks["model"], store))
            dice[name].append(mean_dice(masks[name], label, store))
        print(f"case {number} of {len(case_ids)}", file=sys.stderr)
    loss = {name: max(full - own for full, own in zip(dice["model"], dice[name], strict=True)) for name in predictors}
    return {
        name: (
            f"{statistics.mean(seconds[name]):.2f}",
            f"{statistics.mean(agreement[name]):.5f}",
            f"{min(agreement[name]):.5f}",
            f"{100 * statistics.mean(dice[name]):.2f}",
            f"{100 * loss[name]:.2f}",
        )
        for name in predictors
    }


def mean_dice(mask: Array, reference: Array, store: SliceStore) -> float:
    counts = count_case(mask, reference, store.data.n_classes)
    return mean_defined(count.dice for count in counts[1:]) or 0.0


def size_mb(path: Path) -> float:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()
