"""A trained model as a Python object: scans in, masks out, for programs and for `sdm predict` alike.

from sdm_cli import load_model

model = load_model("runs/liver")
found = model.predict("scan.nii.gz")
found.volumes_ml, found.confidence
found.save("mask.nii.gz")
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdm_cli.config import Preset
from sdm_cli.data.cases import Case, is_nifti
from sdm_cli.data.grid import SliceGrid
from sdm_cli.data.itk import is_itk, suffix_of_mask, write_itk_mask
from sdm_cli.data.readers import read_image
from sdm_cli.data.slices import make_slices
from sdm_cli.data.volume import Geometry, SliceAxis, Volume, from_slices, slice_spacing_mm, to_slices, write_mask
from sdm_cli.errors import CheckpointError, ImageReadError, OutputError, PresetError
from sdm_cli.runs.inference import Maps, predict_scan
from sdm_cli.runs.likelihood import Ensemble, flips_of
from sdm_cli.runs.predictor import Array, Predictor, load_predictor, require_alike

ModelPath = str | Path


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as the network sees it, with its way back.

    Attributes:
        slices: (Z, H, W) uint16, normalised, on `grid`.
        grid: where they lie among the scan's slices.
        geometry: of the scan's file.
    """

    slices: Array
    grid: SliceGrid
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model finds in a scan; arrays are (x, y, z) in the axis order of the scan.

    Attributes:
        slices: (Z, H, W) uint8 class indices on the scan's slices, of which `mask` is made.
        classes: foreground class name -> label value, in class order.
        geometry: of the scan.
        slice_axis: plane of the slices.
        confidence: mean probability of their class over the voxels found to be foreground. Absent: None without any.
        entropy: float32, of each voxel, 0 (certain) to 1 (nothing is known), if it was asked for.
        confidence_map: float32, probability of the best class, if it was asked for.
        probabilities: (K, x, y, z) float16 of all classes, the background first, if they were asked for.
    """

    slices: Array = field(repr=False)
    classes: dict[str, int]
    geometry: Geometry = field(repr=False)
    slice_axis: SliceAxis
    confidence: float | None
    entropy: Array | None = field(default=None, repr=False)
    confidence_map: Array | None = field(default=None, repr=False)
    probabilities: Array | None = field(default=None, repr=False)

    @property
    def mask(self) -> Array:
        """(x, y, z) label values, uint8 or uint16."""
        values = np.array([0, *self.classes.values()])
        values = values.astype(np.uint16 if values.max() > 255 else np.uint8)
        return from_slices(values[self.slices], self.geometry.affine, self.slice_axis)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class that was found, by name."""
        counts = sum(np.bincount(plane.ravel(), minlength=1 + len(self.classes)) for plane in self.slices)
        voxel_ml = abs(float(np.linalg.det(self.geometry.affine[:3, :3]))) / 1000
        named = zip(self.classes, np.atleast_1d(counts)[1:].tolist(), strict=True)
        return {name: count * voxel_ml for name, count in named if count}

    def save(self, path: ModelPath, overwrite: bool = False) -> None:
        """Write the mask on the scan's own grid, with its header.

        Args:
            path: `.nii`, `.nii.gz`, `.nrrd` or `.mha`.
            overwrite: replace an existing file.

        Raises:
            OutputError: the name has none of these suffixes, the file exists, or cannot be written.
        """
        path = Path(path)
        if is_nifti(path):
            write_mask(path, self.mask, self.geometry, overwrite)
        elif is_itk(path) and suffix_of_mask(path) == path.suffix.lower():
            write_itk_mask(path, self.mask, self.geometry, overwrite)
        else:
            raise OutputError(f"{path}: give a name that ends in .nii.gz, .nii, .nrrd or .mha.")


class Model:
    """One trained network, or several whose probabilities are averaged; made by `load_model`."""

    def __init__(self, predictors: Sequence[Predictor], tta: bool = False) -> None:
        preset = predictors[0].preset
        flips = flips_of(preset.predict.flips if tta else (), preset.data.slice_axis)
        self._ensemble = Ensemble(predictors, flips)
        if tta and not preset.predict.flips:
            raise PresetError(
                f"The model of {preset.name} allows no mirrored slices (predict.flips of its preset is empty): "
                "predict without --tta, or train with a preset that names the directions."
            )

    @property
    def preset(self) -> Preset:
        """What the (first) network was trained with."""
        return self._ensemble.predictors[0].preset

    @property
    def presets(self) -> list[Preset]:
        """What each network was trained with."""
        return [predictor.preset for predictor in self._ensemble.predictors]

    @property
    def classes(self) -> dict[str, int]:
        """Foreground class name -> label value in masks, in class order."""
        return dict(self.preset.data.classes)

    @property
    def weights_sha256(self) -> list[str]:
        """Hashes of the weights of the network, or of each of them."""
        return [predictor.weights_sha256 for predictor in self._ensemble.predictors]

    def batch_size(self, height: int, width: int) -> int:
        """How many slices of that size, on the network's grid, go through it at once."""
        return self._ensemble.batch_size(height, width)

    def predict(
        self,
        scan: Array | str | Path,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        affine: Array | None = None,
        domain: str | None = None,
        entropy: bool = False,
        confidence_map: bool = False,
        probabilities: bool = False,
    ) -> Prediction:
        """Segment one scan.

        Args:
            scan: file of a scan, or its voxels (x, y, z), not normalised: an array, or what numpy makes one of.
            spacing_mm: of voxels: size along x, y, z, which are taken to run to the right, front and head (RAS+).
            affine: of voxels, instead of `spacing_mm`: (4, 4), voxel index -> mm in RAS+.
            domain: where the preset normalises by domain: that of this scan.
            entropy: give the entropy of each voxel too.
            confidence_map: give the probability of the best class of each voxel too.
            probabilities: give those of all classes too (2 bytes a class and voxel).

        Raises:
            ImageReadError: the scan cannot be read, or is no volume of finite numbers; nothing is known of its voxels.
            SdmError: a slice does not fit the memory of the device.
        """
        if isinstance(scan, str | Path):
            if spacing_mm is not None or affine is not None:
                raise ImageReadError(f"{scan} says how its voxels lie: give neither spacing_mm nor affine.")
            case = Case(Path(scan).name, Path(scan), domain=domain)
            volume = read_image(case, self.preset.data)
        else:
            case = Case("array", Path("array"), domain=domain)
            volume = _volume_of(np.asarray(scan), spacing_mm, affine)
        prepared = self.prepare(volume, case)
        return self.segment(prepared, entropy=entropy, confidence_map=confidence_map, probabilities=probabilities)

    def prepare(self, volume: Volume, case: Case) -> Scan:
        """Slices of a scan as the network sees them; raises ImageReadError as `make_slices`."""
        slices, grid = make_slices(case, volume, self.preset.data)
        return Scan(slices, grid, volume.geometry)

    def segment(
        self,
        scan: Scan,
        *,
        entropy: bool = False,
        confidence_map: bool = False,
        probabilities: bool | Array = False,
    ) -> Prediction:
        """The network's part of `predict`.

        Args:
            scan: as `prepare` makes it.
            entropy: as for `predict`.
            confidence_map: as for `predict`.
            probabilities: as for `predict`; or an array (K, x, y, z) to fill, on a disk for example.
        """
        axis, affine, shape = self.preset.data.slice_axis, scan.geometry.affine, scan.geometry.shape
        entropies = np.empty(shape, np.float32) if entropy else None
        confidences = np.empty(shape, np.float32) if confidence_map else None
        likelihood: Array | None = probabilities if isinstance(probabilities, np.ndarray) else None
        if probabilities is True:
            likelihood = np.empty((self.preset.data.n_classes, *shape), np.float16)

        def view(array: Array | None) -> Array | None:
            return None if array is None else to_slices(array, affine, axis)

        maps = Maps(
            view(entropies),
            view(confidences),
            () if likelihood is None else [to_slices(of_class, affine, axis) for of_class in likelihood],
        )
        spacing_mm = slice_spacing_mm(affine, axis)
        found = predict_scan(self._ensemble.predictors, scan.slices, scan.grid, spacing_mm, self._ensemble.flips, maps)
        geometry, classes = scan.geometry, self.classes
        return Prediction(found.mask, classes, geometry, axis, found.confidence, entropies, confidences, likelihood)


def load_model(model: ModelPath | Sequence[ModelPath], device: str | None = None, tta: bool = False) -> Model:
    """A model ready for prediction.

    Args:
        model: run folder (its best checkpoint), model folder, `.onnx` or `.pt2` file, or `ORG/NAME[@REVISION]` of the
            Hugging Face hub; of several, with the same classes and slices, the probabilities are averaged, and the
            preset of the first says what is done with them (`smooth_mm`, `largest_part`, `bridge_mm`, `flips`).
        device: cpu, cuda, cuda:1, mps; none: the best there is.
        tta: average over mirrored slices too, in the directions that the preset allows (`predict.flips`).

    Raises:
        CheckpointError: there is no model, it cannot be read, or the models do not fit together.
        PresetError: `tta`, and the preset allows no direction.
        SdmError: there is no such device; the extra `[onnx]` is not installed.
    """
    paths = [Path(path) for path in ([model] if isinstance(model, str | Path) else model)]
    if not paths:
        raise CheckpointError("There is no model in the list: give at least one.")
    predictors = [load_predictor(path, device) for path in paths]
    require_alike(predictors, paths)
    return Model(predictors, tta)


def _volume_of(voxels: Array, spacing_mm: tuple[float, float, float] | None, affine: Array | None) -> Volume:
    if (spacing_mm is None) == (affine is None):
        raise ImageReadError("An array says nothing of its voxels: give spacing_mm or affine (one of them).")
    if voxels.ndim != 3 or 0 in voxels.shape or voxels.dtype.kind not in "iuf" or not np.isfinite(voxels).all():
        raise ImageReadError(
            f"An array of shape {voxels.shape} and type {voxels.dtype} is no scan: give (x, y, z) of finite numbers."
        )
    if spacing_mm is not None and not (len(spacing_mm) == 3 and all(0 < size < math.inf for size in spacing_mm)):
        raise ImageReadError(f"spacing_mm is {spacing_mm}: give three sizes above 0, along x, y and z.")
    matrix = np.diag([*spacing_mm, 1.0]) if spacing_mm is not None else np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) == 0:
        raise ImageReadError(f"{matrix.tolist()} is no affine: give (4, 4), voxel index to mm, with three axes.")
    x, y, z = voxels.shape
    return Volume(voxels, Geometry(matrix, (x, y, z)))
