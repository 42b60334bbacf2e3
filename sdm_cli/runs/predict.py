"""`sdm predict`: scans in, masks on the scans' own grids out.

A volume passes as slices in batches, so the peak of memory is one scan, its 16-bit slices, its
mask, and the network's work on one batch; never classes x volume. The size of the batch never
changes a voxel: see `predict_slices`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdm_cli import console
from sdm_cli.config import Preset
from sdm_cli.data.cases import Case
from sdm_cli.data.normalize import normalize_slices
from sdm_cli.data.readers import find_cases, read_image
from sdm_cli.data.volume import from_slices, to_slices, write_mask
from sdm_cli.errors import CheckpointError, OutputError, SdmError, SomeCasesFailed
from sdm_cli.method.checkpoint import has_model, load_model
from sdm_cli.method.network import STRIDE, MessengerNetwork

Array = np.ndarray[Any, np.dtype[Any]]

# On a CPU a larger batch gains nothing from about 160 x 160 pixels on (measured, MiT-B0 and B2).
_PIXELS_PER_BATCH = {"cpu": 256 * 256}
_PIXELS_PER_BATCH_GPU = 16 * 512 * 512

# Logits of a slice alone and of the same slice in a batch differ by rounding: at most 1.5e-6 of the
# largest logit (measured: MiT-B0 and B2, 1-4 messengers, 32-256 pixels, batches of 2-16, float32).
_TIE_TOLERANCE = 3e-5


@dataclass(frozen=True)
class Predictor:
    """A network ready for inference, from whatever file it came.

    Attributes:
        preset: what it was trained with.
        device: where `forward` wants its images.
        forward: images (B, 1, H, W) float32 in [0, 1], H and W multiples of 32, to logits (B, K, H, W).
    """

    preset: Preset
    device: torch.device
    forward: Callable[[Tensor], Tensor]


def network_predictor(network: MessengerNetwork, preset: Preset, device: torch.device) -> Predictor:
    """Predictor of a network that is in evaluation mode and on `device`."""
    return Predictor(preset, device, network.predict)


def load_predictor(path: Path, device: str | None = None) -> Predictor:
    """Predictor of a run folder (its best checkpoint, else its last), a model folder or an `.onnx` file.

    Raises:
        CheckpointError: there is no model, or it cannot be read.
        SdmError: there is no such device; the extra `[onnx]` is not installed.
    """
    target = resolve_device(device)
    if path.suffix == ".onnx":
        from sdm_cli.runs.onnx_model import open_onnx

        forward, preset = open_onnx(path, target)
        return Predictor(preset, torch.device("cpu"), forward)
    network, preset = load_model(find_model(path))
    return network_predictor(network.to(target), preset, target)


def find_model(path: Path) -> Path:
    """The model folder that a run folder or a model folder stands for; raises CheckpointError."""
    for candidate in (path / "checkpoints" / "best", path / "checkpoints" / "last", path):
        if has_model(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such run or model.")
    if (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path}: the run has no checkpoint yet; train on with --resume.")
    return path


def resolve_device(name: str | None = None) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, gpu, mps); without a name the best one here.

    Raises:
        SdmError: unknown, or not on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    kind, _, index = name.lower().replace("gpu", "cuda", 1).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise SdmError(f"There is no device {name!r}: give cpu, cuda, cuda:1 (a second GPU) or mps.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SdmError(f"This machine has no {name} ({torch.cuda.device_count()} GPUs found): give another or cpu.")
    if kind == "mps" and not has_mps:
        raise SdmError("This machine has no mps: give cpu.")
    return torch.device(kind, int(index)) if index else torch.device(kind)


def predict_slices(predictor: Predictor, slices: Array, batch_size: int | None = None) -> Array:
    """Class indices of normalised slices.

    The mask is that of each slice predicted alone, whatever the batch: a slice in which the two
    best classes of some voxel are closer than the rounding of the network is predicted again alone.

    Args:
        predictor: the network.
        slices: (Z, H, W) uint16, of any size; zeros are added to the right and bottom and cut off again.
        batch_size: slices per forward pass; by default as many as suit the device. Where memory
            runs out it is halved.

    Returns:
        (Z, H, W) uint8.

    Raises:
        SdmError: a single slice does not fit the memory of the device.
    """
    n_slices, height, width = slices.shape
    batch = batch_size or _batch_size(predictor.device, height, width)
    mask = np.empty(slices.shape, np.uint8)
    start = 0
    with torch.inference_mode(), _exact_float32(predictor.device):
        while start < n_slices:
            chunk = slices[start : start + batch]
            try:
                mask[start : start + len(chunk)] = _predict_batch(predictor, chunk)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    remedy = "use a machine with more" if predictor.device.type == "cpu" else "give -d cpu"
                    raise SdmError(
                        f"A slice of {height} x {width} pixels is too large for the memory of {predictor.device}: "
                        f"{remedy}."
                    ) from None
                batch = len(chunk) // 2
            else:
                start += len(chunk)
    return mask


def predict(
    input_path: Path,
    output: Path,
    model: Path,
    device: str | None = None,
    skip_existing: bool = False,
    overwrite: bool = False,
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

    Returns:
        Paths of the masks written now.

    Raises:
        OutputError: masks are there and neither flag is set; `output` is where the scans are, or a file;
            it cannot be written.
        SomeCasesFailed: names the scans of a folder without a mask; all others are written.
        ImageReadError: the one scan cannot be read.
    """
    cases = find_cases(input_path, None, for_prediction=True)
    targets = {case.case_id: output / f"{case.case_id}.nii.gz" for case in cases}
    _check_output(output, cases, list(targets.values()), skip_existing, overwrite)
    if skip_existing:
        cases = [case for case in cases if not targets[case.case_id].exists()]
        console.say(f"{len(targets) - len(cases)} of {len(targets)} masks exist and are kept.")
    if not cases:
        return []
    predictor = load_predictor(model, device)
    written, failed = [], []
    with console.progress("Predicting", len(cases)) as bar:
        for case in cases:
            try:
                _predict_case(predictor, case, targets[case.case_id], overwrite)
                written.append(targets[case.case_id])
            except SdmError as error:
                if isinstance(error, OutputError) or input_path.is_file():
                    raise  # a full disk spoils every further case too
                console.warn(f"{case.case_id}: {error}")
                failed.append(case.case_id)
            bar.advance()
    if failed:
        raise SomeCasesFailed(
            f"{len(failed)} of {len(cases)} scans got no mask ({', '.join(failed)}): repair them as the warnings say "
            "and run again with --skip-existing."
        )
    return written


def _predict_case(predictor: Predictor, case: Case, target: Path, overwrite: bool) -> None:
    data = predictor.preset.data
    volume = read_image(case, data)
    affine = volume.geometry.affine
    slices = normalize_slices(to_slices(volume.voxels, affine, data.slice_axis), data.normalize)
    values = np.array([0, *data.classes.values()], np.uint16)
    mask = values[predict_slices(predictor, slices)]
    write_mask(target, from_slices(mask, affine, data.slice_axis), volume.geometry, overwrite)


def _check_output(
    output: Path, cases: Sequence[Case], targets: Sequence[Path], skip_existing: bool, overwrite: bool
) -> None:
    if output.is_file() or output.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{output} names a file: give the folder to write the masks to.")
    if output.resolve() in {case.image_path.parent.resolve() for case in cases}:
        raise OutputError(f"{output} is where the scans are: give another folder for the masks.")
    existing = [target for target in targets if target.exists()]
    if existing and not skip_existing and not overwrite:
        raise OutputError(
            f"{existing[0]} exists ({len(existing)} of {len(targets)} masks do): keep them with --skip-existing "
            "or replace them with --overwrite."
        )


def _predict_batch(predictor: Predictor, slices: Array) -> Array:
    """(B, H, W) uint16 to (B, H, W) uint8, each slice as if it were alone."""
    logits = _logits(predictor, slices)
    best, classes = logits.max(1)
    mask: Array = classes.to(torch.uint8).cpu().numpy()
    if len(slices) == 1:
        return mask
    largest = logits.abs().amax((1, 2, 3))
    second = logits.scatter_(1, classes[:, None], -torch.inf).amax(1)
    margin = (best - second).amin((1, 2))
    for index in torch.nonzero(~(margin > _TIE_TOLERANCE * largest)).flatten().tolist():
        mask[index] = _logits(predictor, slices[index : index + 1]).max(1)[1].to(torch.uint8).cpu().numpy()
    return mask


def _logits(predictor: Predictor, slices: Array) -> Tensor:
    """(B, H, W) uint16 to (B, K, H, W) logits."""
    height, width = slices.shape[1:]
    images = torch.from_numpy(slices.astype(np.float32) / np.float32(65535)).unsqueeze(1)
    images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE)).to(predictor.device)
    return predictor.forward(images)[:, :, :height, :width]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU torch has a type for it, on a CPU only the name of its allocator in the message."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _batch_size(device: torch.device, height: int, width: int) -> int:
    pixels = (height + -height % STRIDE) * (width + -width % STRIDE)
    return max(1, _PIXELS_PER_BATCH.get(device.type, _PIXELS_PER_BATCH_GPU) // pixels)


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """No lower precision around: its rounding is a thousand times what the tie tolerance supposes."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with flags, torch.autocast(device.type, enabled=False):
        yield
