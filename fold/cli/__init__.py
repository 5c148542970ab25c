"""The command line: thin callers of the library, one file for each command.

Exit 0: done. 1: the proof failed. 2: bad input or usage, explained in one line on stderr.
"""

import logging
import os
import sys
import warnings
from typing import Any

import typer

from fold.cli.bench import bench
from fold.cli.fold import fold
from fold.cli.inspect import inspect
from fold.cli.options import INTERRUPTED, complain
from fold.cli.recalibrate import recalibrate
from fold.cli.serve import serve
from fold.cli.verify import verify
from fold.errors import BnfoldError, is_out_of_memory, short
from fold.runtime import start_with_huge_pages

# The base class of Typer's usage errors: click's in older versions, Typer's own copy of click in newer ones.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="bnfold",
    help="Fold trained BatchNorm into the weights around it, prove that the model computes the same, and serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (fold, inspect, verify, bench, recalibrate, serve):
    app.command()(command)


NO_MEMORY = "too little memory; give the process more (ulimit -v), or take a smaller model, fewer --samples or rows"


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
    if arguments is None and sys.argv[1:2] == ["serve"]:
        start_with_huge_pages()
    warnings.simplefilter("ignore")  # they come from libraries, and a user cannot act on them
    for library in ("onnx_ir", "onnxscript"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        code = app(args=arguments, prog_name="bnfold", standalone_mode=False)
    except BnfoldError as error:
        code = complain(NO_MEMORY if is_out_of_memory(error) else str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "bnfold"
        code = complain(f"{error.format_message()} See {command} --help.")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Python would print an error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        line = _line(error)
        if line is None:
            raise  # an error of ours, whose traceback is needed
        code = complain(line)
    sys.exit(code)
