"""What a study leaves for a person: `gain.json`, `.csv`; `seeds.json`; `ablation.json`, `.csv`, `.md`; and tables.

Owns the form of these. What a gain is stands in `gain`; Dice is 0 to 1 in JSON and CSV, percent in tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdm_cli.console import print_table, say
from sdm_cli.data.cases import counted
from sdm_cli.errors import SomeCasesFailed
from sdm_cli.files import write_csv, write_json, write_text
from sdm_cli.method.card import choice
from sdm_cli.runs.gain import BOOTSTRAP, CONFIDENCE, RESAMPLES, common_cases, over_seeds, paired_gain
from sdm_cli.runs.summary import protocol_remarks

GAIN = "gain.json"
"""What the unlabeled scans bought, in the folder of a study."""
Scores = dict[str, list[dict[str, Any]]]
"""By name of a variant: summaries of the same cases, one a seed."""

_LEAST_CASES = 6
"""For fewer a bootstrap has only a handful of values, and all of one sign by chance too often."""
_METRICS = ("Dice", "HD95")
_MEAN = "mean of the classes"
_CASES = {
    "test": "Cases that no step of a training saw.",
    "unlabeled": "Cases whose scans were among the unlabeled ones of the training (the labeled-only training saw "
    "neither); their labels were read for these scores alone.",
}
_RULES = {
    "gain": "Dice minus that of the labeled-only training, of the same case, class and seed; a class counts in a case "
    "where both have a score; the mean is over cases, then over classes",
    "reference": "Dice of the labeled-only training",
    "interval": "of the cases only: it does not hold the chance of a training, which several seeds show; of a handful "
    "of cases it is too narrow",
    "std": "over seeds, divided by n - 1",
    "HD95": "mm, mean over the cases that have it",
}
_ABLATION_NOTES = (
    "All but the first learn from pseudo-labels too (the unlabeled loss), so +L2U and +U2L hold more than their name. "
    "Without L2U nothing is pasted: the consistency loss is 0, and keeps its share of the weighted mean of the losses. "
    "Rows with U2L have it where the preset has it, or else at the default stage. "
    "HD95 is the mean over the cases that have one."
)


def write_gain(folder: Path, scores: Mapping[Any, Scores], seeds: Sequence[int], trained: str, reference: str) -> None:
    """Write `gain.json` and `gain.csv`, and print a table for each role; raises OutputError.

    Args:
        folder: of the study.
        scores: by role of the cases.
        seeds: of the summaries.
        trained: name of the variant whose gain it is.
        reference: name of the labeled-only one.
    """
    roles = {
        role: {**_facts(role, variants), **paired_gain(variants[trained], variants[reference])}
        for role, variants in scores.items()
    }
    for of_role in roles.values():
        of_role["per_seed"] = [{"seed": seed, **gain} for seed, gain in zip(seeds, of_role["per_seed"], strict=True)]
    rows = (
        (role, seed, *row)
        for role, variants in scores.items()
        for seed, ours, theirs in zip(seeds, variants[trained], variants[reference], strict=True)
        for row in _case_rows(ours, theirs)
    )
    write_csv(folder / "gain.csv", ("role", "seed", "case", "class", "dice", "dice_labeled_only", "gain"), rows)
    facts = {"seeds": list(seeds), "roles": roles, "bootstrap": BOOTSTRAP, "rules": _RULES}
    facts["weights_sha256"] = [summary["weights_sha256"] for summary in next(iter(scores.values()))[trained]]
    write_json(folder / GAIN, facts)
    for role, of_role in roles.items():
        table = gain_table(role, of_role, seeds)
        _show(table.title, table.headings, table.rows[:-1], table.rows[-1], table.remarks)
    say(f"Gain per class and case: {folder / GAIN}, {folder / 'gain.csv'}")


def write_seeds(folder: Path, scores: Mapping[Any, Scores], seeds: Sequence[int]) -> None:
    """Write `seeds.json`, and print mean and standard deviation for each role; raises OutputError."""
    roles = {role: {**_facts(role, variants), "variants": _spreads(variants)} for role, variants in scores.items()}
    write_json(folder / "seeds.json", {"seeds": list(seeds), "roles": roles, "rules": _RULES})
    for role, of_role in roles.items():
        variants = of_role["variants"]
        headings = [f"{metric}, {name}" for name in variants for metric in ("Dice %", "HD95 mm")]
        names = next(iter(variants.values()))["per_class"]
        lines = [
            (name, *(cell for of_variant in variants.values() for cell in _spread_cells(of_variant["per_class"][name])))
            for name in names
        ]
        last = (_MEAN, *(cell for of_variant in variants.values() for cell in _spread_cells(of_variant["mean"])))
        remarks = ["Mean +- standard deviation over the seeds (n - 1).", *of_role["remarks"]]
        _show(f"Seeds, {_title(role, of_role, seeds)}", headings, lines, last, remarks)
    say(f"Scores of each seed: {folder / 'seeds.json'}")


def write_ablation(folder: Path, scores: Mapping[Any, Scores], seeds: Sequence[int], reference: str) -> None:
    """Write `ablation.json`, `.csv` and `.md`, and print a table for each role; raises OutputError."""
    roles = {role: {**_facts(role, variants), "variants": _spreads(variants)} for role, variants in scores.items()}
    texts = []
    for role, of_role in roles.items():
        of_role["remarks"] += [_ABLATION_NOTES, *_interval_remarks(of_role["n_cases"], len(seeds))]
        for name, of_variant in of_role["variants"].items():
            if name != reference:
                gain = paired_gain(scores[role][name], scores[role][reference])
                of_variant["gain"] = {"mean": gain["mean"], "per_class": gain["per_class"]}
        headings = ("", "Dice %", "HD95 mm", "gain over labeled only [95 %]")
        lines = [
            (
                name,
                *_spread_cells(of_variant["mean"]),
                _gain_cell(of_variant["gain"]["mean"]) if name != reference else "",
            )
            for name, of_variant in of_role["variants"].items()
        ]
        title = f"Ablation, {_title(role, of_role, seeds)}"
        texts.append(_markdown(title, headings, lines, of_role["remarks"]))
        _show(title, headings[1:], lines, None, of_role["remarks"])
    write_csv(folder / "ablation.csv", _ABLATION_COLUMNS, _ablation_rows(roles))
    write_text(folder / "ablation.md", "\n".join(texts))
    facts = {"seeds": list(seeds), "roles": roles, "bootstrap": BOOTSTRAP, "rules": _RULES}
    write_json(folder / "ablation.json", facts)
    say(f"The table: {folder / 'ablation.md'}, also .csv and .json")


class GainTable(NamedTuple):
    """The gain per class of the cases of a role, for a terminal and for a page.

    Attributes:
        title: of the table.
        headings: of all columns but the first.
        rows: a class each, the last one their mean.
        remarks: sentences to stand below.
    """

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: list[str]


def gain_table(role: str, of_role: Mapping[str, Any], seeds: Sequence[int]) -> GainTable:
    """The table of one role of `gain.json`."""
    entries = [*of_role["per_class"].items(), (_MEAN, of_role["mean"])]
    return GainTable(
        f"Gain of the unlabeled scans, {_title(role, of_role, seeds)}",
        ("Dice %", "labeled only", "gain [95 %]", "cases"),
        [(*_gain_cells(name, entry), str(entry["n_cases"])) for name, entry in entries],
        [verdict(of_role["mean"]), *_interval_remarks(of_role["n_cases"], len(seeds)), *of_role["remarks"]],
    )


def verdict(mean: Mapping[str, Any]) -> str:
    """What may be said of the mean gain, in a sentence."""
    low, high, n_cases = mean["low"], mean["high"], mean["n_cases"]
    if low is None or high is None or n_cases < _LEAST_CASES:
        return f"{counted(n_cases, 'case')}: too few to tell whether the unlabeled scans helped."
    if low <= 0 <= high:
        return f"The interval holds 0: these {n_cases} cases show no gain."
    return f"The interval is {'above' if low > 0 else 'below'} 0: on these {n_cases} cases the unlabeled scans " + (
        "helped." if low > 0 else "did harm."
    )


def _interval_remarks(n_cases: int, n_seeds: int) -> list[str]:
    if n_cases < 2:
        return []
    many = (
        f"of each case's mean over {n_seeds} seeds" if n_seeds > 1 else "of one seed: another one may change the sign"
    )
    return [
        f"Interval: {100 * CONFIDENCE:.0f} %, percentile bootstrap over the cases, paired, "
        f"{RESAMPLES} resamples; {many}."
    ]


def _facts(role: str, variants: Scores) -> dict[str, Any]:
    """What stands beside the numbers of a role; SomeCasesFailed when no case was scored by all."""
    summaries = [summary for of_seed in variants.values() for summary in of_seed]
    cases = common_cases(summaries)
    if not cases:
        raise SomeCasesFailed(f"No {role} case was scored by all trainings: repair them as the warnings say.")
    first = summaries[0]
    facts = {key: first[key] for key in ("protocol", "split", "classes")}
    facts["split"] = {**facts["split"], "cases": cases}
    return {"n_cases": len(cases), **facts, "remarks": [_CASES[role], *protocol_remarks(first["protocol"])]}


def _title(role: str, facts: Mapping[str, Any], seeds: Sequence[int]) -> str:
    split, protocol = facts["split"], facts["protocol"]
    return (
        f"{protocol['preset']}: {facts['n_cases']} {role} cases of split {split['name']} ({split['hash']}), protocol "
        f"{protocol['name']}, {choice(protocol['checkpoint_chosen_on'])}, seed {', '.join(str(seed) for seed in seeds)}"
    )


def _spreads(variants: Scores) -> dict[str, Any]:
    """Mean and deviation over seeds of each variant, in the mean over classes and per class."""

    def spread(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {metric: over_seeds([entry[metric] for entry in entries]) for metric in _METRICS}

    return {
        name: {
            "mean": spread([summary["foreground_mean"] for summary in summaries]),
            "per_class": {
                class_name: spread([summary["mean"][label] for summary in summaries])
                for label, class_name in summaries[0]["classes"].items()
            },
        }
        for name, summaries in variants.items()
    }


def _case_rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    """A row for each class of each case that both scored; empty where one has no score."""
    other = {case["case_id"]: case["metrics"] for case in theirs["metric_per_case"]}
    for case in ours["metric_per_case"]:
        for label, name in ours["classes"].items() if case["case_id"] in other else ():
            dice, reference = case["metrics"][label]["Dice"], other[case["case_id"]][label]["Dice"]
            gain = None if dice is None or reference is None else dice - reference
            yield case["case_id"], name, dice, reference, gain


_ABLATION_COLUMNS = (
    *("role", "variant", "class", "dice", "dice_std", "hd95_mm", "hd95_mm_std", "n_seeds"),
    *("gain", "gain_low", "gain_high", "n_cases"),
)


def _ablation_rows(roles: Mapping[Any, Mapping[str, Any]]) -> Iterable[tuple[Any, ...]]:
    """A row for each class and one for their mean, whose class is empty."""
    for role, of_role in roles.items():
        for name, of_variant in of_role["variants"].items():
            gains = of_variant.get("gain", {"mean": {}, "per_class": {}})
            entries = [("", of_variant["mean"], gains["mean"])]
            entries += [(key, entry, gains["per_class"].get(key, {})) for key, entry in of_variant["per_class"].items()]
            for class_name, entry, gain in entries:
                figures = [entry[metric][key] for metric in _METRICS for key in ("mean", "std")]
                interval = [gain.get(key) for key in ("gain", "low", "high")]
                yield role, name, class_name, *figures, len(entry["Dice"]["per_seed"]), *interval, of_role["n_cases"]


def _gain_cells(name: str, entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return name, _number(entry["dice"], 100), _number(entry["reference"], 100), _gain_cell(entry)


def _gain_cell(entry: Mapping[str, Any]) -> str:
    gain, low, high = ("-" if entry[key] is None else f"{100 * entry[key]:+.2f}" for key in ("gain", "low", "high"))
    return gain if entry["low"] is None else f"{gain} [{low}, {high}]"


def _spread_cells(entry: Mapping[str, Any]) -> list[str]:
    """Dice in percent and HD95, each with its deviation where there are several seeds."""
    cells = []
    for metric, scale in zip(_METRICS, (100, 1), strict=True):
        deviation = entry[metric]["std"]
        spread = "" if deviation is None else f" +- {_number(deviation, scale)}"
        cells.append(_number(entry[metric]["mean"], scale) + spread)
    return cells


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{scale * value:.2f}"


def _show(
    title: str,
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    last: Sequence[str] | None,
    remarks: Sequence[str],
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", caption=Text(" ".join(remarks)), caption_justify="left")
    table.add_column("")
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    if last is not None:
        table.add_section()
        table.add_row(*(Text(cell) for cell in last), style="bold")
    print_table(table)


def _markdown(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], remarks: Sequence[str]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{title}.\n\n{table}\n\n{' '.join(remarks)}\n"
