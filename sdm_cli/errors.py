"""The errors a person can remedy, and the exit codes of the program.

Every message is one sentence that names the file (or key) and what to do about it. They are
raised anywhere, printed in one place (`sdm_cli.cli`), and never carry a traceback to the user.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process answers its caller."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DATA_CHECK_FAILED = 3
    SOME_CASES_FAILED = 4
    INTERRUPTED = 130


def reason_of(error: Exception) -> str:
    """Why a library or the system refused, as one line; of an error of the system without its number and path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


class SdmError(Exception):
    """A problem that the user can remedy; the message says how."""

    exit_code = ExitCode.ERROR


class PresetError(SdmError):
    """A preset or `--set` value is unknown, mistyped or contradictory."""


class SplitError(SdmError):
    """A split names unknown cases, uses a case twice, or leaves a role empty."""


class ImageReadError(SdmError):
    """An image or a label cannot be read, or does not fit what the preset says of it."""


class StoreError(SdmError):
    """A slice store is missing, unfinished, damaged, or of another version."""


class CheckpointError(SdmError):
    """A model cannot be read, or does not fit the data."""


class NewerVersion(CheckpointError):
    """A model was written by a newer program: it is whole, and this one cannot read it."""


class OutputError(SdmError):
    """An output exists already, or cannot be written."""


class PeerFailed(SdmError):
    """Another process of the run failed and says why; this one ends without a word."""

    def __init__(self, exit_code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__()
        self.exit_code = exit_code


class SomeCasesFailed(SdmError):
    """Part of the cases failed; the others are done and written."""

    exit_code = ExitCode.SOME_CASES_FAILED


class DataCheckFailed(SdmError):
    """Something in a data set blocks training; the report says what."""

    exit_code = ExitCode.DATA_CHECK_FAILED
