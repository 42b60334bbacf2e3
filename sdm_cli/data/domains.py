"""Which scanner, vendor or modality a case is of, when its folder does not tell: a table of the user's."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from sdm_cli.data.cases import Case, some
from sdm_cli.documents import read_text
from sdm_cli.errors import ImageReadError, reason_of


def assign_domains(cases: Sequence[Case], table: Path) -> list[Case]:
    """The cases with the domains (and patients) of a CSV with the columns `case,domain[,patient]`.

    Raises:
        ImageReadError: the table cannot be read, lacks a column or a case, or names one that is not there.
    """
    try:
        text = read_text(table, "utf-8-sig")
        first = text.partition("\n")[0]
        # Excel writes semicolons where the comma is the decimal sign.
        reader = csv.DictReader(io.StringIO(text), delimiter=";" if first.count(";") > first.count(",") else ",")
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise ImageReadError(
            f"{table} cannot be read as CSV ({reason_of(error)}): write it as case,domain lines."
        ) from None
    if not {"case", "domain"} <= set(columns):
        raise ImageReadError(f"{table} has the columns {some(columns)}: the first line must be case,domain.")
    row_of = {row["case"]: row for row in rows}
    if len(row_of) < len(rows):
        twice = next(row["case"] for row in rows if row_of[row["case"]] is not row)
        raise ImageReadError(f"{table} names case {twice} twice: keep one line.")
    ids = {case.case_id for case in cases}
    if lacking := sorted(ids - row_of.keys()):
        raise ImageReadError(f"{table} has no line of {some(lacking)}: add the domain of each case.")
    if unknown := sorted(row_of.keys() - ids):
        raise ImageReadError(f"{table} names {some(unknown)}, which the folder does not hold: correct the ids.")
    return [
        dataclasses.replace(
            case,
            domain=(row_of[case.case_id]["domain"] or "").strip() or None,
            patient=(row_of[case.case_id].get("patient") or "").strip() or case.patient,
        )
        for case in cases
    ]
