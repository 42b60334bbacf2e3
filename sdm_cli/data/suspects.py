"""What the index of a store shows to be wrong with its data set, without a look into any scan."""

from collections.abc import Iterable, Mapping

from sdm_cli.data.cases import some
from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.pixels import is_plausible


def suspects(cases: Mapping[str, StoredCase]) -> list[str]:
    """Empty and doubtful labels, pixels of broken headers, and scans that are stored twice, as phrases."""
    found = []
    if empty := [case_id for case_id, case in cases.items() if case.is_empty and not case.doubt]:
        found.append(f"{some(empty)} {'have empty labels' if len(empty) > 1 else 'has an empty label'}")
    for doubt in sorted({case.doubt for case in cases.values()} - {""}):
        found.append(f"{doubt} in {some([case_id for case_id, case in cases.items() if case.doubt == doubt])}")
    odd = [case_id for case_id, case in cases.items() if not is_plausible(case.spacing_mm[1:])]
    if odd and len(odd) < len(cases):
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
