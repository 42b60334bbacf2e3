"""Which classes a folder has that comes without a preset: from its `dataset.json`, else from its label values.

Knows `dataset.json`; what becomes of the classes is the plan's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdm_cli.data_config import IGNORE
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import ImageReadError, reason_of

_NUMBER = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class FoundClasses:
    """Classes of a folder.

    Attributes:
        values: foreground class name -> label value, by rising value.
        ignore_value: label value that no loss and no metric counts.
        evidence: where they come from, as a phrase.
    """

    values: dict[str, int]
    ignore_value: int | None
    evidence: str


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """The `dataset.json` of a folder (nnU-Net's or MSD's); empty where there is none.

    Raises:
        ImageReadError: it cannot be read, or is no JSON object.
    """
    path = folder / "dataset.json"
    try:
        tree = parse_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ImageReadError(f"{path} cannot be read ({reason_of(error)}): repair it, or move it away.") from None
    if not isinstance(tree, dict):
        raise ImageReadError(f"{path} is not a JSON object: repair it, or move it away.")
    return tree


def claimed_modality(dataset: Mapping[str, Any]) -> str | None:
    """What `dataset.json` calls the scans, where it does."""
    channels = dataset.get("channel_names") or dataset.get("modality")
    return str(next(iter(channels.values()))) if isinstance(channels, dict) and channels else None


def find_classes(dataset: Mapping[str, Any], values: Iterable[int]) -> FoundClasses:
    """Classes of `dataset.json`, else one for each value.

    Args:
        dataset: what `dataset.json` says.
        values: that occur in the label files.

    Raises:
        ImageReadError: `dataset.json` has regions of several labels, or the label files hold no classes.
    """
    labels = dataset.get("labels")
    if isinstance(labels, dict) and labels:
        named = _named_values(labels)
        ignore_value = named.pop("ignore", None)
        classes = {name: value for name, value in sorted(named.items(), key=lambda item: item[1]) if value != 0}
        return FoundClasses(classes, ignore_value, f"named by dataset.json{_ignoring(ignore_value)}")
    found = sorted(set(values) - {0})
    if not found:
        return FoundClasses({}, None, "none, since no label file with a structure was found")
    # 255 beside other values is the usual mark of voxels to leave out; alone it is a mask.
    others = [value for value in found if value != IGNORE]
    ignore_value = IGNORE if others and len(others) < len(found) else None
    used = others if ignore_value else found
    unusable = [value for value in used if not 0 < value <= 65535]
    if unusable or len(used) > 254:
        example = unusable[0] if unusable else f"{len(used)} different values"
        raise ImageReadError(
            f"The label files do not look like classes ({example}): check that they are label maps, or name a preset."
        )
    classes = {f"class_{value}": value for value in used}
    return FoundClasses(classes, ignore_value, f"one a value of the label files{_ignoring(ignore_value)}; name them")


def _named_values(labels: dict[str, Any]) -> dict[str, int]:
    """Name -> value; nnU-Net v1 and MSD write it the other way round."""
    pairs = {}
    for key, value in labels.items():
        name, number = (str(value), key) if _NUMBER.fullmatch(key) and isinstance(value, str) else (key, value)
        if not _NUMBER.fullmatch(str(number)):
            raise ImageReadError(
                f"dataset.json gives label {name!r} the value {number!r}: one whole number a class is supported; name "
                "a preset with data.classes."
            )
        pairs[name] = int(number)
    return pairs


def _ignoring(value: int | None) -> str:
    return "" if value is None else f" ({value} is left out of losses and scores)"
