"""A split drawn at random: which patients give labels, which validate, which test.

Draws once from a seed, on names alone: the same cases give the same split, whatever order they come in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdm_cli.data.manifest import StoredCase
from sdm_cli.data.splits import ROLES, Split, may_be_unlabeled, may_give_labels, require_domains
from sdm_cli.data_config import DataConfig, domain_among
from sdm_cli.errors import SplitError


@dataclass(frozen=True)
class Draw:
    """How many patients each role gets: a share (float, of those that could) or a number (int).

    Where the store knows no patients, each case is one of its own.

    Attributes:
        labeled: of those with labels that are left for training; none: all.
        validation: of those with labels.
        test: of those with labels.
        seed: of the draw.
        stratify: draw from each domain by its size.
    """

    labeled: int | float | None = None
    validation: int | float = 0
    test: int | float = 0
    seed: int = 0
    stratify: bool = True


@dataclass(frozen=True)
class _Patient:
    name: str
    domains: frozenset[str | None]
    case_ids: tuple[str, ...]
    labeled_ids: tuple[str, ...]


def read_amount(text: str, option: str) -> int | float:
    """A number of patients (`5`) or a share of them (`0.1`; `1.0` is all).

    Raises:
        SplitError: neither.
    """
    try:
        amount = float(text) if "." in text else int(text)
    except ValueError:
        amount = -1
    if amount < 0 or (isinstance(amount, float) and not 0 < amount <= 1):
        raise SplitError(f"{option} {text}: write a number (5) or a share above 0 and up to 1.0 (0.1).")
    return amount


def draw_split(cases: Mapping[str, StoredCase], data: DataConfig, draw: Draw) -> Split:
    """Draw a split of all cases; one that no role may have is in none.

    The rules of `data` on domains hold. Cases of an unseen domain are the test cases; where `unlabeled_domains` names
    a target, validation and test cases are of it. A patient with scans of several domains has the roles that all of
    them may have; of one with scans of an unseen domain, only these are in a role. Where labels are read or scored,
    scans of the patient that have none are in no role.

    Raises:
        SplitError: more patients are wanted than there are, `draw.test` where unseen domains are the test cases, or
            rules on domains where no domain is known.
    """
    require_domains(data, cases)
    patients = _patients(cases)
    is_unseen = {case_id: domain_among(case.domain, data.unseen_domains) for case_id, case in cases.items()}
    unseen = _patients({case_id: case for case_id, case in cases.items() if is_unseen[case_id]})
    if unseen and draw.test:
        raise SplitError(
            f"The test cases are those of the unseen domain {' and '.join(data.unseen_domains)}: leave --test out."
        )
    order = np.random.default_rng(draw.seed).permutation(len(patients))
    gone = {patient.name for patient in unseen}
    left = [patients[index] for index in order if patients[index].name not in gone]
    taken = {"test": [patient for patient in unseen if patient.labeled_ids]}
    # Shares of validation and test are of all that could be either, whichever is drawn first.
    n_could = len(_could_be("test", left, data))
    for role, amount in (("test", draw.test), ("validation", draw.validation), ("labeled", draw.labeled)):
        could = _could_be(role, left, data)
        if not could and amount != 0 and any(_is_torn(role, patient, data) for patient in left):
            raise SplitError(
                f"No patient with labels may be {role}: each has scans of several domains, one of which these cases "
                "may not be of, and all scans of a patient play one role: add patients of one domain alone, or list "
                "single scans with --from."
            )
        chosen = _choose(role, could, _number(amount, len(could) if role == "labeled" else n_could), draw.stratify)
        taken[role] = taken.get(role, []) + chosen
        gone = {patient.name for patient in chosen}
        left = [patient for patient in left if patient.name not in gone]
    taken["unlabeled"] = [patient for patient in left if _is_allowed("unlabeled", patient, data)]
    ids = {role: [case_id for patient in taken[role] for case_id in patient.labeled_ids] for role in ROLES}
    ids["unlabeled"] = [case_id for patient in taken["unlabeled"] for case_id in patient.case_ids]
    return Split(**{role: tuple(sorted(ids[role])) for role in ROLES})


def _patients(cases: Mapping[str, StoredCase]) -> list[_Patient]:
    """Patients by name."""
    of_patient: dict[str, list[StoredCase]] = {}
    for case_id in sorted(cases):
        of_patient.setdefault(cases[case_id].patient or case_id, []).append(cases[case_id])
    return [
        _Patient(
            name,
            frozenset(case.domain for case in own),
            tuple(case.case_id for case in own),
            tuple(case.case_id for case in own if case.labeled),
        )
        for name, own in sorted(of_patient.items())
    ]


def _could_be(role: str, patients: Sequence[_Patient], data: DataConfig) -> list[_Patient]:
    return [patient for patient in patients if patient.labeled_ids and _is_allowed(role, patient, data)]


def _is_allowed(role: str, patient: _Patient, data: DataConfig) -> bool:
    if role == "labeled":
        return all(may_give_labels(data, domain) for domain in patient.domains)
    return all(may_be_unlabeled(data, domain) for domain in patient.domains)


def _is_torn(role: str, patient: _Patient, data: DataConfig) -> bool:
    """Whether a patient with labels could have a role, were it not for other scans of the same patient."""
    allowed = may_give_labels if role == "labeled" else may_be_unlabeled
    return len(patient.labeled_ids) > 0 and len({allowed(data, domain) for domain in patient.domains}) == 2


def _number(amount: int | float | None, n_could: int) -> int:
    """How many of `n_could`; a share is at least one."""
    if amount is None:
        return n_could
    return amount if isinstance(amount, int) else max(1, round(amount * n_could))


def _choose(role: str, could: Sequence[_Patient], number: int, stratify: bool) -> list[_Patient]:
    """The first `number`, of each domain as many as its size asks for."""
    if number > len(could):
        raise SplitError(
            f"{number} {role} patients (or cases) are wanted, but {len(could) or 'none'} with labels are left for it: "
            f"{'lower' if could else 'give scans labels, or leave out'} --{role}."
        )
    if not stratify:
        return list(could[:number])
    domains = sorted({_stratum(patient) for patient in could})
    members = {domain: [patient for patient in could if _stratum(patient) == domain] for domain in domains}
    exact = {domain: number * len(members[domain]) / max(1, len(could)) for domain in domains}
    quota = {domain: math.floor(exact[domain]) for domain in domains}
    by_remainder = sorted(domains, key=lambda domain: (quota[domain] - exact[domain], domain))
    for domain in by_remainder[: number - sum(quota.values())]:
        quota[domain] += 1
    return [patient for domain in domains for patient in members[domain][: quota[domain]]]


def _stratum(patient: _Patient) -> str:
    return "+".join(sorted(domain or "" for domain in patient.domains))
