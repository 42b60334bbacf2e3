"""What the index of a store shows to be wrong with its data set, without a look into any scan."""

from collections.abc import Iterable, Mapping

from sdm_cli.data.cases import some
from sdm_cli.data.doubts import swapped_sides
from sdm_cli.data.findings import sides
from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.pixels import odd_pixels
from sdm_cli.data_config import IGNORE, DataConfig


def suspects(cases: Mapping[str, StoredCase], data: DataConfig) -> list[str]:
    """Empty labels, swapped sides, pixels of broken headers, and scans that are stored twice, as phrases.

    Args:
        cases: case id -> what is stored.
        data: the settings of today, whose names tell left from right.
    """
    found = []
    without = {case_id: IGNORE in case.centres_x_mm for case_id, case in cases.items() if case.is_empty}
    if empty := [case_id for case_id, has_ignored in without.items() if not has_ignored]:
        found.append(f"{some(empty)} {'have empty labels' if len(empty) > 1 else 'has an empty label'}")
    if ignored := [case_id for case_id, has_ignored in without.items() if has_ignored]:
        what = f"nothing but {data.ignore_value}, which is left out of losses and scores, is labeled"
        found.append(f"{what} in {some(ignored)}")
    pairs = sides({name: index for index, name in enumerate(data.classes, start=1)})
    swapped: dict[str, list[str]] = {}
    for case_id, case in cases.items():
        if names := swapped_sides(case.centres_x_mm, pairs):
            swapped.setdefault(some(names), []).append(case_id)
    found += [f"left and right look swapped ({names}) in {some(those)}" for names, those in sorted(swapped.items())]
    case_ids = list(cases)
    if odd := [case_ids[i] for i in odd_pixels([case.spacing_mm[1:] for case in cases.values()])]:
        found.append(f"pixels of {some(odd)} are of a size that no scanner makes")
    same: dict[str, list[StoredCase]] = {}
    for case in cases.values():
        if case.image_digest:
            same.setdefault(case.image_digest, []).append(case)
    twice = [group for group in same.values() if len(group) > 1]
    if leaks := list(_named(group for group in twice if len({case.labeled for case in group}) > 1)):
        found.append(f"one scan is both labeled and unlabeled ({some(leaks)})")
    alike = [group for group in twice if len({case.labeled for case in group}) == 1]
    if torn := list(_named(group for group in alike if len({case.digest for case in group}) > 1)):
        found.append(f"one scan has different labels ({some(torn)})")
    if copies := list(_named(group for group in alike if len({case.digest for case in group}) == 1)):
        found.append(f"one scan is stored twice ({some(copies)})")
    return found


def _named(groups: Iterable[list[StoredCase]]) -> Iterable[str]:
    return (" = ".join(case.case_id for case in group) for group in groups)
