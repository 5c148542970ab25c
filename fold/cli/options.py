"""What the commands share: their common options, and how they print.

Tables and progress go to stderr. `--json` prints one object on stdout, so that a program can always read stdout.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fold.errors import BnfoldError, printable, short
from fold.terminal import escape

PROOF_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
NO_MEMORY = "too little memory; give the process more (ulimit -v), or take a smaller model, fewer --samples or rows"
LONGEST_WORD = 1000
"""Characters of a word in an error message, which may be a name from a file."""

console = Console(stderr=True, emoji=False)

DEVICES = "auto|cpu|cuda[:N]"
Device = Annotated[
    str, typer.Option(metavar=DEVICES, help="Where ONNX Runtime computes; auto uses a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
All = Annotated[bool, typer.Option("--all", help="Print a row for each BatchNorm and each output.")]
Samples = Annotated[int, typer.Option(min=1, max=4096, help="How many random inputs the proof uses.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")]
ModelDir = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="REPOSITORY/NAME/VERSION, or REPOSITORY/NAME for its latest version; also s3://, gs:// or https://.",
    ),
]
SourceFile = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A state_dict (.pt, .pth, .ckpt, .bin, .safetensors, also sharded), .pt2, .onnx, or their directory.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE|FILE.py:CALLABLE",
        help="Factory for the architecture of a state_dict; transformers or timm: the class that config.json names.",
    ),
]
ArchArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="An argument for the factory: JSON, text, or module:name for a Python object. May be repeated.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="Shape of an input without the batch: 3,224,224; 3,H,W with free sizes; or name:3,224,224:float32.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Fix the batch at N rows, for a network whose code does not take others."),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The key in the file that has the weights, such as ema.state_dict."),
]
Overridable = Annotated[
    bool,
    typer.Option(
        "--overridable", help="Callers override inputs of an .onnx that have stored values, so these are no constants."
    ),
]
Ema = Annotated[bool, typer.Option("--ema", help="Use the averaged weights (EMA, SWA) of the file.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Open a file that can run code of its author: a pickled module, TorchScript, a .pt2."),
]


def complain(message: str, code: int = BAD_INPUT) -> int:
    """Print one line on stderr and return the exit code."""
    text = " ".join(word if len(word) <= LONGEST_WORD else short(word) for word in message.split())
    sys.stderr.write(f"bnfold: {printable(text)}\n")
    return code


def print_changes(source: Path | str, changes: Sequence[str], arch: str | None, arch_file: Path | None) -> None:
    """What was decided while SOURCE was read, a line each, and which file `--arch` was found in."""
    if arch_file is not None:
        folder = Path.cwd()
        shown = arch_file.relative_to(folder) if arch_file.is_relative_to(folder) else arch_file
        changes = [f"--arch {arch} was found in {shown}", *changes]
    for change in changes:
        console.print(f"{escape(str(source))}: {escape(change)}", soft_wrap=True, highlight=False)


def print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def refuse_missing(source: Path | str) -> None:
    """Raise `BnfoldError` if SOURCE is a path and not there, before libraries that take seconds are imported."""
    from fold.remote import is_url  # noqa: PLC0415  # it loads numpy

    if not is_url(source) and not Path(source).exists():
        what = "a checkpoint, a .pt2 or an .onnx on this machine"
        raise BnfoldError(f"{source}: no such file or directory; expected {what}")
