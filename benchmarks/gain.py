"""What unlabeled scans buy, over pairs of trainings: each RUN beside its labeled-only TWIN of as many minutes.

A pair is two folders of `sdm evaluate --split unlabeled`, with `summary.json`; pairs may differ in seed and in the
labeled cases. Prints the gain in Dice of each pair, and the mean over pairs with two intervals: of the cases (drawn
with replacement, each with all its pairs), and of cases and trainings (pairs drawn as well).
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdm_cli.errors import SdmError
from sdm_cli.runs.comparison import read_comparable
from sdm_cli.runs.gain import CONFIDENCE, RESAMPLES, metric_of_cases


def pair(text: str) -> tuple[Path, Path]:
    """The two folders of RUN:TWIN."""
    folders = [Path(folder) for folder in text.split(":")]
    if len(folders) != 2:
        raise argparse.ArgumentTypeError(f"{text}: give RUN:TWIN, two folders of sdm evaluate")
    return folders[0], folders[1]


def gains_of(run: Path, twin: Path) -> dict[str, float]:
    """Gain of each case that both scored, in points of Dice, mean over its classes.

    Raises:
        SdmError: they cannot be compared.
    """
    *sides, case_ids = read_comparable((run, twin))
    ours, theirs = (metric_of_cases(side, case_ids, "Dice") for side in sides)
    return dict(zip(case_ids, 100 * np.nanmean(ours - theirs, axis=1), strict=True))


def interval(table: NDArray[np.float64], draw_pairs: bool) -> tuple[float, float]:
    """Percentile bootstrap of the mean of the pairs' means; of few pairs it is rather too narrow.

    Args:
        table: (pairs, cases), NaN where a pair lacks a case.
        draw_pairs: draw the pairs too.
    """
    random = np.random.default_rng(0)
    n_pairs, n_cases = table.shape
    means = []
    for _ in range(RESAMPLES):
        pairs = random.integers(0, n_pairs, n_pairs) if draw_pairs else np.arange(n_pairs)
        drawn = table[np.ix_(pairs, random.integers(0, n_cases, n_cases))]
        means.append(np.nanmean(np.nanmean(drawn, axis=1)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(means, (tail, 100 - tail))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=pair, metavar="RUN:TWIN", help="two folders of sdm evaluate")
    parser.add_argument("--but", metavar="CASE", help="leave out this case")
    wanted = parser.parse_args()
    try:
        gains = [gains_of(*folders) for folders in wanted.pairs]
    except SdmError as error:
        parser.error(str(error))
    cases = sorted({case_id for one in gains for case_id in one})
    if wanted.but is not None:
        if wanted.but not in cases:
            parser.error(f"--but {wanted.but}: no pair has this case")
        cases.remove(wanted.but)
    table = np.array([[one.get(case_id, np.nan) for case_id in cases] for one in gains])
    if np.isnan(table).all(axis=1).any():
        parser.error("a pair has no case in common")
    for (run, twin), row in zip(wanted.pairs, table, strict=True):
        better, n_cases = (row > 0).sum(), (~np.isnan(row)).sum()
        print(f"{run} beside {twin}: {np.nanmean(row):+.1f}, better in {better} of {n_cases} cases")
    print(f"mean of {len(gains)} pairs: {np.nanmean(table, axis=1).mean():+.1f}")
    kinds = {"cases": False, "cases and trainings": True} if len(gains) > 1 else {"cases": False}
    for drawn, draw_pairs in kinds.items():
        low, high = interval(table, draw_pairs)
        print(f"  {CONFIDENCE:.0%} of the bootstrap over {drawn}: {low:+.1f} to {high:+.1f}")


if __name__ == "__main__":
    main()
