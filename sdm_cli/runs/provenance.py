"""What stands beside a number: which cases chose the weights, what labels were touched, on which grid, which split."""

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from sdm_cli import __version__
from sdm_cli.config import Preset
from sdm_cli.data.splits import Split
from sdm_cli.files import json_text


def protocol_facts(preset: Preset, role: str, chosen_on: str | None) -> dict[str, Any]:
    """The protocol of an evaluation, as JSON types.

    Args:
        preset: of the model.
        role: of the cases that are scored.
        chosen_on: what chose the weights; none: not known.
    """
    return {
        "name": preset.protocol,
        "preset": preset.name,
        "checkpoint_chosen_on": chosen_on,
        "reported_cases_chose_checkpoint": None if chosen_on is None else chosen_on == role,
        "preprocessing": preset.data.label_use,
        "grid": "the slices that the network sees"
        if preset.protocol == "paper"
        else "whole volumes, in the scans' own voxels",
    }


def split_identity(name: str | None, split: Split, role: str) -> dict[str, Any]:
    """Name, and a hash by which two results can be told to share a split."""
    return {"name": name or "by label", "role": role, "hash": split_hash(split)}


def split_hash(split: Split) -> str:
    """A hash of all four lists in their order."""
    lists = json_text(dict(sorted(asdict(split).items())), indent=None)
    return hashlib.sha256(lists.encode()).hexdigest()[:12]


def program_versions() -> dict[str, str]:
    """Versions of the program and of what its numbers depend on."""
    packages = {name: version(name) for name in ("torch", "numpy", "accelerate")}
    return {"sdm": __version__, "python": platform.python_version(), **packages}
