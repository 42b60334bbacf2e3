"""`sdm presets`: what ships with the program, and what a preset comes to once resolved."""

import re
from typing import Any

import yaml

from sdm_cli.console import print_result, print_table
from sdm_cli.preset_files import load_preset, preset_to_dict
from sdm_cli.resources import preset_names

_SCENARIOS = ("SSMIS", "UMDA", "Semi-MDG")


def list_presets() -> None:
    """Print the shipped presets by scenario, with the scores published for them."""
    from rich.table import Table

    presets = [load_preset(name) for name in sorted(preset_names(), key=_natural_order)]
    metrics = list(dict.fromkeys(metric for preset in presets for metric in preset.published))
    table = Table(title="Shipped presets and the scores published for them", title_justify="left")
    for heading in ("Scenario", "Preset", "Protocol"):
        table.add_column(heading, no_wrap=True)
    for metric in metrics:
        table.add_column(metric.replace("_", "\n"), justify="right", vertical="bottom")
    table.add_column("What it trains")
    for scenario in _SCENARIOS:
        for preset in (preset for preset in presets if preset.scenario == scenario):
            scores = [f"{preset.published[metric]:.2f}" if metric in preset.published else "-" for metric in metrics]
            table.add_row(scenario, preset.name, preset.protocol, *scores, preset.description)
        table.add_section()
    print_table(table)


def show_preset(name_or_path: str) -> None:
    """Print a preset with every field filled in, as YAML that `--preset FILE` reads back.

    Raises:
        PresetError: when there is no such preset, or it has mistakes.
    """
    tree = preset_to_dict(load_preset(name_or_path))
    print_result(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).rstrip())


def _natural_order(name: str) -> list[Any]:
    """laseg-5 before laseg-10: numbers by value (odd places of the list), text by letters."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, sections below one another."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(list, _represent_list)
