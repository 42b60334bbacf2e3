"""The phantom data set of `sdm demo`: an abdomen of ellipsoids, seen by two scanners, as NIfTI.

Owns the anatomy, the scanners and the folder layout. Organs are solids in patient millimetres
(RAS+), so any grid (shifted, oblique, LPS) shows the same body. A task of its own: organs
share intensities with each other and with organs that are not asked for, the left and right
kidney differ in place only, and the scanners differ in contrast, noise and bias field.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from sdm_cli.errors import OutputError, reason_of
from sdm_cli.files import json_text

CLASSES = {"liver": 1, "right kidney": 2, "left kidney": 3, "spine": 4}
N_CASES = 16
LABELED = ("a01", "a02", "b01")
OBLIQUE, LPS = "b03", "a04"

_DATASET = {
    "name": "phantoms of sdm demo",
    "channel_names": {"0": "phantom"},
    "labels": {"background": 0, **CLASSES},
    "numTraining": len(LABELED),
    "file_ending": ".nii.gz",
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solid:
    """An ellipsoid, or a tube along the body where its half-length is infinite.

    Attributes:
        tissue: whose intensity it has.
        centre_mm: (right, anterior, superior) from the middle of the body.
        half_mm: half-axes.
        value: in the label; 0 for a structure that is not asked for.
    """

    tissue: str
    centre_mm: tuple[float, float, float]
    half_mm: tuple[float, float, float]
    value: int = 0


# Painted in order: a later solid covers an earlier one.
_TUBE = float("inf")
_BODY = (
    Solid("fat", (0, 0, 0), (150, 108, _TUBE)),
    Solid("muscle", (0, 0, 0), (132, 92, _TUBE)),
    Solid("gut", (25, 45, -55), (45, 28, 40)),
    Solid("gut", (-45, 40, -60), (38, 30, 45)),
    Solid("stomach", (-58, 28, 45), (45, 38, 40)),
    Solid("spleen", (-98, -28, 35), (24, 36, 42)),
    Solid("liver", (58, 12, 35), (68, 62, 62), CLASSES["liver"]),
    Solid("kidney", (66, -46, -35), (33, 29, 58), CLASSES["right kidney"]),
    Solid("kidney", (-66, -46, -25), (33, 29, 58), CLASSES["left kidney"]),
    Solid("spine", (0, -60, 0), (30, 26, _TUBE), CLASSES["spine"]),
    Solid("vessel", (-16, -32, 0), (11, 11, _TUBE)),
    Solid("vessel", (18, -30, 0), (12, 9, _TUBE)),
)


@dataclass(frozen=True)
class Scanner:
    """How a machine shows the body.

    Attributes:
        tissues: mean intensity, with air near 0 and the brightest tissue near 1.
        noise: standard deviation of the noise, on the same scale.
        bias: strength of the bias field, in natural logarithm.
        full_scale: stored value of intensity 1.
        dtype: of the file.
    """

    tissues: dict[str, float]
    noise: float
    bias: float
    full_scale: float
    dtype: type[np.generic]


_SCANNERS = {
    "a": Scanner(
        {"fat": 0.85, "muscle": 0.34, "gut": 0.54, "stomach": 0.50, "spleen": 0.56}
        | {"liver": 0.62, "kidney": 0.55, "spine": 0.70, "vessel": 0.22},
        noise=0.05,
        bias=0.15,
        full_scale=1000.0,
        dtype=np.int16,
    ),
    "b": Scanner(
        {"fat": 0.72, "muscle": 0.34, "gut": 0.52, "stomach": 0.58, "spleen": 0.62}
        | {"liver": 0.56, "kidney": 0.66, "spine": 0.52, "vessel": 0.85},
        noise=0.07,
        bias=0.25,
        full_scale=420.0,
        dtype=np.float32,
    ),
}


def make_phantoms(folder: Path, seed: int = 0) -> None:
    """Write the data set in nnU-Net's layout; the same seed writes the same bytes.

    `imagesTr` and `labelsTr` hold the labeled cases, `imagesUn` the unlabeled scans, and `truth` the
    labels of these, which no reader of the layout finds. The folder appears complete or not at all.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists: remove it, or choose another output folder with -o.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for name in ("imagesTr", "labelsTr", "imagesUn", "truth"):
            (unfinished / name).mkdir(parents=True)
        (unfinished / "dataset.json").write_text(json_text(_DATASET) + "\n", encoding="utf-8")
        for number in range(N_CASES):
            case_id = f"{'ab'[number % 2]}{number // 2 + 1:02d}"
            scan, label = _draw_case(case_id, _SCANNERS[scanner_of(case_id)], np.random.default_rng((seed, number)))
            images, labels = ("imagesTr", "labelsTr") if case_id in LABELED else ("imagesUn", "truth")
            nib.save(scan, unfinished / images / f"{case_id}.nii.gz")
            nib.save(label, unfinished / labels / f"{case_id}.nii.gz")
        unfinished.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: the phantoms cannot be written ({reason_of(error)}); choose another folder."
        ) from None


def scanner_of(case_id: str) -> str:
    """Which of the scanners a case is of."""
    return case_id[0]


def _draw_case(case_id: str, scanner: Scanner, random: np.random.Generator) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    shape = (*random.integers(88, 105, size=2), random.integers(18, 23))
    in_plane_mm = random.uniform(3.2, 3.6)
    affine = _affine(case_id, shape, np.array([in_plane_mm, in_plane_mm, random.uniform(7.0, 9.0)]), random)
    # (X, Y, Z, 3): the place of each voxel in the patient, mm
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    clean, label = _paint_body(places, scanner, random)
    scan = _scan(clean, places, scanner, random)
    images = []
    for voxels in (scan, label):
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        images.append(image)
    return images[0], images[1]


def _affine(case_id: str, shape: tuple[int, ...], spacing_mm: Array, random: np.random.Generator) -> Array:
    """Voxel index -> mm RAS+, the body near the middle of the grid."""
    direction = np.eye(3)
    if case_id == LPS:
        direction = np.diag([-1.0, -1.0, 1.0])
    elif case_id == OBLIQUE:
        direction = _rotation(np.deg2rad([9.0, -6.0, 12.0]))
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = random.uniform(-8.0, 8.0, size=3) - affine[:3, :3] @ middle
    return affine


def _rotation(angles: Array) -> Array:
    """Rotation about the x, then y, then z axis; angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _paint_body(places: Array, scanner: Scanner, random: np.random.Generator) -> tuple[Array, NDArray[np.uint8]]:
    """One patient: intensities (X, Y, Z) without noise, and the label (X, Y, Z)."""
    posture = _rotation(np.deg2rad(random.normal(0.0, 3.0, size=3)))
    stature = random.uniform(0.9, 1.08)
    own_places = places @ posture / stature
    clean = np.full(places.shape[:3], 0.02)
    label = np.zeros(places.shape[:3], np.uint8)
    shades = {tissue: mean + random.normal(0.0, 0.025) for tissue, mean in scanner.tissues.items()}
    for solid in _BODY:
        is_organ = solid.tissue not in ("fat", "muscle")
        centre = np.array(solid.centre_mm) + random.normal(0.0, 5.0 if is_organ else 0.0, size=3)
        half = np.array(solid.half_mm) * random.uniform(0.86, 1.14, size=3) ** is_organ
        tilt = _rotation(np.deg2rad(random.normal(0.0, 8.0 if np.isfinite(half).all() else 0.0, size=3)))
        inside = ((((own_places - centre) @ tilt) / half) ** 2).sum(axis=-1) < 1
        clean[inside] = shades[solid.tissue]
        label[inside] = solid.value
    return clean, label


def _scan(clean: Array, places: Array, scanner: Scanner, random: np.random.Generator) -> NDArray[np.generic]:
    """What the scanner makes of the intensities: blur, bias field, Rician noise, its own scale and dtype."""
    for axis in (0, 1):
        padded = np.pad(clean, [(1, 1) if other == axis else (0, 0) for other in range(3)], mode="edge")
        before, after = np.delete(padded, [-2, -1], axis), np.delete(padded, [0, 1], axis)
        clean = (before + 2 * clean + after) / 4
    along = places / 150.0
    slopes, bends = random.normal(0.0, 0.6, size=3), random.normal(0.0, 0.5, size=3)
    field = np.exp(scanner.bias * np.tanh(along @ slopes + along**2 @ bends))
    in_phase, out_of_phase = random.normal(0.0, scanner.noise, size=(2, *clean.shape))
    scan = np.hypot(clean * field + in_phase, out_of_phase) * scanner.full_scale
    if np.issubdtype(scanner.dtype, np.integer):
        scan = np.rint(scan)
    voxels: NDArray[np.generic] = scan.astype(scanner.dtype)
    return voxels
