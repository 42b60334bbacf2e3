"""`sdm presets`: what ships with the program, and what a preset comes to once resolved."""

import re
from typing import TYPE_CHECKING, Any

from sdm_cli.config import Preset
from sdm_cli.console import print_result, print_table
from sdm_cli.preset_files import load_preset, preset_chain, preset_to_dict
from sdm_cli.resources import preset_names
from sdm_cli.runs.preset_text import resolved_text

if TYPE_CHECKING:
    from rich.table import Table

_SCENARIOS = {
    "SSMIS": "few labels, one set",
    "UMDA": "labels of one modality, tested on another",
    "Semi-MDG": "several vendors, tested on one that training never sees",
}


def list_presets() -> None:
    """Print the shipped presets by scenario, with the scores published for them."""
    presets = [load_preset(name) for name in sorted(preset_names(), key=_natural_order)]
    for scenario in _SCENARIOS:
        print_table(_table(scenario, [preset for preset in presets if preset.scenario == scenario]))
    print_result("Scores are those published, in percent and voxels. sdm presets NAME shows all fields of a preset.")


def show_preset(name_or_path: str) -> None:
    """Print a preset with every field filled in and explained, as YAML that `--preset FILE` reads back.

    Raises:
        PresetError: when there is no such preset, or it has mistakes.
    """
    tree = preset_to_dict(load_preset(name_or_path))
    print_result(resolved_text(preset_chain(name_or_path), tree))


def _table(scenario: str, presets: list[Preset]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{scenario}: {_SCENARIOS[scenario]}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("Preset", no_wrap=True)
    table.add_column("Protocol", no_wrap=True)
    metrics = list(dict.fromkeys(metric for preset in presets for metric in preset.published))
    for metric in metrics:
        table.add_column(metric.replace("_", "\n"), justify="right", vertical="bottom")
    table.add_column("What it trains on")
    for preset in presets:
        scores = [f"{preset.published[metric]:.2f}" if metric in preset.published else "-" for metric in metrics]
        table.add_row(preset.name, preset.protocol, *scores, preset.description)
    return table


def _natural_order(name: str) -> list[Any]:
    """laseg-5 before laseg-10: numbers by value (odd places of the list), text by letters."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
