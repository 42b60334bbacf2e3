"""The table of M&Ms: which frames of a subject are annotated, and whose scanner it was.

Released as csv and, before, as Excel's old .xls.
"""

import csv
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from sdm_cli.documents import read_text
from sdm_cli.errors import ImageReadError, reason_of

_COLUMNS = ("external code", "vendor", "ed", "es")
_PARENTS = 3  # OpenDataset/ seen from Training/Labeled/vendorA/

# What xlrd lets through in a damaged file, besides errors of its own.
_DAMAGES = (BadZipFile, struct.error, OSError, LookupError, ValueError, AssertionError)


@dataclass(frozen=True)
class Subject:
    """One row.

    Attributes:
        vendor: letter, in lower case; none where the table has none.
        ed: frame of end diastole, as written.
        es: frame of end systole, as written.
    """

    vendor: str | None
    ed: str
    es: str

    @property
    def frames(self) -> tuple[int, int] | None:
        """Both frames, counted from 0, in the order of time; none where these are not two different frames."""
        first, second = sorted(_frame(text) for text in (self.ed, self.es))
        return (first, second) if 0 <= first < second else None


def read_table(folder: Path) -> tuple[Path, dict[str, Subject]]:
    """The table in the folder, one level below it or in the folders above, and its rows by external code.

    Raises:
        ImageReadError: there is none, it is of a kind that cannot be read, or it names a subject twice.
    """
    problems = []
    for path in _candidates(folder):
        try:
            lines = _LINES[path.suffix.lower()](path)
        except ImageReadError as error:
            problems.append(error)  # perhaps of a table of something else
            continue
        if lines and (header := _header(lines[0])):
            return path, _subjects(path, header, lines[1:])
    if problems:
        raise problems[0]
    raise ImageReadError(
        f"{folder} holds scans of M&Ms, but no table with the columns External code, Vendor, ED and ES: put "
        "mnms_dataset_info.csv (or .xls) beside them, or set data.layout: folders if they are other scans."
    )


def _candidates(folder: Path) -> Iterator[Path]:
    """Tables from near to far, in each folder csv first."""
    near = folder.resolve()
    below = sorted(path for path in near.iterdir() if path.is_dir())
    for place in (near, *below, *near.parents[:_PARENTS]):
        for suffix in _LINES:
            yield from (path for path in sorted(place.glob("*.*")) if _is_table(path, suffix))


def _is_table(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and path.is_file() and not path.name.startswith((".", "~$"))


def _header(line: Sequence[str]) -> list[str]:
    """Names of the columns; none where this is another table."""
    names = [text.strip().lower() for text in line]
    return names if set(_COLUMNS) <= set(names) else []


def _subjects(path: Path, header: Sequence[str], lines: Sequence[Sequence[str]]) -> dict[str, Subject]:
    code, vendor, ed, es = (header.index(name) for name in _COLUMNS)
    subjects: dict[str, Subject] = {}
    for line in lines:
        cells = [text.strip() for text in [*line, *[""] * len(header)]]
        if not cells[code]:
            continue
        if cells[code] in subjects:
            raise ImageReadError(f"{path} names subject {cells[code]} twice: keep one row.")
        subjects[cells[code]] = Subject(cells[vendor].lower() or None, cells[ed], cells[es])
    return subjects


def _csv_lines(path: Path) -> list[list[str]]:
    try:
        text = read_text(path, "utf-8-sig", errors="replace")
        first = text.partition("\n")[0]
        # Excel writes semicolons where the comma is the decimal sign.
        delimiter = ";" if first.count(";") > first.count(",") else ","
        header = next(csv.reader([first], delimiter=delimiter), [])
        return list(csv.reader(io.StringIO(text), delimiter=delimiter)) if _header(header) else []
    except (OSError, ValueError, csv.Error) as error:
        raise ImageReadError(f"{path} cannot be read as CSV ({reason_of(error)}): save it again as CSV.") from None


def _xls_lines(path: Path) -> list[list[str]]:
    """Rows of the first sheet."""
    try:
        import xlrd
    except ImportError:
        raise ImageReadError(
            f"{path} needs xlrd to be read: pip install 'sdm-cli[xls]', or save the table as .csv beside it."
        ) from None
    try:
        sheet = xlrd.open_workbook(str(path), logfile=io.StringIO()).sheet_by_index(0)
    except (xlrd.XLRDError, xlrd.compdoc.CompDocError, *_DAMAGES) as error:
        raise ImageReadError(
            f"{path} cannot be read as .xls ({reason_of(error)}): save the table as .csv beside it."
        ) from None
    return [[str(value) for value in sheet.row_values(row)] for row in range(sheet.nrows)]


def _xlsx_lines(path: Path) -> list[list[str]]:
    raise ImageReadError(f"{path} is an Excel file of a kind that is not read here: save it as .csv beside it.")


_LINES: dict[str, Callable[[Path], list[list[str]]]] = {".csv": _csv_lines, ".xls": _xls_lines, ".xlsx": _xlsx_lines}


def _frame(text: str) -> int:
    """The frame that a cell names; -1 for an empty one, NaN, and anything but a whole number."""
    try:
        number = float(text)
    except ValueError:
        return -1
    return int(number) if number.is_integer() else -1
