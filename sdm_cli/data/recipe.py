"""The recipe of a store that was made without a preset: `preset.yaml`, with its reasons, and `fingerprint.json`.

Both are written before the store's manifest, so that a store without a preset always has its recipe, whenever the
work is stopped; a recipe that is there is kept, since a person may have corrected it. Only a store that starts anew
gets another one: planned anew, or the preset that it starts with.
"""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sdm_cli.config import Preset
from sdm_cli.console import say, warn
from sdm_cli.data.cases import Case, some
from sdm_cli.data.fingerprint import Fingerprint
from sdm_cli.data.manifest import is_store, read_manifest, require_own
from sdm_cli.data.plan import Plan, Planned
from sdm_cli.documents import parse_json, read_text
from sdm_cli.errors import PresetError
from sdm_cli.files import write_json, write_text
from sdm_cli.preset_files import differing, load_preset, preset_to_dict

RECIPE = "preset.yaml"
FINGERPRINT = "fingerprint.json"

_LONGEST_LINE = 110
_WORDS = dict.fromkeys(("name", "description", "source"))  # that change no training
_ADVICE = (
    "Change what you know better. A change of data needs the slices made anew (sdm preprocess --preset THIS_FILE "
    "--overwrite); everything else is for sdm train --store, which reads this file."
)


def write_recipe(store: Path, fingerprint: Fingerprint, plan: Plan) -> None:
    """Write both files, the fingerprint first, and say what was found; raises OutputError."""
    write_json(store / FINGERPRINT, fingerprint.to_tree())
    write_text(store / RECIPE, recipe_text(plan))
    for note in plan.notes:
        (warn if note in plan.doubts else say)(note)
    say(f"The recipe, with a reason for each value: {store / RECIPE}")


def replace_recipe(store: Path, preset: Preset) -> None:
    """Make a preset the recipe of a store that has one and starts anew; a recipe that says the same stays as it is.

    Raises:
        OutputError: it cannot be written.
    """
    recipe = store / RECIPE
    if not recipe.is_file():
        return
    with suppress(PresetError):
        if load_preset(str(recipe)) == preset:
            return
    text = yaml.safe_dump(preset_to_dict(preset), sort_keys=False, allow_unicode=True)
    write_text(recipe, f"# The preset that this store was made anew with.\n{text}")
    if is_store(store):  # without a manifest it shows that this folder is ours
        (store / FINGERPRINT).unlink(missing_ok=True)
    say(f"{recipe} is preset {preset.name} now.")


def say_kept_recipe(store: Path, preset: Preset) -> None:
    """Say where a store that goes on keeps a recipe that trains otherwise than the preset it is given.

    Raises:
        PresetError: the recipe cannot be read.
    """
    if not (store / RECIPE).is_file():
        return
    ours, theirs = ({**preset_to_dict(each), **_WORDS} for each in (load_recipe(store), preset))
    if others := [f"{key} is {kept}, not {given}" for key, kept, given in differing(ours, theirs)]:
        say(
            f"{store} keeps its recipe ({some(others)}): --overwrite makes this preset its recipe, and the slices "
            f"anew; sdm train --store {store} takes this preset for one run with --preset."
        )


def load_recipe(store: Path, overrides: Sequence[str] = ()) -> Preset:
    """The recipe of a store that was made without a preset, with `--set` values applied.

    Raises:
        StoreError: there is no store, or the recipe is a link out of it.
        PresetError: the store has no recipe of its own, or it cannot be read.
    """
    path = store / RECIPE
    require_own(path, store)
    if not path.is_file():
        read_manifest(store)
        raise PresetError(f"{store} has no {RECIPE}, since it was made with a preset: name that one with --preset.")
    return load_preset(str(path), overrides)


def is_unfinished_recipe(folder: Path) -> bool:
    """Whether a folder holds no more than the beginning of a recipe: the work was stopped before its manifest."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names in (set(), {FINGERPRINT}, {FINGERPRINT, RECIPE})


def new_since_recipe(store: Path, cases: Sequence[Case]) -> list[str]:
    """Ids of the cases that the fingerprint of the store has not seen; none where there is no fingerprint."""
    try:
        tree = parse_json(read_text(store / FINGERPRINT))
        seen = {scan["case_id"] for scan in tree["scans"]} | set(tree["unusable"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sorted({case.case_id for case in cases} - seen)


def recipe_text(plan: Plan) -> str:
    """The recipe as YAML, each value with its reason; `load_preset` reads the plan's preset back."""
    lines = ["# Planned by sdm preprocess, which was given no preset. What it found:"]
    for note in plan.notes:
        lines += _comment(f"- {note}", "", "  ")
    lines += _comment(_ADVICE, "")
    for section, values in plan.sections.items():
        if section:
            lines += ["", f"{section}:"]
        lines += _section_lines(values, "  " if section else "")
    return "\n".join(lines) + "\n"


def _section_lines(values: Mapping[str, Planned], indent: str) -> list[str]:
    lines: list[str] = []
    open_group = ""
    for dotted, planned in values.items():
        group, _, key = dotted.rpartition(".")
        if group and group != open_group:
            lines.append(f"{indent}{group}:")
        open_group = group
        lines += _value_lines(key, planned, indent + ("  " if group else ""))
    return lines


def _value_lines(key: str, planned: Planned, indent: str) -> list[str]:
    if not isinstance(planned.value, dict) or not planned.value:
        return _commented(f"{indent}{key}: {_yaml(planned.value)}", planned.reason, indent)
    lines = _commented(f"{indent}{key}:", planned.reason, indent)
    for name, value in planned.value.items():
        lines += _commented(f"{indent}  {_yaml(name)}: {_yaml(value)}", planned.remarks.get(name, ""), f"{indent}  ")
    return lines


def _commented(line: str, text: str, indent: str) -> list[str]:
    """The line with its comment behind it, or above it where that is too long."""
    comment = _comment(text, indent)
    if not comment:
        return [line]
    behind = f"{line}  {comment[0].strip()}"
    return [behind] if len(comment) == 1 and len(behind) <= _LONGEST_LINE else [*comment, line]


def _comment(text: str, indent: str, hanging: str = "") -> list[str]:
    start = f"{indent}# "
    # Names of folders and of dataset.json may hold what ends a comment, or what YAML refuses.
    printable = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.wrap(
        printable, _LONGEST_LINE, initial_indent=start, subsequent_indent=start + hanging, break_long_words=False
    )


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...").strip()
