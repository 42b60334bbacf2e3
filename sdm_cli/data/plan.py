"""From the fingerprint of a folder to a recipe: stated rules, and a reason for every value.

Only `train.pairs` and `model.encoder` depend on the machine, by its memory; the store depends on the folder alone.
What is not planned keeps its default. Knows no file and no tensor.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdm_cli.config import Preset
from sdm_cli.data.cases import counted
from sdm_cli.data.fingerprint import Fingerprint, ScanFacts, describe
from sdm_cli.data.hounsfield import SOFT_TISSUE_HU
from sdm_cli.data.pixels import usual_pixels
from sdm_cli.preset_files import preset_from_dict

_GIB = 2**30
_UNKNOWN_MEMORY_BYTES = 8 * _GIB

# Normalisation of CT.
_SANE_HU = (-1000, 2000)  # from air to dense bone; beyond lies metal
_NARROWEST_HU = 200  # a narrower window shows noise, and none of the surroundings
_ROUND_TO_HU = 5

# Grid and crop.
_SPACINGS_DIFFER = 1.25  # below, patients differ in size by more than that
_LARGEST_SIDE = 512  # of the published recipe
_CROP_STEP = 32  # stride of the encoder
_PATCH_SHARE = 8  # K is an eighth of the crop (method.md section 3)

# Measured at 128 x 128 and 256 x 256 pixels with 4 and 8 pairs on a CPU, rounded up: bytes for each pixel of a pair.
_BYTES_PER_PIXEL = {"mit-b0": 6000, "mit-b1": 12000, "mit-b2": 16000}
_MOST_PAIRS = 8
_MEMORY_SHARE = 0.5
# Encoder -> the labeled slices and the memory that it asks for, the largest first.
_LARGER_ENCODERS = {"mit-b2": (5000, 64 * _GIB), "mit-b1": (1000, 32 * _GIB)}

_PASSES = 2
_STEPS = (1500, 10_000)
_VALIDATE_EVERY = 250


@dataclass(frozen=True)
class Planned:
    """A value of the recipe, and why it is that.

    Attributes:
        value: plain JSON types.
        reason: a phrase.
        remarks: of a mapping, key -> what is known of that item.
    """

    value: Any
    reason: str
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A recipe with its reasons.

    Attributes:
        preset: the recipe.
        sections: section (or none, for the top level) -> key, dotted below the section -> value and reason.
        notes: what is to be known of the folder, as sentences.
        doubts: those of them that a person should look at.
    """

    preset: Preset
    sections: dict[str, dict[str, Planned]]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def plan_preset(fingerprint: Fingerprint, name: str, memory_bytes: int) -> Plan:
    """Plan the recipe of a folder.

    Args:
        fingerprint: of the folder.
        name: of the recipe and of the store.
        memory_bytes: of the machine that will train.
    """
    usual, far = usual_pixels(fingerprint)
    spacing_mm, grid_note = _in_plane_spacing(usual)
    crop = _crop(usual, spacing_mm)
    encoder = _encoder(fingerprint.n_slices(labeled=True), memory_bytes)
    pairs = _pairs(crop.value, encoder.value, memory_bytes)
    sections = {
        "": {
            "name": Planned(name, "that of the store; the run is runs/<name>"),
            "description": Planned("Planned by sdm preprocess", "for sdm presets"),
        },
        "data": _data(fingerprint, name, spacing_mm),
        "model": {
            "encoder": encoder,
            "pretrained": Planned("none", "random weights; a mit_b*.pth file of your own starts better"),
            "head_width": Planned(256, "as in laseg-5-cpu"),
        },
        "method": {
            "patch": Planned(min(crop.value) // _PATCH_SHARE, "K, an eighth of the crop as published"),
            "class_weights": _class_weights(len(fingerprint.classes.values)),
            "labeled_only_fraction": Planned(0.2, "pseudo-labels of a random start are noise: labels alone first"),
        },
        "train": {
            "crop": crop,
            "pairs": pairs,
            "steps": _steps(fingerprint.n_slices(labeled=False), pairs.value),
            **_OPTIMISER,
        },
    }
    doubts = _doubts(fingerprint)
    notes = (*describe(fingerprint), *far, grid_note, *doubts)
    return Plan(preset_from_dict(_tree(sections), f"the plan of {name}"), sections, notes, doubts)


def machine_memory_bytes() -> int:
    """Memory of this machine; 8 GiB where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return _UNKNOWN_MEMORY_BYTES
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_OPTIMISER = {
    "optimizer": Planned("adamw", "from random weights the published SGD needs far more steps"),
    "lr": Planned(0.0005, "chosen by measurement on the left atrium"),
    "head_lr_factor": Planned(1.0, "encoder and head both start from random weights"),
    "lr_warmup_steps": Planned(100, "the moments of AdamW need some steps"),
    "weight_decay": Planned(0.01, "the usual one of AdamW"),
    "average": Planned(0.99, "this moving average makes the pseudo-labels and is kept"),
    "validate_every_steps": Planned(_VALIDATE_EVERY, "often enough to catch the best"),
}


def _data(fingerprint: Fingerprint, name: str, spacing_mm: Planned | None) -> dict[str, Planned]:
    classes, section = fingerprint.classes, {}
    section["dataset"] = Planned(name, "that of the store")
    section["classes"] = Planned(classes.values, classes.evidence, _class_remarks(fingerprint))
    if classes.ignore_value is not None:
        section["ignore_value"] = Planned(classes.ignore_value, "voxels that no loss and no score counts")
    section["slice_axis"] = Planned(fingerprint.slice_axis, fingerprint.slice_axis_evidence)
    if fingerprint.n_without_spacing:
        n = fingerprint.n_without_spacing
        reason = f"(x, y, z) assumed, since none is stored in {counted(n, 'scan')}: correct it if you know it"
        section["spacing_mm"] = Planned([1.0, 1.0, 1.0], reason)
    if spacing_mm is not None:
        section["grid.spacing_mm"] = spacing_mm
    return section | {f"normalize.{key}": planned for key, planned in _normalize(fingerprint).items()}


def _class_remarks(fingerprint: Fingerprint) -> dict[str, str]:
    foreground = fingerprint.foreground
    if foreground is None:
        return {}
    kind = "median; voxel size assumed" if fingerprint.n_without_spacing else "median"
    return {
        name: f"scans with it: {n}, of {_ml(foreground.class_volumes_ml[name])} ({kind})" if n else "in no scan"
        for name, n in foreground.class_cases.items()
    }


def _doubts(fingerprint: Fingerprint) -> tuple[str, ...]:
    if not fingerprint.is_disputed:
        return ()
    return (
        f"{_dispute(fingerprint)}: each scan is scaled between its percentiles, which suits both; if all are CT, set "
        "data.normalize (scale: window, window_hu) in a preset.",
    )


def _dispute(fingerprint: Fingerprint) -> str:
    return f"dataset.json calls the scans {fingerprint.modality_claim}, but {fingerprint.modality_evidence}"


def _normalize(fingerprint: Fingerprint) -> dict[str, Planned]:
    """CT: a fixed window, that of the labeled structures. Anything else, and in doubt: percentiles of each volume."""
    if fingerprint.modality != "CT" or fingerprint.is_disputed:
        kind = "not CT" if fingerprint.modality == "MR" else "CT and others mixed, and percentiles suit both"
        reason = f"{kind}: {fingerprint.modality_evidence}"
        if fingerprint.is_disputed:
            reason = f"{_dispute(fingerprint)}, and percentiles suit both"
        return {
            "percentiles": Planned([0.5, 99.5], reason),
            "scale": Planned("volume", "intensities have no unit, so each scan has a scale of its own"),
        }
    scale = Planned("window", "Hounsfield units mean the same in every scan")
    foreground = fingerprint.foreground
    if foreground is None:
        window, reason = list(SOFT_TISSUE_HU), f"soft tissue, for want of labels; CT: {fingerprint.modality_evidence}"
        return {"window_hu": Planned(window, reason), "scale": scale}
    reason = (
        f"percentiles 0.5 and 99.5 of the labeled structures are {foreground.low:.0f} and {foreground.high:.0f} HU; "
        f"kept in {_SANE_HU[0]}..{_SANE_HU[1]} and at least {_NARROWEST_HU} wide; CT: {fingerprint.modality_evidence}"
    )
    return {"window_hu": Planned(_window(foreground.low, foreground.high), reason), "scale": scale}


def _window(low: float, high: float) -> list[float]:
    """A window in sane HU that holds both and is wide enough."""
    lowest, highest = _SANE_HU
    low, high = min(max(low, lowest), highest), min(max(high, lowest), highest)
    lacking = max(0.0, _NARROWEST_HU - (high - low))
    low = min(max(low - lacking / 2, lowest), highest - _NARROWEST_HU)
    high = max(high + lacking / 2, low + _NARROWEST_HU)
    return [
        float(math.floor(low / _ROUND_TO_HU) * _ROUND_TO_HU),
        float(min(math.ceil(high / _ROUND_TO_HU) * _ROUND_TO_HU, highest)),
    ]


def _in_plane_spacing(fingerprint: Fingerprint) -> tuple[Planned | None, str]:
    """The pixel size to resample to, or none; and what was found, as a sentence."""
    spacing = fingerprint.spacing_mm
    median = spacing.median[1:]
    factor = max(most / least for most, least in zip(spacing.most[1:], spacing.least[1:], strict=True))
    largest_side = max(fingerprint.size.median[1:])
    too_large = max(1.0, largest_side / _LARGEST_SIDE)
    found = f"In-plane spacings differ by a factor of {factor:.3g} between scans"
    if factor <= _SPACINGS_DIFFER and too_large == 1:
        return None, f"{found}, at most {_SPACINGS_DIFFER:g}: the slices keep the scans' own pixels."
    target = [float(f"{mm * too_large:.4g}") for mm in median]
    reasons = []
    if factor > _SPACINGS_DIFFER:
        reasons.append(f"the median, since spacings differ by a factor of {factor:.3g} (> {_SPACINGS_DIFFER:g})")
    if too_large > 1:
        reasons.append(f"coarse enough that a slice of {largest_side:.0f} pixels becomes one of {_LARGEST_SIDE}")
    note = f"{found}: slices are resampled in plane, and prediction undoes it."
    return Planned(target, "in plane (H, W): " + ", and ".join(reasons)), note


def _crop(fingerprint: Fingerprint, spacing_mm: Planned | None) -> Planned:
    sizes = [_size_on_grid(scan, None if spacing_mm is None else spacing_mm.value) for scan in fingerprint.scans]
    largest = [max(sides) for sides in zip(*sizes, strict=True)]
    crop = [min(_LARGEST_SIDE, -(-side // _CROP_STEP) * _CROP_STEP) for side in largest]
    height, width = largest
    return Planned(
        crop,
        f"holds slices of up to {height} x {width} pixels: the next multiple of {_CROP_STEP}, at most {_LARGEST_SIDE}",
    )


def _size_on_grid(scan: ScanFacts, spacing_mm: Sequence[float] | None) -> tuple[int, int]:
    if spacing_mm is None:
        return scan.size[1], scan.size[2]
    height, width = (
        max(1, round(n * own / wanted))
        for n, own, wanted in zip(scan.size[1:], scan.spacing_mm[1:], spacing_mm, strict=True)
    )
    return height, width


def _encoder(n_labeled_slices: int, memory_bytes: int) -> Planned:
    for encoder, (slices, memory) in _LARGER_ENCODERS.items():
        if n_labeled_slices >= slices and memory_bytes >= memory:
            return Planned(
                encoder, f"{n_labeled_slices} labeled slices (>= {slices}) and {_gib(memory_bytes)} of memory"
            )
    slices, memory = _LARGER_ENCODERS["mit-b1"]
    return Planned(
        "mit-b0",
        f"the smallest, for {n_labeled_slices} labeled slices and {_gib(memory_bytes)} of memory; mit-b1 from "
        f"{slices} slices and {_gib(memory)}",
    )


def _pairs(crop: Sequence[int], encoder: str, memory_bytes: int) -> Planned:
    bytes_per_pair = _BYTES_PER_PIXEL[encoder] * crop[0] * crop[1]
    fitting = int(_MEMORY_SHARE * memory_bytes // bytes_per_pair)
    pairs = min(_MOST_PAIRS, max(1, fitting))
    return Planned(
        pairs,
        f"labeled + unlabeled slices a step: as many as half of {_gib(memory_bytes)} of memory holds (a smaller "
        f"GPU: fewer), at most {_MOST_PAIRS} as published",
    )


def _steps(n_unlabeled_slices: int, pairs: int) -> Planned:
    fewest, most = _STEPS
    wanted = _PASSES * n_unlabeled_slices / pairs
    passes = f"{_PASSES} passes over {n_unlabeled_slices} unlabeled slices"
    steps = math.ceil(wanted / _VALIDATE_EVERY) * _VALIDATE_EVERY
    if steps < fewest:
        return Planned(fewest, f"at least {fewest}; {passes} would be {math.ceil(wanted)}")
    if steps > most:
        return Planned(most, f"at most {most}; {passes} would be {math.ceil(wanted)}")
    return Planned(steps, f"{passes}, in whole {_VALIDATE_EVERY}s")


def _class_weights(n_classes: int) -> Planned:
    if n_classes > 1:
        return Planned(True, f"by learning difficulty, among {n_classes} structures")
    return Planned(False, "with one structure they make it too large (measured, laseg-5-cpu)")


def _ml(volume_ml: float) -> str:
    return f"{volume_ml:.0f} ml" if volume_ml >= 100 else f"{volume_ml:.3g} ml"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.3g} GiB"


def _tree(sections: dict[str, dict[str, Planned]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for section, values in sections.items():
        for dotted, planned in values.items():
            node = tree
            *parents, key = [part for part in (section, *dotted.split(".")) if part]
            for parent in parents:
                node = node.setdefault(parent, {})
            node[key] = planned.value
    return tree
