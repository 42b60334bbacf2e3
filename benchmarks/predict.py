"""How much faster `sdm predict` is than the published loop, from NIfTI to NIfTI; and how much memory it takes.

    python benchmarks/predict.py --encoder mit-b0
    python benchmarks/predict.py --size 256 --grid --tta
    python benchmarks/predict.py --memory 16

The published loop takes one scan after the other and of each one slice after the other through the plain network of
plain.py. Both sides read, normalise and write with the same functions, carry the same weights and take the same
phantoms in turns (A B A B). With `--grid` the network sees pixels twice as large, and with `--tta` each slice in four
mirrored forms; then the loop averages probabilities and takes them back to the scan as torch does. `--memory` runs the
command on one CT of 512 x 512 x 600 and prints its peak.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from plain import PlainNetwork

from sdm_cli.config import IN_PLANE, ModelConfig, PredictConfig, Preset, TrainConfig
from sdm_cli.data.layouts import find_cases
from sdm_cli.data.readers import read_image
from sdm_cli.data.slices import make_slices
from sdm_cli.data.volume import from_slices, write_mask
from sdm_cli.data_config import DataConfig, GridConfig, NormalizeConfig
from sdm_cli.method.checkpoint import load_model, save_model
from sdm_cli.method.encoder import ENCODER_SIZES
from sdm_cli.method.network import build_network
from sdm_cli.runs.likelihood import flips_of
from sdm_cli.runs.predict import predict
from sdm_cli.runs.request import Request

PIXEL_MM = (0.8, 0.8)


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_memory if options.memory is not None else measure_throughput
        measure(Path(folder), options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=list(ENCODER_SIZES), default="mit-b0")
    parser.add_argument("--size", type=int, default=512, help="side of a slice, pixels")
    parser.add_argument("--slices", type=int, default=24, help="of a scan")
    parser.add_argument("--scans", type=int, default=3)
    parser.add_argument("--classes", type=int, default=4, help="with the background")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--grid", action="store_true", help="a preset that resamples to pixels of twice the size")
    parser.add_argument("--tta", action="store_true", help="average over slices mirrored in both directions")
    parser.add_argument(
        "--memory", type=int, metavar="CLASSES", help="the peak of one scan of 512 x 512 x 600, with so many classes"
    )
    return parser.parse_args()


def measure_throughput(folder: Path, options: argparse.Namespace) -> None:
    model, scans = write_model(folder / "model", options, options.classes), folder / "scans"
    for index in range(options.scans):
        write_phantom(scans / f"{index}.nii.gz", (options.size, options.size, options.slices), index)
    sides: dict[str, Callable[[Path], object]] = {
        "published": lambda masks: predict_as_published(scans, masks, model, options.tta),
        "sdm": lambda masks: predict(Request(scans, masks, model, "cpu", tta=options.tta)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for measured in range(options.rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run(folder / f"{name}-{measured}")
            if measured:
                seconds[name].append(time.perf_counter() - start)
    published, ours = (statistics.median(taken) for taken in seconds.values())
    n_slices = options.scans * options.slices
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(
        f"{options.scans} scans of {options.size} x {options.size} x {options.slices}, {options.encoder}, "
        f"{options.classes} classes, {ways_of(options)}, {options.threads} threads, {options.rounds} rounds"
    )
    print(
        f"published {n_slices / published:6.2f} slices/s, sdm {n_slices / ours:6.2f}, ratio {published / ours:.2f} "
        f"(rounds: {min(ratios):.2f} to {max(ratios):.2f}); equal voxels {equal_voxels(folder):.6f}"
    )


def measure_memory(folder: Path, options: argparse.Namespace) -> None:
    model = write_model(folder / "model", options, options.memory)
    write_phantom(folder / "scans" / "ct.nii.gz", (512, 512, 600), 0)
    command = [sys.executable, "-m", "sdm_cli", "predict", "-i", str(folder / "scans"), "-o", str(folder / "masks")]
    command += ["--model", str(model), "-d", "cpu", "--tta" if options.tta else "--no-tta"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"512 x 512 x 600, {options.memory} classes, {options.encoder}, {ways_of(options)}: peak {peak:.2f} GiB, "
        f"{time.perf_counter() - start:.0f} s"
    )


def ways_of(options: argparse.Namespace) -> str:
    """How slices go to the scan, for the figures."""
    return f"{'resampled' if options.grid else 'own'} grid, {'mirrored' if options.tta else 'as they are'}"


def write_model(folder: Path, options: argparse.Namespace, n_classes: int) -> Path:
    """Random weights; classes that all win somewhere."""
    torch.manual_seed(0)
    preset = Preset(
        name="benchmark",
        data=DataConfig(
            classes={f"class {index}": index for index in range(1, n_classes)},
            normalize=NormalizeConfig(window_hu=(-160, 240), scale="window"),
            grid=GridConfig(spacing_mm=tuple(2 * size_mm for size_mm in PIXEL_MM) if options.grid else None),
        ),
        model=ModelConfig(encoder=options.encoder),
        train=TrainConfig(steps=1, crop=(256, 256) if options.grid else (512, 512)),  # slices pass unpadded
        predict=PredictConfig(flips=IN_PLANE["axial"]),
    )
    network = build_network(preset.model, n_classes).eval()
    with torch.inference_mode():
        logits = network.predict(torch.rand(1, 1, 128, 128))
    network.framework.decoder.linear_pred.bias.data -= logits.transpose(0, 1).flatten(1).median(1).values
    save_model(folder, network, preset)
    return folder


def write_phantom(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    """A body of two tissues in air with the noise of a CT; noise is what compresses badly."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    x, y = np.indices(shape[:2]) / np.array(shape[:2])[:, None, None] - 0.5
    distance = np.hypot(x, 1.4 * y)
    plane = np.select([distance < 0.2, distance < 0.42], [60.0, -80.0], -1000.0)[..., None]
    noise = rng.normal(0, 12, (*shape[:2], min(shape[2], 24))).astype(np.float32)
    voxels = np.empty(shape, np.int16)
    for z in range(shape[2]):
        voxels[..., z] = (plane[..., 0] + np.where(distance < 0.42, noise[..., z % noise.shape[2]], 0)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*PIXEL_MM, 2.0, 1.0])), path)


def predict_as_published(scans: Path, masks: Path, model: Path, tta: bool) -> None:
    """One slice at a time through the network as published, and nothing at the same time."""
    fast, preset = load_model(model)
    network = PlainNetwork(ENCODER_SIZES[preset.model.encoder], preset.model, preset.data.n_classes).eval()
    network.load_state_dict(fast.state_dict())
    flips = flips_of(preset.predict.flips if tta else (), "axial")
    for case in find_cases(scans):
        volume = read_image(case, preset.data)
        slices, grid = make_slices(case, volume, preset.data)
        mask = np.empty(grid.scan, np.uint8)
        for z, plane in enumerate(slices):
            image = torch.from_numpy(plane.astype(np.float32) / 65535)[None, None]
            with torch.inference_mode():
                if grid.is_identity and not tta:
                    found = network.predict(image)
                else:
                    found = sum(network.predict(image.flip(axes)).softmax(1).flip(axes) for axes in flips)
                    found = torch.nn.functional.interpolate(found, grid.scan[1:], mode="bilinear")
                mask[z] = found.argmax(1)[0].numpy()
        geometry = volume.geometry
        write_mask(masks / f"{case.case_id}.nii.gz", from_slices(mask, geometry.affine, "axial"), geometry)


def equal_voxels(folder: Path) -> float:
    """Share of the voxels that both sides give the same class."""
    equal = [
        np.mean(
            np.asarray(nibabel.load(path).dataobj) == np.asarray(nibabel.load(folder / "sdm-0" / path.name).dataobj)
        )
        for path in (folder / "published-0").glob("*.nii.gz")
    ]
    return float(np.mean(equal))


if __name__ == "__main__":
    main()
