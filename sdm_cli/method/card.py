"""What a model says of itself to programs and to people: the preprocessing and the model card."""

from pathlib import Path
from typing import Any

from sdm_cli import __version__
from sdm_cli.config import STRIDE, Preset
from sdm_cli.documents import parse_json
from sdm_cli.errors import CheckpointError, NewerVersion, PresetError
from sdm_cli.files import json_text
from sdm_cli.preset_files import preset_from_dict, preset_to_dict

FORMAT = "sdm-model"
VERSION = 1


def preprocessing(preset: Preset) -> dict[str, Any]:
    """All that turns a scan into the network's input and its output into a mask, as JSON types."""
    tree = preset_to_dict(preset)
    data = tree["data"]
    return {
        "orientation": "stored" if data["slice_axis"] == "stored" else "RAS",
        "slice_axis": data["slice_axis"],
        "frame": data["frame"],
        "spacing_mm": data["spacing_mm"],
        "normalize": data["normalize"],
        "input": "float32 in [0, 1], quantised to 16 bit, one channel",
        # At the end of each side: zeros up to the crop first, then its border, repeated.
        "pad_end": {"zeros_to_height_width": list(preset.train.crop), "border_to_multiple": STRIDE},
        "background_value": 0,
        "label_values": data["classes"],
        **tree["predict"],
    }


def metadata(preset: Preset, weights_sha256: str) -> dict[str, str]:
    """Everything a program needs that meets an exported file alone; strings, JSON where structured."""
    facts = preprocessing(preset)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "sdm_version": __version__,
        "weights_sha256": weights_sha256,
        "preset": json_text(preset_to_dict(preset), indent=None),
        **{key: value if isinstance(value, str) else json_text(value, indent=None) for key, value in facts.items()},
    }


def preset_of(metadata: Any, path: Path) -> Preset:
    """The preset of what `metadata` gave, as it was read from a file.

    Raises:
        CheckpointError: damaged, of a newer version, or not made by `sdm export`.
    """
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file of `sdm export`; export the model with it.")
    try:
        version: Any = parse_json(metadata.get("version", "null"))
        tree: Any = parse_json(metadata.get("preset", "null"))
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: its metadata is damaged; export the model again.") from None
    check_version(version, str(path))
    try:
        return preset_from_dict(tree if isinstance(tree, dict) else {}, str(path))
    except PresetError as error:
        raise CheckpointError(str(error)) from None


def model_card(preset: Preset, chosen_on: str | None) -> str:
    """README of a model folder, in Markdown with the hub's header."""
    data, model = preset.data, preset.model
    rows = "\n".join(f"| {index} | {name} | {value} |" for index, (name, value) in enumerate(data.classes.items(), 1))
    slices = (
        "as stored, nothing turned" if data.slice_axis == "stored" else f"{data.slice_axis}, after orientation to RAS+"
    )
    return f"""---
library_name: sdm
pipeline_tag: image-segmentation
tags: [medical-imaging, semi-supervised, segmentation]
---
# {preset.name}

{preset.description or "Segmentation model trained from few labels (S&D Messenger, arXiv 2407.07763)."}

| class | structure | label value |
|---|---|---|
{rows}

- Network: encoder {model.encoder}, messenger on stages {list(model.messenger_stages)}, head width {model.head_width}.
- Scenario: {preset.scenario}.
- Protocol: `{preset.protocol}`; {choice(chosen_on)}; {data.label_use}.
- Slices: {slices}; intensities as in `preprocessor_config.json`.
{_averages(preset)}{_parts(preset)}- For research; not a medical device.

Predict with `sdm predict -i SCANS -o MASKS --model THIS_FOLDER`.

## Licence

{licence_note(model.pretrained)}
"""


def check_version(version: object, origin: str) -> None:
    """Refuse a model of a newer program; raises CheckpointError."""
    if not isinstance(version, int):
        raise CheckpointError(f"{origin}: the model does not state its version; take an intact copy.")
    if version > VERSION:
        raise NewerVersion(
            f"{origin}: made by a newer sdm (model version {version}, this one reads up to {VERSION}); upgrade sdm."
        )


def _averages(preset: Preset) -> str:
    if not preset.predict.smooth_mm:
        return ""
    return (
        "- Probabilities are averaged over neighbouring slices: a Gaussian with a standard deviation of "
        f"{preset.predict.smooth_mm:g} mm.\n"
    )


def _parts(preset: Preset) -> str:
    if not preset.predict.largest_part:
        return ""
    kept = f"- Only the largest part is kept of {', '.join(preset.predict.largest_part)}"
    bridge = preset.predict.bridge_mm
    return f"{kept}; a bridge of up to {bridge:g} mm is cut.\n" if bridge else f"{kept}.\n"


def choice(chosen_on: str | None) -> str:
    """In words, what chose the weights."""
    if chosen_on is None:
        return "what chose the checkpoint is not known"
    return "checkpoint of the last step" if chosen_on == "last step" else f"checkpoint chosen on the {chosen_on} cases"


def licence_note(pretrained: str) -> str:
    """Whose licence the weights of a model fall under, by what they started from."""
    if pretrained == "none":
        return "The encoder started from random weights; the model carries no licence of others' weights."
    return (
        f"The encoder started from `{pretrained}`. NVIDIA's MiT weights are licensed for non-commercial use, "
        "and a model trained from them falls under their licence."
    )
