"""A model as a MONAI bundle: its network, and its preprocessing in the words of MONAI, which run without this program.

A bundle is `configs/metadata.json`, `configs/inference.json`, `models/model.pt2`, `docs/README.md` and `LICENSE`;
`python -m monai.bundle run --config_file configs/inference.json` in it predicts the scans of its folder `scans`. MONAI
itself is not needed to write one.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdm_cli import __version__
from sdm_cli.config import STRIDE, Preset
from sdm_cli.data_config import GridConfig
from sdm_cli.errors import OutputError, PresetError, reason_of
from sdm_cli.files import json_text
from sdm_cli.method.card import choice, licence_note
from sdm_cli.runs.onnx_model import INPUT
from sdm_cli.runs.torch_program import save_program

_MONAI = "1.6.1"  # what the tests run
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_NETWORK = "models/model.pt2"
_SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2, "stored": 2}


def require_expressible(preset: Preset) -> None:
    """Raise PresetError if the preprocessing of a preset has no equal among MONAI's transforms."""
    data = preset.data
    reasons = {
        "data.grid crops or resamples slices": data.grid != GridConfig(),
        "data.normalize_by_domain scales by domain": bool(data.normalize_by_domain),
        "data.frame takes a frame of a 4D file": data.frame is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise PresetError(
                f"{preset.name}: no MONAI transform does the same ({reason}): export the model as onnx or torch."
            )


def require_bundle(output: Path) -> None:
    """Raise OutputError for a place that holds anything but a bundle, which may be replaced."""
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output / "configs" / "metadata.json").is_file():
        raise OutputError(f"{output} exists and is no bundle; give another output path.")


def save_bundle(
    program: torch.export.ExportedProgram,
    preset: Preset,
    facts: dict[str, str],
    chosen_on: str | None,
    output: Path,
) -> None:
    """Write a bundle, replacing one that is there.

    Args:
        program: of `trace`.
        preset: one that `require_expressible` takes.
        facts: metadata of the program.
        chosen_on: what chose the weights, as the model folder has it.
        output: folder of the bundle, as `require_bundle` takes it.

    Raises:
        OutputError: the folder cannot be written.
    """
    temporary = output.absolute().with_name(f".{output.name}.partial")
    texts = {
        "configs/metadata.json": json_text(_metadata(preset)),
        "configs/inference.json": json_text(_inference(preset)),
        "docs/README.md": _readme(preset, chosen_on),
        "LICENSE": licence_note(preset.model.pretrained),
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for name, text in texts.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(text + "\n", encoding="utf-8")
        (temporary / _NETWORK).parent.mkdir()
        save_program(program, facts, temporary / _NETWORK)
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    except OSError as error:
        raise OutputError(
            f"{output}: the bundle cannot be written ({reason_of(error)}); free space or give another path."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _metadata(preset: Preset) -> dict[str, Any]:
    names = ["background", *preset.data.class_names]
    packages = {"nibabel": "5.3.0", "pytorch-ignite": "0.5.0"}
    if preset.predict.largest_part:
        packages["scikit-image"] = "0.24.0"
    image = {"is_patch_data": False, "dtype": "float32", "spatial_shape": [f"{STRIDE}*n", f"{STRIDE}*n"]}
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"written by sdm {__version__}"},
        "monai_version": _MONAI,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": packages,
        "name": preset.name,
        "task": "segmentation of slices of a scan",
        "description": preset.description or "Segmentation model trained from few labels.",
        "authors": "who trained the model",
        "copyright": licence_note(preset.model.pretrained),
        "network_data_format": {
            "inputs": {
                INPUT: {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "any",
                    "num_channels": 1,
                    "value_range": [0, 1],
                    "channel_def": {"0": "image"},
                    **image,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [],
                    "channel_def": {str(index): name for index, name in enumerate(names)},
                    **image,
                }
            },
        },
    }


def _inference(preset: Preset) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "program": f"$torch.export.load(@bundle_root + '/{_NETWORK}').module(check_guards=False)",
        # The module of a program cannot be told to evaluate, which is all that it does; one of its graph can.
        "network_def": "$torch.fx.GraphModule(@program, @program.graph)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(preset)},
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SliceInferer",
            "roi_size": [-1, -1],
            "sw_batch_size": 4,
            "spatial_dim": _SLICE_AXES[preset.data.slice_axis],
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(preset)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(preset: Preset) -> list[dict[str, Any]]:
    data = preset.data
    crop, stride = list(preset.train.crop), [STRIDE, STRIDE]
    for sides in crop, stride:
        sides.insert(_SLICE_AXES[data.slice_axis], 1)  # which pads nothing
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": "no_channel"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "_disabled_": data.slice_axis == "stored"},
        {"_target_": "Lambdad", "keys": "image", "func": _normalisation(preset)},
        # As `likelihood.padded` does.
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": crop, "method": "end"},
        {"_target_": "DivisiblePadd", "keys": "image", "k": stride, "method": "end", "mode": "edge"},
    ]


def _normalisation(preset: Preset) -> str:
    """`normalize_slices` as one expression of a (1, X, Y, Z) image."""
    rule = preset.data.normalize
    axes: tuple[int, ...] = (1, 2, 3)
    if rule.scale == "slice":
        axes = tuple(axis for axis in axes if axis != 1 + _SLICE_AXES[preset.data.slice_axis])
    limits = f"numpy.percentile(x.numpy(), {list(rule.percentiles or (0, 100))}, axis={axes}, keepdims=True)"
    if rule.scale == "window" and rule.window_hu is not None:
        limits = f"numpy.array({list(rule.window_hu)})"
    elif rule.percentiles is None and rule.window_hu is not None:
        limits = f"numpy.clip({limits}, {rule.window_hu[0]}, {rule.window_hu[1]})"
    scaled = "(((x.double() - low) / (high - low)).clamp(0, 1) * 65535).round() / 65535"
    return f"$lambda x: (lambda low, high: torch.where(high > low, {scaled}, 0.0).float())(*torch.as_tensor({limits}))"


def _postprocessing(preset: Preset) -> list[dict[str, Any]]:
    data = preset.data
    largest = [1 + data.class_names.index(name) for name in preset.predict.largest_part]
    values = [0, *data.classes.values()]
    dtype = "uint8" if max(values) < 256 else "uint16"
    return [
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "device": "cpu"},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "KeepLargestConnectedComponentd",
            "keys": "pred",
            "applied_labels": largest,
            "is_onehot": False,
            "_disabled_": not largest,
        },
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(values))),
            "target_labels": values,
            "dtype": f"$numpy.{dtype}",
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_dtype": f"$numpy.{dtype}",
            "separate_folder": False,
            "resample": False,
        },
    ]


def _readme(preset: Preset, chosen_on: str | None) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in preset.data.classes.items())
    rules, missing = preset.predict, []
    if rules.smooth_mm:
        missing.append(f"averages probabilities over neighbouring slices ({rules.smooth_mm:g} mm)")
    if rules.largest_part and rules.bridge_mm:
        missing.append(f"cuts bridges of up to {rules.bridge_mm:g} mm before it keeps the largest part")
    note = f"- `sdm predict` also {' and '.join(missing)}; this bundle does not.\n" if missing else ""
    return f"""# {preset.name}

{preset.description or "Segmentation model trained from few labels."}

| structure | label value |
|---|---|
{rows}

Put scans (`.nii`, `.nii.gz`) into `scans` and run, in this folder,

```
python -m monai.bundle run --config_file configs/inference.json
```

The masks go to `masks`, on the scans' own grids. Another place: `--dataset_dir FOLDER --output_dir FOLDER`.

- The network is a `torch.export` program. Opening one can run code, as opening any bundle does: take bundles from
  people you trust.
- Protocol: `{preset.protocol}`; {choice(chosen_on)}.
{note}- For research; not a medical device."""
