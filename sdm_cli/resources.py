"""The data files that ship with the program: presets and splits, wherever it is installed."""

from importlib.resources import files


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return _names("sdm_cli.presets")


def preset_text(name: str) -> str:
    """YAML text of a shipped preset; FileNotFoundError when there is none of that name."""
    return (files("sdm_cli.presets") / f"{name}.yaml").read_text(encoding="utf-8")


def split_names() -> list[str]:
    """Names of the shipped splits, sorted."""
    return _names("sdm_cli.splits")


def split_text(name: str) -> str:
    """YAML text of a shipped split; FileNotFoundError when there is none of that name."""
    return (files("sdm_cli.splits") / f"{name}.yaml").read_text(encoding="utf-8")


def _names(package: str) -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(package).iterdir() if entry.name.endswith(".yaml")
    )
