"""`sdm split`: a split file drawn from the cases of a store, or made of the lists of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdm_cli.console import say, warn
from sdm_cli.data.cases import counted, some
from sdm_cli.data.split_draw import Draw, draw_split
from sdm_cli.data.split_files import format_split, import_ids, patient_of, read_list, read_nnunet_splits
from sdm_cli.data.splits import ROLES, Split, check_roles, check_split, expand_patients, may_be_unlabeled, unmet_rules
from sdm_cli.data.store import SliceStore
from sdm_cli.errors import OutputError, SplitError
from sdm_cli.files import write_text


@dataclass(frozen=True)
class Lists:
    """Files of others to import.

    Attributes:
        files: `ROLE=FILE` for lists of one entry a line, `FILE.json` for nnU-Net's splits.
        fold: of nnU-Net's splits.
    """

    files: Sequence[str]
    fold: int = 0


def split(output: Path, store: Path | None, draw: Draw, lists: Lists | None = None, overwrite: bool = False) -> Path:
    """Write a split file, and return its path.

    Args:
        output: YAML file to write.
        store: of the cases; needed to draw, and to check the ids of lists.
        draw: how many patients each role gets, at random.
        lists: import these instead. Then `draw.labeled`, if given, keeps so many of the labeled ones and makes the
            others unlabeled.
        overwrite: replace a file that exists.

    Raises:
        OutputError: the output exists, or cannot be written.
        SplitError: an unknown id, an empty role, a case or a patient in two roles, a list that cannot be read.
        StoreError: no finished store.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise SplitError(f"{output}: the name of a split file ends in .yaml.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or replace it with --overwrite.")
    slices = SliceStore(store) if store is not None else None
    if slices is not None and (unmet := unmet_rules(slices.data, slices.cases)):
        warn(f"{unmet}: sdm train refuses that without --allow-missing")
    if lists is not None:
        made, source = _import(lists, slices), f"sdm split: imported {', '.join(lists.files)}"
        if any(file.endswith(".json") for file in lists.files):
            source += f", fold {lists.fold}"
        if draw.labeled is not None:
            made, source = _relabel(made, slices, draw), f"{source}; of the labeled, {_how(draw, slices)}"
    elif slices is not None:
        made, source = draw_split(slices.cases, slices.data, draw), f"sdm split of {store}: {_how(draw, slices)}"
    else:
        raise SplitError("Nothing to split: give a store with --store, or lists with --from.")
    _check(made, slices, str(output), _remedies(slices, draw, is_import=lists is not None))
    write_text(output, format_split(made, source))
    say(_summary(made, slices))
    return output


def _summary(made: Split, slices: SliceStore | None) -> str:
    """Cases of each role, and how many of the store have none."""
    cases = slices.cases if slices is not None else {}
    numbers = [len(getattr(expand_patients(made, cases), role)) for role in ROLES]
    summary = ", ".join(f"{role} {number}" for role, number in zip(ROLES, numbers, strict=True))
    left = len(cases) - sum(numbers)
    return f"{summary}; {counted(left, 'case')} of the store in no role" if left > 0 else summary


def _how(draw: Draw, slices: SliceStore | None) -> str:
    """The draw as a phrase, enough to repeat it."""
    parts = [f"labeled {'all' if draw.labeled is None else draw.labeled}"]
    parts += [f"{role} {amount}" for role, amount in (("validation", draw.validation), ("test", draw.test)) if amount]
    cases = slices.cases.values() if slices is not None else ()
    parts.append(f"seed {draw.seed}")
    if draw.stratify and any(case.domain for case in cases):
        parts.append("stratified by domain")
    if any(case.patient for case in cases):
        parts.append("grouped by patient")
    return ", ".join(parts)


def _import(lists: Lists, slices: SliceStore | None) -> Split:
    cases = slices.cases if slices is not None else None
    ids: dict[str, list[str]] = {role: [] for role in ROLES}
    for text in lists.files:
        for role, entries in _entries(text, lists.fold).items():
            found = import_ids(entries, cases)
            if found.unknown and slices is not None:
                raise SplitError(
                    f"{text}: the store {slices.path} does not hold {some(list(found.unknown))} ({role}): preprocess "
                    "these cases, or take them out of the list."
                )
            if found.n_collapsed:
                left = f"{len(found.ids)} ids are left" if len(found.ids) != 1 else "1 id is left"
                warn(
                    f"{text}: {found.n_collapsed} of {len(entries)} {role} entries are slices or frames, collapsed to "
                    f"cases; {left}"
                )
            ids[role] += found.ids
    made = Split(**{role: tuple(ids[role]) for role in ROLES})
    if slices is not None and not made.unlabeled:
        made = Split(made.labeled, _scans_without_label(made, slices), made.validation, made.test)
    return made


def _entries(text: str, fold: int) -> dict[str, list[str]]:
    """The entries of a file by role."""
    role, _, file = text.partition("=")
    if text.endswith(".json") and role not in ROLES:
        return read_nnunet_splits(Path(text), fold)
    if file.endswith(".json"):
        raise SplitError(f"--from {text}: nnU-Net's splits name the roles themselves: leave {role}= out.")
    if role not in ROLES or not file:
        raise SplitError(
            f"--from {text}: write it as ROLE=FILE, where ROLE is {', '.join(ROLES[:-1])} or {ROLES[-1]}, or give a "
            "splits_final.json of nnU-Net."
        )
    return {role: read_list(Path(file))}


def _scans_without_label(made: Split, slices: SliceStore) -> tuple[str, ...]:
    """Scans of the store that no list names, have no label, and may be trained on."""
    listed = expand_patients(made, slices.cases)
    taken = {case_id for role in ROLES for case_id in getattr(listed, role)}
    patients = {slices.cases[case_id].patient for case_id in taken}
    return tuple(
        case_id
        for case_id, case in slices.cases.items()
        if not case.labeled
        and case_id not in taken
        and (case.patient is None or case.patient not in patients)
        and may_be_unlabeled(slices.data, case.domain)
    )


def _relabel(made: Split, slices: SliceStore | None, draw: Draw) -> Split:
    """The split with as many labeled cases as `draw` says, the others of them unlabeled."""
    if slices is None:
        raise SplitError("--labeled with --from draws from a list: give the --store of its cases.")
    labeled = expand_patients(made, slices.cases).labeled
    drawn = draw_split(
        {case_id: slices.cases[case_id] for case_id in labeled},
        slices.data,
        Draw(labeled=draw.labeled, seed=draw.seed, stratify=draw.stratify),
    )
    return Split(drawn.labeled, drawn.unlabeled + made.unlabeled, made.validation, made.test)


def _remedies(slices: SliceStore | None, draw: Draw, *, is_import: bool) -> dict[str, str]:
    """What to do where a role would be empty."""
    if slices is None:
        lacking = "add --from unlabeled=FILE, or give the store of the cases with --store"
    elif is_import and draw.labeled is None:
        lacking = (
            "keep the labels of N of the listed cases alone with --labeled N, which makes the others unlabeled, or add "
            "--from unlabeled=FILE"
        )
    else:
        lacking = "give --labeled a smaller number, add --from unlabeled=FILE, or add scans without a label"
    return {"labeled": "add --from labeled=FILE, or label files to the store", "unlabeled": lacking}


def _check(made: Split, slices: SliceStore | None, origin: str, remedies: Mapping[str, str]) -> None:
    """As `resolve_split` will, as far as it can be known; the remedies are those of this verb."""
    check_roles(made, origin)
    for role, remedy in remedies.items():
        if not getattr(made, role):
            raise SplitError(f"{origin}: the role {role} would be empty: {remedy}.")
    if slices is not None:
        expanded = expand_patients(made, slices.cases)
        check_roles(expanded, origin)
        check_split(expanded, slices.data, slices.cases, origin)
        return
    role_of: dict[str, str] = {}
    for role in ROLES:
        for case_id in getattr(made, role):
            patient = patient_of(case_id)
            if role_of.setdefault(patient, role) != role:
                raise SplitError(
                    f"{origin}: patient {patient} is both {role_of[patient]} and {role} ({case_id}): give all cases of "
                    "a patient one role."
                )
