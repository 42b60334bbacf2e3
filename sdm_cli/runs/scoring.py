"""Pairs of masks to scores, several cases at a time.

Owns what a worker process does with a case, and that results stand in the cases' order whatever their number.
Imports no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from sdm_cli.console import progress, warn
from sdm_cli.data.cases import counted
from sdm_cli.data_config import DataConfig
from sdm_cli.errors import ImageReadError
from sdm_cli.runs.mask_pairs import Pair, PairFiles, read_pair
from sdm_cli.runs.metrics import Measure, score_case
from sdm_cli.runs.summary import ScoredCase
from sdm_cli.runs.workers import as_made

Item = TypeVar("Item")


class Failed(NamedTuple):
    """A case without scores."""

    case_id: str
    reason: str


def score_pair(pair: Pair | Failed, n_classes: int, measure: Measure) -> ScoredCase | Failed:
    """Score two masks; what failed before is passed on."""
    if isinstance(pair, Failed):
        return pair
    scores = score_case(pair.prediction, pair.reference, n_classes, pair.spacing_mm, measure)
    return ScoredCase(pair.case_id, scores, pair.domain, pair.files)


def score_files(files: PairFiles, data: DataConfig, resample: bool, measure: Measure) -> ScoredCase | Failed:
    """Read two masks and score them."""
    try:
        pair = read_pair(files, data, resample)
    except ImageReadError as error:
        return Failed(files.case_id, str(error))
    return score_pair(pair, data.n_classes, measure)


def score_all(
    case_ids: Sequence[str], work: Callable[[Item], ScoredCase | Failed], items: Iterable[Item], workers: int
) -> tuple[list[ScoredCase], dict[str, str]]:
    """Score cases in several processes, with a progress bar and a warning of each that fails or was resampled.

    Args:
        case_ids: of the items, in their order.
        work: `score_pair` or `score_files` with their other arguments.
        items: one a case; at most workers + 1 are held.
        workers: processes.

    Returns:
        The scored cases and, by case id, why others failed; both in the order of the cases.

    Raises:
        OutputError: a worker was killed.
    """
    scored: dict[str, ScoredCase] = {}
    failed: dict[str, str] = {}
    with progress(f"scoring {counted(len(case_ids), 'case')}", len(case_ids)) as bar:
        for result in as_made(work, items, min(workers, len(case_ids))):
            if isinstance(result, Failed):
                warn(f"{result.case_id}: {result.reason}")
                failed[result.case_id] = result.reason
            else:
                if result.files and result.files.get("resampled"):
                    warn(f"{result.case_id}: the mask was on another grid and is resampled to that of its label")
                scored[result.case_id] = result
            bar.advance()
    return [scored[name] for name in case_ids if name in scored], {n: failed[n] for n in case_ids if n in failed}
