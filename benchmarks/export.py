"""Start-up and speed of an exported model against its model folder.

    python benchmarks/export.py MODEL_FOLDER FILE.onnx FILE.pt2 ... --scan SCAN.nii.gz

The whole of `sdm predict` of one scan in a process of its own, and a forward pass of one batch within this process;
models in turns, medians of `--rounds`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sdm_cli.runs.predictor import load_predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=3, default=(4, 192, 160), metavar=("B", "H", "W"))
    arguments = parser.parse_args()
    commands: dict[Path, list[float]] = {model: [] for model in arguments.models}
    passes: dict[Path, list[float]] = {model: [] for model in arguments.models}
    batch, height, width = arguments.size
    images = np.random.default_rng(0).random((batch, 1, height, width), np.float32)
    predictors = {model: load_predictor(model, "cpu") for model in arguments.models}
    for predictor in predictors.values():
        predictor.forward(images)
    for _ in range(arguments.rounds):
        for model, predictor in predictors.items():
            start = time.perf_counter()
            predictor.forward(images)
            passes[model].append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as masks:
                words = ["predict", "-i", str(arguments.scan), "-o", masks, "--model", str(model), "-d", "cpu"]
                start = time.perf_counter()
                subprocess.run([sys.executable, "-m", "sdm_cli", *words], check=True, capture_output=True)
                commands[model].append(time.perf_counter() - start)
    print("model, seconds of the command, seconds of a pass, MB")
    for model in arguments.models:
        files = [model] if model.is_file() else list(model.iterdir())
        size_mb = sum(file.stat().st_size for file in files) / 1e6
        medians = f"{statistics.median(commands[model]):.2f}, {statistics.median(passes[model]):.3f}"
        print(f"{model.name}, {medians}, {size_mb:.1f}")


if __name__ == "__main__":
    main()
