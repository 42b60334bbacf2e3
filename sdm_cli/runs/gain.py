"""What one training is worth beside another: differences on the same cases with interval and test; spread over seeds.

Owns these statistics and no file. Reads summaries as `summary` makes them; knows no mask, model or store.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 0

BOOTSTRAP = {
    "method": "percentile bootstrap: cases are drawn with replacement, each with all its classes and both its scores",
    "resamples": RESAMPLES,
    "confidence": CONFIDENCE,
    "seed": _SEED,
}
"""How intervals come about, as it stands beside them."""

FEWEST_DIFFERENCES = 6
"""Of the signed-rank test: with fewer that are not zero no p is below 0.05."""

WILCOXON = (
    f"two-sided signed-rank test of the cases' differences; zeros are left out, and ties share their mean rank; absent "
    f"with fewer than {FEWEST_DIFFERENCES} differences that are not zero; scipy's: exact where it can be, else by the "
    "normal approximation"
)
"""How p comes about, as it stands beside it."""

_DECIMALS = 12  # of differences that are ranked: what differs by rounding alone is a tie

CaseScores = NDArray[np.float64]
"""One score (N, K - 1) of cases and foreground classes; NaN where a case has no score of a class."""


def paired_gain(trained: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dice of one training beside that of its reference, paired over the cases that both scored.

    Args:
        trained: summaries of one training, one a seed.
        reference: those of the other, of the same seeds and cases.

    Returns:
        As JSON types, 0 to 1: `mean` and, by class name, `per_class`, each with `dice`, `reference`, `gain` and its
        interval `low` to `high`, and `n_cases`; `per_case`; `per_seed`. With several seeds, a case's Dice is its mean
        over them before cases are drawn, so the interval is of cases and not of seeds.

        A class counts in a case where both sides have a score, so gain = dice - reference; `mean` is over the classes.

    Absent: None where no case has a score of both; the interval also where only one has.
    """
    classes = list(trained[0]["classes"].values())
    case_ids = common_cases([*trained, *reference])
    ours, theirs = (
        np.stack([metric_of_cases(summary, case_ids, "Dice") for summary in side]) for side in (trained, reference)
    )
    undefined = np.isnan(ours) | np.isnan(theirs)  # (S, N, K - 1)
    ours[undefined], theirs[undefined] = np.nan, np.nan
    case_gains = _mean_defined(ours - theirs, 0)
    intervals = bootstrap(case_gains)
    columns = (*(_class_means(_mean_defined(side, 0)) for side in (ours, theirs)), _class_means(case_gains))
    n_cases = (*(~np.isnan(case_gains)).sum(0), (~np.isnan(case_gains)).any(1).sum())
    entries = [
        {"dice": dice, "reference": other, "gain": gain, "low": low, "high": high, "n_cases": int(n)}
        for dice, other, gain, (low, high), n in zip(
            *(_plain(column) for column in columns), intervals, n_cases, strict=True
        )
    ]
    per_seed = [_plain(_class_means(table)) for table in ours - theirs]
    return {
        "mean": entries[-1],
        "per_class": dict(zip(classes, entries, strict=False)),
        "per_seed": [{"mean": gains[-1], "per_class": dict(zip(classes, gains, strict=False))} for gains in per_seed],
        "per_case": [
            {"case_id": case_id, "mean": mean, "per_class": dict(zip(classes, _plain(row), strict=True))}
            for case_id, mean, row in zip(case_ids, _plain(_mean_defined(case_gains, 1)), case_gains, strict=True)
        ],
    }


def bootstrap(differences: CaseScores) -> list[tuple[float | None, float | None]]:
    """Intervals of the mean over cases of each class, and last of the mean of these means.

    Args:
        differences: (N, K - 1), NaN where a case has none.

    Returns:
        K pairs (low, high), the same for the same numbers.

    Absent: (None, None) for a class of fewer than two cases: one case has no spread.
    """
    n_cases = len(differences)
    drawn = np.random.default_rng(_SEED).integers(0, n_cases, (RESAMPLES, n_cases))
    # (RESAMPLES, N): how often each resample holds each case, so that its sums are a matrix product
    times = np.zeros((RESAMPLES, n_cases))
    np.add.at(times, (np.arange(RESAMPLES)[:, None], drawn), 1)
    is_defined = ~np.isnan(differences)
    counts = times @ is_defined.astype(np.float64)
    sums = times @ np.where(is_defined, differences, 0.0)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    means = np.column_stack([means, _mean_defined(means, 1)])
    n_defined = (*is_defined.sum(0), is_defined.any(1).sum())
    tail = 50 * (1 - CONFIDENCE)
    intervals: list[tuple[float | None, float | None]] = []
    for column, n in zip(means.T, n_defined, strict=True):
        if n < 2:
            intervals.append((None, None))
        else:
            low, high = np.percentile(column[~np.isnan(column)], (tail, 100 - tail))
            intervals.append((float(low), float(high)))
    return intervals


def paired_difference(ours: CaseScores, theirs: CaseScores) -> list[dict[str, Any]]:
    """One score of two evaluations, paired over their cases.

    Args:
        ours: of the first.
        theirs: of the second, of the same cases and classes.

    Returns:
        K entries, of each class and last of all: `first`, `second`, `difference` (first minus second) and its interval
        `low` to `high`, `p` of the signed-rank test, `p_holm` of the classes, and `n_cases`. A class counts in a case
        where both have a score. The last entry is of the mean over classes, its p that of the cases' own means over
        their classes.

    Absent: None for what fewer cases do not give: the interval of one case, p as WILCOXON says.
    """
    undefined = np.isnan(ours) | np.isnan(theirs)
    ours, theirs = (np.where(undefined, np.nan, side) for side in (ours, theirs))
    differences = ours - theirs
    columns = [*differences.T, _mean_defined(differences, 1)]
    p = [signed_rank(column) for column in columns]
    corrected = [*holm(p[:-1]), None]
    means = zip(*(_plain(_class_means(table)) for table in (ours, theirs, differences)), strict=True)
    return [
        {
            **dict(zip(("first", "second", "difference"), figures, strict=True)),
            **{"low": low, "high": high, "p": p[index], "p_holm": corrected[index]},
            "n_cases": int((~np.isnan(columns[index])).sum()),
        }
        for index, (figures, (low, high)) in enumerate(zip(means, bootstrap(differences), strict=True))
    ]


def signed_rank(differences: NDArray[np.float64]) -> float | None:
    """Wilcoxon's p of differences (N,), NaN left out. Absent: None with fewer than six that are not zero."""
    from scipy import stats  # half a second that a training without comparison need not wait

    rounded = np.round(differences[~np.isnan(differences)], _DECIMALS)
    different = rounded[rounded != 0]
    return float(stats.wilcoxon(different).pvalue) if len(different) >= FEWEST_DIFFERENCES else None


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P values of several tests, corrected by Holm's steps; None where there is none, which is not counted."""
    tested = sorted((value, index) for index, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        corrected[index] = highest
    return corrected


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of one figure over seeds, with the figure of each.

    Absent: a seed without the figure is in neither; the deviation of fewer than two is None.
    """
    defined = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "per_seed": list(values),
    }


def common_cases(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the cases that all summaries scored, in the order of the first."""
    scored = [[case["case_id"] for case in summary["metric_per_case"]] for summary in summaries]
    return [case_id for case_id in scored[0] if all(case_id in others for others in scored[1:])]


def metric_of_cases(summary: Mapping[str, Any], case_ids: Sequence[str], metric: str) -> CaseScores:
    """One metric of some cases of a summary, in their order."""
    metrics = {case["case_id"]: case["metrics"] for case in summary["metric_per_case"]}
    rows = [[metrics[case_id][label][metric] for label in summary["classes"]] for case_id in case_ids]
    return np.array(rows, dtype=np.float64).reshape(len(case_ids), len(summary["classes"]))  # None becomes NaN


def _mean_defined(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """As numpy's nanmean, without its warning: NaN where nothing is defined."""
    counts = (~np.isnan(values)).sum(axis)
    sums = np.nansum(values, axis)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def _class_means(scores: CaseScores) -> NDArray[np.float64]:
    """Mean over cases of each class, and last the mean of these means."""
    means = _mean_defined(scores, 0)
    return np.append(means, _mean_defined(means, 0))


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
