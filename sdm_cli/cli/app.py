"""The program itself: its group of commands, its own options, and the one place where an error becomes a sentence."""

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sdm_cli import __version__
from sdm_cli.console import print_result, say, say_error
from sdm_cli.errors import ExitCode, PeerFailed, SdmError

_ORDER = ("check", "preprocess", "split", "train", "info", "evaluate", "predict", "export", "presets", "demo")


class _Program(TyperGroup):
    """The group of all commands; expected errors end here, as one sentence on stderr."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands in the order in which a person needs them."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, but an empty argument is wrong usage: as a path it would be the working folder."""
        if "" in args:
            ctx.fail("an argument is empty: check the variables of the command line.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output is gone (`| head`); typer ends quietly
        except (SdmError, OSError) as error:
            if ctx.params.get("verbose"):
                say("".join(traceback.format_exception(error)).rstrip())
            if not isinstance(error, PeerFailed):
                say_error(f"Error: {_sentence(error)}")
            raise typer.Exit(error.exit_code if isinstance(error, SdmError) else ExitCode.ERROR) from None


def _sentence(error: SdmError | OSError) -> str:
    """What went wrong, as one line; of an error of the system: which file, then why."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())


app = typer.Typer(
    cls=_Program,
    help="Segment medical scans from few labels and many scans (S&D Messenger).",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 data check failed, 4 some cases failed, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would take a quarter of the time
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(f"sdm {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="With an error, show where in the program it arose.")
    ] = False,
    version: Annotated[
        bool, typer.Option("-V", "--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """The options of the program itself; `_Program` reads `verbose`, `version` acts on its own."""
