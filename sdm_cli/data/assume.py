"""What can be told of a folder that comes without a preset: classes and normalisation.

Every guess is also said in words, so that a person can correct it in a preset of their own.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdm_cli.config import IGNORE, DataConfig, NormalizeConfig
from sdm_cli.data.cases import Case
from sdm_cli.data.readers import label_values, read_image
from sdm_cli.errors import ImageReadError
from sdm_cli.preset_files import data_config_from_dict

_CT_BELOW_HU = -500  # air; no other modality stores intensities like it
_CT_SAMPLE = 3


def assume_data(folder: Path, cases: Sequence[Case]) -> tuple[DataConfig, list[str]]:
    """Settings for a folder without a preset, and each assumption as a phrase.

    Classes come from `dataset.json`, else from the values of the label files; CT is recognised by
    `dataset.json` or by air in one of the first scans.

    Raises:
        ImageReadError: `dataset.json` cannot be read or has regions of several labels.
    """
    dataset = _read_dataset_json(folder / "dataset.json")
    classes, ignore_value, why_classes = _assume_classes(dataset, cases)
    normalize, why_normalize = _assume_normalize(dataset, cases)
    settings = {"classes": classes, "ignore_value": ignore_value, "normalize": normalize}
    data = data_config_from_dict(settings, str(folder))
    return data, [why_classes, why_normalize]


def _read_dataset_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ImageReadError(f"{path} cannot be read ({error}): repair it, or name a preset.") from None
    if not isinstance(tree, dict):
        raise ImageReadError(f"{path} is not a JSON object: repair it, or name a preset.")
    return tree


def _assume_classes(dataset: dict[str, Any], cases: Sequence[Case]) -> tuple[dict[str, int], int | None, str]:
    labels = dataset.get("labels")
    if isinstance(labels, dict) and labels:
        values = _named_values(labels)
        ignore_value = values.pop("ignore", None)
        classes = {name: value for name, value in sorted(values.items(), key=lambda item: item[1]) if value != 0}
        text = ", ".join(f"{name} {value}" for name, value in classes.items())
        return classes, ignore_value, f"classes from dataset.json: {text}{_ignoring(ignore_value)}"
    found = sorted(label_values(cases))
    if not found:
        return {}, None, "no classes, since no label file with a structure was found"
    # 255 above consecutive classes is the usual mark of voxels to leave out; alone it is a mask.
    others = [value for value in found if value != IGNORE]
    ignore_value = IGNORE if others and len(others) < len(found) and others == list(range(1, len(found))) else None
    values_used = others if ignore_value else found
    unusable = [value for value in values_used if not 0 < value <= 65535]
    if unusable or len(values_used) > 254:
        example = unusable[0] if unusable else f"{len(values_used)} different values"
        raise ImageReadError(
            f"The label files do not look like classes ({example}): check that they are label maps, or name a preset."
        )
    classes = {f"class_{value}": value for value in values_used}
    text = ", ".join(map(str, values_used))
    return classes, ignore_value, f"classes from the label values found: {text}{_ignoring(ignore_value)}"


def _named_values(labels: dict[str, Any]) -> dict[str, int]:
    """Name -> value; nnU-Net v1 and MSD write it the other way round."""
    pairs = {}
    for key, value in labels.items():
        name, number = (str(value), key) if re.fullmatch(r"\d+", key) and isinstance(value, str) else (key, value)
        if not re.fullmatch(r"\d+", str(number)):
            raise ImageReadError(
                f"dataset.json gives label {name!r} the value {number!r}: one whole number a class is supported; name "
                "a preset with data.classes."
            )
        pairs[name] = int(number)
    return pairs


def _ignoring(value: int | None) -> str:
    return "" if value is None else f" ({value} is left out of losses and scores)"


def _assume_normalize(dataset: dict[str, Any], cases: Sequence[Case]) -> tuple[NormalizeConfig, str]:
    channels = dataset.get("channel_names") or dataset.get("modality")
    if isinstance(channels, dict) and channels:
        channel = str(next(iter(channels.values())))
        is_ct, why = channel.upper() == "CT", f"dataset.json calls the scans {channel}"
    else:
        is_ct = _has_air(cases)
        why = f"intensities {'fall' if is_ct else 'do not fall'} below {_CT_BELOW_HU}"
    if is_ct:
        return NormalizeConfig(window_hu=(-160, 240), scale="window"), f"CT, windowed to -160..240 HU ({why})"
    return (
        NormalizeConfig(percentiles=(0.5, 99.5), scale="volume"),
        f"not CT, scaled between the percentiles 0.5 and 99.5 of each volume ({why})",
    )


def _has_air(cases: Sequence[Case]) -> bool:
    n_read = 0
    for case in cases:
        try:
            lowest = np.min(read_image(case, DataConfig(frame=0)).voxels)
        except ImageReadError:
            continue  # its own case says why when it is read
        n_read += 1
        if lowest < _CT_BELOW_HU:
            return True
        if n_read == _CT_SAMPLE:
            break
    return False
