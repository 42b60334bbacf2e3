"""What unlabeled scans buy, over pairs of trainings: each RUN beside its labeled-only TWIN of as many minutes.

A pair is two folders of `sdm evaluate --split unlabeled`, with `summary.json`; pairs may differ in seed and in the
labeled cases. Prints the gain in Dice of each pair, and the mean over pairs with two intervals: of the cases (drawn
with replacement, each with all its pairs), and of cases and trainings (pairs drawn as well).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdm_cli.runs.gain import CONFIDENCE, RESAMPLES, common_cases, metric_of_cases


def gains_of(run: Path, twin: Path) -> dict[str, float]:
    """Gain of each case that both scored, in points of Dice, mean over its classes."""
    sides = [json.loads((folder / "summary.json").read_text()) for folder in (run, twin)]
    case_ids = common_cases(sides)
    ours, theirs = (np.nanmean(metric_of_cases(side, case_ids, "Dice"), axis=1) for side in sides)
    return dict(zip(case_ids, 100 * (ours - theirs), strict=True))


def interval(table: NDArray[np.float64], draw_pairs: bool) -> tuple[float, float]:
    """Percentile bootstrap of the mean of the pairs' means; `table` is (pairs, cases), NaN where a pair has no case."""
    random = np.random.default_rng(0)
    n_pairs, n_cases = table.shape
    means = []
    for _ in range(RESAMPLES):
        pairs = random.integers(0, n_pairs, n_pairs) if draw_pairs else np.arange(n_pairs)
        drawn = table[np.ix_(pairs, random.integers(0, n_cases, n_cases))]
        means.append(np.nanmean(np.nanmean(drawn, axis=1)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, (tail, 100 - tail))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="RUN:TWIN", help="two folders of sdm evaluate")
    parser.add_argument("--but", default="", metavar="CASE", help="leave out this case")
    wanted = parser.parse_args()
    pairs = [gains_of(*map(Path, pair.split(":"))) for pair in wanted.pairs]
    cases = sorted({case_id for gains in pairs for case_id in gains} - {wanted.but})
    table = np.array([[gains.get(case_id, np.nan) for case_id in cases] for gains in pairs])
    for name, row in zip(wanted.pairs, table, strict=True):
        print(f"{name}: {np.nanmean(row):+.1f}, better in {(row > 0).sum()} of {(~np.isnan(row)).sum()} cases")
    print(f"mean of {len(pairs)} pairs: {np.nanmean(table, axis=1).mean():+.1f}")
    for of, draw_pairs in (("cases", False), ("cases and trainings", True))[: len(pairs)]:
        low, high = interval(table, draw_pairs)
        print(f"  {CONFIDENCE:.0%} of the bootstrap over {of}: {low:+.1f} to {high:+.1f}")


if __name__ == "__main__":
    main()
