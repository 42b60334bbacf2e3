"""M&Ms."""

from pathlib import Path

from sdm_cli.data.cases import Case


def find(folder: Path) -> list[Case]:
    """Cases of the layout; empty where the folder is of another."""
    return [] if folder else []
