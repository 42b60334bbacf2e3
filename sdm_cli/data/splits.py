"""Which case plays which role: labeled, unlabeled, validation, test.

Reads split files and checks them against the cases of a store. Knows names only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdm_cli import resources
from sdm_cli.console import warn_once
from sdm_cli.data.cases import counted
from sdm_cli.data.manifest import StoredCase
from sdm_cli.data_config import DataConfig, domain_among
from sdm_cli.documents import parse_yaml, read_text
from sdm_cli.errors import SplitError, reason_of

ROLES = ("labeled", "unlabeled", "validation", "test")
_RULES = ("labeled_domains", "unlabeled_domains", "unseen_domains")


@dataclass(frozen=True)
class Split:
    """Case ids by role; no case has two roles.

    Attributes:
        labeled: trained on with their labels.
        unlabeled: trained on without labels, whether or not any exist.
        validation: may choose a checkpoint.
        test: reported only.
    """

    labeled: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def load_split(name_or_path: str) -> Split:
    """Read a shipped split (by name) or a YAML file (by path).

    The keys are `source` (text), `labeled`, `unlabeled`, `validation` and `test` (lists of ids).

    Raises:
        SplitError: no such split, an unknown key, an id that is no text, a case in two roles.
    """
    origin, text = _split_text(name_or_path)
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise SplitError(f"{origin}: not valid YAML ({reason_of(error)}).") from None
    if not isinstance(tree, dict):
        raise SplitError(f"{origin}: a split is a mapping of the keys {', '.join(ROLES)}.")
    for role in ROLES:
        if tree.get(role) == []:
            raise SplitError(f"{origin}: {role} is an empty list: give it cases, or leave the role out.")
    return split_from_dict(tree, origin)


def split_from_dict(tree: Mapping[Any, Any], origin: str) -> Split:
    """The split that the lists of a file make; raises SplitError as `load_split`, but not for an empty list."""
    unknown = [str(key) for key in tree if key not in (*ROLES, "source")]
    if unknown:
        raise SplitError(f"{origin}: unknown key {', '.join(unknown)}; the keys are source, {', '.join(ROLES)}.")
    split = Split(**{role: _case_ids(tree.get(role), f"{origin}: {role}") for role in ROLES})
    check_roles(split, origin)
    return split


def resolve_split(data: DataConfig, cases: Mapping[str, StoredCase], allow_missing: bool) -> Split:
    """The split of a preset, checked against the cases of a store.

    Args:
        data: `data.split` names the split; without one, cases with a label are the labeled ones and all others the
            unlabeled ones, as far as the rules on domains let them. Those rules hold for a split, too.
        cases: of the store.
        allow_missing: go on without listed cases, and domains of rules, that the store does not hold, naming them.

    Raises:
        SplitError: a listed case is missing, a labeled case has no label, there is no labeled or no unlabeled case,
            a patient has two roles, a case is of a domain that its role must not touch, or a rule names a domain that
            no case is of.
    """
    if data.split is None:
        split, origin = _split_by_label(data, cases), "the store"
    else:
        origin = f"split {data.split}"
        split = _without_missing(expand_patients(load_split(data.split), cases), cases, allow_missing, origin)
    _check_rules(data, cases, allow_missing)
    check_split(split, data, cases, origin)
    return split


def check_split(split: Split, data: DataConfig, cases: Mapping[str, StoredCase], origin: str) -> None:
    """Check that training may use a split: labels, both sides, patients and domains.

    Args:
        split: of cases that are all there.
        data: rules on domains.
        cases: of the store.
        origin: where the split comes from, for the message.

    Raises:
        SplitError: as `resolve_split`.
    """
    check_roles(split, origin)  # again, since a patient of the list may stand for a case of it
    bare = [case_id for case_id in split.labeled if not cases[case_id].labeled]
    if bare:
        raise SplitError(
            f"{origin} calls {_names(bare)} labeled, but there is no label in the store: add the label files "
            "and preprocess again, or list them as unlabeled."
        )
    if not split.labeled:
        raise SplitError(
            f"{origin} has no labeled case: give at least one scan a label file (sdm preprocess --labels FOLDER)."
        )
    if not split.unlabeled:
        raise SplitError(
            f"{origin} has no unlabeled case: add scans without a label, or a split file (data.split) that "
            "lists some cases as unlabeled."
        )
    _check_patients(split, cases, origin)
    _check_domains(split, data, cases, origin)


def check_roles(split: Split, origin: str) -> None:
    """Raise SplitError if a case has two roles, or one role twice."""
    role_of: dict[str, str] = {}
    for role in ROLES:
        for case_id in getattr(split, role):
            if case_id in role_of:
                where = f"both {role_of[case_id]} and {role}" if role_of[case_id] != role else f"twice in {role}"
                raise SplitError(f"{origin}: case {case_id} is {where}; a case has one role.")
            role_of[case_id] = role


def expand_patients(split: Split, cases: Mapping[str, StoredCase]) -> Split:
    """The split with each id that is a patient replaced by the cases of that patient."""
    of_patient: dict[str, list[str]] = {}
    for case_id, case in cases.items():
        if case.patient is not None:
            of_patient.setdefault(case.patient, []).append(case_id)

    def expanded(ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(case_id for id_ in ids for case_id in ([id_] if id_ in cases else of_patient.get(id_, [id_])))

    return Split(**{role: expanded(getattr(split, role)) for role in ROLES})


def may_give_labels(data: DataConfig, domain: str | None) -> bool:
    """Whether training may read labels of a domain."""
    is_of_source = not data.labeled_domains or domain_among(domain, data.labeled_domains)
    return bool(is_of_source) and not domain_among(domain, data.unseen_domains)


def may_be_unlabeled(data: DataConfig, domain: str | None) -> bool:
    """Whether training may take scans of a domain without their labels."""
    is_of_target = not data.unlabeled_domains or domain_among(domain, data.unlabeled_domains)
    return bool(is_of_target) and not domain_among(domain, data.unseen_domains)


def require_domains(data: DataConfig, cases: Mapping[str, StoredCase]) -> None:
    """Raise SplitError if there are rules on domains and no case is of a known one."""
    if cases and any(getattr(data, rule) for rule in _RULES) and all(case.domain is None for case in cases.values()):
        raise _unknown_domain(next(iter(cases)), "the store")


def unmet_rules(data: DataConfig, cases: Mapping[str, StoredCase]) -> str:
    """Domains that a rule names and no case is of, as a phrase; empty where there are none, or no domain is known."""
    known = sorted({case.domain for case in cases.values() if case.domain is not None})
    names = {rule: [name for name in getattr(data, rule) if not domain_among(name, known)] for rule in _RULES}
    if not known or not any(names.values()):
        return ""
    unmet = " and ".join(f"data.{rule} names {', '.join(those)}" for rule, those in names.items() if those)
    return f"{unmet}, but the cases of the store are of domain {', '.join(known)}"


def _split_text(name_or_path: str) -> tuple[str, str]:
    if name_or_path.endswith((".yaml", ".yml")):
        try:
            return name_or_path, read_text(Path(name_or_path))
        except (OSError, ValueError) as error:
            raise SplitError(f"{name_or_path}: cannot be read as a split ({reason_of(error)}).") from None
    names = resources.split_names()
    if name_or_path not in names:
        raise SplitError(
            f"There is no split {name_or_path!r}; the shipped ones are {', '.join(names)}, and a file of your own "
            "is given by its path (.yaml)."
        )
    return f"split {name_or_path}", resources.split_text(name_or_path)


def _case_ids(value: Any, origin: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise SplitError(f"{origin} must be a list of case ids.")
    for case_id in value:
        if not isinstance(case_id, str):
            # YAML reads a bare 0021 as the number 17.
            raise SplitError(f"{origin}: YAML reads a case id as {case_id!r}; put the ids in quotes.")
    return tuple(value)


def _split_by_label(data: DataConfig, cases: Mapping[str, StoredCase]) -> Split:
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    for case_id, case in cases.items():
        if domain_among(case.domain, data.unseen_domains):
            roles["test"].append(case_id)
        elif case.labeled and may_give_labels(data, case.domain):
            roles["labeled"].append(case_id)
        elif may_be_unlabeled(data, case.domain):
            roles["unlabeled"].append(case_id)
    return Split(**{role: tuple(case_ids) for role, case_ids in roles.items()})


def _check_rules(data: DataConfig, cases: Mapping[str, StoredCase], allow_missing: bool) -> None:
    """Raise SplitError if a rule names a domain that no case is of, or there are rules and no domain is known.

    Where that is a slip of the pen, an unseen domain would be trained on and a source would give no label, without a
    word; where it is the part of a download that is not there, only the user can say so.
    """
    require_domains(data, cases)
    if unmet := unmet_rules(data, cases):
        if not allow_missing:
            raise SplitError(
                f"{unmet}: correct the name, or, if scans of it are yet to come, go on without them with "
                "--allow-missing."
            )
        warn_once(f"going on although {unmet}")


def _check_patients(split: Split, cases: Mapping[str, StoredCase], origin: str) -> None:
    role_of: dict[str, str] = {}
    for role in ROLES:
        for case_id in getattr(split, role):
            patient = cases[case_id].patient
            if patient is not None and role_of.setdefault(patient, role) != role:
                raise SplitError(
                    f"{origin}: patient {patient} is both {role_of[patient]} and {role} ({case_id}): give all cases "
                    "of a patient one role, as sdm split does."
                )


def _check_domains(split: Split, data: DataConfig, cases: Mapping[str, StoredCase], origin: str) -> None:
    """No label and no scan of training is of a domain that it must not touch."""
    allowed = {"labeled": data.labeled_domains, "unlabeled": data.unlabeled_domains}
    for role, domains in allowed.items():
        for case_id in getattr(split, role):
            domain = cases[case_id].domain
            if domain is None and (domains or data.unseen_domains):
                raise _unknown_domain(case_id, origin)
            is_unseen = domain_among(domain, data.unseen_domains) is not None
            if is_unseen or (domains and not domain_among(domain, domains)):
                rule = f"may be {' or '.join(domains)}" if domains else f"may not be {' or '.join(data.unseen_domains)}"
                raise SplitError(
                    f"{origin}: {role} case {case_id} is of domain {domain}, but {role} cases {rule}: move it to "
                    f"another role, or change data.{'unseen' if is_unseen else role}_domains."
                )


def _unknown_domain(case_id: str, origin: str) -> SplitError:
    return SplitError(
        f"{origin}: the domain of {case_id} is not known, and the preset has rules on domains: preprocess with "
        "--domains FILE.csv."
    )


def _without_missing(split: Split, known: Iterable[str], allow_missing: bool, origin: str) -> Split:
    present = set(known)
    missing = [case_id for role in ROLES for case_id in getattr(split, role) if case_id not in present]
    if not missing:
        return split
    if not allow_missing:
        raise SplitError(
            f"{origin} lists {counted(len(missing), 'case')} that the store does not hold ({_names(missing)}): "
            "preprocess them, or go on without them with --allow-missing."
        )
    left_out = counted(len(missing), "listed case")
    warn_once(f"{origin}: going on without {left_out} that the store does not hold: {_names(missing)}")
    kept = {role: tuple(case_id for case_id in getattr(split, role) if case_id in present) for role in ROLES}
    return Split(**kept)


def _names(case_ids: Iterable[str]) -> str:
    """Twenty of them: M&Ms alone has 640."""
    names = list(case_ids)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
