"""The command line: thin callers of the library, one file for each command.

Exit 0: done. 1: the proof failed. 2: bad input or usage, explained in one line on stderr.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fold import __version__
from fold.cli.bench import bench
from fold.cli.compare import compare
from fold.cli.fold import FoldCommand, fold
from fold.cli.inspect import inspect
from fold.cli.limited import is_limited, run_in_child
from fold.cli.options import INTERRUPTED, NO_MEMORY, complain
from fold.cli.predict import predict
from fold.cli.recalibrate import recalibrate
from fold.cli.serve import check_environment, serve
from fold.cli.verify import verify
from fold.errors import BnfoldError, first_line, is_out_of_memory, short
from fold.runtime import start_tuned, stop_spinning

# The base class of Typer's usage errors: click's in older versions, Typer's own copy of click in newer ones.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="bnfold",
    help="Fold trained BatchNorm into the weights around it, prove that the model computes the same, and serve it.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # its tables say <bool> of every flag, and break help into narrow columns
    pretty_exceptions_enable=False,
)
COMMANDS: dict[Callable[..., None], str] = {
    fold: "Fold a trained network, prove it, and publish it.",
    inspect: "Show each BatchNorm, and where it would be folded.",
    verify: "Prove a published model again on this machine.",
    compare: "Compare two models of any tool, and show where they part.",
    bench: "Measure the latency of a model, unfolded and folded.",
    recalibrate: "Recompute BatchNorm's statistics over a data set.",
    predict: "Predict every row of a data set with a published model.",
    serve: "Serve every model of a repository.",
}
"""The first sentence of a command's help is longer than a line of the list of commands."""
for command, short_help in COMMANDS.items():
    app.command(cls=FoldCommand if command is fold else None, short_help=short_help)(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"bnfold {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `bnfold` itself, and what holds for all commands. Its help is that of `app`."""
    check_environment()


def _line(error: Exception) -> str | None:
    """What to say of an exception that is not `BnfoldError` but no error of ours either; None for all others."""
    if is_out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "onnxruntime":
        return "onnxruntime is not installed; install bnfold[cpu], or bnfold[gpu] for an NVIDIA GPU"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{short(str(error.filename))}: {error.strerror}; check the path"
    return None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    if arguments is None:
        stop_spinning()
        if sys.argv[1:2] == ["serve"]:
            start_tuned()
        elif is_limited():
            code = run_in_child()
            if code is not None:
                sys.exit(code)
    words = sys.argv[1:] if arguments is None else arguments
    warnings.simplefilter("ignore")  # they come from libraries, and a user cannot act on them
    for library in ("onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        code = app(args=words or ["--help"], prog_name="bnfold", standalone_mode=False)
    except BnfoldError as error:
        code = complain(NO_MEMORY if is_out_of_memory(error) else str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "bnfold"
        message = error.format_message()
        code = complain(f"{message if message.endswith(('.', '?')) else f'{message}.'} See {command} --help.")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Python would print an error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        line = _line(error)
        if line is None and is_limited():  # libraries that get no memory raise errors of many kinds
            line = f"{NO_MEMORY} ({type(error).__name__}: {first_line(error)})"
        if line is None:
            raise  # an error of ours, whose traceback is needed
        code = complain(line)
    sys.exit(code)
