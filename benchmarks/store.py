"""What a store costs at scale: making it, opening it, drawing from it.

    python benchmarks/store.py --folder /path/with/room [--cases 24] [--linked 600]

Makes CT-like scans of 512 x 512 x 150 as NIfTI (79 MB each; they and the store are deleted at the end), and prints:

- preprocessing with one worker and with two, in turn, and their ratio; the peak of memory of a worker against the
  size of one case (voxels of the scan as 16-bit integers);
- seconds to open a store of `--linked` cases (hard links of those that were made: the same files, the same sizes);
- random pairs a second, with the files in the system's cache and not, in MB/s, of one reading process and of two
  (loader workers), and the speed of the same disk at reading blocks of the size of a slice in random places of the
  same files, by as many processes.
"""

import argparse
import multiprocessing
import multiprocessing.pool
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from sdm_cli.data.cases import Case
from sdm_cli.data.manifest import Manifest, read_manifest, write_manifest
from sdm_cli.data.store import SliceStore, case_path, index_cases, open_store
from sdm_cli.preset_files import preset_from_dict
from sdm_cli.runs.preprocess import make_case, preprocess

SHAPE = (512, 512, 150)
CASE_MB = np.prod(SHAPE) * 2 / 1e6
PRESET = preset_from_dict(
    {
        "data": {"classes": {"organ": 1}, "normalize": {"window_hu": [-160, 240], "scale": "window"}},
        "train": {"steps": 1},
    },
    "the benchmark",
)


def make_scans(folder: Path, n: int) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(-1000, 1000, SHAPE, np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[150:350, 150:350, 30:120] = 1
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i in range(n):
        nib.save(nib.Nifti1Image(np.roll(noise, i, axis=0), np.diag([0.7, 0.7, 2, 1])), folder / f"images/c{i:03}.nii")
        if i % 4 == 0:
            nib.save(nib.Nifti1Image(label, np.diag([0.7, 0.7, 2, 1])), folder / f"labels/c{i:03}.nii")


def forget_cache(paths: list[Path]) -> None:
    """Ask the system to drop what it keeps of these files."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds_of_preprocessing(folder: Path, workers: int) -> float:
    store = folder / f"store-{workers}"
    shutil.rmtree(store, ignore_errors=True)
    start = time.perf_counter()
    preprocess(folder / "images", folder / "labels", PRESET, store, workers)
    return time.perf_counter() - start


def worker_peak_mb(folder: Path) -> float:
    """Peak of memory of a process that makes one case, above what it holds before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_one_case, (folder,))


def _peak_of_one_case(folder: Path) -> float:
    before = _peak_mb()
    store = folder / "store-one"
    make_case(store, Case("c000", folder / "images/c000.nii", folder / "labels/c000.nii"), PRESET.data)
    return _peak_mb() - before


def _peak_mb() -> float:
    """Of this process alone; getrusage would tell that of its parent, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def link_many(store: Path, linked: Path, n: int) -> None:
    made = sorted(read_manifest(store).cases)
    (linked / "cases").mkdir(parents=True)
    for i in range(n):
        os.link(case_path(store, made[i % len(made)]), case_path(linked, f"case{i:05}"))
    write_manifest(linked, Manifest(PRESET.data, index_cases(linked, PRESET.data), complete=True))


def pairs_per_second(folder: Path, n: int, seed: int) -> float:
    """Labeled and unlabeled slices in random places, as training reads them."""
    store, random = open_store(folder), np.random.default_rng(seed)
    labeled = [case_id for case_id, case in store.cases.items() if case.labeled]
    cases = list(store.cases)
    start = time.perf_counter()
    for _ in range(n):
        case_id, z = labeled[random.integers(len(labeled))], int(random.integers(SHAPE[2]))
        store.read_image(case_id, z)
        store.read_label(case_id, z)
        store.read_image(cases[random.integers(len(cases))], int(random.integers(SHAPE[2])))
    return n / (time.perf_counter() - start)


def blocks_per_second(folder: Path, n: int, seed: int) -> float:
    """The disk itself: blocks of one slice, in random places of the same files."""
    paths, random = case_files(folder), np.random.default_rng(seed)
    block = SHAPE[0] * SHAPE[1] * 2
    start = time.perf_counter()
    for _ in range(2 * n):
        with paths[random.integers(len(paths))].open("rb", buffering=0) as file:
            file.seek(int(random.integers(SHAPE[2] - 1)) * block)
            file.read(block)
    return 2 * n / (time.perf_counter() - start)


def case_files(folder: Path) -> list[Path]:
    return sorted((folder / "cases").glob("*.h5"))


def of_all_readers(
    pool: multiprocessing.pool.Pool, readers: int, rate: Callable[[Path, int, int], float], folder: Path, n: int
) -> float:
    """Sum of the rates of processes that read at the same time, each with a seed of its own."""
    return sum(pool.starmap(rate, [(folder, n, time.time_ns() + reader) for reader in range(readers)], chunksize=1))


def show_reading(folder: Path, readers: int, n: int, rounds: int) -> None:
    """Pairs and raw blocks in turn, so that whatever else uses the disk meets both."""
    slice_mb = SHAPE[0] * SHAPE[1] * 2 / 1e6
    with multiprocessing.get_context("spawn").Pool(readers) as pool:
        for state in ("cold", "warm"):
            pairs, blocks = [], []
            for _ in range(rounds):
                for rates, rate in ((pairs, pairs_per_second), (blocks, blocks_per_second)):
                    if state == "cold":
                        forget_cache(case_files(folder))
                    rates.append(of_all_readers(pool, readers, rate, folder, n))
            share = statistics.median(2 * a / b for a, b in zip(pairs, blocks, strict=True))
            rate, raw = statistics.median(pairs), statistics.median(blocks)
            print(
                f"{state}, {readers} reading: {rate:.0f} pairs/s ({2 * rate * slice_mb:.0f} MB/s of images); "
                f"the disk alone {raw * slice_mb:.0f} MB/s; share {share:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--linked", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_scans(folder, options.cases)
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for workers, seconds in taken.items():
                seconds.append(seconds_of_preprocessing(folder, workers))
        one, two = (statistics.median(taken[workers]) for workers in (1, 2))
        ratio = statistics.median(a / b for a, b in zip(taken[1], taken[2], strict=True))
        print(f"preprocess {options.cases} cases: 1 worker {one:.1f} s, 2 workers {two:.1f} s, ratio {ratio:.2f}")
        peak = worker_peak_mb(folder)
        print(f"peak of a worker: {peak:.0f} MB above its start, {peak / CASE_MB:.1f} x one case ({CASE_MB:.0f} MB)")
        store, linked = folder / "store-2", folder / "linked"
        link_many(store, linked, options.linked)
        for what, opened in (("manifest", SliceStore), ("manifest and every case file", open_store)):
            start = time.perf_counter()
            opened(linked)
            print(f"open a store of {options.linked} cases ({what}): {time.perf_counter() - start:.2f} s")
        size_gb = sum(path.stat().st_size for path in case_files(store)) / 1e9
        print(f"random reading from a store of {size_gb:.1f} GB")
        for readers in (1, 2):
            show_reading(store, readers, options.pairs, options.rounds)


if __name__ == "__main__":
    main()
